"""Results that do not depend on one another: each is made, and what could not be made is said at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from carv3d.errors import UserError

log = logging.getLogger(__name__)


def make_each(results: Mapping[str, Callable[[], object]], remedy: str) -> None:
    """Make all results, whatever happens to the others.

    Args:
        results: functions by what they make, such as "turntable.mp4".
        remedy: the command that makes what is missing.

    Raises:
        UserError: some could not be made; names each with the reason. Reasons that are not the user's to mend are in
            the log with a traceback.
    """
    failed = []
    for name, make in results.items():
        try:
            make()
        except UserError as error:
            failed.append(f"{name}: {error}")
        except Exception as error:  # of any library: the other results must not be lost
            log.info("%s could not be made", name, exc_info=True)
            failed.append(f"{name}: {' '.join(str(error).split())[:200] or type(error).__name__}")
    if failed:
        rest = "the other results are made" if len(failed) < len(results) else "none of the results is made"
        raise UserError(f"{'; '.join(failed)}; {rest}, and the training is saved: mend this, then {remedy}")

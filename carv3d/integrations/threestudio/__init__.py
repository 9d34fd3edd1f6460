"""carv3d's estimator in threestudio: guidances that draw K (t, eps) for each render.

`carv3d threestudio PATH` puts a folder into a threestudio checkout that calls `register`. Then a config's
`system.guidance_type` can be

- `carv-guidance`: threestudio's own Stable Diffusion guidance with K draws a render;
- `carv-vsd-guidance`: the same for variational score distillation, in `prolificdreamer-system`;
- `carv-teacher-guidance` with `carv-prompt-processor`: any of carv3d's teachers.

The other modules of this package import threestudio, and are imported by `register` alone.
"""

from __future__ import annotations


def register() -> None:
    """Add the guidances to threestudio's registry.

    Raises:
        ImportError: threestudio is missing, or lacks something; the message names it.
    """
    from carv3d.integrations.threestudio.interface import check

    check()
    from carv3d.integrations.threestudio import stable_diffusion, teacher, vsd  # noqa: F401

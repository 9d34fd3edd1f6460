"""The cost of a step, and the paper's model of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from carv3d.system.clock import Clock


class CostMeter:
    """Times steps of several settings in turns, so that a slow moment of the machine affects all of them.

    Attributes:
        rounds: by setting, the parts' seconds of each round.
    """

    def __init__(self, clock: Clock) -> None:
        """`clock` is the clock that measures the parts of the steps."""
        self._clock = clock
        self.rounds: dict[tuple[int, int], list[dict[str, float]]] = {}

    def round(self, steps: Mapping[tuple[int, int], Callable[[], object]]) -> None:
        """Run each step once; the keys are (R, K). A step's whole time is the part "total"."""
        for setting, step in steps.items():
            self._clock.seconds = {}
            self._clock.running = True
            try:
                with self._clock("total"):
                    step()
            finally:
                self._clock.running = False
            self.rounds.setdefault(setting, []).append(self._clock.seconds)

    def parts(self, setting: tuple[int, int]) -> dict[str, float]:
        """Seconds of each part in the quickest round, and "overhead": the total less the parts.

        Other load makes a step slower and never faster, so that the minimum is nearest to the step's own time.
        """
        found = dict(min(self.rounds[setting], key=lambda row: row["total"]))
        counted = sum(seconds for part, seconds in found.items() if part != "total")
        return found | {"overhead": max(0.0, found["total"] - counted)}

    def total(self, setting: tuple[int, int]) -> float:
        """The least seconds of a step."""
        return self.parts(setting)["total"]

    def model(self) -> CostModel:
        """The model fitted to the measured totals."""
        settings = list(self.rounds)
        return CostModel.fit([(R, K, self.total((R, K))) for R, K in settings])


@dataclass(frozen=True)
class CostModel:
    """The paper's `cost(R, K) = R (c_up + K c_denoise)`: render, encode and backward once, the teacher K times.

    Attributes:
        c_up: seconds a render.
        c_denoise: seconds a resample.
    """

    c_up: float
    c_denoise: float

    @classmethod
    def fit(cls, measured: Sequence[tuple[int, int, float]]) -> CostModel:
        """Least squares of relative errors over (R, K, seconds), with at least two different K.

        Raises:
            ValueError: fewer than two different K.
        """
        R, K, seconds = (np.array(column, dtype=np.float64) for column in zip(*measured, strict=True))
        if len(set(K.tolist())) < 2:
            raise ValueError("the cost of a resample needs steps with at least two different K")
        (up, denoise), *_ = np.linalg.lstsq(np.stack([R, R * K], 1) / seconds[:, None], np.ones(len(R)), rcond=None)
        # The part is too fast to be timed; its estimate is noise of either sign.
        return cls(max(float(up), 1e-3 * float(denoise)), max(float(denoise), 1e-3 * float(up)))

    def __call__(self, renders: float, resamples: int) -> float:
        """Seconds of a step."""
        return renders * (self.c_up + resamples * self.c_denoise)

    @property
    def ratio(self) -> float:
        """c_up / c_denoise."""
        return self.c_up / self.c_denoise

    def with_ratio(self, ratio: float) -> CostModel:
        """The same teacher behind another upstream."""
        return CostModel(ratio * self.c_denoise, self.c_denoise)

"""The noise of a run's gradient, the cost of a step, and the most efficient (R, K) and method: `carv3d measure`."""

from carv3d.measurement.findings import NoiseReport, Row, Window, report
from carv3d.measurement.observation import Observation, observe

__all__ = ["NoiseReport", "Observation", "Row", "Window", "observe", "report"]

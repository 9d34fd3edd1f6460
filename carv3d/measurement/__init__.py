"""A run's gradient noise and step cost, and the (R, K) and method that pay most: `carv3d measure`."""

from carv3d.measurement.findings import NoiseReport, Row, Window, report
from carv3d.measurement.observation import Observation, observe

__all__ = ["NoiseReport", "Observation", "Row", "Window", "observe", "report"]

"""The places of a pipeline's weights: folders, single files, hubs. Nothing is loaded here."""

from carv3d.teachers.weights.finding import BUILTIN, Weights, find, licence_of, look, pipeline_of
from carv3d.teachers.weights.hub import Remote, configs_of
from carv3d.teachers.weights.single_file import SingleFile

__all__ = ["BUILTIN", "Remote", "SingleFile", "Weights", "configs_of", "find", "licence_of", "look", "pipeline_of"]

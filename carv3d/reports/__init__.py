"""Reports: plots, and HTML pages that are one file each."""

from carv3d.reports.page import Page, Section, Table
from carv3d.reports.plots import PALETTE, png, subplots, svg

__all__ = ["PALETTE", "Page", "Section", "Table", "png", "subplots", "svg"]

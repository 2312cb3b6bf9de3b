"""Figures and tables for the pages: still, moving, and the library's own source.

A picture is drawn wide and narrow, on a transparent ground in colours that carry on white and on
black, and shown as HTML with its alternative text, so JupyterLab and the built page show the same.
"""

from diffbook_lib.figures.frames import moving
from diffbook_lib.figures.measured import measured
from diffbook_lib.figures.picture import COLOURS, INK, STYLE, in_page, style
from diffbook_lib.figures.plots import band, image_grid, scatter, trajectories
from diffbook_lib.figures.samples import samples
from diffbook_lib.figures.source import show_source
from diffbook_lib.figures.stills import gallery, save, show
from diffbook_lib.figures.tables import spread_of, table

__all__ = [
    "COLOURS",
    "INK",
    "STYLE",
    "band",
    "gallery",
    "image_grid",
    "in_page",
    "measured",
    "moving",
    "samples",
    "save",
    "scatter",
    "show",
    "show_source",
    "spread_of",
    "style",
    "table",
    "trajectories",
]

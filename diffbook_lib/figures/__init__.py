"""Figures for the pages: still, moving, and the library's own source.

A picture is drawn once, on a transparent ground in mid-tone colours that carry on white and on
black, and shown as HTML with its alternative text, so JupyterLab and the built page show the same.
"""

from .frames import moving
from .picture import COLOURS, INK, STYLE, in_page, show, style
from .plots import image_grid, scatter, trajectories
from .samples import samples
from .source import show_source

__all__ = [
    "COLOURS",
    "INK",
    "STYLE",
    "image_grid",
    "in_page",
    "moving",
    "samples",
    "scatter",
    "show",
    "show_source",
    "style",
    "trajectories",
]

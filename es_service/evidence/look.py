"""How the pictures of reports look. Nothing here touches matplotlib's global state."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "INK", "MARKERS", "PALE", "WIDTH", "new_figure", "plain", "save"]

INK, GREY, PALE = "#222222", "#8a8a8a", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fbf", "#8c6d31")  # colour-blind safe
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "<", ">")
WIDTH = 9.0
_DPI = 150


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Leave nothing on the axes that is not needed."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=GREY)


def save(figure: Figure, path: Path) -> None:
    """Write a picture."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script the font lacks
        figure.savefig(path, dpi=_DPI, facecolor="white")

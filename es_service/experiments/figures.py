"""The style of the pictures in reports. Nothing here touches matplotlib's global state."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from pyarrow import fs

from es_service.storage import files

__all__ = [
    *("COLOURS", "GREY", "INK", "MARKERS", "PALE", "WIDTH", "Picture"),
    *("cost_axes", "full_line", "heat_map", "new_figure", "plain", "save", "write"),
]

INK, GREY, PALE = "#222222", "#8a8a8a", "#dddddd"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fbf", "#8c6d31")  # colour-blind safe
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "<", ">")
WIDTH = 9.0
_DPI = 150


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture of a report: its title, what to see in it, and the function that draws it, or None for nothing."""

    title: str
    caption: str
    draw: Callable[..., Figure | None]


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


def full_line(axes: Axes, points: Sequence[tuple[float, float, float, int]]) -> None:
    """Draw what full training reaches when it is stopped earlier: (cost, mean, deviation, epochs) of each length."""
    if not points:
        return
    costs, means, deviations, _ = zip(*sorted(points), strict=True)
    axes.errorbar(
        costs, means, deviations, fmt="-o", color=INK, capsize=3, markersize=5, elinewidth=1.2, zorder=3,
        label="full, and with fewer epochs",
    )  # fmt: skip
    for cost, mean, _, epochs in points:
        axes.annotate(
            f"{epochs} ep.", (cost, mean), (5, -12), textcoords="offset points", fontsize=8, color=INK, zorder=5
        )


def cost_axes(axes: Axes, metric: str) -> None:
    """Name the axes of a picture of accuracy against cost, and what is in it beside it."""
    axes.set_xlabel("cost: forward and backward passes as a share of full training's")
    axes.set_ylabel(metric)
    axes.margins(x=0.12, y=0.1)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)


def heat_map(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    words: NDArray[np.object_] | None,
    is_dark: Callable[[float], bool],
    size: tuple[float, float],
    **shown: Any,
) -> tuple[Figure, Axes, AxesImage]:
    """Draw a field for each row and column, with its word on it where there are words; `shown` goes to imshow."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", **shown)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), word in np.ndenumerate(np.empty((0, 0)) if words is None else words):
        if np.isfinite(values[row, column]):
            colour = "white" if is_dark(float(values[row, column])) else INK
            axes.text(column, row, str(word), ha="center", va="center", fontsize=8, color=colour)
    return figure, axes, image


def save(figure: Figure, path: Path) -> None:
    """Write a picture as PNG: a reader sees the old one or the new one."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script the font lacks
        figure.savefig(data, format="png", dpi=_DPI, facecolor="white")
    write(path, data.getvalue())


def write(path: Path, data: str | bytes) -> None:
    """Write a text or a picture of a report: a reader sees the old one or the new one."""
    data = data.encode() if isinstance(data, str) else data
    files.write_atomically(fs.LocalFileSystem(), str(path), data)

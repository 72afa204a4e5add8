"""The picture of `python -m benchmarks.service`: steps over Ray, and every figure against its target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.picture_style import INK, STYLE

__all__ = ["write"]

COLOURS = {"empty": "#6b6b6b", "sync": "#c1440e", "prefetch": "#d98e04", "leased": "#1b6ca8"}
REACHED, MISSED = "#1b6ca8", "#c1440e"


def write(path: Path, results: dict[str, Any]) -> None:
    """Draw the results of the benchmark into a PNG file."""
    figures = [one for one in results["figures"] if one["value"] is not None]
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(15.0, 1.8 + 0.38 * len(figures)), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=[1.0, 1.25])
        for row, pace in enumerate(("paced", "back to back")):
            calls(figure.add_subplot(grid[row, 0]), [one for one in results["calls"] if one["pace"] == pace], pace)
        targets(figure.add_subplot(grid[:, 1]), figures)
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def calls(axes: Axes, measured: list[dict[str, Any]], pace: str) -> None:
    """Median of a step by exchange and B, with a line up to its p99."""
    sizes = sorted({one["batch_size"] for one in measured})
    for place, (kind, colour) in enumerate(COLOURS.items()):
        for one in measured:
            if one["kind"] == kind:
                x = sizes.index(one["batch_size"]) + 0.19 * (place - 1.5)
                axes.plot([x, x], [one["p50_ms"], one["p99_ms"]], color=colour, linewidth=1.4, alpha=0.5)
                axes.plot(x, one["p50_ms"], "o", markersize=7, color=colour)
        axes.plot([], [], "o", markersize=7, color=colour, label="empty call" if kind == "empty" else kind)
    lowest, highest = min(one["p50_ms"] for one in measured), max(one["p99_ms"] for one in measured)
    axes.set(
        yscale="log",
        ylim=(lowest / 1.6, highest * 1.3),
        title="A step over Ray, " + ("20 a second" if pace == "paced" else pace),
        ylabel="ms: median, line to p99",
    )
    axes.set_xticks(range(len(sizes)), [f"B = {size:,}" for size in sizes])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    if pace == "paced":
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.08), ncols=4, handletextpad=0.1)


def targets(axes: Axes, figures: list[dict[str, Any]]) -> None:
    """Each figure as a multiple of what it may be; left of the line it is reached."""
    rows = range(len(figures))
    for row, one in zip(rows, figures, strict=True):
        used = one["value"] / one["target"] if one["at_most"] else one["target"] / max(one["value"], 1e-9)
        used = min(max(used, 0.05), 20.0)
        colour = REACHED if one["reached"] else MISSED
        axes.plot([1.0, used], [row, row], color=colour, linewidth=1.4, alpha=0.5)
        axes.plot(used, row, "o", markersize=7, color=colour)
        bound = "≤" if one["at_most"] else "≥"
        unit = "×" if one["unit"] == "x" else f" {one['unit']}"
        axes.annotate(
            f"{one['value']:.3g}{unit} ({bound} {one['target']:g})",
            (1.0, row),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(8, 0),
            va="center",
            fontsize=9,
            color=INK if one["reached"] else MISSED,
        )
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle="--")
    axes.set(
        xscale="log",
        xlim=(0.045, 22.0),
        title="Against the targets",
        xlabel="share of the target used; left of the line it is reached",
    )
    axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
    axes.minorticks_off()
    axes.set_yticks(rows, [f"{one['name']}\n{one['note']}" if one["note"] else one["name"] for one in figures])
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    axes.set_ylim(len(figures) - 0.4, -0.7)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)

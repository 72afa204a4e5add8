"""The picture of `python -m benchmarks.draws`: three panels, from its figures alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.picture_style import INK, STYLE

__all__ = ["write"]

COLOURS = {
    "race": "#c1440e",
    "priority": "#d98e04",
    "systematic": "#1b6ca8",
    "pivotal": "#0b3c5d",
    "conditional_poisson": "#5fa8d3",
    "replacement": "#5b8c3a",
    "topk": "#6b6b6b",
}
LABELS = {name: name.replace("_", "\n") for name in COLOURS}


def write(path: Path, figures: dict[str, Any]) -> None:
    """Draw the figures of the benchmark into a PNG file."""
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(13.5, 4.6), width_ratios=[1.15, 1.0, 0.9], layout="constrained"
        )
        batches = {batch["name"]: batch for batch in figures["batches"]}
        inclusions(left, batches["exponential"])
        variances(middle, batches)
        times(right, figures["us_per_draw"])
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def inclusions(axes: Axes, batch: dict[str, Any]) -> None:
    """Probability of being taken at all, against the target; a point is a candidate."""
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", zorder=1)
    for name in ("topk", "pivotal", "priority", "race", "replacement"):
        axes.plot(
            batch["target"],
            batch["draws"][name]["inclusion"],
            linestyle="none",
            marker="x" if name == "topk" else "o",
            markersize=3.5 if name == "topk" else 3,
            alpha=0.7,
            color=COLOURS[name],
            label=LABELS[name],
        )
    axes.set(
        xlabel="target: min(1, b·w/Σw), iterated",
        ylabel="share of the draws that took it",
        title=f"Who is taken ({batch['name']}, {batch['num']} of {batch['size']})",
        xlim=(-0.02, 1.03),
        ylim=(-0.02, 1.03),
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.98), handletextpad=0.2, markerscale=1.6)


def variances(axes: Axes, batches: dict[str, Any]) -> None:
    """Variance of the unbiased estimate over that of a uniform draw of as many; standard errors are within the dots."""
    names = [name for name in COLOURS if name != "topk"]
    for batch_name, face in (("exponential", None), ("lognormal", "white")):
        for row, name in enumerate(names):
            value, _ = batches[batch_name]["draws"][name]["variance"]
            axes.plot(value, row, "o", markersize=8, color=COLOURS[name], markerfacecolor=face, markeredgewidth=1.6)
            note(axes, f"{value:.2g}", value, row)
        axes.plot([], [], "o", markersize=8, color=INK, markerfacecolor=face, label=batch_name)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlim=(8e-4, 2.5), title="Variance, unbiased re-weighting", xlabel="uniform draw = 1")
    by_rows(axes, names)
    axes.set_ylim(len(names) + 0.1, -0.7)  # room for the legend
    axes.legend(frameon=False, loc="lower left", ncols=2, handletextpad=0.2)


def times(axes: Axes, us_per_draw: dict[str, float]) -> None:
    """Processor time of a draw at B = 1,024."""
    names = sorted(COLOURS, key=lambda name: us_per_draw[name])
    for row, name in enumerate(names):
        value = us_per_draw[name]
        axes.plot(value, row, "o", markersize=8, color=COLOURS[name])
        note(axes, f"{value:,.0f}", value, row)
    axes.set(xscale="log", xlim=(5, 1e6), title="Time of a draw (256 of 1,024)", xlabel="µs of processor time")
    by_rows(axes, names)


def by_rows(axes: Axes, names: list[str]) -> None:
    """One draw a row, the first on top, with a faint line to lead the eye."""
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.7)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def note(axes: Axes, text: str, x: float, row: int) -> None:
    """Write a figure above its dot, on white so that no line crosses it."""
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axes.annotate(text, (x, row), (0, 9), textcoords="offset points", ha="center", fontsize=9, bbox=paper)

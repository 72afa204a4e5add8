"""The picture of `python -m benchmarks.exchanges`: three panels, from its figures alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.exchange_model import capacity
from benchmarks.exchange_training import grouped
from benchmarks.picture_style import INK, STYLE

__all__ = ["write"]

COLOURS = {
    "embedded": "#6b6b6b",
    "leased": "#1b6ca8",
    "prefetch": "#5fa8d3",
    "sync": "#c1440e",
    "collective": "#5b8c3a",
}
FADED = {1: 1.0, 4: 0.6, 16: 0.35, 64: 0.5}


def write(path: Path, figures: dict[str, Any]) -> None:
    """Draw the figures of the benchmark into a PNG file."""
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(14.5, 5.0), width_ratios=[1.0, 1.25, 0.9], layout="constrained"
        )
        training(left, figures["training"])
        steps(middle, figures["model"])
        plans(right, figures["model"])
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def training(axes: Axes, figures: dict[str, Any]) -> None:
    """Milliseconds in the exchange at every step, as trained here; one bar for an exchange and number of workers."""
    groups = grouped(figures)
    labels, rows = [], []
    for place, ((workers, name), runs) in enumerate(groups.items()):
        row = place + 0.6 * sorted({w for w, _ in groups}).index(workers)  # a gap between numbers of workers
        rows.append(row)
        mean = sum(run["exchange_ms_per_step"] for run in runs) / len(runs)
        axes.barh(row, mean, color=COLOURS[name.split("(")[0]], height=0.7)
        axes.annotate(f"{mean:.1f}", (mean, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
        labels.append(f"{name}, W = {workers}")
    axes.set_yticks(rows, labels)
    axes.set_ylim(rows[-1] + 0.6, -0.6)
    axes.margins(x=0.12)
    axes.set(xlabel="ms per step in the exchange", title="Measured: training runs on 2 cores")


def steps(axes: Axes, model: dict[str, Any], batch: int = 1024) -> None:
    """By how much a step takes longer, with the number of workers."""
    for shards in (1, 4, 16):
        rows = [one for one in model["served"] if one["batch"] == batch and one["shards"] == shards]
        axes.plot(
            [one["workers"] for one in rows],
            [one["sync"]["step_mean_ms"] for one in rows],
            color=COLOURS["sync"],
            alpha=FADED[shards],
            linewidth=2,
            label=f"sync, S = {shards}",
        )
    for shards in (1, 4, 16):
        rows = [one for one in model["served"] if one["batch"] == batch and one["shards"] == shards]
        late = [one for one in rows if one["leased"]["step_mean_ms"] > 0]
        full = capacity(model, "leased", shards, batch)
        axes.plot(
            [full, *(one["workers"] for one in late)],
            [0.1, *(one["leased"]["step_mean_ms"] for one in late)],
            "--o",
            color=COLOURS["leased"],
            alpha=FADED[shards],
            linewidth=2,
            markersize=4,
            label=f"leased, S = {shards}: 0 up to {full:,.0f}",
        )
    for every in (1, 64):
        rows = [one for one in model["collective"] if one["batch"] == batch and one["every"] == every]
        rows = [one for one in rows if one["workers"] > 1]
        axes.plot(
            [one["workers"] for one in rows],
            [one["step_mean_ms"] for one in rows],
            "-.",
            color=COLOURS["collective"],
            alpha=FADED[every],
            linewidth=2,
            label=f"collective, k = {every}",
        )
    axes.axhline(50.0, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate("the step itself: 50 ms", (1, 50), (2, 4), textcoords="offset points", fontsize=9)
    ticks = [2**i for i in range(10)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(
        yscale="log", xlim=(0.9, 900), ylim=(0.1, 2e4), xlabel="workers W", ylabel="ms by which a step takes longer"
    )
    axes.set_title(f"Model: W workers in lockstep, B = {batch:,}")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.legend(frameon=False, loc="upper left", ncols=2, fontsize=9)


def plans(axes: Axes, model: dict[str, Any]) -> None:
    """Seconds to plan an epoch, with the number of samples."""
    for shards in (1, 4, 16):
        rows = [one for one in model["epochs"] if one["shards"] == shards]
        axes.plot(
            [one["samples"] for one in rows],
            [one["plan_s"] for one in rows],
            "-o",
            color="#0b3c5d",
            alpha=FADED[shards],
            linewidth=2,
            markersize=4,
            label=f"S = {shards}",
        )
    rows = [one for one in model["epochs"] if one["shards"] == 1]
    axes.plot(
        [one["samples"] for one in rows],
        [one["plan_server_s"] for one in rows],
        ":",
        color=INK,
        label="of it at the server alone",
    )
    axes.set(xscale="log", yscale="log", xlabel="samples n", ylabel="seconds", title="Model: planning an epoch")
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.legend(frameon=False, loc="upper left")

"""The pictures of a comparison, from the rows of results.json, results.parquet and history.parquet.

Every picture is made by a function (results, runs, history) -> Figure, or None where the runs did not measure what it
shows. Nothing here touches matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from es_service.experiments.compare.comparison import FULL, RANDOM, SHORT_FULL
from es_service.experiments.compare.outcomes import SECTION_NAMES
from es_service.experiments.figures import (
    COLOURS,
    GREY,
    INK,
    MARKERS,
    WIDTH,
    Picture,
    cost_axes,
    full_line,
    heat_map,
    new_figure,
    plain,
)

__all__ = ["PICTURES"]

Rows: TypeAlias = Sequence[Mapping[str, Any]]

_SECTIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "prepare": ("#7a4fbf", "preparing"),
        "score": ("#e69f00", "scoring"),
        "train": ("#0072b2", "training"),
        "exchange": ("#d55e00", "exchange"),
        "data": ("#009e73", "data"),
        "rest": ("#bbbbbb", "rest"),
    }
)
_MOST_LABELS, _MOST_WORDS = 30, 20


def _accuracy_against_cost(results: Mapping[str, Any], runs: Rows, history: Rows) -> Figure | None:
    del runs, history
    metric = results["metric"]
    rows = [row for row in results["rows"] if row[metric] is not None]
    figure, axes = new_figure(WIDTH, 5.0)
    on_line = {(row["cost"], row[metric]["mean"], _std(row[metric]), row["epochs"]) for row in rows if _on_line(row)}
    full_line(axes, sorted(on_line))
    looks = _looks(results)
    for row in sorted((row for row in rows if not _on_line(row)), key=lambda row: -row[metric]["mean"]):
        colour, marker = looks[row["method"]]
        axes.errorbar(
            row["cost"],
            row[metric]["mean"],
            _std(row[metric]),
            fmt=marker,
            color=colour,
            markersize=8,
            capsize=3,
            markeredgecolor="white",
            elinewidth=1.2,
            zorder=4,
            label=row["method"],
        )
    cost_axes(axes, _in_words(metric))
    return figure


def _curves(results: Mapping[str, Any], runs: Rows, history: Rows) -> Figure | None:
    del runs
    shown = (results["metric"], "held_out_loss")
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    looks = _looks(results)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, name in zip(panels, shown, strict=True):
        plain(axes)
        for row in _compared(results):
            at = _mean_by_epoch(history, row["label"], name)
            if not at:
                continue
            colour, marker = looks[row["method"]]
            costs, values = zip(*at, strict=True)
            style = "--" if row["method"] == SHORT_FULL else "-"
            axes.plot(
                costs, values, style, color=colour, marker=marker, markevery=[-1], linewidth=1.4, label=row["method"]
            )
        axes.set_xlabel("cost so far")
        axes.set_title(f"{_in_words(name)}, held out", fontsize=10, loc="left")
        axes.set_xlim(left=0)
        low, high = axes.dataLim.intervaly
        if name == "held_out_loss" and 0 < 3 * low < high:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _seconds(results: Mapping[str, Any], runs: Rows, history: Rows) -> Figure | None:
    del history
    rows = [row for row in _compared(results) if row["seconds"] is not None]
    if not rows:
        return None
    figure, axes = new_figure(WIDTH, 1.2 + 0.38 * len(rows))
    left = np.zeros(len(rows))
    for section in SECTION_NAMES:
        widths = np.array([_mean(runs, row["label"], f"{section}_s") for row in rows])
        if widths.any():
            colour, name = _SECTIONS[section]
            axes.barh(np.arange(len(rows)), widths, left=left, height=0.66, color=colour, label=name)
            left += widths
    for position in range(len(rows)):
        axes.annotate(
            f"{left[position]:.1f} s", (left[position], position), (5, 0), textcoords="offset points", va="center",
            fontsize=8,
        )  # fmt: skip
    axes.set_yticks(np.arange(len(rows)), [row["method"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(right=left.max() * 1.12)
    axes.set_xlabel("seconds in steps, mean over the seeds")
    figure.legend(loc="outside upper left", frameon=False, fontsize=9, ncols=len(SECTION_NAMES))
    return figure


def _labels_trained_on(results: Mapping[str, Any], runs: Rows, history: Rows) -> Figure | None:
    del history
    shares = next((np.asarray(run["label_shares"]) for run in runs if run["label_shares"]), None)
    if shares is None:
        return None
    rows, values = _by_label(results, runs, "trained_by_label")
    if not rows:
        return None
    ratios = np.stack(values) / np.where(shares > 0, shares, np.nan)
    spread = max(1.25, float(np.nanmax(ratios)))
    norm = TwoSlopeNorm(1.0, vmin=min(0.5, float(np.nanmin(ratios))), vmax=spread)
    return _heat_map(rows, ratios, _label_names(runs, shares.size), norm, "{:.2f}")


def _accuracy_by_label(results: Mapping[str, Any], runs: Rows, history: Rows) -> Figure | None:
    del history
    rows, values = _by_label(results, runs, "accuracy_by_label")
    if not rows or rows[0] != FULL:
        return None
    points = 100 * (np.stack(values) - values[0])
    reach = max(1.0, float(np.nanmax(np.abs(points))))
    names = [
        f"{name} ({100 * one:.0f} %)" if np.isfinite(one) else name
        for name, one in zip(_label_names(runs, values[0].size), values[0], strict=True)
    ]
    return _heat_map(rows[1:], points[1:], names, TwoSlopeNorm(0.0, vmin=-reach, vmax=reach), "{:+.1f}")


PICTURES: Mapping[str, Picture] = MappingProxyType(
    {
        "accuracy_against_cost": Picture(
            title="Accuracy against cost",
            caption="Mean and standard deviation over the seeds. A method pays where it lies above the line, which is "
            "what full training reaches when it is simply stopped earlier, its schedule fully decayed.",
            draw=_accuracy_against_cost,
        ),
        "curves": Picture(
            title="The way there",
            caption="After each epoch, mean over the seeds. Only the right end of a curve is a finished training: "
            "before it, the learning rate is still high.",
            draw=_curves,
        ),
        "seconds": Picture(
            title="Where the seconds went",
            caption="Seconds in steps, mean over the seeds; start-up, evaluation and checkpoints are not counted.",
            draw=_seconds,
        ),
        "labels": Picture(
            title="What was trained on",
            caption="Share of a label among the back-propagated samples, divided by its share of the train set: 2 "
            "means that its samples were trained on twice as often as under full training with as many samples.",
            draw=_labels_trained_on,
        ),
        "accuracy_by_label": Picture(
            title="Accuracy by label",
            caption="Points of held-out accuracy above or below full training, whose own accuracy stands beside the "
            "label; mean over the seeds.",
            draw=_accuracy_by_label,
        ),
    }
)
"""File name (without .png) -> picture, in the order of the report."""


def _on_line(row: Mapping[str, Any]) -> bool:
    return bool(row["method"] == FULL or row["method"].split(":")[0] == SHORT_FULL)


def _compared(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the rows with finished runs, of the short full runs only the one that is called so."""
    rows = [row for row in results["rows"] if row["seeds"] and not row["method"].startswith(f"{SHORT_FULL}:")]
    return [row for row in rows if row["method"] != SHORT_FULL or row["label"] != FULL]


def _looks(results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each method, the same in every picture."""
    looks = {FULL: (INK, "o"), SHORT_FULL: (INK, "."), RANDOM: (GREY, "o")}
    for row in results["rows"]:
        if row["method"] not in looks and not _on_line(row):
            k = len(looks) - 3
            looks[row["method"]] = (COLOURS[k % len(COLOURS)], MARKERS[(k + 1) % len(MARKERS)])
    return looks


def _std(spread: Mapping[str, Any]) -> float:
    return float(spread["std"] or 0.0)


def _in_words(metric: str) -> str:
    return metric.replace("_", " ").replace("held out ", "")


def _mean(runs: Rows, label: str, column: str) -> float:
    values = [run[column] for run in runs if run["label"] == label and run[column] is not None]
    return float(np.mean(values)) if values else 0.0


def _mean_by_epoch(history: Rows, label: str, name: str) -> list[tuple[float, float]]:
    """Return (cost, value) after each epoch, mean over the seeds that got there."""
    own = [one for one in history if one["label"] == label and one[name] is not None]
    at = []
    for epoch in sorted({one["epoch"] for one in own}):
        there = [one for one in own if one["epoch"] == epoch]
        at.append((float(np.mean([one["cost"] for one in there])), float(np.mean([one[name] for one in there]))))
    return at


def _by_label(results: Mapping[str, Any], runs: Rows, column: str) -> tuple[list[str], list[NDArray[np.float64]]]:
    """Return the methods that measured this by label, and for each the mean over its seeds."""
    names, values = [], []
    for row in _compared(results):
        own = [run[column] for run in runs if run["label"] == row["label"] and run[column] is not None]
        if own:
            names.append(row["method"])
            values.append(np.mean(np.asarray(own, dtype=np.float64), axis=0))
    return names, values


def _label_names(runs: Rows, number: int) -> list[str]:
    named = next((list(run["label_names"]) for run in runs if run["label_names"]), [])
    return [named[label] if label < len(named) else str(label) for label in range(number)]


def _heat_map(
    rows: list[str], values: NDArray[np.float64], labels: list[str], norm: TwoSlopeNorm, form: str
) -> Figure | None:
    if not rows or len(labels) > _MOST_LABELS:
        return None
    words = np.vectorize(form.format, otypes=[object])(values) if len(labels) <= _MOST_WORDS else None
    size = (WIDTH, 1.6 + 0.36 * len(rows))

    def is_dark(value: float) -> bool:
        return abs(float(norm(value)) - 0.5) > 0.33

    figure, axes, _ = heat_map(values, rows, labels, words, is_dark, size, norm=norm, cmap="PuOr")
    axes.tick_params(axis="x", labelrotation=35, labelsize=8)
    axes.set_xticks(np.arange(len(labels) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right")
    return figure

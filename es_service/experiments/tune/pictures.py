"""The pictures of a search, from what results.json holds.

Every picture is made by a function of the results, and is None where there is nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from es_service.experiments.figures import (
    COLOURS,
    GREY,
    INK,
    PALE,
    WIDTH,
    Picture,
    cost_axes,
    full_line,
    heat_map,
    new_figure,
    plain,
)
from es_service.experiments.tune.domains import parse_domain
from es_service.experiments.tune.objectives import BALANCED
from es_service.training.tasks.metrics import ACCURACY

__all__ = ["PICTURES"]

Results = Mapping[str, Any]
_MAP = "cividis"  # readable with colour blindness, and in grey


def _heat_map(results: Results) -> Figure | None:
    pair = _two_listed(results)
    if pair is None:
        return None
    (down, down_values), (across, across_values) = pair
    metric = results["objective"]["metric"]
    means = np.full((len(down_values), len(across_values)), np.nan)
    words = np.full(means.shape, "", dtype=object)
    for k, one in enumerate(down_values):
        for j, other in enumerate(across_values):
            own = [
                row for row in results["rows"]
                if row[metric] is not None and row["settings"][down] == one and row["settings"][across] == other
            ]  # fmt: skip
            if own:
                means[k, j] = 100 * float(np.mean([row[metric]["mean"] for row in own]))
                std = own[0][metric]["std"] if len(own) == 1 else None
                words[k, j] = f"{means[k, j]:.2f}" + ("" if std is None else f"\n± {100 * std:.2f}")
    if not np.isfinite(means).any():
        return None
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    names = ([str(one) for one in down_values], [str(one) for one in across_values])
    size = (min(WIDTH, 2.6 + 1.1 * len(across_values)), 1.3 + 0.62 * len(down_values))
    figure, axes, image = heat_map(means, *names, words, lambda value: bool(value < middle), size, cmap=_MAP)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    best = divmod(int(np.nanargmax(means)), len(across_values))
    next(one for one in axes.texts if one.get_position() == (best[1], best[0])).set_fontweight("bold")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(_in_words(metric))
    bar.outline.set_visible(False)
    return figure


def _front(results: Results) -> Figure | None:
    metric = results["objective"]["metric"]
    rows = [row for row in results["rows"] if row[metric] is not None]
    if not rows:
        return None
    figure, axes = new_figure(WIDTH, 5.0)
    lengths = [one for one in results["references"] if one[metric] is not None]
    full_line(axes, [(one["cost"], 100 * one[metric]["mean"], _std(one[metric]), one["epochs"]) for one in lengths])
    front = set(results["front"])
    off = [row for row in rows if row["setting"] not in front]
    on = sorted((row for row in rows if row["setting"] in front), key=lambda row: float(row["cost"]))
    if off:
        axes.plot(*_points(off, metric), "o", color=GREY, markersize=6, markeredgecolor="white", label="other settings")
    axes.plot(*_points(on, metric), "--", color=COLOURS[0], linewidth=1, zorder=3)
    axes.plot(
        *_points(on, metric), "D", color=COLOURS[0], markersize=8, markeredgecolor="white", zorder=4,
        label="none is better in both",
    )  # fmt: skip
    best = results["best"]
    if best is not None:
        axes.plot(
            [best["cost"]], [100 * best[metric]], "o", markersize=16, markerfacecolor="none", color=COLOURS[1],
            markeredgewidth=1.8, label="best.yaml", zorder=5,
        )  # fmt: skip
    cost_axes(axes, _in_words(metric))
    return figure


def _parallel(results: Results) -> Figure | None:
    names = list(results["space"]["domains"])
    rows = [row for row in results["rows"] if row["value"] is not None]
    if len(names) < 2 or len(rows) < 3:
        return None
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    values = np.array([row["value"] for row in rows])
    norm = Normalize(values.min(), values.max() if values.max() > values.min() else values.min() + 1)
    colours = colormaps[_MAP if results["objective"]["name"] not in ("cost", "time") else f"{_MAP}_r"]
    heights = [_heights(results, name, [row["settings"][name] for row in rows]) for name in names]
    for k in np.argsort(_goodness(results, values)):  # the good ones on top
        axes.plot(
            range(len(names)), [one[0][k] for one in heights], "-", color=colours(norm(values[k])),
            linewidth=1.6, alpha=0.9,
        )  # fmt: skip
    for at, (_, ticks) in enumerate(heights):
        axes.axvline(at, color=PALE, linewidth=1, zorder=0)
        for height, word in ticks:
            axes.annotate(
                word, (at, height), (4, 0), textcoords="offset points", fontsize=8, color=INK, va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.1, len(names) - 1 + 0.35)
    bar = figure.colorbar(ScalarMappable(norm=norm, cmap=colours), ax=axes)
    bar.set_label(_counted(results))
    bar.outline.set_visible(False)
    return figure


def _importance(results: Results) -> Figure | None:
    shares = {name: share for name, share in results["importance"].items() if share is not None}
    if len(shares) < 2:
        return None
    ordered = sorted(shares, key=lambda name: shares[name])
    figure, axes = new_figure(WIDTH * 0.75, 0.9 + 0.4 * len(ordered))
    axes.barh(range(len(ordered)), [100 * shares[name] for name in ordered], color=COLOURS[0], height=0.6)
    axes.set_yticks(range(len(ordered)), ordered)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"share of the variance of {_counted(results)} that it explains by itself, %")
    return figure


PICTURES: Mapping[str, Picture] = MappingProxyType(
    {
        "heat_map": Picture(
            title="Two settings",
            caption="Mean over the seeds, with their standard deviation, and over all other settings; the best is "
            "bold. Differences smaller than the deviations mean nothing.",
            draw=_heat_map,
        ),
        "front": Picture(
            title="Accuracy against cost",
            caption="A setting pays where it lies above the black line: what full training reaches when it is simply "
            "stopped earlier, its schedule fully decayed. Trials that were stopped early are not shown.",
            draw=_front,
        ),
        "parallel": Picture(
            title="All settings at once",
            caption="A line for each setting whose trials finished; the bright ones are good.",
            draw=_parallel,
        ),
        "importance": Picture(
            title="What mattered",
            caption="ω², what one setting explains while the others vary. A search tries more of what is good, and few "
            "trials show little: a share below a third of so many trials may be chance.",
            draw=_importance,
        ),
    }
)
"""File name (without .png) -> picture, in the order of the report."""


def _counted(results: Results) -> str:
    """Return what `value` of a row is, in words: of a front, its first number."""
    objective = results["objective"]
    return str(objective["metric"].replace("_", " ") if objective["name"] == "front" else objective["words"])


def _two_listed(results: Results) -> list[tuple[str, Sequence[Any]]] | None:
    """Return the first two searched settings that have a list of values, with these; None where there are not two."""
    found: list[tuple[str, Sequence[Any]]] = []
    for name, text in results["space"]["domains"].items():
        listed = parse_domain(text).listed
        if listed is not None and len(listed) > 1:
            found.append((name, listed))
    return found[:2] if len(found) >= 2 else None


def _in_words(metric: str) -> str:
    return f"{metric.replace('_', ' ')} {'in %' if metric in (ACCURACY, BALANCED) else '× 100'}"


def _points(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[float], list[float]]:
    return [row["cost"] for row in rows], [100 * row[metric]["mean"] for row in rows]


def _std(spread: Mapping[str, Any]) -> float:
    return 100 * float(spread["std"] or 0.0)


def _goodness(results: Results, values: Any) -> Any:
    return -values if results["objective"]["name"] in ("cost", "time") else values


def _heights(results: Results, name: str, own: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each value's position on its axis, in [0, 1], and the axis' ticks."""
    domain = parse_domain(results["space"]["domains"][name])
    if domain.listed is not None:
        step = 1 / max(1, len(domain.listed) - 1)
        ticks = [(k * step, str(one)) for k, one in enumerate(domain.listed)]
        return [domain.listed.index(one) * step for one in own], ticks
    low, high = (float(one) for one in domain.extremes())
    scale: Callable[[float], float] = math.log if domain.is_log else float
    span = scale(high) - scale(low)
    ticks = [(0.0, f"{low:g}"), (1.0, f"{high:g}")]
    return [(scale(one) - scale(low)) / span for one in own], ticks

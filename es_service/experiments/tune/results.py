"""Results of a search: from its trials to results.json. Pure functions of plain values."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from es_service.experiments.statistics import spread
from es_service.experiments.tune.search_spec import SearchSpec
from es_service.experiments.tune.space import Space
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, RUNNING, Trial

__all__ = ["importance", "omega_squared", "results"]


def results(search: SearchSpec, trials: Sequence[Trial], references: Sequence[Trial]) -> dict[str, Any]:
    """Return what `tune --json` prints.

    Args:
        search: what was searched.
        trials: all of them.
        references: the full runs beside them; none where they were not asked for.
    """
    rows = _settings(search, trials)
    line = _references(search, references)
    metric = search.objective.metric
    done = [row for row in rows if row["status"] == FINISHED]
    for row in done:
        row["above_full"] = _above(line, row["cost"], row[metric]["mean"], metric)
    front = _front(done, metric)
    best = _best(search, done, front)
    usual = search.space.usual()
    search_cost = math.fsum(one.cost + one.lost for one in trials)
    reference_cost = math.fsum(one.cost + one.lost for one in references)
    found: dict[str, Any] = {
        "search": search.name,
        **search.identity(),
        "samples": search.num_settings,
        "objective": {**dataclasses.asdict(search.objective), "words": search.objective.describe()},
        "best": None if best is None else _brief(search, best),
        "usual": next((_brief(search, row) for row in done if row["settings"] == usual), None),
        "front": [row["setting"] for row in front],
        "rows": rows,
        "trials": [_trial(search, one) for one in trials],
        "references": line,
        "importance": importance(search.space, done),
        "search_cost": search_cost,
        "reference_cost": reference_cost,
    }
    return {**found, "cost_in_words": _cost_in_words(found, trials)}


def _settings(search: SearchSpec, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return a row for each setting, in the order in which they came: means over its seeds where all have finished."""
    rows = []
    for setting in sorted({one.setting for one in trials}):
        own = [one for one in trials if one.setting == setting]
        finished = [one for one in own if one.status == FINISHED]
        whole = len(finished) == len(search.seeds)
        row: dict[str, Any] = {
            "setting": setting,
            "settings": own[0].settings,
            "seeds": len(finished),
            "status": FINISHED if whole else _status(own),
            **dict.fromkeys(search.objective.metrics),
            "cost": None,
            "seconds": None,
            "value": None,
            "reached": None,
            "above_full": None,
        }
        if whole:
            last = [one.epochs[-1] for one in finished]
            for name in search.objective.metrics:
                known = [one[name] for one in last if one[name] is not None]
                row[name] = dataclasses.asdict(spread(known)) if known else None
            row["cost"] = spread([one["cost"] for one in last]).mean
            row["seconds"] = spread([one["seconds"] for one in last]).mean
            values = np.array([search.objective.values(one.epochs) for one in finished])
            row["value"] = float(values[:, 0].mean())
            if search.objective.to_target:
                row["reached"] = all(search.objective.reached(one.epochs) is not None for one in finished)
        rows.append(row)
    return rows


def _status(trials: Sequence[Trial]) -> str:
    """Return what became of a setting of which not every seed has finished."""
    states = {one.status for one in trials}
    return next((one for one in (FAILED, PRUNED) if one in states), RUNNING)


def _references(search: SearchSpec, references: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return a row for each length of full training, the longest first."""
    rows = []
    for epochs in sorted({one.settings["epochs"] for one in references}, reverse=True):
        own = [one for one in references if one.settings["epochs"] == epochs and one.status == FINISHED]
        if own:
            row: dict[str, Any] = {"epochs": epochs, "seeds": len(own), "cost": spread([one.cost for one in own]).mean}
            for name in search.objective.metrics:
                known = [one.epochs[-1][name] for one in own if one.epochs[-1][name] is not None]
                row[name] = dataclasses.asdict(spread(known)) if known else None
            rows.append(row)
    return rows


def _above(line: Sequence[dict[str, Any]], cost: float, value: float, metric: str) -> float | None:
    """Return how far a value lies above what full training reaches at this cost, straight lines between its lengths.

    None where full training was never run as short, or at all: beyond its ends the line is undefined, but that a run
    that costs more than full training has full training to beat.
    """
    points = sorted((row["cost"], row[metric]["mean"]) for row in line if row[metric] is not None)
    if not points or cost < points[0][0] - 1e-9:
        return None
    return value - float(np.interp(cost, [at for at, _ in points], [height for _, height in points]))


def _front(rows: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return the rows that no other beats in accuracy and cost at once, the cheapest first."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["cost"], -row[metric]["mean"], row["setting"])):
        if not front or row[metric]["mean"] > front[-1][metric]["mean"]:
            front.append(row)
    return front


def _best(search: SearchSpec, done: Sequence[dict[str, Any]], front: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row that the search was for.

    Of a front, it is the one that lies farthest above the line of full runs; without that line, the most accurate.
    """
    if not done:
        return None
    metric = search.objective.metric
    if search.objective.name == "front":
        measured = [row for row in front if row["above_full"] is not None]
        if measured:
            return max(measured, key=lambda row: float(row["above_full"]))
        return max(front, key=lambda row: float(row[metric]["mean"]))
    sign = 1.0 if search.objective.directions[0] == "max" else -1.0
    return max(done, key=lambda row: (bool(row["reached"]), sign * float(row["value"]), -float(row["cost"])))


def _brief(search: SearchSpec, row: dict[str, Any]) -> dict[str, Any]:
    names = ("setting", "settings", "seeds", "cost", "seconds", "value", "reached", "above_full")
    means = {name: None if row[name] is None else row[name]["mean"] for name in search.objective.metrics}
    return {**{name: row[name] for name in names}, **means, "std": row[search.objective.metric]["std"]}


def _trial(search: SearchSpec, trial: Trial) -> dict[str, Any]:
    last = trial.epochs[-1] if trial.epochs else {}
    names = (*search.objective.metrics, "held_out_loss", "scored", "trained", "seconds")
    return {
        "run": trial.run,
        "number": trial.number,
        "setting": trial.setting,
        "settings": trial.settings,
        "seed": trial.seed,
        "status": trial.status,
        "epochs": len(trial.epochs),
        "cost": trial.cost,
        **{name: last.get(name) for name in names},
        "error": trial.error,
    }


def _cost_in_words(found: dict[str, Any], trials: Sequence[Trial]) -> str:
    counts = Counter(one.status for one in trials)
    parts = [f"{counts[PRUNED]} stopped early"] * bool(counts[PRUNED]) + [f"{counts[FAILED]} failed"] * bool(
        counts[FAILED]
    )
    named = f"{len(trials)} trial{'s' if len(trials) != 1 else ''}{' (' + ', '.join(parts) + ')' if parts else ''}"
    words = f"The search cost as much as {found['search_cost']:.2f} full training runs: {named}."
    if found["reference_cost"]:
        words += f" The full runs it is compared with cost another {found['reference_cost']:.2f}."
    best = found["best"]
    if best is not None:
        saved = 1 - best["cost"]
        if saved > 0:
            words += (
                f" A run with the best settings costs {best['cost']:.2f} of a full one: after "
                f"{math.ceil(found['search_cost'] / saved)} such training runs the search has paid for itself, if "
                "their accuracy is enough."
            )
        else:
            words += " A run with the best settings costs no less than a full one: the search never pays for itself."
    return words


_GROUPS = 3
_LEAST = 6  # settings below which no importance is reported


def importance(space: Space, rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return ω² of each searched setting for the objective; None where too few settings have finished.

    A range is cut into three groups with as many settings each; a listed setting has a group for each value.

    Args:
        space: that was searched.
        rows: of the settings that finished, with `settings` and `value`.
    """
    values = np.array([row["value"] for row in rows], dtype=np.float64)
    found: dict[str, float | None] = {}
    for name, domain in space.domains.items():
        own = [row["settings"][name] for row in rows]
        if domain.listed is not None:
            groups = np.array([domain.listed.index(one) for one in own])
        else:
            groups = (stats.rankdata(own, method="ordinal") - 1) * _GROUPS // max(1, len(own))
        found[name] = omega_squared(values, groups) if len(rows) >= _LEAST else None
    return found


def omega_squared(values: NDArray[np.float64], groups: NDArray[np.integer]) -> float | None:
    """Return the share of the variance that lies between groups, corrected for what chance puts there, at least 0.

    ω² = (SS_between - (k-1)·MS_within) / (SS_total + MS_within). None with fewer than two groups, or where every group
    has a single member: then effect and chance cannot be separated.

    Reference: Hays, *Statistics for Psychologists*, 1963.
    """
    present, members = np.unique(groups, return_inverse=True)
    within_freedom = values.size - present.size
    if present.size < 2 or within_freedom < 1:
        return None
    total = float(((values - values.mean()) ** 2).sum())
    means = np.array([values[members == k].mean() for k in range(present.size)])
    within = float(((values - means[members]) ** 2).sum()) / within_freedom
    if total == 0:
        return 0.0
    between = float((np.bincount(members) * (means - values.mean()) ** 2).sum())
    return float(max(0.0, (between - (present.size - 1) * within) / (total + within)))

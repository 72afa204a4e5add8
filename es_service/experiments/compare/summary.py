"""Several finished comparisons in one table, their verdicts corrected for all of its rows."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.experiments.compare import verdicts
from es_service.experiments.compare.folder import CompareFolder
from es_service.experiments.statistics import Difference
from es_service.selection.settings import as_integer, as_number
from es_service.storage import files

__all__ = ["summarize"]


def summarize(folders: Sequence[str], methods: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what `compare --summary --json` prints.

    Args:
        folders: of finished comparisons.
        methods: labels of those that are shown, and corrected for; None takes all but the full runs.

    Returns:
        tests (how many decisions are corrected together), rows (for each method of each comparison its figures there,
        with p_corrected, detectable and the decision by all rows), methods (for each, how often which decision).

    Raises:
        ConfigError: no finished comparison is there, one is named twice, or a method is in none.
        StorageError: its results cannot be read.
    """
    found: list[dict[str, Any]] = []
    places = [os.path.realpath(CompareFolder(one).path) for one in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise errors.ConfigError(f"--summary names {folder} twice: a comparison counts once")
        found += _rows(folder)
    known = list(dict.fromkeys(row["method"] for row in found))
    for method in methods or ():
        if method not in known:
            raise errors.ConfigError(f"--methods {method}: none of these comparisons has it, only {', '.join(known)}")
    rows = [row for row in found if methods is None or row["method"] in methods]
    tested = {number: one for number, row in enumerate(rows) if (one := row.pop("tested")) is not None}
    judged = verdicts.judge(tested)
    for number, one in judged.items():
        rows[number]["difference_to_short_full"] |= {"p_corrected": one.corrected, "detectable": one.detectable}
        rows[number]["decision"] = one.decision
    decisions = {method: Counter(row["decision"] for row in rows if row["method"] == method) for method in known}
    return {"tests": len(judged), "rows": rows, "methods": {name: one for name, one in decisions.items() if one}}


def _rows(folder: str) -> list[dict[str, Any]]:
    """Return the methods of a comparison, each with its tested difference, None where nothing is decided."""
    path = str(CompareFolder(folder).path / "results.json")
    if not os.path.lexists(path):
        raise errors.ConfigError(
            f"--summary {folder}: no finished comparison is there ({path} is missing); run its es-service compare "
            "command to the end"
        )
    found = files.read_json(fs.LocalFileSystem(), path)
    try:
        return [_row(folder, found, row) for row in found["rows"] if row["decision"] is not None]
    except (AttributeError, LookupError, TypeError, ValueError, errors.ConfigError) as error:
        raise errors.StorageError(
            f"--summary {folder}: {path} does not hold the results of a comparison ({error!r}); run its es-service "
            "compare command again, which writes this file and repeats no finished run"
        ) from error


def _row(folder: str, found: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    short = row["difference_to_short_full"]
    difference = None if short is None else _difference(short)
    return {
        "comparison": folder,
        "task": str(found["task"]),
        "metric": str(found["metric"]),
        "method": str(row["method"]),
        "cost": None if row["cost"] is None else as_number("cost", row["cost"]),
        "difference_to_short_full": None
        if difference is None
        else {**dataclasses.asdict(difference), "p_corrected": None, "detectable": None, "epochs": short["epochs"]},
        "decision": str(row["decision"]),
        "tested": None if short is None or short["p_corrected"] is None else difference,
    }


def _difference(short: Mapping[str, Any]) -> Difference:
    low, high, std, p = (
        None if short[name] is None else as_number(name, short[name]) for name in ("low", "high", "std", "p")
    )
    pairs = as_integer("pairs", short["pairs"], least=1)
    return Difference(mean=as_number("mean", short["mean"]), low=low, high=high, pairs=pairs, std=std, p=p)

"""The report of a comparison, for people: report.md, report.html and its pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from es_service.experiments.compare import verdicts
from es_service.experiments.compare.comparison import FULL, SHORT_FULL
from es_service.experiments.compare.pictures import PICTURES, Rows
from es_service.experiments.compare.worker import MOST_WAITED
from es_service.experiments.report import cost_in_words, difference_in_words, draw, spread_in_words, write_page
from es_service.training.tasks.metrics import ACCURACY

__all__ = ["write"]

_SHARES = (ACCURACY, "balanced_accuracy")
_DECISIONS = (verdicts.PAYS, verdicts.NO_DIFFERENT, verdicts.HURTS, verdicts.UNDECIDED, verdicts.NOT_TESTED)


def write(folder: Path, results: Mapping[str, Any], runs: Rows, history: Rows) -> None:
    """Write report.md, report.html (one file, which asks no host for anything) and pictures/*.png.

    Args:
        folder: of the comparison.
        results: what results.json holds.
        runs, history: the rows of results.parquet and history.parquet.
    """
    metric = results["metric"].replace("_", " ")
    pictures = draw(folder / "pictures", PICTURES, results, runs, history)
    if results["metric"] not in _SHARES:
        pictures = [{**one, "title": one["title"].replace("Accuracy against", f"{metric} against")} for one in pictures]
    context = {
        "results": results,
        "unit": "Accuracies in percent" if results["metric"] in _SHARES else f"{metric}: times 100",
        "cost": cost_in_words(results["backward_cost"]),
        "header": _header(results),
        "rows": [_cells(results, row) for row in results["rows"]],
        "outcome": _outcome(results["rows"]),
        "notes": _notes(results, runs, [one["name"] for one in pictures]),
        "errors": [f"{row['method']}, {error}" for row in results["rows"] for error in row["errors"]],
        "pictures": pictures,
    }
    write_page(folder / "report.md", "compare.md.jinja", context)
    write_page(folder / "report.html", "compare.html.jinja", context)


def _header(results: Mapping[str, Any]) -> list[str]:
    header = ["method", *(name.replace("_", " ") for name in _shown(results))]
    header += ["cost", f"saving at equal {_saved_at(results)}", "against full", "against its short full run"]
    header += ["corrected p", "would be seen"]
    header += ["seconds", "scored", "back-propagated"]
    if any(row["corrupted_share"] is not None for row in results["rows"]):
        header.append("corrupted")
    return header


def _shown(results: Mapping[str, Any]) -> list[str]:
    """Return the metrics that have a column: the one that methods are compared by, and those of trained models."""
    if results["metric"] == "balanced_accuracy":
        return list(dict.fromkeys([*_SHARES, *results["metrics"]]))
    return list(dict.fromkeys([results["metric"], *results["metrics"]]))


def _saved_at(results: Mapping[str, Any]) -> str:
    return ACCURACY if results["metric"] in _SHARES else str(results["metric"].replace("_", " "))


def _cells(results: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    short = row["difference_to_short_full"]
    cells = {
        "method": _name(row),
        **{name.replace("_", " "): spread_in_words(row[name]) for name in _shown(results)},
        "against full": difference_in_words(row["difference_to_full"]),
        "against its short full run": "" if short is None else f"{difference_in_words(short)}, {short['epochs']} ep.",
        "corrected p": "" if short is None or short["p_corrected"] is None else f"{short['p_corrected']:.3f}",
        "would be seen": "" if short is None or short["detectable"] is None else f"{100 * short['detectable']:.2f}",
        "scored": _count(row["samples"]["scored"]),
        "back-propagated": _count(row["samples"]["trained"]),
        "seconds": spread_in_words(row["seconds"], 1, 1),
        "cost": "" if row["cost"] is None else f"{row['cost']:.3f}",
        f"saving at equal {_saved_at(results)}": _saving(row["saving_at_equal_accuracy"]),
        "corrupted": "" if row["corrupted_share"] is None else f"{100 * row['corrupted_share']:.1f} %",
    }
    return {
        "cells": [cells[name] for name in _header(results)],
        "method": _name(row),
        "verdict": row["verdict"],
        "decision": row["decision"],
        "is_reference": row["decision"] is None,
    }


def _name(row: Mapping[str, Any]) -> str:
    if row["method"].split(":")[0] != SHORT_FULL:
        return str(row["method"])
    return f"{SHORT_FULL} ({row['epochs']} epoch{'s' if row['epochs'] != 1 else ''})"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _saving(saving: Mapping[str, Any] | None) -> str:
    if saving is None:
        return ""
    return f"{saving['kind'] + ' ' if saving['bound'] else ''}{100 * saving['value']:.1f} %"


def _outcome(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how the methods fared, in one sentence."""
    counts = Counter(row["decision"] for row in rows if row["decision"] is not None)
    parts = [f"{counts[decision]} × {decision}" for decision in _DECISIONS if counts[decision]]
    return f"Of {sum(counts.values())} methods: {', '.join(parts)}."


def _waited(runs: Rows) -> str:
    most = max((run["waited_share"] or 0.0 for run in runs), default=0.0)
    return f" Up to {100 * most:.0f} % of a run's time other processes had its cores." if most > MOST_WAITED else ""


def _notes(results: Mapping[str, Any], runs: Rows, drawn: Sequence[str]) -> list[str]:
    """Return what a reader has to know to read the figures right."""
    notes = []
    num_seeds = len(results["seeds"])
    if num_seeds < 2:
        notes.append("One seed decides nothing: run the same command with --seeds 5 or more for verdicts.")
    elif num_seeds == 2:
        notes.append("Two seeds make very wide intervals: with three they are a third as wide, with five a fifth.")
    if results["timings"] == "shared":
        notes.append(
            "Some runs had no cores (or no GPU) to themselves: their seconds are not reported, and the short full runs "
            f"of their methods were matched by passes instead.{_waited(runs)}"
        )
    if results["metric"] == "balanced_accuracy":
        notes.append(
            "Methods are compared by balanced accuracy, the mean of the accuracies by label: the set has a long tail."
        )
    if results["corrupted_share_of_set"] is not None:
        share = 100 * results["corrupted_share_of_set"]
        notes.append(
            f"{share:.1f} % of the train set have a wrong label; the column says which share of the back-propagated "
            "samples such ones were. The held-out samples are untouched."
        )
    if any(row["method"] == SHORT_FULL and row["label"] == FULL for row in results["rows"]):
        notes.append("No method left room for a full run with fewer epochs: short_full is full itself.")
    if missing := [picture.title.lower() for name, picture in PICTURES.items() if name not in drawn]:
        notes.append(f"Not drawn, since these runs did not measure it: {', '.join(missing)}.")
    if results["tests"]:
        notes.append(verdicts.correction_in_words(results["tests"]))
        notes.append(verdicts.power_in_words(results["rows"], num_seeds))
    with_scorers = [row for row in results["rows"] if row["scorers"] is not None]
    if with_scorers:
        spent = (f"{row['method']} ({row['scorers']['seconds']:.1f} s)" for row in with_scorers)
        notes.append(
            f"Scorers worked beside the training of {', '.join(spent)}. Cost counts their passes; the seconds of a "
            "method are those of its training alone."
        )
    return notes

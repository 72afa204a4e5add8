"""The report of a comparison, for people: report.md, report.html and its pictures."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from es_service.experiments import figures
from es_service.experiments.compare import verdicts
from es_service.experiments.compare.candidates import FULL, SHORT_FULL
from es_service.experiments.compare.cores import MOST_WAITED
from es_service.experiments.compare.pictures import PICTURES, Rows

__all__ = ["write"]

_DECISIONS = (verdicts.PAYS, verdicts.NO_DIFFERENT, verdicts.HURTS, verdicts.UNDECIDED, verdicts.NOT_TESTED)


def write(folder: Path, results: Mapping[str, Any], runs: Rows, history: Rows) -> None:
    """Write report.md, report.html (one file, which asks no host for anything) and pictures/*.png.

    Args:
        folder: of the comparison.
        results: what results.json holds.
        runs, history: the rows of results.parquet and history.parquet.
    """
    drawn = _draw(folder / "pictures", results, runs, history)
    context = {
        "results": results,
        "header": _header(results),
        "rows": [_cells(results, row) for row in results["rows"]],
        "outcome": _outcome(results["rows"]),
        "notes": _notes(results, runs, drawn),
        "errors": [f"{row['method']}, {error}" for row in results["rows"] for error in row["errors"]],
        "pictures": [
            {
                "name": name,
                "title": PICTURES[name].title,
                "caption": PICTURES[name].caption,
                "base64": base64.b64encode(path.read_bytes()).decode(),
            }
            for name, path in drawn.items()
        ],
    }
    for name in ("report.md", "report.html"):
        template = (resources.files("es_service.experiments") / "templates" / f"compare{name[6:]}.jinja").read_text(
            encoding="utf-8"
        )
        environment = jinja2.Environment(
            autoescape=name.endswith("html"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        text = environment.from_string(template).render(context)
        figures.write(folder / name, text)


def _draw(folder: Path, results: Mapping[str, Any], runs: Rows, history: Rows) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    drawn = {}
    for name, picture in PICTURES.items():
        figure = picture.draw(results, runs, history)
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if figure is not None:
            figures.save(figure, path)
            drawn[name] = path
    return drawn


def _header(results: Mapping[str, Any]) -> list[str]:
    header = ["method", "accuracy"]
    if results["metric"] == "balanced_accuracy":
        header.append("balanced accuracy")
    header += ["cost", "saving at equal accuracy", "against full", "against its short full run"]
    header += ["seconds", "scored", "back-propagated"]
    if any(row["corrupted_share"] is not None for row in results["rows"]):
        header.append("corrupted")
    return header


def _cells(results: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    short = row["difference_to_short_full"]
    cells = {
        "method": _name(row),
        "accuracy": _spread(row["accuracy"], 100, 2),
        "balanced accuracy": _spread(row["balanced_accuracy"], 100, 2),
        "against full": _difference(row["difference_to_full"]),
        "against its short full run": "" if short is None else f"{_difference(short)}, {short['epochs']} ep.",
        "scored": _count(row["samples"]["scored"]),
        "back-propagated": _count(row["samples"]["trained"]),
        "seconds": _spread(row["seconds"], 1, 1),
        "cost": "" if row["cost"] is None else f"{row['cost']:.3f}",
        "saving at equal accuracy": _saving(row["saving_at_equal_accuracy"]),
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


def _spread(spread: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    if spread is None:
        return ""
    mean = f"{factor * spread['mean']:.{digits}f}"
    return mean if spread["std"] is None else f"{mean} ± {factor * spread['std']:.{digits}f}"


def _difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    if difference["low"] is None:
        return f"{100 * difference['mean']:+.2f}"
    return f"{100 * difference['mean']:+.2f} ({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f})"


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


def _notes(results: Mapping[str, Any], runs: Rows, drawn: Mapping[str, Path]) -> list[str]:
    """Return what a reader has to know to read the figures right."""
    notes = []
    num_seeds = len(results["seeds"])
    if num_seeds < 2:
        notes.append("One seed decides nothing: run the same command with --seeds 3 or more for verdicts.")
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
    notes.append(
        "Of twenty methods that change nothing, one comes out as paying or hurting by chance: confirm a surprise with "
        "more seeds (--seed-base)."
    )
    return notes

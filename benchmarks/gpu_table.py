"""What `benchmarks.gpu` found, as one document of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import gpu_plan
from benchmarks.gpu_plan import EXCHANGES, Part
from benchmarks.gpu_runs import Finished
from es_service.experiments.compare import rows

__all__ = ["table"]

_HEADER = ("cost", "seconds alone", "peak memory", "against its short full run", "verdict")


def table(parts: Sequence[Part], finished: Sequence[Finished], missing: Sequence[str]) -> str:
    """Return the tables of all parts in Markdown, and what is missing, with the reason."""
    blocks = []
    for part in parts:
        own = [one for one in finished if one.part == part.name]
        blocks.append(_part(part, own))
    if missing:
        blocks.append("\n".join(["Not run:", "", *(f"- {one}" for one in missing)]))
    return "\n\n".join(blocks) + "\n"


def _part(part: Part, own: Sequence[Finished]) -> str:
    part = gpu_plan.costed(part, own)
    known = part.comparison
    title = f"### {part.name}"
    if not own:
        return f"{title}\n\nNo run has finished."
    results = rows.results(known, [one.outcome for one in own], gpu_plan.lengths(part, own))
    size = (
        f"{known.num_samples:,} samples, {known.epochs} epoch{'s' * (known.epochs > 1)}, batches of {known.batch_size}"
    )
    about = [
        size,
        *results["machines"],
        f"a scoring pass takes {1 / (1 + known.backward_cost):.2f} of a full step's time",
    ]
    metrics = list(dict.fromkeys([results["metric"], *results["metrics"]]))
    header = ("method", "seeds", *(f"{name.replace('_', ' ')} %" for name in metrics), "held-out loss", *_HEADER)
    lines = [title, "", f"{'; '.join(about)}.", "", _line(header), "|---" * len(header) + "|"]
    shown = {row["label"]: row for row in results["rows"] if row["seeds"] or row["failed"]}  # full may be there twice
    lines += [_line(_cells(row, metrics, own)) for row in shown.values()]
    exchanges = [one for one in own if one.spec.method in EXCHANGES]
    if exchanges:
        lines += ["", _line(("exchange", "ms a step", "of it exchange")), "|---|---|---|"]
        lines += [_line(_exchange(one)) for one in exchanges]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], metrics: Sequence[str], own: Sequence[Finished]) -> list[str]:
    runs = [one for one in own if one.spec.method == row["label"] and one.measured is not None]
    alone = [one for one in runs if one.alone and one.values["exclusive"]]
    memory = [one.values["result"]["memory"]["peak_bytes"] for one in runs]
    difference = row["difference_to_short_full"]
    return [
        f"`{row['label']}`",
        str(row["seeds"]),
        *(_spread(row[name]) for name in metrics),
        "" if row["held_out_loss"] is None else f"{row['held_out_loss']['mean']:.3f}",
        "" if row["cost"] is None else f"{row['cost']:.2f}",
        ", ".join(f"{one.total_s:.1f}" for one in alone),
        f"{max(memory) / 2**30:.2f} GiB" if memory else "",
        "" if difference is None else _difference(difference),
        row["decision"] or "; ".join(row["errors"]),
    ]


def _spread(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return ""
    return f"{100 * values['mean']:.2f}" + ("" if values["std"] is None else f" ± {100 * values['std']:.2f}")


def _difference(value: Mapping[str, Any]) -> str:
    interval = "" if value["low"] is None else f" ({100 * value['low']:+.2f} to {100 * value['high']:+.2f})"
    return f"{100 * value['mean']:+.2f}{interval}, {value['epochs']} ep."


def _exchange(one: Finished) -> list[str]:
    spec, spent = one.spec, one.values["result"]["seconds"]
    steps = (spec.epochs or 1) * -(
        -one.values["result"]["samples"]["full"] // ((spec.epochs or 1) * (spec.batch_size or 1))
    )
    return [f"`{spec.exchange}`", *(f"{1e3 * seconds / steps:.2f}" for seconds in (spent["total"], spent["exchange"]))]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

"""Numbers and tables as text for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from es_service.experiments.progress import measured
from es_service.selection.decisions import REASONS
from es_service.storage.files import join

__all__ = ["NOTHING", "grid", "percent", "saved", "saved_so_far", "seconds", "summary", "time_saved"]


NOTHING = 0.0005
"""A share below this is 0.0 %."""


def percent(share: float | None) -> str:
    """Return a share as a percentage, "unknown" for None."""
    return "unknown" if share is None else f"{100 * share:.1f} %"


def saved(share: float | None, worse: str) -> str:
    """Return a share that was saved as a percentage; where it is below 0, how much worse it was, and in what."""
    if share is not None and share <= -NOTHING:
        return f"{percent(-share)} {worse}"
    return percent(None if share is None else max(0.0, share))


def time_saved(share: float) -> str:
    """Return a share of time that was saved in words, e.g. "time saved 1.3 %" or "1.3 % slower"."""
    return f"{'' if share <= -NOTHING else 'time saved '}{saved(share, 'slower')}"


def seconds(value: float) -> str:
    """Return a duration in the unit that suits it."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def grid(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows under a header, in columns; numbers to the right."""
    cells = [list(header)] + [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    to_right = [all(_is_number(line[column]) for line in cells[1:]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, to_right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("-").replace(",", "").replace(".", "").replace(" %", "").isdigit()


def summary(result: dict[str, Any]) -> str:
    """Return the summary of a finished run: what it reached, scored, trained on and saved, where things are."""
    samples, spent, saving = result["samples"], result["seconds"], result["saving"]
    storage = shlex.quote(result["storage"].rstrip("/"))
    elsewhere = spent["total"] - sum(spent[key] for key in ("score", "train", "exchange", "data"))
    parts = [("training", "train"), ("scoring", "score"), ("exchange", "exchange"), ("data", "data")]
    where = ", ".join(f"{name} {seconds(spent[key])}" for name, key in parts)
    lines = [
        *_reached(result),
        ("back-propagated", f"{samples['trained']:,} samples; a full run: {samples['full']:,}"),
        ("scored", f"{samples['scored']:,} samples by a forward pass of their own"),
        ("backward passes saved", percent(saving["samples"])),
        ("compute saved", _compute_saved(result)),
        ("time saved", _time_saved(saving) + (", with scorers at work beside it" if result.get("scorers") else "")),
        *_asides(result),
        ("steps took", f"{seconds(spent['total'])}: {where}, rest {seconds(max(0.0, elsewhere))}"),
        ("memory", _memory(result["memory"])),
        ("whole run", f"{seconds(spent['wall'])} with start-up, evaluation and checkpoints"),
        ("scores", f"{join(result['storage'], result['run'])} (es-service top {result['run']} --storage {storage})"),
        ("dashboard", f"es-service serve --storage {storage} --open {result['run']}"),
    ]
    title = f"{result['run']}: {result['method']} on {result['task']}, {_count(result['epochs'], 'epoch')}, "
    title += f"{_count(result['workers'], 'worker')}, exchange {result['exchange']}"
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in lines)])


def _compute_saved(result: dict[str, Any]) -> str:
    """Return what share of a full run's passes was saved, those of preparing counted as the run's own."""
    cost, prepared, each = result["saving"]["cost"], result["prepared"], 1 + result["backward_cost"]
    passes = prepared["scored"] + each * prepared["trained"]
    if cost is not None:
        cost -= passes / (each * result["samples"]["full"])
    counted = [name for name, there in (("preparing", passes), ("scorers", result.get("scorers"))) if there]
    included = f", {' and '.join(counted)} included" if counted else ""
    return f"{saved(cost, 'more')} of a full run's passes{included}"


def _reached(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a line for the task's metric, one for the accuracy where that is another, and those of final metrics."""
    name, metrics, accuracy, balanced = (result[key] for key in ("metric", "metrics", "accuracy", "balanced_accuracy"))
    lines = [(name, metrics[name]), *((other, value) for other, value in metrics.items() if other != name)]
    if metrics[name] != accuracy:
        lines.insert(1, ("accuracy", accuracy))
    aside = ""
    if balanced is not None and abs(balanced - accuracy) >= 5e-5:
        aside = f", {measured('balanced_accuracy', balanced)} balanced over the labels"
    return [
        (key.replace("_", " "), f"{measured(key, value)} on held-out samples{aside if key == 'accuracy' else ''}")
        for key, value in lines
    ]


def _asides(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines that only some runs have."""
    asides, corrupted, prepared = [], result["corrupted"], result["prepared"]
    if (tokens := result["tokens"]) is not None:
        words = f"{tokens['trained']:,} back-propagated, {tokens['scored']:,} scored; a full run: {tokens['full']:,}"
        asides.append(("tokens", f"{words}; {percent(result['saving']['tokens'])} saved"))
    if (scorers := result.get("scorers")) is not None:
        words = f"{scorers['scored']:,} samples scored and {scorers['trained']:,} trained on by {result['proxy']!r}: "
        words += f"{round(scorers['passes']):,} passes, {seconds(scorers['seconds'])} beside the training"
        lost = f"; {scorers['lost']} lost" if scorers["lost"] else ""
        asides.append(("scorers", words + lost))
    decided = [one for one in result["decisions"] if one is not None]
    if decided:
        asides.append(("decided", _decided(decided)))
    if result["backward_cost_measured"]:
        asides.append(("passes", f"a backward pass counted as {result['backward_cost']:.2f} forward passes, measured"))
    if any((left_out := result["left_out"] or {}).values()):
        asides.append(("data", _left_out(left_out)))
    if corrupted is not None:
        trained, of_set = percent(corrupted["share_of_trained"]), percent(corrupted["share_of_set"])
        asides.append(("wrong labels", f"{trained} of the back-propagated samples had one, {of_set} of the set have"))
    if prepared["trained"]:
        cost = f"{prepared['trained']:,} samples trained and {prepared['scored']:,} scored"
        by = "hold-out models" if result.get("proxy", "self") == "self" else "hold-out proxies, at the cost of"
        asides.append(("prepared", f"irreducible losses, by {by}: {cost}, {seconds(prepared['seconds'])}"))
    return asides


def _left_out(counts: dict[str, int]) -> str:
    """Return what of the user's files was left out, those counts that are not 0."""
    words = {"rows": "left out", "files": "left out as a whole", "truncated": "truncated"}
    nouns = {"rows": "row", "files": "file", "truncated": "sequence"}
    return ", ".join(f"{_count(num, nouns[name])} {words[name]}" for name, num in counts.items() if num)


def _decided(made: Sequence[dict[str, Any]]) -> str:
    """Return in which epochs a run that decides for itself selected."""
    selecting = [one for one in made if one["ratio"] < 1.0]
    if not selecting:
        return f"it trained on everything: {REASONS.get(made[-1]['reason'], made[-1]['reason'])}"
    least, most = (percent(pick(one["ratio"] for one in selecting)) for pick in (min, max))
    shares = least if least == most else f"{least} to {most}"
    return f"{len(selecting)} of {len(made)} epochs selected, {shares} of each meta-batch"


def _memory(memory: dict[str, Any]) -> str:
    """Return the peak of the worker that took most."""
    whose = "tensors on the GPU" if memory["kind"] == "cuda" else "the worker's process"
    return f"{memory['peak_bytes'] / 1e9:.2f} GB at most, of {whose}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def saved_so_far(saving: dict[str, Any]) -> str:
    """Return what a run has saved up to now, in words."""
    if not saving["samples"]:
        return "trained on everything so far"
    time = "" if saving["seconds"] is None else f", {time_saved(saving['seconds'])}"
    return f"backward passes saved {percent(saving['samples'])}{time} so far"


def _time_saved(saving: dict[str, Any]) -> str:
    share = saving["seconds"]
    if not saving["samples"]:
        return "nothing: every step trained on everything"
    if share is None:
        return "unknown: no full step was measured to compare with (set anneal above 0)"
    if share <= -NOTHING:
        return f"none: {saved(share, 'slower')} than the full steps of this run; selection does not pay here"
    return f"{saved(share, 'slower')} against the full steps of this run"

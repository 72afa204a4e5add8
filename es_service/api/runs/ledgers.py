"""A run's ledger from its result, or until it has one, as last published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from es_service.selection.decisions import FIGURES
from es_service.storage.plain import number
from es_service.storage.progress import SHOWN

__all__ = ["ledger", "summary"]

_SECONDS = ("total", "score", "train", "exchange", "data", "wall")
_SAMPLES = ("scored", "trained", "full")
_MOST_CHARACTERS = 100
_SAVING = ("samples", "cost", "seconds", "tokens")
_HISTORY = (
    "epoch", "accuracy", "balanced_accuracy", "held_out_loss", "train_loss", "scored", "trained", "seconds",
)  # fmt: skip


def ledger(result: Mapping[str, Any] | None, progress: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return where the samples and seconds of a run went, per epoch and so far; null for what it did not report."""
    found = result or progress or {}
    epochs = found.get("history")
    history = [_epoch(one) for one in epochs if isinstance(one, Mapping)] if isinstance(epochs, list) else []
    seconds = _numbers(found.get("seconds"), _SECONDS)
    if seconds is None and history:
        seconds = {**dict.fromkeys(_SECONDS), "total": history[-1]["seconds"]}
    return {
        "available": result is not None or found.get("samples") is not None,
        "samples": _numbers(found.get("samples"), _SAMPLES),
        "tokens": _numbers(found.get("tokens"), _SAMPLES),
        "backward_cost": number(found.get("backward_cost")),
        "seconds": seconds,
        "saving": _numbers(found.get("saving"), _SAVING),
        "history": history,
    }


def summary(result: Mapping[str, Any] | None, progress: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the newest accuracy, what was saved and the seconds spent."""
    found = ledger(result, progress)
    history = found["history"]
    accuracy = number((result or {}).get("accuracy"))
    if accuracy is None and history:
        accuracy = next((one["accuracy"] for one in reversed(history) if one["accuracy"] is not None), None)
    return {
        "accuracy": accuracy,
        "saving": found["saving"],
        "seconds": None if found["seconds"] is None else found["seconds"]["total"],
    }


def _epoch(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: number(found.get(name)) for name in _HISTORY},
        "decision": _decision(found.get("decision")),
        "metrics": _metrics(found.get("metrics")),
        "saving": _numbers(found.get("saving"), _SAVING),
    }


def _decision(found: Any) -> dict[str, Any] | None:
    """Return what was decided for an epoch, where something was."""
    if not isinstance(found, Mapping):
        return None
    return {
        **{name: number(found.get(name)) for name in FIGURES},
        "reason": str(found.get("reason"))[:_MOST_CHARACTERS],
    }


def _metrics(found: Any) -> dict[str, float | int]:
    """Return what was measured beyond the fields."""
    values = found.items() if isinstance(found, Mapping) else ()
    return {
        name[:_MOST_CHARACTERS]: value
        for name, one in values
        if name not in SHOWN and (value := number(one)) is not None
    }


def _numbers(found: Any, names: tuple[str, ...]) -> dict[str, Any] | None:
    return {name: number(found.get(name)) for name in names} if isinstance(found, Mapping) else None

"""The result of a run: accuracy, samples trained on and cost, as plain values ready for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from es_service.ledger import SECTIONS, Ledger
from es_service.storage.runs import RunStorage
from es_service.training.tasks.base import Task

__all__ = ["measured", "trained_on"]


def measured(metrics: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """Return the part of the result that the training loop measured.

    Args:
        metrics: what `loop.fit` returned.
        wall_s: seconds from the run's start to its end.
    """
    ledger = Ledger.from_dict(metrics["ledger"])
    scorers = ledger.scorers()
    reached = ("metric", "metrics", "accuracy", "balanced_accuracy", "accuracy_by_label", "held_out_loss")
    return {
        "workers": metrics["world_size"],
        **{name: metrics[name] for name in reached},
        "samples": {"scored": ledger.scored, "trained": ledger.trained, "full": ledger.full},
        "tokens": ledger.token_counts(),
        "backward_cost": ledger.backward_cost,
        "seconds": {
            "total": ledger.total_s,
            **{section: ledger.seconds[section] for section in SECTIONS},
            "wall": wall_s,
        },
        "saving": ledger.saving(),
        "skipped": ledger.skipped,
        **({} if scorers is None else {"scorers": {**scorers, "lost": metrics["lost_scorers"]}}),
        "memory": metrics["memory"],
        "history": metrics["history"],
        "decisions": [one.get("decision") for one in metrics["history"]],
    }


def trained_on(task: Task, storage: RunStorage) -> dict[str, Any]:
    """Return which labels the run trained on, and how many wrong ones, as shares of the back-propagated samples; and
    what of the user's files it left out.
    """
    labels, corrupted = task.labels, getattr(task, "corrupted", None)
    selected = storage.table().column("selected").to_numpy().astype(np.float64)
    shares = selected / max(1.0, selected.sum())
    left_out = getattr(task, "left_out", None)
    found: dict[str, Any] = {"left_out": None if left_out is None else dataclasses.asdict(left_out)}
    found |= {"label_names": None, "label_shares": None, "trained_by_label": None, "corrupted": None}
    if labels is not None:
        num = int(labels.max()) + 1
        found["label_names"] = list(task.label_names or map(str, range(num)))
        found["label_shares"] = (np.bincount(labels) / labels.size).tolist()
        found["trained_by_label"] = np.bincount(labels, weights=shares).tolist()
    if corrupted is not None:
        found["corrupted"] = {
            "share_of_set": float(corrupted.mean()),
            "share_of_trained": float(shares[corrupted].sum()),
        }
    return found

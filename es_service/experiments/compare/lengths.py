"""How long the short full run of each method is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from es_service.experiments.compare.comparison import FULL
from es_service.experiments.compare.outcomes import Measured

__all__ = ["decide_lengths", "matched_length"]

TOLERANCE = 0.02
"""Share of an epoch that a short run may have less than its method: clocks are not more exact than that."""


def decide_lengths(measured: Mapping[str, Sequence[Measured]], num_epochs: int) -> dict[str, dict[str, Any]]:
    """Return, for each method but full, the epochs of the full run that takes as long: E_m = ⌈E·t_m/t_full⌉.

    Args:
        measured: the finished runs of each method, by label, those of full among them.
        num_epochs: E of full.

    Returns:
        {label: {epochs, basis}}, epochs in [1, E]. The basis is "seconds" in steps where both sides' runs had their
        cores to themselves, else "cost" in passes. Scorers work beside the steps, so a method with scorers gets
        whichever of the two is longer. A method without a finished run has no entry.
    """
    decided: dict[str, dict[str, Any]] = {}
    full = measured.get(FULL)
    if not full:
        return decided
    for label, runs in measured.items():
        if label == FULL or not runs:
            continue
        epochs = {"cost": num_epochs * _mean_passes(runs) / _mean_passes(full) - 1e-9}
        if all(one.seconds is not None for one in (*full, *runs)):
            epochs["seconds"] = num_epochs * _mean_seconds(runs) / _mean_seconds(full) - TOLERANCE
            if all(one.scorers is None for one in runs):
                del epochs["cost"]
        basis = max(epochs, key=epochs.__getitem__)
        decided[label] = {"epochs": min(max(math.ceil(epochs[basis]), 1), num_epochs), "basis": basis}
    return decided


def _mean_passes(runs: Sequence[Measured]) -> float:
    return math.fsum(one.passes for one in runs) / len(runs)


def _mean_seconds(runs: Sequence[Measured]) -> float:
    return math.fsum(one.seconds["total"] for one in runs if one.seconds is not None) / len(runs)


def matched_length(lengths: Mapping[str, int], num_epochs: int) -> int:
    """Return the epochs of the row that is called short_full: es's, or the middle one where es's is no shorter."""
    shorter = sorted({epochs for epochs in lengths.values() if epochs < num_epochs})
    if not shorter:
        return num_epochs
    matched = lengths.get("es", num_epochs)
    return matched if matched < num_epochs else shorter[len(shorter) // 2]

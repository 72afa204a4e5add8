"""A comparison made by hand: what runs of a few methods might have measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from es_service.experiments.compare.comparison import Candidate, Comparison, parse_candidates, short_full
from es_service.experiments.compare.outcomes import Outcome

NUM_SAMPLES, EPOCHS = 1000, 8
NAMES = ["shirt", "trouser", "<bag>", "boot|y"]


def _comparison(methods: str = "loss,es,eswp", seeds: int = 3, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "task": "fashion",
        "data": None,
        "derived": {},
        "num_samples": NUM_SAMPLES,
        "epochs": EPOCHS,
        "batch_size": 50,
        "learning_rate": 0.1,
        "candidates": parse_candidates(methods),
        "seeds": tuple(range(seeds)),
        **changes,
    }
    return Comparison(**values)


def _outcome(
    comparison: Comparison,
    candidate: Candidate,
    seed: int,
    accuracy: float,
    *,
    seconds: float = 10.0,
    scored: int = 0,
    trained: int | None = None,
    exclusive: bool = True,
    error: str | None = None,
    metrics: dict[str, float] | None = None,
    **changes: Any,
) -> Outcome:
    """An outcome as the worker writes it, read back; `changes` go into the result. The first of `metrics` counts."""
    spec = comparison.spec(candidate, seed)
    trained = NUM_SAMPLES * spec.epochs if trained is None else trained
    named = {"accuracy": accuracy} if metrics is None else metrics
    parts = [(epoch + 1) / spec.epochs for epoch in range(spec.epochs)]
    result = {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.02,
        "metric": next(iter(named)),
        "metrics": named,
        "held_out_loss": 1.5 * (1 - accuracy),
        "samples": {"scored": scored, "trained": trained, "full": NUM_SAMPLES * spec.epochs},
        "backward_cost": comparison.backward_cost,
        "prepared": {"scored": 0, "trained": 0, "seconds": 0.0},
        "seconds": {
            "total": seconds,
            "score": 0.2 * seconds if scored else 0.0,
            "train": 0.6 * seconds,
            "exchange": 0.05 * seconds,
            "data": 0.05 * seconds,
            "wall": seconds + 3,
        },
        "corrupted": None,
        "accuracy_by_label": [accuracy + 0.05, accuracy, accuracy - 0.02, accuracy - 0.03],
        "trained_by_label": [0.2, 0.2, 0.25, 0.35] if scored else [0.25, 0.25, 0.25, 0.25],
        "label_shares": [0.25, 0.25, 0.25, 0.25],
        "label_names": NAMES,
        "history": [
            {
                "epoch": epoch,
                "accuracy": accuracy * (0.7 + 0.3 * part),
                "balanced_accuracy": accuracy * (0.6 + 0.3 * part),
                "metrics": {name: value * (0.7 + 0.3 * part) for name, value in named.items()},
                "train_loss": 2 - part,
                "held_out_loss": 1.5 - part,
                "scored": int(scored * part),
                "trained": int(trained * part),
                "seconds": seconds * part,
                "saving": {},
            }
            for epoch, part in enumerate(parts)
        ],
        **changes,
    }
    return Outcome.from_dict(
        {
            "spec": spec.to_dict(),
            "result": None if error else result,
            "error": error,
            "wall_s": seconds + 3,
            "exclusive": exclusive,
            "waited_share": 0.0 if exclusive else 0.3,
            "machine": "CPU, 1 thread(s)",
        }
    )


MADE_UP: dict[str, tuple[tuple[float, ...], float, int, int]] = {
    # accuracies by seed, seconds, scored, trained
    "full": ((0.905, 0.900, 0.910), 10.0, 0, 8000),
    "random": ((0.885, 0.880, 0.886), 5.6, 0, 3500),
    "loss": ((0.860, 0.850, 0.870), 6.8, 6000, 3500),
    "es": ((0.902, 0.899, 0.905), 6.9, 6000, 3500),
    "eswp": ((0.893, 0.890, 0.899), 5.7, 4800, 3200),
}
SHORT = {5: ((0.893, 0.888, 0.893), 6.25), 6: ((0.897, 0.894, 0.899), 7.5)}
LENGTHS = {
    label: {"epochs": epochs, "basis": "seconds"}
    for label, epochs in (("random", 5), ("loss", 6), ("es", 6), ("eswp", 5))
}


def _outcomes(comparison: Comparison, **changes: Any) -> list[Outcome]:
    """Outcomes for every method of `MADE_UP` and both short full runs."""
    made = [
        _outcome(comparison, one, seed, accuracies[seed], seconds=seconds, scored=scored, trained=trained, **changes)
        for one in comparison.candidates
        for accuracies, seconds, scored, trained in [MADE_UP[one.label]]
        for seed in comparison.seeds
    ]
    return made + [
        _outcome(comparison, short_full(epochs), seed, accuracies[seed], seconds=seconds, **changes)
        for epochs, (accuracies, seconds) in SHORT.items()
        for seed in comparison.seeds
    ]


@pytest.fixture(scope="session")
def make_comparison() -> Callable[..., Comparison]:
    """A comparison on a task that nobody builds; keywords override its fields."""
    return _comparison


@pytest.fixture(scope="session")
def make_outcome() -> Callable[..., Outcome]:
    """One run's outcome."""
    return _outcome


@pytest.fixture(scope="session")
def make_outcomes() -> Callable[..., list[Outcome]]:
    """The outcomes of all runs of `make_comparison()`."""
    return _outcomes


@pytest.fixture(scope="session")
def lengths() -> dict[str, dict[str, Any]]:
    """How long the short full runs are."""
    return LENGTHS

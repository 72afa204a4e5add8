"""A search made by hand: trials whose results are a formula of their settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.proposals import proposals_for
from es_service.experiments.tune.queue import Queue
from es_service.experiments.tune.search_spec import Search
from es_service.experiments.tune.space import read_space
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, Journal, Trial

EPOCHS = 4


def make_search(entries: dict[str, Any] | None = None, **changes: Any) -> Search:
    values: dict[str, Any] = {
        "name": "found",
        "task": "fashion",
        "data": None,
        "derived": {"limit": 100},
        "num_samples": 100,
        "epochs": EPOCHS,
        "batch_size": 10,
        "learning_rate": 0.1,
        "space": read_space("es", entries or {"beta1": "uniform(0, 0.5)", "ratio": "choice(0.25, 0.5)"}),
        "objective": Objective(name="accuracy"),
        "algorithm": "random",
        "samples": 12,
        "seeds": (0, 1),
        "seed": 0,
        "early_stopping": True,
        **changes,
    }
    return Search(**values)


def make_queue(search: Search, path: Path) -> Queue:
    proposals = proposals_for(
        search.algorithm, search.space, search.objective,
        samples=search.samples, seed=search.seed, epochs=search.epochs,
    )  # fmt: skip
    return Queue(
        proposals, search.seeds, search.objective, Journal(path), seed_major=search.algorithm == "grid"
    )  # fmt: skip


def entry(epoch: int, accuracy: float, cost: float) -> dict[str, Any]:
    return {
        "epoch": epoch, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.01, "held_out_loss": 1 - accuracy,
        "train_loss": 1.0, "scored": 10, "trained": 10, "cost": cost, "seconds": 2 * cost,
    }  # fmt: skip


def train(queue: Queue, trial: Trial) -> None:
    """Play a trial: best where beta1 is 0.2; every fifth is stopped early, every eleventh fails."""
    beta1, ratio = trial.settings.get("beta1", 0.2), trial.settings.get("ratio", 0.25)
    highest = 0.9 - (beta1 - 0.2) ** 2 + 0.02 * ratio + 0.001 * trial.seed
    while True:
        epoch = len(trial.epochs)
        if trial.number % 5 == 4 and epoch == 2:
            queue.end(trial.number, PRUNED)
            return
        if trial.number % 11 == 10 and epoch == 1:
            queue.end(trial.number, FAILED, "loss nan")
            return
        if epoch == EPOCHS:
            queue.end(trial.number, FINISHED)
            return
        share = (epoch + 1) / EPOCHS
        queue.epoch(trial.number, entry(epoch, highest * (0.5 + 0.5 * share), share * (1 + 3 * ratio) / 3))


def play(search: Search, path: Path) -> list[Trial]:
    queue = make_queue(search, path)
    while (trial := queue.next()) is not None:
        train(queue, trial)
    return queue.trials


def references(search: Search) -> list[Trial]:
    found = []
    for epochs, accuracy in ((4, 0.92), (2, 0.88)):
        for seed in search.seeds:
            trial = Trial(
                number=len(found), setting=epochs, settings={"epochs": epochs}, seed=seed, run=f"full-{epochs}-s{seed}"
            )
            trial.epochs = [entry(k, accuracy, (k + 1) / EPOCHS) for k in range(epochs)]
            trial.status = FINISHED
            found.append(trial)
    return found


@pytest.fixture
def by_hand() -> dict[str, Callable[..., Any]]:
    """The functions above."""
    return {
        "search": make_search, "queue": make_queue, "train": train, "play": play, "references": references,
        "entry": entry,
    }  # fmt: skip

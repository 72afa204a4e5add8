"""A trial in its process: an epoch a step, ended and continued, without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from es_service import errors
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune.trainable import Job, Training
from es_service.experiments.tune.trials import Trial
from es_service.storage.runs import RunStorage

Hand = dict[str, Callable[..., Any]]
EPOCHS = 3


@pytest.fixture
def training(by_hand: Hand, tmp_path: Path) -> Callable[..., Training]:
    """A function that makes the training of a trial with these settings."""
    search = by_hand["search"](
        {"beta1": "uniform(0, 0.5)", "learning_rate": "grid(0.1, 1e30)"}, epochs=EPOCHS, batch_size=16,
        derived={"limit": 64}, num_samples=64,
    )  # fmt: skip
    job = Job(
        storage=str(tmp_path), whole=search.whole, backward_cost=2.0, metric="accuracy", places=Places(),
        stop=tmp_path / "stop",
    )  # fmt: skip

    def make(run: str, **settings: float) -> Training:
        settings = {"beta1": 0.2, "learning_rate": 0.1, **settings}
        return Training(job, search.spec(Trial(number=0, setting=0, settings=settings, seed=0, run=run)))

    return make


def timeless(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "seconds"}


def test_a_trial_that_was_ended_continues_and_one_that_has_ended_is_reported_again(
    training: Callable[..., Training], tmp_path: Path
) -> None:
    whole = training("whole")
    entries = [timeless(whole.step()) for _ in range(EPOCHS)]
    assert [(one["epoch"], one["epochs"], one["last"], one["done"]) for one in entries] == [
        (0, 1, False, False), (1, 2, False, False), (2, 3, True, True),
    ]  # fmt: skip
    with pytest.raises(errors.TrainingError, match="run 'whole' has ended"):
        whole.step()
    whole.end()
    shutil.rmtree(tmp_path / "whole" / "checkpoints")
    again = training("whole")  # as after SIGKILL, when its end had not been kept yet
    assert [timeless(again.step()) for _ in range(EPOCHS)] == entries
    assert not (tmp_path / "whole" / "checkpoints").exists()  # nothing was trained

    first = training("parts")
    assert [timeless(first.step()) for _ in range(2)] == entries[:2]
    first.end()
    mark = tmp_path / "parts" / "mark"
    mark.touch()
    second = training("parts")
    second.reported = 1  # a checkpoint of Ray Tune's says so
    assert [timeless(second.step()) for _ in range(2)] == entries[1:]
    second.end()
    assert mark.exists()
    other = training("parts", beta1=0.4)  # as where several ran at a time, and another was begun by this name
    assert other.step()["epoch"] == 0
    assert not mark.exists()
    other.end()


def test_a_trial_that_fails_says_why_and_one_whose_search_stops_says_so(
    training: Callable[..., Training], tmp_path: Path
) -> None:
    failing = training("failing", learning_rate=1e30)
    result = failing.step()
    while "failed" not in result:
        result = failing.step()
    assert result["done"]
    assert "lower the learning rate" in result["failed"]
    with pytest.raises(errors.TrainingError, match="run 'failing' has ended"):  # and not waited for
        failing.step()
    stopping = training("stopping")
    assert stopping.step()["epoch"] == 0
    (tmp_path / "stop").touch()
    while "stopped" not in (result := stopping.step()):
        assert "failed" not in result
    stopping.end()
    assert stopping._thread is not None
    assert not stopping._thread.is_alive()


def test_a_trial_reports_the_metric_of_its_task(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](
        {"beta1": "uniform(0, 0.5)"}, task="matthews_task:build_task", derived={}, num_samples=203, epochs=2
    )
    job = Job(
        storage=str(tmp_path),
        whole=search.whole,
        backward_cost=2.0,
        metric="matthews",
        places=Places(),
        stop=tmp_path / "stop",
    )
    training = Training(job, search.spec(Trial(number=0, setting=0, settings={"beta1": 0.2}, seed=0, run="one")))
    entries = [training.step() for _ in range(2)]
    result = RunStorage(str(tmp_path), "one").result()
    assert result is not None
    assert [one["matthews"] for one in entries] == [one["metrics"]["matthews"] for one in result["history"]]
    assert all(-1 <= one["matthews"] <= 1 for one in entries)
    training.end()

"""Metrics that a task names: from sums over all ranks, at the end of training, and what they may be called."""

from __future__ import annotations

import contextlib
import copy
import threading
from pathlib import Path
from typing import Any

import matthews_task
import numpy as np
import pytest
import torch
from matthews_task import HELD_OUT, MatthewsTask, build_task

import es_service as es
from es_service import errors
from es_service.storage.runs import RunStorage
from es_service.training.driver import train
from es_service.training.evaluation import evaluate, final_metrics
from es_service.training.irreducible import hold_out_losses
from es_service.training.settings import TrainSettings
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import own
from es_service.training.tasks.base import Task
from es_service.training.tasks.derived import Derived, derive
from es_service.training.tasks.metrics import metric_name
from tests.unit.training.test_evaluation import InTurn


def spec(storage: Path, **changes: Any) -> TrainingSpec:
    values: dict[str, Any] = {
        "run": "named",
        "storage": str(storage),
        "task": "matthews_task:build_task",
        "method": "es",
        "selection": es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0.3, 0)),
        "exchange": "embedded",
    }
    return TrainingSpec(**{**values, **changes})


def by_hand(model: torch.nn.Module, task: Task) -> dict[str, float]:
    """Matthews correlation as numpy correlates zeros and ones, and the share of mirrored points that are right."""
    x, y = task.held_out.__getitems__(range(HELD_OUT))
    with torch.no_grad():
        said, mirrored = model.eval()(x).argmax(dim=1), model(-x).argmax(dim=1)
    return {
        "matthews": float(np.corrcoef(said.numpy(), y.numpy())[0, 1]),
        "mirrored": float((mirrored == y).double().mean()),
    }


def trained_model(task: Task) -> torch.nn.Module:
    torch.manual_seed(3)
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        batch = task.train_set.__getitems__(range(100))
        optimizer.zero_grad()
        task.losses(model(task.inputs(batch)), batch).mean().backward()
        optimizer.step()
    return model


class InThreads(InTurn):
    """Ranks in threads: `gather` waits for all."""

    def __init__(self, rank: int, said: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(said), [said])
        self._barrier = barrier

    def gather(self, value: Any) -> list[Any]:
        self._said[0][self.rank] = value
        self._barrier.wait(60)
        return list(self._said[0])


@pytest.mark.parametrize("measure", [evaluate, final_metrics])
@pytest.mark.parametrize("world_size", [1, 2, 3, HELD_OUT + 2])
def test_sums_over_all_ranks_make_the_metric(world_size: int, measure: Any) -> None:
    task = build_task()
    model = trained_model(task)
    expected = by_hand(model, task)
    assert 0.2 < expected["matthews"] < 1
    said, barrier = [None] * world_size, threading.Barrier(world_size)
    found: list[Any] = [None] * world_size

    def work(rank: int) -> None:
        own_model, workers = copy.deepcopy(model).train(), InThreads(rank, said, barrier)
        found[rank] = measure(own_model, task, workers, lambda batch: batch, contextlib.nullcontext)
        assert own_model.training

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    name = "mirrored" if measure is final_metrics else "matthews"
    for one in found:
        assert (one if measure is final_metrics else one.metrics) == pytest.approx({name: expected[name]})


def test_a_run_reports_it_every_epoch_and_the_final_ones_once(tmp_path: Path) -> None:
    result = train(spec(tmp_path), lambda _: None)
    assert result["metric"] == "matthews"
    assert set(result["metrics"]) == {"matthews", "mirrored"}
    history = [entry["metrics"] for entry in result["history"]]
    assert [set(one) for one in history] == [{"matthews"}, {"matthews"}, {"matthews", "mirrored"}]
    assert result["metrics"] == history[-1]
    assert 0.2 < result["metrics"]["matthews"] < result["accuracy"]  # the accuracy is still the share that is right
    progress = RunStorage(str(tmp_path), "named").read_note("progress")
    assert progress is not None
    assert [one["metrics"] for one in progress["history"]] == history  # for the run's page
    assert [one["accuracy"] for one in progress["history"]] == [one["accuracy"] for one in result["history"]]
    again = train(spec(tmp_path, resume=True), lambda _: None)  # behind its end: nothing is worked out anew
    assert again["metrics"] == result["metrics"]


def test_without_a_name_it_is_accuracy(tmp_path: Path) -> None:
    result = train(spec(tmp_path, task="fashion", derived=Derived(limit=64), epochs=1, batch_size=16), lambda _: None)
    assert result["metric"] == "accuracy"
    assert result["metrics"] == {"accuracy": result["accuracy"]}


def test_a_derived_task_hands_all_optional_members_on() -> None:
    task = build_task()
    few = derive(task, Derived(limit=50))
    ids: Any = few.source_ids  # type: ignore[attr-defined]
    assert metric_name(few) == "matthews"
    model = trained_model(task)
    alone = InTurn(0, 1, [[]])
    reached = evaluate(model, few, alone, lambda batch: batch, contextlib.nullcontext)  # type: ignore[arg-type]
    assert reached.metrics == pytest.approx({"matthews": by_hand(model, task)["matthews"]})
    assert few.final_metrics is not None  # type: ignore[attr-defined]
    assert few.tokens.tolist() == (ids + 1).tolist()  # type: ignore[attr-defined]
    own_ids = np.array([4, 0, 49])
    moved = few.augment(few.train_set.__getitems__([4, 0, 49]), own_ids, 2, 0)  # type: ignore[attr-defined]
    x = task.train_set.__getitems__(ids[own_ids].tolist())[0]
    assert torch.equal(moved[0], x + (torch.as_tensor(ids[own_ids]).unsqueeze(1) + 2000) / 100_000)
    plain = derive(own.check(matthews_without_extras(), "plain"), Derived(limit=50))
    assert plain.metric_name == "accuracy"  # type: ignore[attr-defined]
    for name in ("augment", "tokens", "statistics", "metric_of", "final_metrics", "preview"):
        assert getattr(plain, name) is None
    assert metric_name(plain) == "accuracy"


def matthews_without_extras() -> Any:
    task = build_task()
    names = ("name", "train_set", "held_out", "model", "defaults")
    return matthews_task.Classification(**{name: getattr(task, name) for name in names})


def test_hold_out_models_are_not_measured() -> None:
    class Unmeasured(MatthewsTask):
        """Its held-out samples are of no interest to a model of half its samples."""

        def statistics(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            raise AssertionError

        def final_metrics(self, *_: Any) -> Any:
            raise AssertionError

    task = build_task()
    names = ("name", "train_set", "held_out", "model", "defaults")
    unmeasured = Unmeasured(**{name: getattr(task, name) for name in names})
    settings = TrainSettings(learning_rate=0.1)
    found = hold_out_losses(unmeasured, settings, num_epochs=2, batch_size=16, selection_seed=0)
    assert np.isfinite(found.losses).all()


class Renamed(MatthewsTask):
    """What the test calls it."""


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"metric_name": "cost"}, "'cost' cannot be the name of a metric"),
        ({"metric_name": "F 1"}, "letters, digits and _"),
        ({"metric_name": 5}, "5 cannot be the name"),
        ({"metric_name": "accuracy"}, "give it a metric_name of its own"),
        ({"metric_name": None}, "give it a metric_name of its own"),
        ({"metric_of": None}, "statistics and metric_of belong together"),
        ({"statistics": None}, "statistics and metric_of belong together"),
    ],
)
def test_a_name_that_results_cannot_hold_is_refused_before_training(members: dict[str, Any], message: str) -> None:
    task = build_task()
    kind = type("Renamed", (MatthewsTask,), members)
    renamed = kind(**{name: getattr(task, name) for name in ("name", "train_set", "held_out", "model", "defaults")})
    with pytest.raises(errors.ConfigError, match=message):
        own.check(renamed, "renamed")


def test_statistics_of_another_shape_are_refused() -> None:
    task = build_task()
    kind = type("Flat", (MatthewsTask,), {"statistics": lambda *_: torch.zeros(3)})
    flat = kind(**{name: getattr(task, name) for name in ("name", "train_set", "held_out", "model", "defaults")})
    with pytest.raises(errors.ShapeError, match=r"statistics must return a tensor \[4, K\], one row for each"):
        own.check(flat, "flat")


def test_a_final_metric_needs_a_name_of_its_own() -> None:
    task = build_task()
    for name in ("accuracy", "matthews", "seconds"):
        kind = type("Twice", (MatthewsTask,), {"final_metrics": lambda *_, name=name: {name: (1.0, 2)}})
        twice = kind(**{one: getattr(task, one) for one in ("name", "train_set", "held_out", "model", "defaults")})
        with pytest.raises(errors.ConfigError, match=name):
            final_metrics(twice.build_model(), twice, InTurn(0, 1, [[]]), lambda batch: batch, contextlib.nullcontext)  # type: ignore[arg-type]

"""What a backward pass counts as: measured once, without a trace in the model, and kept with the run."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from matthews_task import NUM, build_measured, build_task
from torch import nn

import es_service as es
from es_service import errors
from es_service.experiments.compare.comparison import begin, parse_candidates
from es_service.experiments.compare.folder import CompareFolder
from es_service.ledger import Ledger
from es_service.storage.runs import RunStorage
from es_service.training import scoring
from es_service.training.cost import backward_cost, measured
from es_service.training.driver import train
from es_service.training.loop import fit
from es_service.training.settings import TrainSettings
from es_service.training.tasks import fashion
from es_service.training.tasks.base import Task
from es_service.training.workers.local import LocalWorkers
from tests.unit.training.test_metrics_by_name import spec


class Machine:
    """A clock that passes make advance: a forward pass by a millisecond a sample, a backward pass by 2.6."""

    def __init__(self, overhead_s: float = 0.0) -> None:
        self.now, self.sizes, self.overhead_s = 0.0, list[int](), overhead_s

    def __call__(self) -> float:
        return self.now


class Timed(torch.autograd.Function):
    """Does nothing, and takes its time."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, machine: Machine, a_sample_s: float) -> torch.Tensor:
        context.machine, context.a_sample_s = machine, a_sample_s
        machine.sizes.append(len(x))
        machine.now += machine.overhead_s + a_sample_s * len(x)
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        [gradient] = gradients
        context.machine.now += 2.6 * context.a_sample_s * len(gradient)
        return gradient, None, None


class Model(nn.Module):
    """A network with all that a pass changes: running statistics, and random numbers."""

    def __init__(self, machine: Machine, a_sample_s: float = 0.001, most: int | None = None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        self._machine, self._a_sample_s, self._most = machine, a_sample_s, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._most is not None and torch.is_grad_enabled() and len(x) > self._most:
            raise torch.cuda.OutOfMemoryError
        found: torch.Tensor = Timed.apply(self.inner(x), self._machine, self._a_sample_s)  # type: ignore[no-untyped-call]
        return found


def measure(model: Model, machine: Machine, num: int = 32, micro: int | None = None) -> float:
    batch = (torch.randn(num, 2), torch.arange(num) % 2)

    def losses(inner: nn.Module, part: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(inner(part[0]), part[1], reduction="none")

    def score(part: Any) -> Any:
        return scoring.score(model, part, losses)

    return backward_cost(model, batch, score, losses, micro_batch_size=micro, clock=machine)


def test_it_is_the_time_of_a_backward_pass_in_forward_passes() -> None:
    machine = Machine()
    assert measure(Model(machine), machine) == pytest.approx(2.6)
    assert set(machine.sizes) == {32}
    machine.sizes.clear()
    assert measure(Model(machine), machine, micro=10) == pytest.approx(2.6)
    assert set(machine.sizes) == {32, 8}  # scored at once, trained on in four passes


def test_what_takes_long_or_does_not_fit_is_measured_on_fewer_samples() -> None:
    machine = Machine()
    assert measure(Model(machine, a_sample_s=0.05), machine) == pytest.approx(2.6)
    assert machine.sizes == [32, 5, *[5] * (len(machine.sizes) - 2)]
    endless = Machine()
    assert measure(Model(endless, a_sample_s=1.0), endless) == pytest.approx(2.6)
    assert set(endless.sizes) == {32, 2}
    small = Machine()
    assert measure(Model(small, most=9), small) == pytest.approx(2.6)
    assert set(small.sizes) == {32, 16, 8}
    with pytest.raises(torch.cuda.OutOfMemoryError):
        measure(Model(small, most=1), small)


@pytest.mark.parametrize("micro", [None, 8])
def test_what_calls_cost_whatever_the_size_counts_on_neither_side(micro: int | None) -> None:
    machine = Machine(overhead_s=0.0005)
    cost = measure(Model(machine, a_sample_s=2e-6), machine, num=32, micro=micro)
    num_passes = 1 if micro is None else 4
    largest = max(machine.sizes)
    assert 0.01 <= 0.0005 + 2e-6 * largest < 0.1
    assert machine.sizes[-1] == largest // num_passes  # as many passes as the batch itself would need
    assert cost == pytest.approx(2.6, rel=0.1 if micro is None else 0.2)
    endless = Machine(overhead_s=0.0005)
    measure(Model(endless, a_sample_s=0.0), endless)
    assert max(endless.sizes) <= 1 << 16
    small = Machine()
    assert measure(Model(small, a_sample_s=1e-6, most=2000), small) == pytest.approx(2.6)
    assert small.sizes[-1] <= 2000


def test_it_leaves_no_trace() -> None:
    torch.manual_seed(0)
    machine = Machine()
    model = Model(machine)
    model.inner[3].weight.grad = torch.ones(2, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.randn(32, 2), torch.arange(32) % 2
    state = torch.get_rng_state()
    backward_cost(model, batch, lambda part: scoring.score(model, part, losses_of), losses_of)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.inner[3].weight.grad, torch.ones(2, 8))
    assert all(one.grad is None for one in model.parameters() if one is not model.inner[3].weight)
    assert model.training
    assert model.inner[1].training


def losses_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def trained(task: Task, folder: Path, cost: float | None) -> tuple[dict[str, Any], bytes]:
    selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0.3, 0))
    selector = es.Selector(selection, num_samples=NUM, num_epochs=3, batch_size=16)
    settings = TrainSettings(learning_rate=0.1, backward_cost=cost)
    metrics = fit(task, selector, settings, LocalWorkers(folder))
    return metrics, selector.state_dict()["table"]


def test_a_measured_training_is_that_of_a_given_cost_bit_for_bit(tmp_path: Path) -> None:
    task = build_measured()
    model = lambda: nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 2))  # noqa: E731
    task = dataclasses.replace(task, model=model)
    measured, table = trained(task, tmp_path / "measured", None)
    given, other_table = trained(task, tmp_path / "given", 2.0)
    assert table == other_table
    names = ("accuracy", "held_out_loss", "train_loss", "metrics", "scored", "trained")
    assert [{name: one[name] for name in names} for one in measured["history"]] == [
        {name: one[name] for name in names} for one in given["history"]
    ]
    cost = measured["ledger"]["backward_cost"]
    assert cost > 0
    ledger = Ledger.from_dict(measured["ledger"])
    assert ledger.saving()["cost"] == pytest.approx(
        1 - (ledger.scored + (1 + cost) * ledger.trained) / ((1 + cost) * ledger.full)
    )
    assert given["ledger"]["backward_cost"] == 2.0


class EndedHere(Exception):
    """What ends a training in the middle."""


def test_a_resumed_run_counts_by_what_was_measured_at_its_start(tmp_path: Path) -> None:
    seen = []

    def end(stats: dict[str, Any]) -> None:
        if stats["progress"] and len(stats["progress"]["history"]) == 2 and not seen:  # behind a checkpoint
            seen.append(stats["progress"]["backward_cost"])
            raise EndedHere

    measured = spec(tmp_path, task="matthews_task:build_measured")
    with pytest.raises(EndedHere):
        train(measured, end)
    assert seen[0] > 0
    result = train(dataclasses.replace(measured, resume=True), lambda _: None)
    assert (result["backward_cost"], result["backward_cost_measured"]) == (seen[0], True)
    progress = RunStorage(str(tmp_path), "named").read_note("progress")
    assert progress is not None
    assert progress["backward_cost"] == seen[0]
    assert {one["ledger"]["backward_cost"] for one in progress["history"]} == {seen[0]}


def test_the_tasks_own_figure_is_not_measured(tmp_path: Path) -> None:
    result = train(spec(tmp_path), lambda _: None)
    assert (result["backward_cost"], result["backward_cost_measured"]) == (2.0, False)
    assert spec(tmp_path).filled(build_task().defaults).backward_cost == 2.0


def test_a_comparison_measures_once_for_all_its_runs(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "candidates": parse_candidates("es"),
        "seeds": (0, 1),
        "task": "matthews_task:build_measured",
    }
    comparison = begin(**asked)
    cost = comparison.backward_cost
    assert cost > 0
    assert {one.backward_cost for one in comparison.specs(comparison.candidates)} == {cost}
    assert comparison.whole == pytest.approx((1 + cost) * NUM * 3)
    folder = CompareFolder(str(tmp_path / "out"))
    assert folder.backward_cost() is None
    with folder.open(comparison):
        pass
    again = begin(**asked, backward_cost=folder.backward_cost())
    assert again == comparison
    with folder.open(again):
        pass
    plain = begin(**{**asked, "task": "matthews_task:build_task"})
    assert plain.backward_cost == 2.0


@pytest.mark.parametrize("cost", [0.0, -1.0, float("inf"), float("nan")])
def test_a_cost_that_is_none_is_refused(cost: float) -> None:
    with pytest.raises(errors.ConfigError, match="backward_cost must be"):
        TrainSettings(learning_rate=0.1, backward_cost=cost)


def test_a_real_network_is_measured_within_seconds() -> None:
    began = time.monotonic()
    assert 0.1 <= measured(backward_cost, fashion.build(), TrainSettings(learning_rate=0.1), 64) < 50
    assert time.monotonic() - began < 30

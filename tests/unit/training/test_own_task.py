"""A task of the user's own: found by module and function, and refused with a reason where it breaks the contract."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from es_service import errors
from es_service.training.tasks import build_task, own
from es_service.training.tasks.base import Task, TaskDefaults
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.supervised import Classification, TensorSet

SOURCE = """
import torch
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Classification, TensorSet

def build_task(data):
    samples = TensorSet(torch.randn(8, 2), torch.arange(8) % 2)
    return Classification(
        name=f"mine of {data}", train_set=samples, held_out=samples, model=lambda: torch.nn.Linear(2, 2),
        defaults=TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1),
    )

def nothing(data):
    return None
"""


@pytest.fixture(autouse=True)
def _imports_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_module_in_the_current_directory(folder: Path) -> None:
    (folder / "my_task.py").write_text(SOURCE)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "deep_task.py").write_text(SOURCE)
    assert build_task("my_task:build_task", "there").name == "mine of there"
    assert build_task("deeper.deep_task:build_task").name == "mine of None"
    few = build_task("my_task:build_task", derived=Derived(shots=1, label_noise=1.0))
    assert few.labels is not None
    assert sorted(few.labels.tolist()) == [0, 1]


def test_what_cannot_be_found_is_named(folder: Path) -> None:
    (folder / "my_task.py").write_text(SOURCE)
    (folder / "needy.py").write_text("import not_installed_anywhere")
    (folder / "broken.py").write_text("1 / 0")
    for spec, problem in [
        ("your_task:build_task", f"no module 'your_task' is installed or in the current directory, {folder}"),
        ("your.task:build_task", "no module 'your' is"),
        ("my_task:build", rf"no function 'build' in {folder}/my_task.py"),
        ("my_task:", "not of the form module:function"),
        (":build_task", "not of the form module:function"),
        ("needy:build_task", "importing 'needy' failed: No module named 'not_installed_anywhere'"),
        ("broken:build_task", "importing 'broken' failed: ZeroDivisionError: division by zero"),
        ("my_task:nothing", r"returned a NoneType without name, train_set, .*, signals\(\), metric\(\): .*Classif"),
    ]:
        with pytest.raises(errors.ConfigError, match=problem) as caught:
            build_task(spec)
        assert spec in str(caught.value)


def test_errors_of_the_function_are_its_own(folder: Path) -> None:
    (folder / "failing.py").write_text("def build_task(data):\n    return 1 / 0")
    with pytest.raises(ZeroDivisionError):
        build_task("failing:build_task")


def a_task(**wrong: Any) -> Any:
    """A task that keeps the contract, but for these parts."""
    samples = TensorSet(torch.randn(6, 2), torch.arange(6) % 2)
    good = Classification(
        name="b",
        train_set=samples,
        held_out=samples,
        model=lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)),
        defaults=TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1),
    )
    parts = {name: getattr(good, name) for name in vars(Task) if not name.startswith("_")}
    return types.SimpleNamespace(**{**parts, **wrong})


class Short(TensorSet):
    """Says that it has more samples than it has."""

    def __len__(self) -> int:
        return 7


class Greedy(TensorSet):
    """Returns more samples than asked for."""

    def __getitems__(self, ids: Any) -> Any:
        return super().__getitems__([*ids, 0])


def per_sample(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any, Any], torch.Tensor]:
    return lambda outputs, batch: function(nn.functional.cross_entropy(outputs, batch[1], reduction="none"))


SIX = (torch.randn(6, 2), torch.arange(6) % 2)
WRONG: list[tuple[dict[str, Any], type[errors.EsServiceError], str]] = [
    ({"losses": per_sample(torch.mean)}, errors.ShapeError, "one number for 4 samples.*reduction='none'"),
    ({"losses": per_sample(lambda values: values[:2])}, errors.ShapeError, r"shape \(2,\) for 4 samples"),
    ({"losses": lambda outputs, batch: [0.0]}, errors.ShapeError, "must return a tensor, got list"),
    ({"losses": per_sample(torch.detach)}, errors.ConfigError, "no gradient"),
    ({"metric": per_sample(torch.mean)}, errors.ShapeError, r"its metric must be .* each of 4 samples, got \[\]"),
    ({"signals": lambda outputs, batch: {"correct": 1}}, errors.ShapeError, "signal 'correct' must be .*, got int"),
    ({"signals": lambda outputs, batch: {"gradnorm": batch[1]}}, errors.ConfigError, r"got \['gradnorm'\]"),
    ({"signals": lambda outputs, batch: None}, errors.ConfigError, "signals must return a dict .* got NoneType"),
    ({"signals": None}, errors.ConfigError, r"without signals\(\)"),
    ({"defaults": {"epochs": 3}}, errors.ConfigError, "must be a TaskDefaults .* got dict"),
    ({"build_model": lambda: None}, errors.ConfigError, "torch.nn.Module, got NoneType"),
    ({"train_set": [1, 2]}, errors.ConfigError, "train_set has no __getitems__"),
    ({"held_out": 3}, errors.ConfigError, "held_out has no __len__"),
    ({"train_set": TensorSet(torch.zeros(0, 2), torch.zeros(0).long())}, errors.DataError, "train_set is empty"),
    ({"train_set": Short(*SIX), "labels": None, "held_out_labels": None}, errors.DataError, "7 samples, but not id 6"),
    ({"held_out": Greedy(*SIX)}, errors.DataError, "a batch of 5 samples for 4 ids"),
    ({"labels": np.zeros(5, dtype=np.int64)}, errors.DataError, r"of the train_set must be .* int64\[6\], got int64"),
    ({"labels": np.zeros(6, dtype=np.int32)}, errors.DataError, r"int64\[6\], got int32\[6\]"),
    ({"held_out_labels": [0] * 6}, errors.DataError, "of the held_out must be .* got list"),
    ({"labels": None}, errors.ConfigError, "must both be there"),
    (
        {"augment": lambda batch, ids, epoch, seed: (batch[0][1:], batch[1][1:])},
        errors.DataError,
        "its augment returned a batch of 3 samples for 4",
    ),
    ({"label_names": ("only",)}, errors.DataError, r"label 1 of sample 1 .* outside: there are only 0 .. 0"),
]


@pytest.mark.parametrize(
    "wrong, kind, problem", WRONG, ids=lambda value: "-".join(value) if type(value) is dict else ""
)
def test_a_broken_contract_is_refused(wrong: dict[str, Any], kind: type[errors.EsServiceError], problem: str) -> None:
    with pytest.raises(errors.EsServiceError, match=problem) as caught:
        own.check(a_task(**wrong), "mine:build")
    assert type(caught.value) is kind
    assert str(caught.value).startswith("task 'mine:build'")


def test_checking_leaves_no_trace() -> None:
    task = a_task()
    state = torch.get_rng_state()
    with torch.no_grad():
        assert own.check(task, "mine:build") is task
    assert torch.equal(torch.get_rng_state(), state)


# -- labels and outputs -------------------------------------------------------------------------------------------


def classes(
    labels: Any, outputs: int = 3, held_out: Any = (0, 1, 2), kind: type[Classification] = Classification
) -> Any:
    def samples(targets: Any) -> TensorSet:
        return TensorSet(torch.randn(len(targets), 2), torch.tensor(targets))

    return kind(
        name="c",
        train_set=samples(labels),
        held_out=samples(held_out),
        model=lambda: nn.Linear(2, outputs),
        defaults=TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1),
    )


def test_every_label_is_compared_with_the_width_of_the_logits() -> None:
    """Wherever it stands: a training would come upon it in the middle of an epoch."""
    labels = [one % 3 for one in range(40)]
    assert own.check(classes(labels), "mine:build")
    labels[17] = 7
    with pytest.raises(
        errors.DataError,
        match=r"'mine:build': sample 17 of the train_set has the label 7, but .* 3 classes, 0 .. 2: cor",
    ):
        own.check(classes(labels), "mine:build")
    with pytest.raises(errors.DataError, match=r"sample 1 of the held_out has the label 3, but"):
        own.check(classes([0, 1, 2], held_out=[0, 3, 1, 2, 0, 1]), "mine:build")
    with pytest.raises(
        errors.DataError, match=r"sample 2 .* label 3, as have 1 further samples.* count from 0, and these begin at 1"
    ):
        own.check(classes([1, 2, 3, 1, 2, 3, 1, 1, 1, 1]), "mine:build")


class TwoOfOne(Classification):
    """Two classes, one output: not the logits of a softmax."""

    def losses(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], batch[1].float(), reduction="none")

    def metric(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return (outputs[:, 0] > 0) == batch[1]

    def signals(self, outputs: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        return {}


def test_outputs_of_another_loss_need_not_be_logits() -> None:
    task = classes([0, 1] * 10, outputs=1, held_out=(0, 1), kind=TwoOfOne)
    assert own.check(task, "mine:build") is task


def test_a_stray_label_of_a_task_with_a_loss_of_its_own() -> None:
    labels = np.arange(40) % 2
    labels[17] = 5
    samples = TensorSet(torch.randn(40, 2), labels)
    task = a_task(train_set=samples, labels=labels, losses=per_sample(lambda values: values))
    with pytest.raises(
        errors.DataError, match=r"samples \[0, 17, 38, 39\] of the train_set with the labels .*5.*\[4, 2\]"
    ):
        own.check(task, "mine:build")


@pytest.mark.parametrize(
    "output, message",
    [
        (
            lambda z: (z, z.sum()),
            r"the model returned a tuple of Tensor\[4, 2\], Tensor\[\], where logits must be a tensor",
        ),
        (lambda z: {"logits": z}, r"returned a dict of 'logits': Tensor\[4, 2\]"),
        (lambda z: None, "returned a NoneType, where"),
    ],
)
def test_a_model_that_returns_no_tensor_is_described(output: Callable[[torch.Tensor], Any], message: str) -> None:
    class Model(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> Any:
            return output(super().forward(inputs))

    with pytest.raises(errors.ShapeError, match=message):
        own.check(a_task(build_model=lambda: Model(2, 2)), "mine:build")

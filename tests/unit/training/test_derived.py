"""Derived settings: exact counts, nothing else changed, the same from the same seed; on Fashion-MNIST itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from es_service import errors
from es_service.training.tasks import base, build_task, fashion, own
from es_service.training.tasks.derived import Derived, DerivedTask, derive
from es_service.training.tasks.supervised import Classification, Regression, TensorSet

DEFAULTS = base.TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1)
LABELS = np.array([0] * 50 + [1] * 30 + [2] * 20)


@pytest.fixture(scope="module")
def plain() -> Classification:
    return fashion.build()


def small(labels: Any = LABELS) -> Classification:
    """A task whose sample i is the number i."""
    held_out = TensorSet(torch.zeros(3, 1), np.array([0, 1, 2]))
    train_set = TensorSet(torch.arange(len(labels)).unsqueeze(1).float(), np.asarray(labels))
    return Classification(
        name="small", train_set=train_set, held_out=held_out, model=lambda: nn.Linear(1, 3), defaults=DEFAULTS
    )


def derived(task: base.Task, **settings: Any) -> DerivedTask:
    found = derive(task, Derived(**settings))
    assert isinstance(found, DerivedTask)
    return found


def labels_of(task: base.Task) -> np.ndarray[Any, Any]:
    assert task.labels is not None
    return task.labels


def test_plain_settings_leave_the_task(plain: Classification) -> None:
    assert Derived().is_plain
    assert Derived(seed=5).is_plain
    assert derive(plain, Derived(seed=5)) is plain
    assert not hasattr(plain, "corrupted")
    assert build_task("fashion").name == "fashion"


@pytest.mark.parametrize("setting", [{"label_noise": 0.1}, {"long_tail": 0.5}, {"shots": 1}, {"limit": 10}])
def test_settings_go_through_json(setting: dict[str, Any]) -> None:
    settings = Derived(**setting, seed=2**62)
    assert not settings.is_plain
    assert Derived(**json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    "setting",
    [
        {"label_noise": -0.1},
        {"label_noise": 1.1},
        {"label_noise": float("nan")},
        {"label_noise": "much"},
        {"long_tail": 0},
        {"long_tail": 1.5},
        {"long_tail": True},
        {"shots": 0},
        {"shots": 2.5},
        {"limit": 0},
        {"seed": -1},
    ],
)
def test_settings_outside_their_domain(setting: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=next(iter(setting))):
        Derived(**setting)


# -- label noise --------------------------------------------------------------------------------------------------


def test_label_noise_changes_exactly_that_share_in_labels_and_batches(plain: Classification) -> None:
    task = derived(plain, label_noise=0.2)
    assert task.corrupted is not None
    assert task.corrupted.sum() == 1600
    assert np.array_equal(labels_of(task) != plain.labels, task.corrupted)
    ids = list(range(0, 8_000, 7))
    batch, before = task.train_set.__getitems__(ids), plain.train_set.__getitems__(ids)
    assert torch.equal(batch.targets, torch.from_numpy(labels_of(task)[ids]))
    assert torch.equal(batch.inputs, before.inputs)
    assert task.held_out is plain.held_out
    assert np.array_equal(task.source_ids, np.arange(8_000))


def test_wrong_labels_are_uniform_over_the_others(plain: Classification) -> None:
    task = derived(plain, label_noise=1.0)
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (plain.labels, labels_of(task)), 1)
    assert not counts.diagonal().any()
    others = counts[~np.eye(10, dtype=bool)]
    assert others.sum() == 8_000
    assert ((others - 800 / 9) ** 2 / (800 / 9)).sum() < 120  # chi-square, 80 degrees of freedom: 99.7 %


@given(st.integers(1, 60), st.integers(0, 1000))
def test_the_count_is_the_nearest_whole_number_a_half_counts_up(num: int, thousandths: int) -> None:
    task = derive(small([i % 3 for i in range(num)]), Derived(label_noise=thousandths / 1000))
    corrupted = getattr(task, "corrupted", np.zeros(1))
    assert corrupted.sum() == (2 * thousandths * num + 1000) // 2000


def test_the_same_seed_gives_the_same_and_another_seed_another(plain: Classification) -> None:
    settings: dict[str, Any] = {"label_noise": 0.1, "long_tail": 0.1, "limit": 4_000}
    one, again, other = (derived(plain, **settings, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.source_ids, again.source_ids)
    assert np.array_equal(labels_of(one), labels_of(again))
    assert not np.array_equal(one.source_ids, other.source_ids)
    noise, other_noise = (derived(plain, label_noise=0.1, seed=seed).corrupted for seed in (1, 2))
    assert not np.array_equal(noise, other_noise)


def test_the_choice_never_changes(plain: Classification) -> None:
    """Published figures speak of these samples and labels."""
    task = derived(plain, label_noise=0.3, long_tail=0.05, shots=100, limit=5_000, seed=3)
    assert task.source_ids[:6].tolist() == [2, 24, 34, 67, 88, 93]
    assert labels_of(task)[:6].tolist() == [7, 5, 0, 0, 5, 3]


# -- which samples are kept ---------------------------------------------------------------------------------------


def test_a_long_tail_on_balanced_classes(plain: Classification) -> None:
    task = derived(plain, long_tail=0.01)
    counts = np.bincount(labels_of(task))
    assert (counts[0], counts[-1]) == (800, 8)
    assert counts.tolist() == [round(800 * 0.01 ** (k / 9)) for k in range(10)]
    assert task.corrupted is None
    ids = [0, len(task.train_set) - 1]
    assert torch.equal(
        task.train_set.__getitems__(ids).inputs, plain.train_set.__getitems__(task.source_ids[ids].tolist()).inputs
    )


def test_a_long_tail_keeps_its_shape_where_classes_are_unequal() -> None:
    assert np.bincount(labels_of(derived(small(), long_tail=0.25))).tolist() == [50, 25, 12]
    assert np.bincount(labels_of(derived(small([0] * 4 + [1] * 9 + [2] * 9), long_tail=0.01))).tolist() == [4, 1, 1]


def test_shots_are_so_many_a_class_or_all_there_are() -> None:
    assert np.bincount(labels_of(derived(small(), shots=5))).tolist() == [5, 5, 5]
    assert np.bincount(labels_of(derived(small(), shots=25))).tolist() == [25, 25, 20]


@given(st.integers(1, 120))
def test_a_limit_keeps_the_proportions(limit: int) -> None:
    counts = np.bincount(labels_of(derived(small(), limit=limit)), minlength=3)
    assert counts.sum() == min(limit, 100)
    assert (np.abs(counts - np.array([0.5, 0.3, 0.2]) * min(limit, 100)) < 1).all()


def test_a_larger_limit_keeps_what_a_smaller_one_kept() -> None:
    kept = [set(derived(small(), limit=limit).source_ids.tolist()) for limit in (10, 50, 100)]
    assert kept[0] < kept[1] < kept[2] == set(range(100))


def test_the_order_is_limit_tail_shots_noise() -> None:
    task = derived(small(), limit=50, long_tail=0.1, shots=6, label_noise=0.5)
    kept = LABELS[task.source_ids]
    assert np.bincount(kept).tolist() == [6, 6, 2]  # 25, 15, 10 -> 25, 8, 2 -> 6, 6, 2
    assert task.corrupted is not None
    assert task.corrupted.sum() == 7
    assert set(task.source_ids) <= set(derived(small(), limit=50).source_ids)
    batch = task.train_set.__getitems__(range(14))
    assert batch.inputs.flatten().tolist() == task.source_ids.tolist()
    assert np.array_equal(batch.targets.numpy() != kept, task.corrupted)
    for outside in ([14], [-1]):
        with pytest.raises(IndexError):
            task.train_set.__getitems__(outside)


# -- what it does not fit -----------------------------------------------------------------------------------------


def test_it_is_a_task_that_trains_as_before(plain: Classification) -> None:
    as_task: base.Task = derived(plain, label_noise=0.5, shots=10)
    assert own.check(as_task, "x") is as_task
    assert (as_task.name, as_task.defaults, as_task.label_names) == ("fashion", plain.defaults, fashion.CLASSES)
    batch = as_task.train_set.__getitems__([0, 1])
    logits = torch.zeros(2, 10)
    assert torch.equal(as_task.losses(logits, batch), plain.losses(logits, batch))
    assert set(as_task.signals(logits, batch)) == {"correct", "confidence", "grad_norm"}


def test_a_regression_has_a_limit_and_no_more() -> None:
    samples = TensorSet(torch.zeros(30, 1), torch.arange(30.0))
    task = Regression(name="r", train_set=samples, held_out=samples, model=lambda: nn.Flatten(0), defaults=DEFAULTS)
    assert len(derived(task, limit=12).train_set) == 12
    assert derived(task, limit=12).labels is None
    for setting in ({"label_noise": 0.1}, {"long_tail": 0.5}, {"shots": 1}):
        with pytest.raises(errors.ConfigError, match=f"{next(iter(setting))} needs labels, and the task 'r' has none"):
            derive(task, Derived(**setting))


def test_label_noise_needs_the_hook_and_nothing_else_does() -> None:
    class NoHook(Classification):
        relabel = None  # type: ignore[assignment]

    task = NoHook(**{field.name: getattr(small(), field.name) for field in dataclasses.fields(Classification)})
    assert len(derive(task, Derived(shots=2)).train_set) == 6
    with pytest.raises(errors.ConfigError, match=r"label_noise needs a method relabel\(batch, labels_B\) of .*'small'"):
        derive(task, Derived(label_noise=0.1))


def test_a_tail_without_samples_of_a_class() -> None:
    with pytest.raises(errors.ConfigError, match="none of class 1"):
        derive(small([0, 0, 2, 2]), Derived(long_tail=0.5))
    one = dataclasses.replace(small([0, 0]), held_out=TensorSet(torch.zeros(1, 1), np.array([0])))
    with pytest.raises(errors.ConfigError, match="at least 2 classes, and the task 'small' has 1"):
        derive(one, Derived(label_noise=0.5))

"""Proxies of a task: which are refused before anything starts, how they learn, and what they cost."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import matthews_task
import numpy as np
import pytest
import torch
from torch import nn

import es_service as es
from es_service.storage.runs import RunStorage
from es_service.training import proxies, scoring
from es_service.training.driver import train
from es_service.training.irreducible import Prepared
from es_service.training.passes import forward_signals
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import fashion
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.derived import Derived, derive
from es_service.training.tasks.supervised import Classification, TensorSet
from tests.unit.training.test_metrics_by_name import spec

TASK = matthews_task.build_task()


def _with(**changes: Any) -> Classification:
    labels_n = changes.pop("labels_n", TASK.labels)
    num = len(labels_n)
    return Classification(
        **{
            "name": "other",
            "train_set": TensorSet(torch.zeros(num, 3), torch.as_tensor(labels_n)),
            "held_out": TensorSet(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)),
            "model": lambda: nn.Linear(3, 2),
            "defaults": TaskDefaults(epochs=1, batch_size=8, learning_rate=0.3),
            **changes,
        }
    )


def build_good(data: str | None = None) -> Classification:
    """The samples of the task, seen otherwise."""
    del data
    return _with()


def build_three_classes(data: str | None = None) -> Classification:
    """A model for three classes."""
    del data
    return _with(model=lambda: nn.Linear(3, 3))


def build_named(data: str | None = None) -> Classification:
    """Other names of the classes."""
    del data
    return _with(label_names=("cat", "dog"))


def build_other_labels(data: str | None = None) -> Classification:
    """One label that is another."""
    del data
    labels_n = TASK.labels.copy()
    labels_n[7] = 1 - labels_n[7]
    return _with(labels_n=labels_n)


def build_fewer(data: str | None = None) -> Classification:
    """A sample less."""
    del data
    return _with(labels_n=TASK.labels[:-1])


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("build_three_classes", r"its model has outputs of shape \(3,\), that of the task \(2,\)"),
        ("build_named", r"it has other classes: 2 \(cat, dog\); the task has none with names"),
        ("build_other_labels", "its sample 7 is of class"),
        ("build_fewer", "it has 202 samples to train on, the task 203"),
    ],
)
def test_a_proxy_with_other_classes_or_samples_is_refused_before_training(
    builder: str, message: str, tmp_path: Path
) -> None:
    wrong = spec(tmp_path, scorers=1, proxy=f"{__name__}:{builder}")
    with pytest.raises(es.ConfigError, match=rf"--proxy .*{builder} cannot score for the task .*: {message}"):
        train(wrong, lambda _: None)  # Ray may not start in a unit test
    assert not RunStorage(str(tmp_path), wrong.run).exists()


def test_an_unknown_proxy_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(es.ConfigError, match="has no proxy 'smal'; did you mean 'small'"):
        proxies.proxy_of(spec(tmp_path, task="fashion", scorers=1, proxy="smal"), fashion.build())
    with pytest.raises(es.ConfigError, match="known: self"):
        proxies.proxy_of(spec(tmp_path, scorers=1, proxy="xyz"), TASK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorers": 1}, "scorers=1 need a proxy"),
        ({"proxy": "small"}, "give --scorers N"),
        ({"scorers": -1}, "scorers must be an integer of at least 0"),
        ({"scorers": 1, "proxy": "small", "proxy_age": 3}, "proxy_age=3 is of the proxy 'self'"),
        ({"scorers": 1, "proxy": "self", "proxy_age": 0}, "proxy_age must be an integer of at least 1"),
        ({"scorers": 1, "proxy": "self", "selection": es.Selection(es.methods.random())}, "draws without losses"),
    ],
)
def test_settings_of_scorers_that_do_not_belong_together(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(es.ConfigError, match=message):
        spec(tmp_path, **changes)


def test_a_proxy_comes_with_the_task_even_where_its_labels_are_changed(tmp_path: Path) -> None:
    derived = Derived(limit=40, label_noise=0.5)
    task = derive(fashion.build(), derived)
    proxy = proxies.proxy_of(spec(tmp_path, task="fashion", derived=derived, scorers=1, proxy="small"), task)
    assert proxy.labels is task.labels
    assert sum(one.numel() for one in proxy.build_model().parameters()) < 20_000
    own = proxies.proxy_of(spec(tmp_path, scorers=1, proxy="self"), TASK)
    assert own is TASK


def _proxy(spec: TrainingSpec) -> proxies.TaskProxy:
    return proxies.TaskProxy.of(spec.filled(TASK.defaults).to_dict(), 3)


IDS = np.arange(32)


@pytest.mark.usefixtures("one_thread")
def test_a_proxy_learns_what_it_scores_and_continues_from_its_state(tmp_path: Path) -> None:
    learning = spec(tmp_path, scorers=1, proxy=f"{__name__}:build_good")
    one, other = _proxy(learning), _proxy(learning)
    first = one(IDS, 0.0)
    assert first == pytest.approx(other(IDS, 0.0), abs=0)
    for step in range(1, 10):
        one(IDS, step / 10)
    assert one(IDS, 1.0).mean() < first.mean()
    other.load(pickle.loads(pickle.dumps(one.state())))
    for at in (1.1, 1.2):
        assert one(IDS, at).tobytes() == other(IDS, at).tobytes()
    assert proxies.settings_of(learning, build_good()).learning_rate == 0.3  # the proxy's own


@pytest.mark.usefixtures("one_thread")
def test_the_proxy_self_scores_with_the_weights_it_was_handed(tmp_path: Path) -> None:
    own = _proxy(spec(tmp_path, scorers=1, proxy="self"))
    torch.manual_seed(9)
    model = TASK.build_model()
    before = own(IDS, 2.5)
    own.load(model.state_dict())
    batch = TASK.augment(TASK.train_set.__getitems__(IDS.tolist()), IDS, 2, 0)  # as the trainer sees them
    expected = scoring.score(model, batch, forward_signals(TASK))
    assert own(IDS, 2.5).tobytes() == np.asarray(expected).tobytes() != before.tobytes()
    assert own.state() is None


@pytest.mark.usefixtures("one_thread")
def test_what_a_proxy_costs_is_measured_once_and_kept_with_the_run(tmp_path: Path) -> None:
    small = spec(tmp_path, task="fashion", scorers=1, proxy="small", derived=Derived(limit=64))
    task = derive(fashion.build(), small.derived)
    storage = RunStorage(str(tmp_path), small.run)
    storage.begin(small.filled(task.defaults).config(64), small.description())
    cost = proxies.costs(small, storage, task, proxies.proxy_of(small, task))
    assert 0 < cost["score"] < cost["learn"] < 1 < cost["train"]
    assert proxies.costs(small, storage, task, build_good()) == cost  # as it was noted
    assert proxies.costs(small, storage, task, task) == {"score": 1.0}
    costed = dataclasses.replace(small, proxy_costs={"score": 0.1, "learn": 0.25, "train": 3.0})
    prepared = Prepared(losses=np.zeros(64, dtype=np.float32), scored=60, trained=120, seconds=1.0)
    assert proxies.equivalent(costed, prepared) == 12  # (6 + 30) / 3

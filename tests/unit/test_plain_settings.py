"""Settings given as numpy numbers are Python's own once they are settings; what is no such number is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.api.settings import Limits, Settings
from es_service.exchange.base import Position
from es_service.experiments.compare.comparison import Candidate
from es_service.experiments.experiment_spec import ExperimentSpec
from es_service.experiments.tune.domains import Domain
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune.space import Space
from es_service.selection import methods
from es_service.selection.named import PRESETS, preset
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_plain
from es_service.storage.runs import RunStorage
from es_service.training.loop import TrainSettings
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.derived import Derived

SELECTION: dict[str, Any] = {
    "method": es.methods.evolved(),
    "ratio": 0.3,
    "prune_ratio": 0.2,
    "anneal": (0.1, 0.3),
    "power": 0.7,
    "cap": 0.9,
    "score_every": 2,
    "score_share": 0.4,
    "interrupt": 3,
    "max_age": 4,
    "prune_unobserved": True,
    "seed": 5,
}
SUBJECT: dict[str, Any] = {
    "task": "fashion",
    "data": None,
    "derived": {"label_noise": 0.3, "limit": 100},
    "num_samples": 100,
    "epochs": 2,
    "batch_size": 10,
    "learning_rate": 0.1,
    "seeds": (0, 1),
}
JOB: dict[str, Any] = {
    "run": "run",
    "storage": "runs",
    "task": "fashion",
    "method": "es",
    "selection": es.Selection(es.methods.evolved()),
    "shards": 2,
    "workers": 2,
    "epochs": 3,
    "batch_size": 10,
    "learning_rate": 0.1,
    "micro_batch_size": 5,
    "seed": 7,
    "resume": True,
}
MADE: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    *((methods.METHODS[name], methods.METHODS[name]().settings()) for name in methods.METHODS),
    (es.Selection, SELECTION),
    (RunConfig, {"selection": es.Selection(es.methods.loss()), "num_samples": 9, "num_epochs": 2, "batch_size": 3}),
    (Position, {"rank": 1, "world_size": 2}),
    (TrainingSpec, JOB),
    (TrainSettings, {"learning_rate": 0.1, "momentum": 0.3, "weight_decay": 0.7, "micro_batch_size": 4, "seed": 3}),
    (TaskDefaults, {"epochs": 2, "batch_size": 10, "learning_rate": 0.1, "momentum": 0.3, "weight_decay": 0.7}),
    (Derived, {"label_noise": 0.1, "long_tail": 0.3, "shots": 4, "limit": 100, "seed": 3}),
    (ExperimentSpec, SUBJECT),
    (Candidate, {"label": "x", "name": "es", "settings": {"beta1": 0.1}, "epochs": 2, "learning_rate": 0.1}),
    (Places, {"workers": 1, "cpus": 0.7, "max_concurrent": 2}),
    (Objective, {"name": "cost", "target": 0.7}),
    (Domain, {"kind": "quniform", "low": 0.1, "high": 0.7, "step": 0.3}),
    (Domain, {"kind": "randint", "low": 1, "high": 7}),
    (Domain, {"kind": "choice", "values": (0.1, [0.1, 0.3], "race")}),
    (Space, {"method": "es", "domains": {"beta1": Domain(kind="grid", values=(0.1,))}, "fixed": {"ratio": 0.3}}),
    (Limits, {"per_second": 0.7, "burst": 3}),
    (Settings, {"storage": "runs", "ray": False, "refresh_s": 0.7, "nice": 3}),
]
IDS = [f"{getattr(make, '__name__', make)}-{number}" for number, (make, _) in enumerate(MADE)]


def in_numpy(value: Any, real: type[np.floating]) -> Any:
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return real(value)
    if isinstance(value, str):
        return np.str_(value)
    if isinstance(value, (list, tuple)):
        return type(value)(in_numpy(one, real) for one in value)
    return {key: in_numpy(one, real) for key, one in value.items()} if type(value) is dict else value


def leaves(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


@pytest.mark.parametrize("real", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize(("make", "settings"), MADE, ids=IDS)
def test_numpy_numbers_become_the_plain_numbers_that_were_meant(
    make: Callable[..., Any], settings: dict[str, Any], real: type[np.floating]
) -> None:
    made = make(**in_numpy(settings, real))
    assert made == make(**settings)
    assert not [leaf for leaf in leaves(made) if isinstance(leaf, np.generic)]


WRONG: list[Any] = ["a word", None, 1j, [0.5], np.array([0.5]), np.complex64(1), np.datetime64("2026-01-01")]


def wrong_settings() -> list[Any]:
    return [
        pytest.param(make, {**settings, name: wrong}, id=f"{ident}-{name}-{wrong!r}")
        for ident, (make, settings) in zip(IDS, MADE, strict=True)
        if make not in (Candidate, Space, Domain)  # theirs go to a Selection, or may be words
        for name, right in settings.items()
        if isinstance(right, (bool, int, float))
        for wrong in (*WRONG, *([] if isinstance(right, bool) else [True, np.True_]))
        if not (
            wrong is None
            and " | None" in {one.name: str(one.type) for one in dataclasses.fields(make(**settings))}[name]
        )
    ]


def test_an_integer_that_no_float_can_hold_is_refused() -> None:
    with pytest.raises(es.ConfigError, match="ratio must be a number below"):
        es.Selection(es.methods.evolved(), ratio=10**400)


@pytest.mark.parametrize(("make", "settings"), wrong_settings())
def test_what_is_no_such_number_is_refused(make: Callable[..., Any], settings: dict[str, Any]) -> None:
    with pytest.raises(es.ConfigError):
        make(**settings)


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_begins_with_numpy_settings_and_is_that_of_plain_ones(name: str, tmp_path: Path) -> None:
    plain = preset(name)
    given = preset(name, **in_numpy(plain.method.settings(), np.float32), ratio=np.float32(plain.ratio))
    configs = [RunConfig.of(one, np.int64(60), np.int16(2), np.uint8(10)) for one in (plain, given)]  # type: ignore[arg-type]
    storage = RunStorage(str(tmp_path), "run")
    storage.begin(configs[1])
    assert storage.config() == configs[0] == configs[1]
    assert json.dumps(plain.to_dict()) == json.dumps(given.to_dict())


def test_scores_are_the_same_bits_as_with_plain_settings() -> None:
    tables = []
    for number in (float, np.float32):
        method = es.methods.evolved(beta1=number(0.1), beta2=number(0.8))
        selection = es.Selection(method, ratio=number(0.3), anneal=(0, 0), seed=1)
        selector = es.Selector(selection, num_samples=60, num_epochs=2, batch_size=10)
        for epoch in range(2):
            for ids in selector.epoch(epoch):
                assert selector.select(ids, 1 / (1 + ids)).ids.size == 3  # as 0.3 of 10 is, and 0.30000001192 is not
        tables.append(repr(selector.table().to_pydict()))
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 1.5}, "every must be an integer"),
        ({"shards": 0}, "shards must be an integer of at least 1"),
        ({"shards": "two"}, "shards must be an integer"),
        ({"deadline_s": "soon"}, "deadline_s must be a number"),
        ({"deadline_s": 0}, "deadline_s must be above 0"),
        ({"deadline_s": float("nan")}, "deadline_s must be above 0"),
        ({"rank": 0.0, "world_size": 2}, "rank must be an integer"),
        ({"rank": 2, "world_size": 2}, "rank must be an integer in"),
        ({"rank": 0, "world_size": True}, "world_size must be an integer"),
    ],
)
def test_what_connect_is_given_is_checked_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(es.ConfigError, match=message):
        es.connect("run", es.Selection(es.methods.loss()), num_samples=60, num_epochs=1, batch_size=10, **changes)


def test_a_float32_becomes_what_it_prints_as() -> None:
    assert as_plain(np.float32(0.1)) == 0.1
    assert as_plain({"a": (np.float16(0.3), [np.int8(3)], np.True_)}) == {"a": (0.3, [3], True)}
    assert repr(as_plain(np.float32("nan"))) == "nan"
    assert as_plain(word := "race") is word

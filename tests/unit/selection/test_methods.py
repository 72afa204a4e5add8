"""What holds for every method: settings, pickles, names, documents, and the contract of `update`."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.selection import draws, engine, methods
from es_service.selection.config import Selection
from es_service.selection.named import PRESETS, preset
from es_service.selection.reductions import agree
from es_service.selection.signals import SIGNALS
from es_service.selection.table import FURTHER_COLUMNS, RECORD

everything = pytest.mark.parametrize("name", sorted(methods.METHODS))
known_presets = [name for name in PRESETS if PRESETS[name][1].get("draw", "race") in draws.DRAWS]


@pytest.mark.parametrize(
    "method",
    [
        *(factory() for factory in methods.METHODS.values()),
        methods.loss(prune_by="s"),
        methods.ema(0.3, prune_by="s"),
        methods.evolved(0.1, 0.7, prune_by="s"),
        methods.ordered(adaptive=False),
        methods.selective_backprop(1.5, history=0),
        methods.infobatch(0.3),
        methods.kakurenbo(0.2, threshold=0.9),
        methods.ucb(0.5, beta=0.9, every=4),
        methods.epsilon_greedy(0.3, beta=0.1, every=2),
    ],
    ids=repr,
)
def test_settings_and_pickles_make_the_same_method_again(method: methods.Method) -> None:
    settings = json.loads(json.dumps(method.settings()))
    assert methods.METHODS[method.name](**settings) == method
    again = pickle.loads(pickle.dumps(method))
    assert again == method
    assert hash(again) == hash(method)
    assert type(again) is type(method)


@everything
def test_a_method_is_known_by_its_own_name_and_frozen(name: str) -> None:
    method = methods.METHODS[name]()
    assert isinstance(method, methods.Method)
    assert method.name == name
    with pytest.raises((AttributeError, TypeError)):
        method.name = "other"  # type: ignore[misc]


@everything
def test_a_method_names_columns_and_signals_that_there_are(name: str) -> None:
    method = methods.METHODS[name]()
    assert set(method.observes) <= set(SIGNALS)
    assert set(method.columns) <= set(FURTHER_COLUMNS)
    assert set(method.reads) <= {*(RECORD.names or ()), *method.columns}


@everything
def test_a_method_says_what_it_computes_and_who_thought_of_it(name: str) -> None:
    text = methods.METHODS[name].__doc__ or ""
    assert name in {"full", "random"} or "arXiv" in text or "Reference" in text
    for setting in methods.METHODS[name]().settings():
        assert f"{setting}:" in text, f"{name} does not say what {setting} is"


def test_methods_of_different_settings_differ() -> None:
    made = [methods.METHODS[name]() for name in sorted(methods.METHODS)]
    made += [methods.evolved(0.1), methods.ema(0.5), methods.loss(prune_by="s"), methods.infobatch(0.4)]
    assert len(set(made)) == len(made)


@everything
@given(data=st.data())
def test_update_is_elementwise_pure_and_float32(name: str, data: st.DataObject) -> None:
    """Whoever computes it, on whichever slice: the same bits. The lease and the server rely on it."""
    method, size = methods.METHODS[name](), 9
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    further = dict.fromkeys(method.columns, np.float32)
    types = {**{column: RECORD[column] for column in RECORD.names or ()}, **further}
    old = {column: rng.integers(0, 4, size).astype(types[column]) for column in method.reads}
    seen = {signal: rng.exponential(size=size).astype(np.float32) for signal in ("loss", *method.observes)}
    before = {key: value.tobytes() for key, value in [*old.items(), *seen.items()]}
    new = method.update(old, seen["loss"], seen)
    assert {"w", *method.reads} - {"visits"} <= set(new)
    assert {key: value.tobytes() for key, value in [*old.items(), *seen.items()]} == before
    for column, values in new.items():
        assert values.dtype == np.float32, column
        assert values.shape == (size,)
    for i in range(size):
        here = slice(i, i + 1)
        one = method.update(
            {key: value[here] for key, value in old.items()},
            seen["loss"][here],
            {key: value[here] for key, value in seen.items()},
        )
        assert {key: value[here].tobytes() for key, value in new.items()} == {
            key: value.tobytes() for key, value in one.items()
        }


@everything
def test_a_fresh_table_plans_everything(name: str) -> None:
    """Nothing is known, so nothing may be left out (a random subset goes by nothing that is known)."""
    method = methods.METHODS[name]()
    selection = Selection(
        method, anneal=(0, 0), draw="topk" if method.signed else "race", prune_ratio=0.5 if method.prunes else 0.0
    )
    plan = agree([engine.Engine(selection, 40).plan(0, 10, [0])])[0]
    assert plan.ids.size == (20 if name == "random_subset" else 40)
    assert plan.hidden.size == 0
    assert plan.learning_rate_factor == 1.0
    assert plan.scale is None or set(plan.scale.tolist()) == {1.0}


@pytest.mark.parametrize("name", known_presets)
def test_every_preset_makes_a_selection_of_its_method(name: str) -> None:
    assert preset(name).method.name == PRESETS[name][0]


def test_every_method_has_a_preset() -> None:
    assert {method for method, _ in PRESETS.values()} == set(methods.METHODS)


def test_the_contract_alone_is_no_method() -> None:
    with pytest.raises(NotImplementedError):
        methods.Method().initial_score(3)
    with pytest.raises(NotImplementedError):
        methods.Method().update({}, np.ones(1, dtype=np.float32), {})

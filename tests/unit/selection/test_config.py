"""Selection: what it refuses, the values it travels as, presets."""

from __future__ import annotations

import json
import math
import pickle
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection import draws, methods
from es_service.selection.config import Selection, suggest
from es_service.selection.named import PRESETS, preset

NAN = float("nan")

BAD: list[tuple[dict[str, Any], str]] = [
    *[({"ratio": bad}, f"ratio must lie in (0, 1], got {bad}") for bad in (0, 0.0, -0.25, 1.01, NAN, float("inf"))],
    *[({"prune_ratio": bad}, f"prune_ratio must lie in [0, 1), got {bad}") for bad in (1, 1.0, -0.1, NAN)],
    *[({"anneal": bad}, f"got {bad}") for bad in ((-0.1, 0), (0.6, 0.6), (NAN, 0.0), (0.1,), (0.1, 0.1, 0.1))],
    ({"draw": "racing"}, "unknown draw 'racing'; did you mean 'race'?"),
    (
        {"draw": "xyz"},
        "unknown draw 'xyz'; known: race, systematic, pivotal, topk, conditional_poisson, priority, replacement",
    ),
    ({"reweight": "biased"}, "reweight must be one of none, unbiased; got 'biased'"),
    ({"on_bad_loss": "ignore"}, "on_bad_loss must be one of raise, skip; got 'ignore'"),
    ({"draw": "topk", "reweight": "unbiased"}, "draw='topk' is deterministic"),
    *[({"max_age": bad}, f"max_age must be an integer of at least 1, got {bad}") for bad in (0, -1)],
    *[({"seed": bad}, f"seed must be an integer in [0, 2**63), got {bad}") for bad in (-1, 2**63, 2**64)],
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[str(settings) for settings, _ in BAD])
def test_a_setting_outside_its_domain_is_refused_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=re.escape(message)):
        Selection(methods.evolved(), **settings)


@pytest.mark.parametrize("settings", [{"seed": 1.5}, {"max_age": 1.5}])
def test_a_setting_of_another_type_is_refused_at_construction(settings: dict[str, Any]) -> None:
    """Not at the first draw, hours later."""
    with pytest.raises(errors.ConfigError, match=next(iter(settings))):
        Selection(methods.evolved(), **settings)


def test_a_numpy_seed_is_the_seed() -> None:
    selection = Selection(methods.evolved(), seed=np.int64(3))  # type: ignore[arg-type]
    assert selection == Selection(methods.evolved(), seed=3)
    assert json.loads(json.dumps(selection.to_dict()))["seed"] == 3


@pytest.mark.parametrize("method", ["evolved", None, methods.evolved, 3])
def test_a_method_must_be_one(method: Any) -> None:
    with pytest.raises(errors.ConfigError, match=r"method must come from es\.methods"):
        Selection(method)


def test_full_training_cannot_prune() -> None:
    with pytest.raises(errors.ConfigError, match=r"'full' itself decides what .* so prune_ratio=0\.2 contradicts it"):
        Selection(methods.full(), prune_ratio=0.2)
    Selection(methods.random(), prune_ratio=0.2)


def test_the_bounds_themselves_are_fine() -> None:
    Selection(methods.evolved(), ratio=1.0, prune_ratio=0.0, anneal=(0, 1), max_age=1, seed=0)
    Selection(methods.evolved(), ratio=1e-9, prune_ratio=0.999, max_age=None, seed=2**63 - 1)
    for draw in draws.DRAWS:
        Selection(methods.evolved(), draw=draw)


def test_a_selection_is_frozen_and_only_the_method_goes_by_position() -> None:
    selection = Selection(methods.evolved())
    with pytest.raises(AttributeError):
        selection.ratio = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Selection(methods.evolved(), 0.5)  # type: ignore[call-arg]


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_b_is_the_ceiling_of_ratio_times_batch(batch_size: int, percent: int) -> None:
    got = Selection(methods.evolved(), ratio=percent / 100).num_selected(batch_size)
    assert got == math.ceil(Fraction(percent, 100) * batch_size)


@pytest.mark.parametrize(
    ("ratio", "batch", "b"), [(0.07, 100, 7), (0.1, 30, 3), (0.25, 256, 64), (1e-9, 8, 1), (0.3, 1, 1)]
)
def test_b_where_floats_would_add_one(ratio: float, batch: int, b: int) -> None:
    assert Selection(methods.evolved(), ratio=ratio).num_selected(batch) == b


def test_full_takes_the_whole_batch_whatever_the_ratio() -> None:
    assert Selection(methods.full(), ratio=0.1).num_selected(50) == 50


SELECTIONS = [
    Selection(methods.evolved()),
    Selection(methods.evolved(0.1, 0.5, prune_by="s"), ratio=0.125, prune_ratio=0.3, anneal=(0.0, 0.2)),
    Selection(methods.ema(0.4), draw="systematic", reweight="unbiased", max_age=None, seed=2**62),
    Selection(methods.loss(), prune_unobserved=True, on_bad_loss="skip"),
    Selection(methods.random(), draw="topk"),
    Selection(methods.full(), anneal=(1, 0)),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda one: one.method.name)
def test_round_trips_through_json_and_pickle(selection: Selection) -> None:
    values = selection.to_dict()
    again = Selection.from_dict(json.loads(json.dumps(values)))
    assert again == selection
    assert again.to_dict() == values
    assert hash(again) == hash(selection)
    assert pickle.loads(pickle.dumps(selection)) == selection


def test_from_dict_leaves_its_argument_alone() -> None:
    values = SELECTIONS[1].to_dict()
    before = json.dumps(values)
    Selection.from_dict(values)
    assert json.dumps(values) == before


@pytest.mark.parametrize(
    "change",
    [
        {"method": "evolve"},
        {"method": None},
        {"settings": {"beta3": 1}},
        {"settings": {"beta1": "high"}},
        {"settings": {"beta1": 2}},
        {"settings": None},
        {"unheard_of": 1},
        {"ratio": "half"},
        {"ratio": 0},
        {"anneal": 3},
        {"anneal": "ab"},
        {"anneal": None},
        {"draw": None},
        {"draw": []},
        {"method": []},
    ],
    ids=str,
)
def test_values_that_are_no_selection_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError):
        Selection.from_dict({**SELECTIONS[0].to_dict(), **change})


def test_an_unknown_method_in_values_gets_the_nearest_name() -> None:
    with pytest.raises(errors.ConfigError, match="unknown method 'evolvd'; did you mean 'evolved'"):
        Selection.from_dict({"method": "evolvd"})


def test_presets_take_settings_of_the_method_and_of_the_selection() -> None:
    made = preset("eswp", beta1=0.1, ratio=0.5, seed=4)
    assert made == Selection(methods.evolved(0.1, 0.8), ratio=0.5, prune_ratio=0.2, seed=4)
    assert preset("ema", beta=0.3) == Selection(methods.ema(0.3))


@pytest.mark.parametrize(
    ("name", "key", "nearest"),
    [("es", "beta_1", "beta1"), ("es", "ration", "ratio"), ("random", "sed", "seed"), ("ema", "bta", "beta")],
)
def test_an_unknown_setting_gets_the_nearest_one(name: str, key: str, nearest: str) -> None:
    with pytest.raises(errors.ConfigError, match=f"method '{name}' has no setting '{key}'; did you mean '{nearest}'"):
        preset(name, **{key: 1})


def test_a_setting_of_another_method_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match="method 'random' has no setting 'beta1'"):
        preset("random", beta1=0.5)
    with pytest.raises(errors.ConfigError, match="method 'loss' has no setting 'beta2'"):
        preset("loss", beta2=0.5)
    with pytest.raises(errors.ConfigError, match="method 'es' has no setting 'method'"):
        preset("es", method=methods.loss())


def test_an_unknown_preset_gets_the_nearest_one() -> None:
    with pytest.raises(errors.ConfigError, match="unknown method 'eswpp'; did you mean 'eswp'"):
        preset("eswpp")
    with pytest.raises(errors.ConfigError, match="unknown method 'q'; known: " + ", ".join(PRESETS)):
        preset("q")


@pytest.mark.parametrize("settings", [{"beta1": "high"}, {"ratio": "half"}, {"seed": None}, {"ratio": None}])
def test_a_word_where_a_number_belongs_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=f"{next(iter(settings))} must be a"):
        preset("es", **settings)


def test_presets_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        PRESETS["mine"] = ("evolved", {})  # type: ignore[index]


def test_suggest() -> None:
    assert suggest("beta", ["beta1", "gamma"]) == "did you mean 'beta1'?"
    assert suggest("zzz", {"a": 1, "b": 2}) == "known: a, b"


INERT = [
    ("full", {"score_every": 3}, "all of a meta-batch"),
    ("infobatch", {"ratio": 0.5}, "all of a meta-batch"),
    ("kakurenbo", {"draw": "topk"}, "all of a meta-batch"),
    ("random_subset", {"reweight": "unbiased"}, "all of a meta-batch"),
    ("random", {"cap": 0.5}, "a uniform draw"),
]


@pytest.mark.parametrize(("name", "settings", "why"), INERT)
def test_a_setting_that_would_change_nothing_is_refused(name: str, settings: dict[str, Any], why: str) -> None:
    """In a sweep it would give the same rows under other names."""
    [key] = settings
    with pytest.raises(errors.ConfigError, match=f"{why}, so {key}=.* would change nothing"):
        preset(name, **settings)
    usual = Selection(methods.evolved())
    preset(name, **{key: getattr(usual, key)})  # said, but as it is: a resumed run says all of them


@pytest.mark.parametrize("word", ["False", "true", 1, None])
def test_whether_to_prune_the_unobserved_is_no_word(word: Any) -> None:
    with pytest.raises(errors.ConfigError, match="prune_unobserved must be true or false"):
        Selection(methods.evolved(), prune_unobserved=word)

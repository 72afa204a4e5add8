"""Search spaces: what is read, what is drawn, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.experiments.tune.domains import KINDS, Domain, domain_of, parse_domain
from es_service.experiments.tune.space import Space, default_space, parse_flags, read_space
from es_service.selection.named import PRESETS

EXAMPLES = {
    "uniform": "uniform(0, 0.5)",
    "quniform": "quniform(0, 0.4, 0.1)",
    "loguniform": "loguniform(0.001, 1)",
    "randint": "randint(1, 5)",
    "qrandint": "qrandint(2, 11, 3)",
    "lograndint": "lograndint(1, 100)",
    "choice": "choice(race, [0, 0.5], 3)",
    "grid": "grid(0.1, 0.2)",
}


def test_every_kind_is_read_and_written_alike() -> None:
    assert set(EXAMPLES) == set(KINDS)
    for text in EXAMPLES.values():
        domain = parse_domain(text)
        assert str(domain) == text
        assert domain_of(text) == domain_of(domain) == domain


def test_a_file_may_write_domains_as_mappings() -> None:
    assert domain_of({"uniform": [0, 0.5]}) == parse_domain("uniform(0, 0.5)")
    assert domain_of({"choice": ["race", "topk"]}) == parse_domain("choice(race, topk)")
    assert domain_of({"choice": [[0, 0], [0.05, 0.05]]}) == parse_domain("choice([0, 0], (0.05, 0.05))")
    assert domain_of({"grid_search": [1, 2]}) == parse_domain("grid([1, 2])")
    alone = parse_domain("grid([[0, 0]])")  # grid([0, 0]) would name 0 twice
    assert (alone.values, parse_domain(str(alone))) == (([0, 0],), alone)
    assert domain_of(0.5) is None
    assert domain_of([0, 0]) is None
    assert domain_of("race") is None


@pytest.mark.parametrize(
    "text, values",
    [
        ("uniform(0, 0.5)", [0.0, 0.25, 0.49995]),
        ("quniform(0, 0.4, 0.1)", [0.0, 0.2, 0.4]),
        ("randint(1, 5)", [1, 3, 4]),
        ("qrandint(2, 11, 3)", [2, 8, 11]),
        ("loguniform(0.01, 1)", [0.01, 0.1, 0.99954]),
        ("lograndint(1, 100)", [1, 10, 99]),
        ("choice(3, 1)", [3, 1, 1]),
    ],
)
def test_shares_go_through_the_domain(text: str, values: list[Any]) -> None:
    assert [parse_domain(text).at(share) for share in (0.0, 0.5, 0.9999)] == pytest.approx(values, rel=1e-4)


@given(st.sampled_from(sorted(EXAMPLES.values())), st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_lies_inside(text: str, share: float) -> None:
    domain = parse_domain(text)
    value = domain.at(share)
    if domain.listed is not None:
        assert value in domain.listed
    else:
        assert domain.extremes()[0] <= value <= domain.extremes()[1]
        assert isinstance(value, int) == domain.is_integer
        assert domain.tidy(value) == value


@pytest.mark.parametrize(
    "text, words",
    [
        ("uniform(0.5, 0)", "holds nothing"),
        ("uniform(0)", "takes 2 numbers, got 1"),
        ("unifrom(0, 1)", "did you mean 'uniform'"),
        ("uniform(a, 1)", "low must be a finite number, got 'a'"),
        ("uniform(0, 1e999)", "high must be a finite number"),
        ("randint(0, 2.5)", "high must be a whole number, got 2.5"),
        ("loguniform(0, 1)", "must begin above 0"),
        ("quniform(0, 1, 2)", "its step must lie in"),
        ("choice()", "holds no value"),
        ("grid(0.1, 0.1)", "names 0.1 twice"),
        ("uniform(0, 1", "is not a search space"),
        ("0.5", "is not a search space"),
        ("uniform(low=0, high=1)", "is not a search space"),
        ("__import__('os').getcwd()", "is not a search space"),
    ],
)
def test_what_is_no_domain_is_refused(text: str, words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words.replace("(", r"\(")):
        parse_domain(text)


@pytest.mark.parametrize(
    "method, entries, words",
    [
        ("es", {}, "the search space is empty"),
        ("es", {"ratio": 0.5}, "the search space is empty"),
        ("es", {"beta3": "uniform(0, 1)"}, "has no setting 'beta3'; did you mean 'beta"),
        ("es", {"beta1": "uniform(0, 1.5)"}, r"beta1=uniform\(0, 1.5\): beta1 must lie in \[0, 1\], got 1.5"),
        ("es", {"ratio": "choice(0.25, 0)"}, r"ratio must lie in \(0, 1\]"),
        ("es", {"prune_ratio": "quniform(0, 1, 0.5)"}, r"prune_ratio must lie in \[0, 1\)"),
        ("es", {"anneal": "choice([0, 0], [0.6, 0.6])"}, "anneal"),
        ("es", {"draw": "choice(race, systemic)"}, "did you mean 'systematic'"),
        ("infobatch", {"ratio": "uniform(0.1, 0.5)"}, "would change nothing"),
        ("infobatch", {"beta1": "uniform(0, 0.5)"}, "has no setting 'beta1'"),
        ("es", {"seed": "randint(0, 5)"}, "seed cannot be searched"),
        ("es", {"epochs": "randint(1, 5)"}, "epochs cannot be searched"),
        ("es", {"learning_rate": "uniform(-1, 1)"}, "learning_rate must be above 0"),
        ("es", {"batch_size": "randint(0, 8)"}, "batch_size must be an integer of at least 1"),
        ("ess", {"beta1": "uniform(0, 1)"}, "unknown method 'ess'"),
        ("es", {"beta1": {"uniform": 1, "choice": 2}}, "is not a search space"),
        # each is good by itself, together they are not:
        ("es", {"draw": "choice(race, topk)", "reweight": "choice(none, unbiased)"}, "draw=topk, reweight=unbiased"),
    ],
)
def test_a_space_is_checked_against_the_method(method: str, entries: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        read_space(method, entries)


def test_a_value_beside_a_domain_is_the_same_in_all_trials() -> None:
    space = read_space("es", {"beta1": "uniform(0, 0.5)", "ratio": 0.5, "learning_rate": "loguniform(0.01, 1)"})
    assert set(space.domains) == {"beta1", "learning_rate"}
    settings = {"beta1": 0.3, "learning_rate": 0.1}
    selection = space.selection(settings, 7)
    assert (selection.ratio, selection.method.settings()["beta1"], selection.seed) == (0.5, 0.3, 7)
    assert space.of_the_run(settings) == {"learning_rate": 0.1}
    with pytest.raises(errors.ConfigError, match="ratio is searched and given a value"):
        Space(method="es", domains=read_space("es", {"ratio": "uniform(0.1, 0.5)"}).domains, fixed={"ratio": 0.5})


def test_a_grid_holds_every_combination() -> None:
    space = read_space("es", {"beta1": "grid(0.0, 0.1)", "beta2": "grid(0.7, 0.8, 0.9)"})
    assert space.is_grid
    assert len(space.grid()) == 6
    assert space.grid()[1] == {"beta1": 0.0, "beta2": 0.8}
    mixed = read_space("es", {"beta1": "grid(0.0, 0.1)", "beta2": "uniform(0.5, 0.9)"})
    assert not mixed.is_grid
    with pytest.raises(errors.ConfigError, match=r"beta2=uniform\(0.5, 0.9\) is a range"):
        mixed.grid()


def test_flags_are_read() -> None:
    assert parse_flags(["beta1=uniform(0,0.5)", " ratio = 0.5", "anneal=[0, 0]", "anneal2=(0, 0)"]) == {
        "beta1": "uniform(0,0.5)", "ratio": 0.5, "anneal": [0, 0], "anneal2": "(0, 0)",
    }  # fmt: skip
    for words in (["beta1"], ["=uniform(0,1)"], ["beta1="], ["beta1=grid(1)", "beta1=grid(2)"]):
        with pytest.raises(errors.ConfigError, match="--search"):
            parse_flags(words)


@pytest.mark.parametrize("weighs_cost", [False, True])
def test_the_usual_spaces_are_good(weighs_cost: bool) -> None:
    there = 0
    for method in PRESETS:
        try:
            entries = default_space(method, weighs_cost=weighs_cost)
        except errors.ConfigError as error:
            assert "has no default search space" in str(error)  # noqa: PT017
            continue
        there += 1
        assert ("ratio" in read_space(method, entries).domains) == (weighs_cost and method != "infobatch")
    assert there >= 5


def test_a_domain_is_a_value() -> None:
    assert Domain(kind="uniform", low=0, high=1) == parse_domain("uniform(0, 1)")
    assert parse_domain("choice(1, 2)").is_numeric
    assert not parse_domain("choice(1, race)").is_numeric
    assert not parse_domain("choice(true, false)").is_numeric

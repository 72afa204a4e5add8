"""Methods as they are written on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from es_service import errors
from es_service.cli import build_parser
from es_service.experiments.compare.comparison import Candidate, Comparison, parse_candidates, short_full
from es_service.selection.named import preset
from es_service.storage.runs import check_run_name
from es_service.training.spec import TrainingSpec


def labels(text: str) -> list[str]:
    return [one.label for one in parse_candidates(text)]


def test_full_and_random_come_unasked_and_doubles_collapse() -> None:
    assert labels("es") == ["full", "random", "es"]
    assert labels("es, full,es:ratio=0.5 ,random,es,short_full") == ["full", "random", "es", "es:ratio=0.5"]


def test_every_method_gets_five_seeds_unless_others_are_asked_for() -> None:
    options = build_parser().parse_args(["compare", "--out", "x"])
    assert (options.seeds, options.seed_base, options.jobs) == (5, 0, 1)


def test_settings_go_to_the_method_the_selection_or_the_run() -> None:
    one = parse_candidates("es:ratio=0.5:beta1=0.1:anneal=[0.1, 0]:draw=systematic:epochs=12:learning_rate=5e-2")[-1]
    assert one.selection(3) == preset("es", ratio=0.5, beta1=0.1, anneal=(0.1, 0), draw="systematic", seed=3)
    assert (one.epochs, one.batch_size, one.learning_rate) == (12, None, 0.05)
    one = parse_candidates("es:ratio=.5:max_age=None:anneal=(0,0):learning_rate=.05")[-1]
    assert one.selection(3) == preset("es", ratio=0.5, max_age=None, anneal=(0, 0), seed=3)
    assert one.learning_rate == 0.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("esw", "did you mean 'eswp'"),
        ("es:raito=0.5", "did you mean 'ratio'"),
        ("es:ratio", "write key=value"),
        ("es:ratio=2", "ratio must lie in (0, 1]"),
        ("es:ratio=much", "ratio must be a number"),
        ("es:epochs=0", "epochs of method 'es:epochs=0' must be an integer of at least 1"),
        ("es:seed=3", "--seeds"),
        ("short_full:epochs=3", "full:epochs=5"),
        ("es,,eswp", "names no method"),
        ("", "names no method"),
        (":ratio=1", "names no method"),
    ],
)
def test_what_is_misspelt_or_out_of_range_is_refused(text: str, message: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        parse_candidates(text)
    assert message in str(caught.value)


def test_run_names_are_folders_and_differ_where_labels_do() -> None:
    written = ["es", "es:ratio=0.5", "es:ratio=0-5", "es:ratio:0.5", "es:x=é", "es:../b", "es:" + "x" * 200]
    candidates = [Candidate(label=label, name="es") for label in written]
    names = [one.run(seed) for one in candidates for seed in (0, 1)]
    assert len(set(names)) == len(names)
    for name in names:
        check_run_name(name)
    assert Candidate(label="es", name="es").run(7) == "es-s7"


def test_specs_survive_json_and_give_every_method_the_same_seed(make_comparison: Callable[..., Comparison]) -> None:
    comparison = make_comparison("es:batch_size=25:epochs=3,eswp", seeds=2)
    specs = comparison.specs(comparison.candidates)
    assert [one.seed for one in specs] == [0] * 4 + [1] * 4
    for spec in specs:
        assert TrainingSpec.from_dict(json.loads(json.dumps(spec.to_dict()))).to_dict() == spec.to_dict()
        assert spec.selection.seed == spec.seed
    assert [(one.epochs, one.batch_size) for one in specs[:4]] == [(8, 50), (8, 50), (3, 25), (8, 50)]
    short = comparison.spec(short_full(5), 1)
    assert (short.epochs, short.method, short.selection) == (5, "short_full:epochs=5", specs[4].selection)


def test_a_learning_rate_of_0_is_not_taken_for_none(make_comparison: Callable[..., Comparison]) -> None:
    with pytest.raises(errors.ConfigError, match="learning_rate must be above 0"):
        make_comparison("es:learning_rate=0")


def test_a_comparison_needs_a_seed(make_comparison: Callable[..., Comparison]) -> None:
    with pytest.raises(errors.ConfigError, match="--seeds"):
        make_comparison(seeds=0)


def test_a_method_may_have_scorers(make_comparison: Callable[..., Comparison]) -> None:
    """What they spend is in its cost, see test_rows.py."""
    *_, candidate = parse_candidates("es:scorers=2:proxy=self:proxy_age=4:ratio=0.5")
    assert (candidate.scorers, candidate.proxy, candidate.proxy_age) == (2, "self", 4)
    assert candidate.settings == {"ratio": 0.5}
    comparison = make_comparison(candidates=(candidate,))
    spec = comparison.spec(candidate, 0)
    assert (spec.scorers, spec.proxy, spec.proxy_age) == (2, "self", 4)
    [other] = parse_candidates("es:scorers=1")[2:]
    with pytest.raises(errors.ConfigError, match="need a proxy"):
        comparison.spec(other, 0)

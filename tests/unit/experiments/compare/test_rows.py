"""From outcomes to rows: lengths of short full runs, costs, differences, what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from es_service.experiments.compare import verdicts
from es_service.experiments.compare.comparison import Comparison, parse_candidates
from es_service.experiments.compare.lengths import decide_lengths, matched_length
from es_service.experiments.compare.outcomes import Measured, Outcome
from es_service.experiments.compare.rows import results
from es_service.training.spec import TrainingSpec

Make = Callable[..., Any]


def by_label(outcomes: list[Outcome]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = defaultdict(list)
    for one in outcomes:
        if one.measured is not None and not one.spec.method.startswith("short_full"):
            found[one.spec.method].append(one.measured)
    return found


def test_a_short_run_has_no_less_time_than_its_method(
    make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    decided = decide_lengths(by_label(make_outcomes(make_comparison())), 8)
    assert decided == lengths  # 10 s for 8 epochs: 5.6 s are 4.5 epochs, 6.8 are 5.4, 6.9 are 5.5, 5.7 are 4.6
    shared = decide_lengths(by_label(make_outcomes(make_comparison(), exclusive=False)), 8)
    assert {one["basis"] for one in shared.values()} == {"cost"}
    # By passes: random 10500/24000 of 8 epochs are 3.5, loss and es 16500/24000 are 5.5, eswp 14400/24000 are 4.8.
    assert {label: one["epochs"] for label, one in shared.items()} == {"random": 4, "loss": 6, "es": 6, "eswp": 5}


def test_lengths_are_clamped_and_need_full(make_comparison: Make, make_outcome: Make) -> None:
    comparison = make_comparison("es")
    full, _, es = comparison.candidates

    def measured(candidate: Any, seconds: float) -> list[Measured]:
        return [make_outcome(comparison, candidate, 0, 0.9, seconds=seconds).measured]

    def epochs(seconds: float) -> int:
        return int(decide_lengths({"full": measured(full, 8.0), "es": measured(es, seconds)}, 8)["es"]["epochs"])

    assert [epochs(seconds) for seconds in (0.01, 4.0, 4.01, 4.1, 8.0, 12.0)] == [1, 4, 4, 5, 8, 8]
    assert decide_lengths({"es": measured(es, 1.0)}, 8) == {}
    assert decide_lengths({"full": measured(full, 8.0), "es": []}, 8) == {}


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ({"es": 6, "loss": 5}, 6),
        ({"es": 8, "loss": 5, "random": 3, "x": 7}, 5),
        ({"loss": 5, "random": 3}, 5),
        ({"es": 8}, 8),
        ({}, 8),
    ],
)
def test_the_row_called_short_full_is_the_one_of_es(lengths: dict[str, int], expected: int) -> None:
    assert matched_length(lengths, 8) == expected


def rows_of(comparison: Comparison, outcomes: list[Outcome], lengths: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in results(comparison, outcomes, lengths)["rows"]}


def test_rows_hold_what_the_runs_measured(make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]) -> None:
    comparison = make_comparison()
    found = results(comparison, make_outcomes(comparison), lengths)
    assert found["timings"] == "exclusive"
    assert found["metric"] == "accuracy"
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == ["full", "short_full", "short_full:epochs=5", "random", "loss", "es", "eswp"]
    assert (rows["short_full"]["epochs"], rows["short_full:epochs=5"]["epochs"]) == (6, 5)
    assert rows["full"]["cost"] == 1.0
    assert rows["short_full"]["cost"] == 0.75
    es = rows["es"]
    assert es["cost"] == pytest.approx((6000 + 3 * 3500) / (3 * 8000))
    assert es["seeds"] == 3
    assert es["samples"] == {"scored": 6000, "trained": 3500}
    assert es["seconds"] == {"mean": pytest.approx(6.9), "std": pytest.approx(0.0, abs=1e-12)}
    assert es["accuracy"] == {"mean": pytest.approx(0.902), "std": pytest.approx(0.003)}
    assert es["difference_to_full"]["mean"] == pytest.approx(-0.003)
    short = es["difference_to_short_full"]
    assert (short["mean"], short["epochs"], short["basis"]) == (pytest.approx(0.016 / 3), 6, "seconds")
    assert short["low"] > 0
    assert (found["tests"], short["pairs"]) == (4, 3)
    # Differences of .005, .005 and .006: t = 16, p = .0039; only random's p is smaller, so it counts 3 times.
    assert short["p"] == pytest.approx(1 - 16 / (16**2 + 2) ** 0.5)
    assert short["p_corrected"] == pytest.approx(3 * short["p"])
    assert 0 < short["detectable"] < 0.016 / 3
    assert es["decision"] == "pays"
    assert es["by_metric"]["held_out_loss"]["decision"] == "pays"
    assert es["by_metric"]["held_out_loss"]["mean"] == pytest.approx(-0.008)
    assert set(es["by_metric"]) == {"balanced_accuracy", "held_out_loss"}
    assert es["scorers"] is None
    # On the line from (.75, .89667) to (1, .905), accuracy .902 costs .91.
    assert es["saving_at_equal_accuracy"]["value"] == pytest.approx(1 - 0.6875 / 0.91)
    assert rows["loss"]["decision"] == "hurts"
    assert rows["random"]["difference_to_short_full"]["epochs"] == 5
    for reference in ("full", "short_full"):
        assert rows[reference]["difference_to_short_full"] is None
        assert rows[reference]["decision"] is None


def test_what_pays_alone_may_not_pay_among_others(
    make_comparison: Make, make_outcome: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    """Differences of .005, .006 and .009 have p = .031, which two smaller ones of four double."""
    comparison = make_comparison()
    others = [one for one in make_outcomes(comparison) if one.spec.method != "es"]
    es = comparison.candidates[3]
    own = [make_outcome(comparison, es, seed, accuracy) for seed, accuracy in enumerate((0.902, 0.900, 0.908))]
    row = rows_of(comparison, others + own, lengths)["es"]
    short = row["difference_to_short_full"]
    assert short["low"] > 0
    assert (short["p"], short["p_corrected"]) == (pytest.approx(0.031, abs=1e-3), pytest.approx(2 * short["p"]))
    assert row["decision"] == verdicts.NO_DIFFERENT
    assert row["verdict"].endswith("; without the correction it pays")
    fewer = make_comparison("es")
    [row] = [row for row in results(fewer, others + own, lengths)["rows"] if row["method"] == "es"]
    assert row["decision"] == verdicts.PAYS  # beside random alone, which is tested too and has the smaller p


def test_a_verdict_says_where_another_metric_decides_otherwise(
    make_comparison: Make, make_outcome: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    comparison = make_comparison()
    outcomes = [one for one in make_outcomes(comparison) if one.spec.method != "es"]
    for seed, accuracy in enumerate((0.902, 0.899, 0.905)):
        changes = {"held_out_loss": 0.9 + 0.001 * seed, "balanced_accuracy": 0.0}
        outcomes.append(make_outcome(comparison, comparison.candidates[3], seed, accuracy, **changes))
    rows = rows_of(comparison, outcomes, lengths)
    assert rows["es"]["decision"] == verdicts.PAYS
    assert rows["es"]["verdict"].endswith("; but by balanced_accuracy it hurts, by held_out_loss it hurts")
    assert rows["es"]["by_metric"]["held_out_loss"]["decision"] == verdicts.HURTS
    assert "but" not in rows["loss"]["verdict"]
    assert rows["full"]["by_metric"] == {}


def test_the_work_of_scorers_counts(make_comparison: Make, make_outcome: Make) -> None:
    """In cost, in the curves, and in the length of the short run, however fast the training became."""
    comparison = make_comparison("es")
    full, _, es = comparison.candidates
    scorers = {"scored": 9000, "trained": 10, "seconds": 4.0, "passes": 9000.0, "lost": 0}
    plain, helped = (
        [make_outcome(comparison, es, seed, 0.9, seconds=3.0, trained=2000, **more) for seed in comparison.seeds]
        for more in ({}, {"scorers": scorers})
    )
    fulls = [make_outcome(comparison, full, seed, 0.9, seconds=10.0) for seed in comparison.seeds]
    assert helped[0].measured.passes == 9000 + 3 * 2000
    assert helped[0].measured.history[-1]["passes"] == pytest.approx(9000 + 3 * 2000)
    assert helped[0].measured.history[0]["passes"] == pytest.approx((9000 + 3 * 2000) / 8)
    assert decide_lengths(by_label([*fulls, *plain]), 8)["es"] == {"epochs": 3, "basis": "seconds"}
    own = decide_lengths(by_label([*fulls, *helped]), 8)
    assert own["es"] == {"epochs": 5, "basis": "cost"}  # 15,000 of 24,000 passes
    slow = [make_outcome(comparison, es, 0, 0.9, seconds=9.0, trained=2000, scorers=scorers)]
    assert decide_lengths(by_label([*fulls, *slow]), 8)["es"] == {"epochs": 8, "basis": "seconds"}
    row = rows_of(comparison, fulls + helped, own)["es"]
    assert row["cost"] == pytest.approx(15000 / 24000)
    assert row["scorers"] == {"scored": 9000, "trained": 10, "seconds": 4.0, "passes": 9000.0}


def test_one_seed_gets_no_verdict(make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]) -> None:
    comparison = make_comparison(seeds=1)
    for row in rows_of(comparison, make_outcomes(comparison), lengths).values():
        assert row["decision"] in (None, "undecided")
        assert row["accuracy"]["std"] is None


def test_shared_cores_hide_the_seconds(make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]) -> None:
    comparison = make_comparison()
    found = results(comparison, make_outcomes(comparison, exclusive=False), lengths)
    assert found["timings"] == "shared"
    assert all(row["seconds"] is None for row in found["rows"])


def test_a_long_tail_is_compared_by_balanced_accuracy(
    make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    comparison = make_comparison(derived={"long_tail": 0.01})
    outcomes = make_outcomes(comparison, balanced_accuracy=0.5)
    found = results(comparison, outcomes, lengths)
    assert found["metric"] == "balanced_accuracy"
    assert all(row["difference_to_full"] in (None, {"mean": 0.0, "low": 0.0, "high": 0.0}) for row in found["rows"])
    without = make_outcomes(comparison, balanced_accuracy=None)
    assert results(comparison, without, lengths)["metric"] == "accuracy"


def test_preparing_counts(make_comparison: Make, make_outcome: Make) -> None:
    comparison = make_comparison("es", seeds=1)
    prepared = {"scored": 300, "trained": 100, "seconds": 2.0}
    measured = make_outcome(comparison, comparison.candidates[2], 0, 0.9, trained=2000, prepared=prepared).measured
    assert measured.passes == 300 + 3 * 2100
    assert measured.seconds["total"] == 12.0
    assert measured.seconds["prepare"] == 2.0
    assert measured.history[-1]["passes"] == 300 + 3 * 2100
    assert measured.history[0]["passes"] == 300 + 3 * (100 + 250)


def test_failed_runs_are_named_and_decide_nothing(
    make_comparison: Make, make_outcome: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    comparison = make_comparison()
    es = comparison.candidates[3]
    outcomes = [one for one in make_outcomes(comparison) if one.spec.run not in ("es-s1", "full-s2")]
    outcomes.append(make_outcome(comparison, es, 1, 0.0, error="loss nan"))
    rows = rows_of(comparison, outcomes, lengths)
    assert (rows["es"]["seeds"], rows["es"]["failed"], rows["es"]["errors"]) == (2, 1, ["seed 1: loss nan"])
    assert rows["es"]["verdict"] == "undecided: 1 of 3 runs failed"
    assert rows["es"]["difference_to_short_full"]["p_corrected"] is None
    assert rows["full"]["seeds"] == 2

    failed = [make_outcome(comparison, es, seed, 0.0, error="loss nan") for seed in range(3)]
    others = [one for one in outcomes if one.spec.method in ("random", "loss", "eswp")]
    rows = rows_of(comparison, others + failed, {})
    assert rows["es"]["accuracy"] is rows["es"]["cost"] is rows["es"]["seconds"] is None
    assert rows["full"]["verdict"].startswith("failed")
    assert rows["random"]["verdict"] == "undecided: there is no full run to compare with"


def test_short_full_is_always_there(make_comparison: Make, make_outcomes: Make) -> None:
    comparison = make_comparison()
    whole = {label: {"epochs": 8, "basis": "cost"} for label in ("random", "loss", "es", "eswp")}
    rows = rows_of(comparison, make_outcomes(comparison), whole)
    assert rows["short_full"]["accuracy"] == rows["full"]["accuracy"]
    assert "as long as full" in rows["short_full"]["verdict"]


def test_methods_that_were_not_asked_for_do_not_show(
    make_comparison: Make, make_outcomes: Make, lengths: dict[str, Any]
) -> None:
    outcomes = make_outcomes(make_comparison())
    fewer = make_comparison(candidates=parse_candidates("es"))
    assert list(rows_of(fewer, outcomes, lengths)) == ["full", "short_full", "short_full:epochs=5", "random", "es"]


def test_a_method_that_never_selects_is_not_tested(make_comparison: Make, make_outcomes: Make) -> None:
    comparison = make_comparison("es:anneal=[0.5,0.5],es:ratio=1,es")
    found = rows_of(comparison, make_outcomes(make_comparison("es")), {})
    for label, change in (("es:anneal=[0.5,0.5]", "lower it"), ("es:ratio=1", "lower ratio")):
        assert found[label]["decision"] == verdicts.NOT_TESTED
        assert found[label]["verdict"].startswith("not tested: it never selects, ")
        assert change in found[label]["verdict"]
    assert found["es"]["decision"] != verdicts.NOT_TESTED


def test_runs_of_an_earlier_version_are_taken_where_they_annealed_alike(make_comparison: Make) -> None:
    for epochs, same in ((8, True), (2, False)):
        comparison = make_comparison("es", epochs=epochs)
        spec = comparison.spec(comparison.candidates[-1], 0)
        written = spec.to_dict()
        del written["selection"]["anneal_by"]
        assert (TrainingSpec.from_dict(written) == spec) is same


def test_methods_are_compared_by_the_metric_of_the_task(make_comparison: Make, make_outcome: Make) -> None:
    """By Matthews correlation es is better than full, by accuracy worse; a long tail does not change what counts."""
    for derived in ({}, {"long_tail": 0.1}):
        comparison = make_comparison("es", derived=derived)
        full, _, es = comparison.candidates
        outcomes = [
            make_outcome(
                comparison, one, seed, accuracy, metrics={"matthews": matthews + 0.01 * seed, "exact_match": 0.25}
            )
            for one, accuracy, matthews in ((full, 0.9, 0.3), (es, 0.8, 0.4))
            for seed in comparison.seeds
        ]
        found = results(comparison, outcomes, {"es": {"epochs": 8, "basis": "seconds"}})
        assert (found["metric"], found["metrics"]) == ("matthews", ["matthews", "exact_match"])
        rows = {row["method"]: row for row in found["rows"]}
        assert rows["es"]["decision"] == verdicts.PAYS
        assert rows["es"]["difference_to_full"]["mean"] == pytest.approx(0.1)
        assert rows["es"]["matthews"]["mean"] == pytest.approx(0.41)
        assert rows["es"]["exact_match"]["mean"] == 0.25
        assert rows["es"]["accuracy"]["mean"] == pytest.approx(0.8)
        assert rows["random"]["matthews"] is rows["random"]["exact_match"] is None  # none of its runs ended

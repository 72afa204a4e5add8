"""The verdict rule, at its edges."""

from __future__ import annotations

import pytest

from es_service.experiments.compare.verdicts import (
    HURTS,
    NO_DIFFERENT,
    PAYS,
    UNDECIDED,
    Judged,
    correction_in_words,
    decide,
    judge,
    power_in_words,
    verdict,
)
from es_service.experiments.statistics import Difference


def difference(low: float | None, high: float | None, p: float | None = 0.02) -> Difference:
    if low is None or high is None:
        return Difference(mean=0.01, low=None, high=None, pairs=1, std=None, p=None)
    return Difference(mean=(low + high) / 2, low=low, high=high, pairs=3, std=0.002, p=p)


@pytest.mark.parametrize(
    ("mean", "p", "decision"),
    [
        (0.01, 0.049, PAYS),
        (0.01, 0.05, NO_DIFFERENT),
        (-0.01, 0.0, HURTS),
        (-0.01, 0.3, NO_DIFFERENT),
        (0.0, 1.0, NO_DIFFERENT),
    ],
)
def test_the_sign_and_the_level_decide(mean: float, p: float, decision: str) -> None:
    assert decide(mean, p) == decision
    turned = {PAYS: HURTS, HURTS: PAYS, NO_DIFFERENT: NO_DIFFERENT}
    assert decide(mean, p, lower_is_better=True) == turned[decision]


def test_the_more_methods_the_smaller_p_has_to_be() -> None:
    """0.02 decides alone, and beside two that are no different it does not; one pair is no test."""
    found = judge({"a": difference(0.001, 0.009)})
    assert (found["a"].decision, found["a"].corrected) == (PAYS, 0.02)
    others = {"b": difference(-0.01, 0.012, 0.9), "c": difference(-0.01, 0.011, 0.8), "d": difference(None, None)}
    found = judge({"a": difference(0.001, 0.009), **others})
    assert list(found) == ["a", "b", "c"]
    assert (found["a"].decision, found["a"].alone) == (NO_DIFFERENT, PAYS)
    assert found["a"].corrected == pytest.approx(0.06)
    alone = judge({"a": difference(0.001, 0.009)})["a"]
    assert found["a"].detectable > alone.detectable
    assert judge({"a": difference(-0.009, -0.001)}, lower_is_better=True)["a"].decision == PAYS
    assert judge({}) == {}


def judged(decision: str, *, alone: str | None = None, corrected: float = 0.03) -> Judged:
    return Judged(
        difference=difference(0.001, 0.009),
        corrected=corrected,
        detectable=0.004,
        decision=decision,
        alone=alone or decision,
    )


def sentence(**changes: object) -> tuple[str, str]:
    values = {
        "judged": judged(PAYS),
        "to_short": difference(0.001, 0.009),
        "to_full": difference(-0.02, -0.01),
        "by_metric": {},
        "epochs": 5,
        "is_full": False,
        "num_failed": 0,
        "runs": 3,
        "rival_failed": 0,
        "rival_runs": 3,
        **changes,
    }
    first = [values.pop(name) for name in ("judged", "to_short", "to_full")]
    return verdict(*first, **values)  # type: ignore[arg-type]


def test_the_sentence_says_how_much_and_against_what() -> None:
    assert sentence() == (
        PAYS,
        "pays: +0.50 points (+0.10 to +0.90) against a full run as short (5 epochs), corrected p = 0.030; "
        "-1.50 points (-2.00 to -1.00) against full",
    )
    decision, words = sentence(is_full=True, epochs=8)
    assert decision == PAYS
    assert "against full itself" in words
    assert "corrected p < 0.001; " in sentence(judged=judged(PAYS, corrected=0.0002))[1]
    words = sentence(judged=judged(NO_DIFFERENT, alone=PAYS))[1]
    assert "corrected p = 0.030 (0.40 points would be seen); " in words
    assert words.endswith("; without the correction it pays")


def test_the_sentence_says_which_metrics_decide_otherwise() -> None:
    by_metric = {"balanced_accuracy": judged(PAYS), "held_out_loss": judged(HURTS), "f1": judged(NO_DIFFERENT)}
    decision, words = sentence(by_metric=by_metric)
    assert decision == PAYS
    assert words.endswith(" against full; but by held_out_loss it hurts, by f1 it is no different")
    assert "but" not in sentence(by_metric={"balanced_accuracy": judged(PAYS)})[1]


def test_power_and_correction_in_words() -> None:
    rows = [
        {"method": method, "difference_to_short_full": None if seen is None else {"detectable": seen}}
        for method, seen in (("full", None), ("es", 0.004), ("eswp", 0.0123))
    ]
    expected = "With these 5 seeds a difference of 0.40 points (es) to 1.23 points (eswp) would be seen in 80 % of"
    assert power_in_words(rows, 5).startswith(expected)
    assert power_in_words(rows[:2], 5).startswith("With these 5 seeds a difference of 0.40 points (es) would be seen")
    assert "corrected for 4 tests (Holm)" in correction_in_words(4)
    assert "corrected for 1 test (Holm)" in correction_in_words(1)


def test_one_seed_a_failed_run_or_no_full_run_decide_nothing() -> None:
    one = sentence(judged=None, to_short=difference(None, None), to_full=difference(None, None))
    assert one[0] == UNDECIDED
    assert one[1].startswith("undecided: one seed, +1.00 points against a full run as short")
    strange = Difference(mean=float("nan"), low=None, high=None, pairs=3, std=None, p=None)
    assert sentence(judged=None, to_short=strange)[1].startswith("undecided: not all values are finite, +nan points")
    assert sentence(num_failed=1) == (UNDECIDED, "undecided: 1 of 3 runs failed")
    assert sentence(to_short=None)[0] == UNDECIDED


def test_failed_runs_of_the_rival_are_not_taken_for_one_seed() -> None:
    one = difference(None, None)
    assert sentence(to_short=one, rival_failed=2) == (
        UNDECIDED,
        "undecided: 2 of 3 runs of the full run as short (5 epochs) failed, which leaves one seed, +1.00 points",
    )
    assert sentence(to_short=None, rival_failed=3)[1].endswith("3 of 3 runs of the full run as short (5 epochs) failed")
    assert sentence(to_short=one, is_full=True, rival_failed=2)[1].startswith("undecided: 2 of 3 runs of full failed")
    assert sentence(rival_failed=1)[0] == PAYS  # two pairs decide

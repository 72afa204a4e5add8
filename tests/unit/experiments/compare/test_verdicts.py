"""The verdict rule, at its edges."""

from __future__ import annotations

import pytest

from es_service.experiments.compare.verdicts import HURTS, NO_DIFFERENT, PAYS, UNDECIDED, decide, verdict
from es_service.experiments.statistics import Difference


def difference(low: float | None, high: float | None) -> Difference:
    mean = 0.01 if low is None or high is None else (low + high) / 2
    return Difference(mean=mean, low=low, high=high, pairs=1 if low is None else 3)


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (0.001, 0.02, PAYS),
        (0.0, 0.02, NO_DIFFERENT),
        (-0.01, 0.02, NO_DIFFERENT),
        (0.0, 0.0, NO_DIFFERENT),
        (-0.02, 0.0, NO_DIFFERENT),
        (-0.02, -0.001, HURTS),
        (None, None, UNDECIDED),
    ],
)
def test_the_whole_interval_decides(low: float | None, high: float | None, decision: str) -> None:
    assert decide(difference(low, high)) == decision


def sentence(**changes: object) -> tuple[str, str]:
    values = {
        "to_short": difference(0.001, 0.009),
        "to_full": difference(-0.02, -0.01),
        "epochs": 5,
        "is_full": False,
        "num_failed": 0,
        "runs": 3,
        "rival_failed": 0,
        "rival_runs": 3,
        **changes,
    }
    return verdict(values.pop("to_short"), values.pop("to_full"), **values)  # type: ignore[arg-type]


def test_the_sentence_says_how_much_and_against_what() -> None:
    assert sentence() == (
        PAYS,
        "pays: +0.50 points (+0.10 to +0.90) against a full run as short (5 epochs); "
        "-1.50 points (-2.00 to -1.00) against full",
    )
    decision, words = sentence(is_full=True, epochs=8)
    assert decision == PAYS
    assert "against full itself" in words


def test_one_seed_a_failed_run_or_no_full_run_decide_nothing() -> None:
    one = sentence(to_short=difference(None, None), to_full=difference(None, None))
    assert one[0] == UNDECIDED
    assert one[1].startswith("undecided: one seed, +1.00 points against a full run as short")
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

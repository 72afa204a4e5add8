"""The verdict on a method, in one sentence, by a rule that docs/how-to/comparing.md states."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from es_service.experiments import statistics
from es_service.experiments.statistics import Difference

__all__ = [
    *("HURTS", "NOT_TESTED", "NO_DIFFERENT", "PAYS", "UNDECIDED", "Judged"),
    *("correction_in_words", "decide", "difference_in_words", "judge", "p_in_words", "power_in_words", "verdict"),
]

PAYS = "pays"
NO_DIFFERENT = "no different from a short run"
HURTS = "hurts"
UNDECIDED = "undecided"
NOT_TESTED = "not tested"
_SHORTLY = {PAYS: "pays", NO_DIFFERENT: "is no different", HURTS: "hurts"}
Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A difference to a short full run, tested as one of several.

    Args:
        difference: the method minus its short full run.
        corrected: its p, corrected for all tests.
        detectable: the difference that would be seen, see `statistics.detectable`.
        decision: by the corrected p.
        alone: by its own p.
    """

    difference: Difference
    corrected: float
    detectable: float
    decision: str
    alone: str


def judge(differences: Mapping[Key, Difference], *, lower_is_better: bool = False) -> dict[Key, Judged]:
    """Return what is decided by these differences, corrected for their number; those without a p decide nothing.

    Args:
        differences: of methods to their short full runs.
        lower_is_better: of the metric, as of a loss.
    """
    tested = {key: (one, one.p) for key, one in differences.items() if one.p is not None}
    corrected = statistics.holm([p for _, p in tested.values()])
    return {
        key: Judged(
            difference=one,
            corrected=most,
            detectable=statistics.detectable(one, len(tested)) or 0.0,
            decision=decide(one.mean, most, lower_is_better=lower_is_better),
            alone=decide(one.mean, p, lower_is_better=lower_is_better),
        )
        for (key, (one, p)), most in zip(tested.items(), corrected, strict=True)
    }


def decide(mean: float, p: float, *, lower_is_better: bool = False) -> str:
    """Return PAYS or HURTS, by the sign of the mean, where p is below the level of significance; else NO_DIFFERENT."""
    if p >= statistics.SIGNIFICANCE:
        return NO_DIFFERENT
    return PAYS if (mean > 0) != lower_is_better else HURTS


def verdict(
    judged: Judged | None,
    to_short: Difference | None,
    to_full: Difference | None,
    *,
    by_metric: Mapping[str, Judged],
    epochs: int | None,
    is_full: bool,
    num_failed: int,
    runs: int,
    rival_failed: int,
    rival_runs: int,
    idle: str | None = None,
) -> tuple[str, str]:
    """Return the decision on a method, and the sentence.

    Args:
        judged: its difference to its short full run, tested; None where it is not.
        to_short, to_full: its differences to its short full run and to full.
        by_metric: what other metrics say, by name.
        epochs: of its short full run; None where it has none.
        is_full: the short full run is full itself: the method saved no epoch.
        num_failed: how many of its runs failed.
        runs: how many there were.
        rival_failed, rival_runs: the same of its short full run.
        idle: why its runs never selected; None where they did.
    """
    if idle is not None:
        return NOT_TESTED, f"{NOT_TESTED}: it never selects, {idle}"
    if num_failed:
        return UNDECIDED, f"{UNDECIDED}: {num_failed} of {runs} runs failed"
    if epochs is not None and rival_failed and (to_short is None or to_short.pairs < 2):
        rival = "full" if is_full else f"the full run as short ({_epochs(epochs)})"
        left = "" if to_short is None else f", which leaves one seed, {difference_in_words(to_short)}"
        return UNDECIDED, f"{UNDECIDED}: {rival_failed} of {rival_runs} runs of {rival} failed{left}"
    if to_short is None or epochs is None:
        return UNDECIDED, f"{UNDECIDED}: there is no full run to compare with"
    rival = "full itself (no shorter run takes as long)" if is_full else f"a full run as short ({_epochs(epochs)})"
    against_full = "" if is_full or to_full is None else f"; {difference_in_words(to_full)} against full"
    numbers = f"{difference_in_words(to_short)} against {rival}"
    if judged is None:
        reason = "one seed" if to_short.pairs < 2 else "not all values are finite"
        return UNDECIDED, f"{UNDECIDED}: {reason}, {numbers}{against_full}"
    words = f"{judged.decision}: {numbers}, corrected {p_in_words(judged.corrected)}"
    if judged.decision == NO_DIFFERENT:
        words += f" ({100 * judged.detectable:.2f} points would be seen)"
    words += against_full
    if judged.alone != judged.decision:
        words += f"; without the correction it {_SHORTLY[judged.alone]}"
    return judged.decision, words + _flips(judged.decision, by_metric)


def _flips(decision: str, by_metric: Mapping[str, Judged]) -> str:
    """Return which other metrics would decide otherwise, and how."""
    other = [f"by {name} it {_SHORTLY[one.decision]}" for name, one in by_metric.items() if one.decision != decision]
    return f"; but {', '.join(other)}" if other else ""


def difference_in_words(difference: Difference) -> str:
    """Return a difference of shares in points, with its interval where it has one."""
    words = f"{100 * difference.mean:+.2f} points"
    if difference.low is not None and difference.high is not None:
        words += f" ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return words


def p_in_words(p: float) -> str:
    """Return a p to three digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def power_in_words(rows: Iterable[Mapping[str, Any]], seeds: int) -> str:
    """Return which differences to short full runs would be seen with so many seeds, of rows of which one is tested."""
    shorts = {row["method"]: row["difference_to_short_full"] for row in rows}
    found = {name: 100 * one["detectable"] for name, one in shorts.items() if one and one["detectable"] is not None}
    least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    words = f"a difference of {found[least]:.2f} points ({least})"
    if least != most:
        words += f" to {found[most]:.2f} points ({most})"
    return f"With these {seeds} seeds {words} would be seen in {100 * statistics.POWER:.0f} % of such comparisons."


def correction_in_words(tests: int) -> str:
    """Return how decisions are corrected for the number of tests, of which there is at least one."""
    level = f"{100 * statistics.SIGNIFICANCE:.0f} %"
    return (
        f"Decisions go by p, corrected for {tests} test{'s' * (tests > 1)} (Holm): where nothing makes a difference, "
        f"the chance that any verdict is pays or hurts is at most {level}. The intervals are not corrected."
    )


def _epochs(number: int) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"

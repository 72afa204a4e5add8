"""The verdict on a method, in one sentence, by a rule that docs/how-to/comparing.md states."""

from __future__ import annotations

from es_service.experiments.statistics import Difference

__all__ = ["HURTS", "NOT_TESTED", "NO_DIFFERENT", "PAYS", "UNDECIDED", "decide", "difference_in_words", "verdict"]

PAYS = "pays"
NO_DIFFERENT = "no different from a short run"
HURTS = "hurts"
UNDECIDED = "undecided"
NOT_TESTED = "not tested"


def decide(difference: Difference | None) -> str:
    """Return PAYS, NO_DIFFERENT, HURTS or UNDECIDED by the difference to the method's short full run.

    PAYS where the whole confidence interval lies above 0, HURTS where it lies below, NO_DIFFERENT where it holds 0.
    Fewer than two pairs decide nothing.
    """
    if difference is None or difference.low is None or difference.high is None:
        return UNDECIDED
    if difference.low > 0:
        return PAYS
    return HURTS if difference.high < 0 else NO_DIFFERENT


def verdict(
    to_short: Difference | None,
    to_full: Difference | None,
    *,
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
        to_short, to_full: its differences to its short full run and to full.
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
    numbers = f"{difference_in_words(to_short)} against {rival}{against_full}"
    decision = decide(to_short)
    if decision == UNDECIDED:
        return decision, f"{UNDECIDED}: one seed, {numbers}"
    return decision, f"{decision}: {numbers}"


def difference_in_words(difference: Difference) -> str:
    """Return a difference of shares in points, with its interval where it has one."""
    words = f"{100 * difference.mean:+.2f} points"
    if difference.low is not None and difference.high is not None:
        words += f" ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return words


def _epochs(number: int) -> str:
    return f"{number} epoch" if number == 1 else f"{number} epochs"

"""The ledger: where the time and the samples of a run went, and what selection saved."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SECTIONS", "Ledger"]

SECTIONS = ("score", "train", "exchange", "data")
_TOKENS = ("scored_tokens", "trained_tokens", "full_tokens")
_COUNTED = ("scored", "trained", "full", *_TOKENS, "skipped", "measured_steps", "scorer_scored", "scorer_trained")
_SUMMED = ("measured_s", "scorer_passes", "scorer_s")
_TIMED_S, _TIMED_STEPS = 60.0, 20  # of training, and full steps, before decisions go by seconds
_WARM_UP_STEPS = 3  # of a process: first touches, imports, compilation, caches


@dataclasses.dataclass
class Ledger:
    """Counts of samples and seconds on one rank; `merge` adds up the ranks of a run.

    Attributes:
        scored: samples that went through a forward pass only to be scored.
        trained: samples that were back-propagated.
        full: samples that a full run would have back-propagated by now.
        scored_tokens, trained_tokens, full_tokens: the tokens of these samples; 0 where they are not known.
        tokens: int64[n], the tokens of each sample, where they are to be counted; not kept.
        backward_cost: forward passes that a backward pass counts as.
        seconds: by section (score, train, exchange, data); what is in none of them is in `total_s` alone.
        total_s: seconds inside steps, and of opening and closing epochs.
        steps: steps made.
        full_steps: steps that a full run would have made by now (not whole where epochs were pruned).
        measured_s: seconds of the steps that took their whole meta-batch and did not score it first: the run's own
            measure of a full step.
        measured_steps: how many of them; the first steps of a process, which warm things up, are not among them.
        warm_up_s: seconds in `total_s` up to the end of each process's first steps; no side of a saving counts them.
        warm_up_full_steps: steps in `full_steps` that a full run would have made meanwhile.
        warming: steps of this process that are still to warm up; not kept.
        most_seen: samples that the epoch observed that observed most of those finished by this process; not kept.
        skipped: losses left out because they were not finite, or negative where they may not be.
        scorer_scored, scorer_trained: samples that scorers scored for this run, and that their proxies trained on.
        scorer_passes: what that cost, in forward passes of the model that is trained over a sample.
        scorer_s: seconds of the scorers at work, beside the run's own.
    """

    clock: Callable[[], float] = dataclasses.field(default=time.perf_counter, repr=False, compare=False)
    scored: int = 0
    trained: int = 0
    full: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    full_tokens: int = 0
    backward_cost: float = 2.0
    skipped: int = 0
    total_s: float = 0.0
    steps: int = 0
    full_steps: float = 0.0
    measured_s: float = 0.0
    measured_steps: int = 0
    warm_up_s: float = 0.0
    warm_up_full_steps: float = 0.0
    warming: int = dataclasses.field(default=_WARM_UP_STEPS, repr=False, compare=False)
    scorer_scored: int = 0
    scorer_trained: int = 0
    scorer_passes: float = 0.0
    scorer_s: float = 0.0
    most_seen: int = dataclasses.field(default=0, repr=False, compare=False)
    tokens: NDArray[np.int64] | None = dataclasses.field(default=None, repr=False, compare=False)
    _last: str = dataclasses.field(default="", init=False, repr=False, compare=False)  # what the last step counts as
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SECTIONS, 0.0))

    @contextlib.contextmanager
    def timing(self, section: str) -> Iterator[None]:
        """Count the seconds of a block under a section."""
        begin = self.clock()
        try:
            yield
        finally:
            self.seconds[section] += self.clock() - begin

    @contextlib.contextmanager
    def timing_overhead(self) -> Iterator[None]:
        """Count the seconds of a block outside any step, e.g. opening an epoch, as exchange and in the total."""
        before = self.seconds["exchange"]
        with self.timing("exchange"):
            yield
        spent = self.seconds["exchange"] - before
        self.total_s += spent
        if self.warming:
            self.warm_up_s += spent

    def tokens_of(self, ids: NDArray[np.int64]) -> int:
        """Return how many tokens these samples have, 0 where that is not known."""
        return 0 if self.tokens is None else int(self.tokens[ids].sum())

    def count_scored(self, ids: NDArray[np.int64]) -> None:
        """Count a forward pass over these samples only to score them."""
        self.scored += ids.size
        self.scored_tokens += self.tokens_of(ids)

    def count_trained(self, ids: NDArray[np.int64], times: int = 1) -> None:
        """Count samples that are back-propagated; -1 times takes them out again."""
        self.trained += times * ids.size
        self.trained_tokens += times * self.tokens_of(ids)

    def count_scorer(self, num_scored: int, num_trained: int, passes: float, seconds: float) -> None:
        """Count what scorers did: samples scored and trained on, its cost in forward passes, and its seconds."""
        self.scorer_scored += num_scored
        self.scorer_trained += num_trained
        self.scorer_passes += passes
        self.scorer_s += seconds

    def count_step(
        self, num_ids: int, batch_size: int, seconds: float, *, is_full_step: bool, num_tokens: int = 0
    ) -> None:
        """Count one step over `num_ids` of a meta-batch of nominally `batch_size`, with so many tokens.

        `is_full_step`: it took all of them and scored none, so that full training would have spent as much.
        """
        self.full += num_ids
        self.full_tokens += num_tokens
        self.full_steps += num_ids / batch_size
        self.total_s += seconds
        self.steps += 1
        self._last = ""
        if self.warming:
            self.warming -= 1
            self.warm_up_s += seconds
            self.warm_up_full_steps += num_ids / batch_size
            self._last = "warm-up"
        elif is_full_step and num_ids == batch_size:
            self._last = "measured"
            self.measured_s += seconds
            self.measured_steps += 1

    def prolong_step(self, seconds: float) -> None:
        """Add what the step that was counted last took since then."""
        self.total_s += seconds
        if self._last == "warm-up":
            self.warm_up_s += seconds
        elif self._last == "measured":
            self.measured_s += seconds

    def count_pruned(self, num_full: int, ids: NDArray[np.int64], batch_size: int) -> None:
        """Count what an epoch's plan left out and a full run would have trained on.

        Args:
            num_full: of how many samples an epoch of this rank consists in a full run.
            ids: those of this epoch. Of the others the rank's even share of all tokens is counted.
            batch_size: of the meta-batch.
        """
        num_ids = num_full - ids.size
        self.full += num_ids
        self.full_steps += num_ids / batch_size
        if num_ids and self.tokens is not None:
            self.full_tokens += round(int(self.tokens.sum()) * num_full / self.tokens.size) - self.tokens_of(ids)

    def saving(self) -> dict[str, float | None]:
        """Return shares of the full run that were saved; negative where selection cost more.

        samples   1 - trained/full                               back-propagated samples
        cost      1 - (scored + (1+c)·trained + scorers)/((1+c)·full)   forward passes, a backward pass counted as c of
                  them; `scorers` are the passes of the scorers, if any
        seconds   1 - total_s/(full_steps · mean measured step)  warm-up left out of both; None where no step was
                  measured, or as long as nothing was selected
        tokens    1 - trained_tokens/full_tokens                 only where tokens are counted
        """
        if self.full == 0:
            return {"samples": None, "cost": None, "seconds": None}
        seconds = None
        if self.measured_s > 0 and self.trained + self.skipped < self.full:
            full_s = (self.full_steps - self.warm_up_full_steps) * self.measured_s / self.measured_steps
            seconds = 1.0 - (self.total_s - self.warm_up_s) / full_s
        return {
            "samples": 1.0 - self.trained / self.full,
            "cost": 1.0 - self.passes / ((1 + self.backward_cost) * self.full),
            "seconds": seconds,
            **({"tokens": 1.0 - self.trained_tokens / self.full_tokens} if self.full_tokens else {}),
        }

    def scoring_cost(self) -> float:
        """Return what scoring a meta-batch costs, as a share of a full step over it, in steps of 0.05.

        By the seconds of both once training was timed for a minute and full steps among it were measured; before
        that by passes, 1/(1+c): the first minute of a run is decided without a clock.
        """
        cost = 1 / (1 + self.backward_cost)
        if self._is_timed and (scored := self.scored + self.scorer_scored):  # waiting for scorers is scoring, too
            cost = self.seconds["score"] / scored * self.full / (self.full_steps * self._step_s)
        return round(20 * cost) / 20

    def time_saved_since(self, before: Ledger) -> float | None:
        """Return which share of a full run's time was saved since an earlier ledger of the same run.

        None where nothing was selected since, or the clock does not count yet, see `scoring_cost`.
        """
        steps = self.full_steps - self.warm_up_full_steps - (before.full_steps - before.warm_up_full_steps)
        left_out = self.full - self.trained - self.skipped - (before.full - before.trained - before.skipped)
        if not self._is_timed or steps <= 0 or left_out <= 0:
            return None
        spent = self.total_s - self.warm_up_s - (before.total_s - before.warm_up_s)
        return 1 - spent / (steps * self._step_s)

    @property
    def _is_timed(self) -> bool:
        return self.seconds["train"] >= _TIMED_S and self.measured_steps >= _TIMED_STEPS and self.measured_s > 0

    @property
    def _step_s(self) -> float:
        """Mean seconds of a measured step."""
        return self.measured_s / self.measured_steps

    def token_counts(self) -> dict[str, int] | None:
        """Return the tokens scored, trained on, and of a full run; None where they are not counted."""
        if not self.full_tokens:
            return None
        return {"scored": self.scored_tokens, "trained": self.trained_tokens, "full": self.full_tokens}

    @property
    def passes(self) -> float:
        """What was spent in forward passes over a sample, a backward pass counted as `backward_cost` of them.

        With what scorers spent.
        """
        return self.scored + (1 + self.backward_cost) * self.trained + self.scorer_passes

    def scorers(self) -> dict[str, float] | None:
        """Return what scorers did for the run: samples scored and trained, seconds, passes; None without any."""
        if not self.scorer_scored:
            return None
        names = {
            "scored": "scorer_scored",
            "trained": "scorer_trained",
            "seconds": "scorer_s",
            "passes": "scorer_passes",
        }
        return {name: getattr(self, field) for name, field in names.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` makes an equal ledger."""
        values = dataclasses.asdict(dataclasses.replace(self, clock=time.perf_counter, tokens=None))
        del values["clock"], values["tokens"], values["warming"], values["most_seen"], values["_last"]
        return values

    def copy(self) -> Ledger:
        """Return a ledger that counts on from here by itself."""
        return dataclasses.replace(self, seconds=dict(self.seconds))

    def counting_as(self, other: Ledger) -> Ledger:
        """Return this ledger, made to count by the clock and the tokens of another."""
        self.clock, self.tokens = other.clock, other.tokens
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any], clock: Callable[[], float] = time.perf_counter) -> Ledger:
        """Make a ledger from `to_dict`'s values; KeyError, TypeError or ValueError where they are not that.

        What an earlier version did not count is 0 in it, and a backward pass counts as two forward ones.
        """
        seconds = {section: values["seconds"][section] for section in SECTIONS}
        own = cls(clock=clock, **{**values, "seconds": seconds})
        for value in (*seconds.values(), *(value for name, value in values.items() if name != "seconds")):
            if not isinstance(value, int | float):
                raise ValueError(f"the ledger holds {value!r}, where a number is needed")
        if not 0 < own.backward_cost < math.inf:
            raise ValueError(f"the ledger counts a backward pass as {own.backward_cost} forward passes")
        return own

    @classmethod
    def merge(cls, ledgers: list[Ledger]) -> Ledger:
        """Return the ledger of a run: samples, tokens and full steps summed over its ranks, seconds averaged."""
        if not ledgers:
            return cls()
        num = len(ledgers)
        summed = (*_COUNTED, *_SUMMED)
        averaged = ("total_s", "full_steps", "warm_up_s", "warm_up_full_steps")
        totals = {name: sum(getattr(one, name) for one in ledgers) for name in (*summed, *averaged)}
        return cls(
            **{**totals, **{name: totals[name] / num for name in averaged}},
            steps=max(one.steps for one in ledgers),
            backward_cost=ledgers[0].backward_cost,  # all have the same
            seconds={key: sum(one.seconds[key] for one in ledgers) / num for key in SECTIONS},
        )

    def share(self, rank: int, world_size: int) -> Ledger:
        """Return what a rank counts on from, where this is the run's: `merge` of all shares is this ledger again."""
        shared: dict[str, Any] = {
            name: (getattr(self, name) + world_size - 1 - rank) // world_size for name in _COUNTED
        }
        shared |= {name: getattr(self, name) / world_size for name in _SUMMED}
        return dataclasses.replace(self, **shared, seconds=dict(self.seconds), warming=_WARM_UP_STEPS)

"""The ledger: where the time and the samples of a run went, and what selection saved."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["SECTIONS", "Ledger"]

SECTIONS = ("score", "train", "exchange", "data")
_MAX_TIMED_STEPS = 4096


@dataclasses.dataclass
class Ledger:
    """Counts of samples and seconds on one rank; `merge` adds up the ranks of a run.

    Attributes:
        scored: samples that went through a forward pass only to be scored.
        trained: samples that were back-propagated.
        full: samples that a full run would have back-propagated by now.
        seconds: by section (score, train, exchange, data); what is in none of them is in `total_s` alone.
        total_s: seconds inside steps.
        full_step_s: seconds of each step that took its whole meta-batch: the run's own measure of full training.
        full_steps: steps that a full run would have made by now (not whole where epochs were pruned).
        skipped: losses left out because they were not finite.
    """

    clock: Callable[[], float] = dataclasses.field(default=time.perf_counter, repr=False, compare=False)
    scored: int = 0
    trained: int = 0
    full: int = 0
    skipped: int = 0
    total_s: float = 0.0
    full_steps: float = 0.0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(SECTIONS, 0.0))
    full_step_s: list[float] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def timing(self, section: str) -> Iterator[None]:
        """Count the seconds of a block under a section."""
        begin = self.clock()
        try:
            yield
        finally:
            self.seconds[section] += self.clock() - begin

    def count_step(self, num_ids: int, batch_size: int, seconds: float, *, took_all: bool) -> None:
        """Count one step over `num_ids` of a meta-batch of nominally `batch_size`."""
        self.full += num_ids
        self.full_steps += num_ids / batch_size
        self.total_s += seconds
        if took_all and num_ids == batch_size and len(self.full_step_s) < _MAX_TIMED_STEPS:
            self.full_step_s.append(seconds)

    def count_pruned(self, num_ids: int, batch_size: int) -> None:
        """Count ids that this epoch's plan left out and a full run would have trained on."""
        self.full += num_ids
        self.full_steps += num_ids / batch_size

    def saving(self) -> dict[str, float | None]:
        """Return shares of the full run that were saved; negative where selection cost more.

        samples   1 - trained/full                    back-propagated samples
        cost      1 - (scored + 3·trained)/(3·full)   forward passes, a backward counted as two
        seconds   1 - total_s/(full_steps · median full step); None where no step took everything
        """
        if self.full == 0:
            return {"samples": None, "cost": None, "seconds": None}
        seconds = None
        if self.full_step_s:
            seconds = 1.0 - self.total_s / (self.full_steps * statistics.median(self.full_step_s))
        return {
            "samples": 1.0 - self.trained / self.full,
            "cost": 1.0 - (self.scored + 3 * self.trained) / (3 * self.full),
            "seconds": seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` makes an equal ledger."""
        values = dataclasses.asdict(dataclasses.replace(self, clock=time.perf_counter))
        del values["clock"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], clock: Callable[[], float] = time.perf_counter) -> Ledger:
        """Make a ledger from `to_dict`'s values."""
        own = {**values, "seconds": dict(values["seconds"]), "full_step_s": list(values["full_step_s"])}
        return cls(clock=clock, **own)

    @classmethod
    def merge(cls, ledgers: list[Ledger]) -> Ledger:
        """Return the ledger of a run: samples and full steps summed over its ranks, seconds averaged."""
        if not ledgers:
            return cls()
        num = len(ledgers)
        return cls(
            scored=sum(one.scored for one in ledgers),
            trained=sum(one.trained for one in ledgers),
            full=sum(one.full for one in ledgers),
            skipped=sum(one.skipped for one in ledgers),
            total_s=sum(one.total_s for one in ledgers) / num,
            full_steps=sum(one.full_steps for one in ledgers) / num,
            seconds={key: sum(one.seconds[key] for one in ledgers) / num for key in SECTIONS},
            full_step_s=[seconds for one in ledgers for seconds in one.full_step_s],
        )

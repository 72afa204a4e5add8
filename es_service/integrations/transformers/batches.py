"""The mini-batches that a Trainer iterates, and what belongs to each of them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from es_service.selector import Selector
from es_service.training.loader import SelectiveLoader
from es_service.training.observed import Signals

__all__ = ["Batches", "CountingCollate", "Drawn"]


class CountingCollate:
    """Collates samples, and counts the examples in each: several, where the data set was packed.

    At the top of the module, since processes that fetch ahead import it.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> tuple[Any, list[int] | None]:
        """Return the batch of these samples, and the number of examples in each; None where samples are no list."""
        if not isinstance(samples, list):
            return self._collate(samples), None
        lengths = [one.get("seq_lengths") if isinstance(one, Mapping) else None for one in samples]
        counts = [len(one) if isinstance(one, list) else 1 for one in lengths]
        # Copies, because drawn samples are collated again, and a collator may change them.
        return self._collate([dict(one) if type(one) is dict else one for one in samples]), counts


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """What belongs to a mini-batch: scale float32[b], its weight beside other ranks', the examples of each sample."""

    scale: torch.Tensor
    weight: int
    counts: list[int] | None
    is_scored: bool


class Batches:
    """Mini-batches of one epoch after the other, as a Trainer iterates them.

    Attributes:
        drawn: of the batches that were handed out and are still to be trained on.
        first_step, num_steps: of the open epoch; where it was resumed the first is not 0.
    """

    def __init__(self, loader: SelectiveLoader, selector: Selector, dataset: Any) -> None:
        self._loader, self._selector, self.dataset = loader, selector, dataset
        self.drawn: collections.deque[Drawn] = collections.deque()
        self.first_step, self.num_steps = 0, selector.config.num_steps(0, selector.exchange.position.world_size)
        self._batches: Iterator[Any] = iter(())
        self._first: list[Any] = []

    def __len__(self) -> int:
        return self.num_steps

    def open(self, epoch: int) -> None:
        """Open an epoch: its first batch is fetched and drawn, and its number of steps is known from here on."""
        self.drawn.clear()
        self._batches = self._with_drawn(epoch)
        self._first = list(itertools.islice(self._batches, 1))
        self.num_steps = self._selector.steps(epoch)
        self.first_step = self.num_steps - len(self._selector.batches())

    def __iter__(self) -> Iterator[Any]:
        for batch, drawn in itertools.chain(self._first, self._batches):
            self.drawn.append(drawn)
            yield batch

    def _with_drawn(self, epoch: int) -> Iterator[tuple[Any, Drawn]]:
        for (batch, counts), scale in self._loader.epoch(epoch):
            yield batch, Drawn(scale, self._loader.weight, counts, is_scored=not self._loader.awaits_losses)

    def observe(self, losses: Signals) -> None:
        """Hand over the losses that training computed."""
        self._loader.observe(losses)

    def finish_steps(self) -> None:
        """Let the epoch end behind its last step: what it hid is scored."""
        for _ in self._batches:
            raise AssertionError("an epoch has more steps than were planned")

    def close(self) -> None:
        """Close the epoch at the current step, where it was cut short."""
        self._batches.close()  # type: ignore[attr-defined]
        self._loader.finish_epoch()

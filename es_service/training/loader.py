"""The selective loader: fetches meta-batches, scores them, and yields the mini-batches to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from es_service import errors
from es_service.selection.engine import Draw
from es_service.selector import Selector
from es_service.training import batches

__all__ = ["SelectiveLoader"]


class SelectiveLoader:
    """Fetch, score, draw; what comes out is the mini-batch to train on.

        for batch, scale in loader.epoch(epoch):
            losses = per_sample_loss(model(batch), ...)     # [b]
            (losses * scale).mean().backward()
            ...
            loader.observe(losses)                          # needed with reuse_losses=True, free otherwise

    Args:
        dataset: map-style, with `__getitems__` or `__getitem__`; item i is the sample of id i.
        selector: hands out the ids and draws.
        score: batch -> losses[B], or signals by name, without touching the model; `training.scoring.score` makes one.
        reuse_losses: you call `observe` after every step; steps that draw without losses (annealing, `random`,
            `full`) then take them from there instead of from a scoring pass of their own.
        collate_fn: list of samples -> batch, or what `__getitems__` returns -> batch; torch's default otherwise.
        device: moves every batch there.
        num_workers: processes that fetch ahead; 0 fetches in this one, and then no more than is needed.

    Raises:
        ConfigError: the data set has another length than the selector was told.
    """

    def __init__(
        self,
        dataset: Any,
        selector: Selector,
        score: Callable[[Any], Any],
        *,
        reuse_losses: bool = False,
        collate_fn: Callable[[Any], Any] | None = None,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ) -> None:
        if len(dataset) != selector.config.num_samples:
            raise errors.ConfigError(
                f"the data set has {len(dataset):,} samples, the selector was made for "
                f"num_samples={selector.config.num_samples:,}: ids would name the wrong samples"
            )
        self._dataset = dataset
        self._selector = selector
        self._score = score
        self._reuse_losses = reuse_losses
        self._collate = collate_fn if collate_fn is not None else data.default_collate
        self._device = torch.device(device)
        self._num_workers = num_workers
        self._observed = True
        self.draw: Draw | None = None
        """The last draw: which ids the batch just yielded holds."""

    def epoch(self, epoch: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (batch of b samples, scale float32[b]) for every step of an epoch; then score what it hid.

        Raises:
            ShapeError: `observe` was promised for the step before and did not come; or as `Selector.select` raises.
        """
        selector, timing = self._selector, self._selector.ledger.timing
        ahead: Iterator[Any] | None = None
        self._observed = True
        for ids_B in selector.epoch(epoch):
            if not self._observed:
                raise errors.ShapeError("reuse_losses=True needs loader.observe(losses) after every step")
            if self._num_workers > 0 and ahead is None:
                ahead = self._fetch_ahead(selector.batches())
            blind = self._reuse_losses and not selector.wants_scores
            if blind:
                draw = selector.select(ids_B)
                with timing("data"):
                    batch = self._take(next(ahead), draw, ids_B) if ahead else self._fetch(draw.ids)
            else:
                with timing("data"):
                    whole = next(ahead) if ahead else self._fetch(ids_B)
                with timing("score"):
                    losses_B = self._score(whole)
                draw = selector.select(ids_B, losses_B)
                with timing("data"):
                    batch = self._take(whole, draw, ids_B)
            self.draw, self._observed = draw, not blind
            scale = torch.from_numpy(draw.scale).to(self._device)
            with timing("train"):
                yield batch, scale
        if not self._observed:
            raise errors.ShapeError("reuse_losses=True needs loader.observe(losses) after every step")
        self._score_hidden()

    def _score_hidden(self) -> None:
        selector, timing = self._selector, self._selector.ledger.timing
        for ids_B in selector.hidden_batches():
            with timing("data"):
                whole = self._fetch(ids_B)
            with timing("score"):
                observed = self._score(whole)
            selector.refresh(ids_B, observed)

    def finish_epoch(self) -> None:
        """Score what the open epoch hid, and close it where it stands; nothing where it is closed already.

        For loops that never ask for a batch behind the last one, and for an epoch that is cut short; see
        `Selector.finish_epoch`. Every rank calls it.
        """
        self._score_hidden()
        self._selector.finish_epoch()

    def observe(self, losses: Any) -> None:
        """Hand over the training losses [b], or signals, of the batch just yielded; ignored where it was scored."""
        self._selector.observe(losses)
        self._observed = True

    def _take(self, whole: Any, draw: Draw, ids_B: NDArray[np.int64]) -> Any:
        return whole if draw.positions.size == ids_B.size else batches.take(whole, draw.positions)

    def _fetch(self, ids: NDArray[np.int64]) -> Any:
        many = getattr(self._dataset, "__getitems__", None)
        indices = ids.tolist()
        samples = many(indices) if many is not None else [self._dataset[index] for index in indices]
        return self.to_device(self._collate(samples))

    def to_device(self, batch: Any) -> Any:
        """Move a batch to where this loader's batches go."""
        return batches.to_device(batch, self._device)

    def _fetch_ahead(self, meta_batches: list[NDArray[np.int64]]) -> Iterator[Any]:
        loader = data.DataLoader(
            self._dataset,
            batch_sampler=[ids_B.tolist() for ids_B in meta_batches],
            num_workers=self._num_workers,
            collate_fn=self._collate,
            pin_memory=self._device.type == "cuda",
        )
        for batch in loader:
            yield self.to_device(batch)

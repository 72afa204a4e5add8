"""The selective loader: fetches meta-batches, scores them, and yields the mini-batches to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from es_service import errors
from es_service.selection.engine import Draw
from es_service.selector import Selector
from es_service.training import batches
from es_service.training.accumulation import check_accumulation

__all__ = ["SelectiveLoader"]

_NUM_TRIED = 2  # samples


class _Fetched(NamedTuple):
    """A batch, and the samples that it was collated from; None where they are not kept."""

    samples: Any
    batch: Any


class _Keeping:
    """Collates samples and keeps them; at the top of the module, for processes that fetch ahead import it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> tuple[Any, Any]:
        return samples, self._collate(samples)


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
            `full`) then take them from there instead of from a separate scoring pass.
        collate_fn: list of samples -> batch, or what `__getitems__` returns -> batch; torch's default otherwise.
        device: moves every batch there.
        num_workers: processes that fetch ahead; 0 fetches in this one, and then no more than is needed.
        per_sample: names of the leaves of a batch that have a row per sample, such as ["image", "targets.boxes"] or
            ["0", "1"], see `training.trees`; all others then go into every mini-batch as they are. None: every leaf
            with rows must have one for each sample, and a batch of two samples is fetched once to see that it has.
        recollate: collate the drawn samples again instead of taking rows of the meta-batch: text padded to the longest
            of B samples is then padded to the longest of b. `collate_fn` must not draw at random. Needed, too, for
            batches that cannot be taken apart, graphs for example.

    Raises:
        ConfigError: the data set has another length than the selector's n, or both `per_sample` and `recollate`
            are given.
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
        per_sample: Sequence[str] | None = None,
        recollate: bool = False,
    ) -> None:
        if len(dataset) != selector.config.num_samples:
            raise errors.ConfigError(
                f"the data set has {len(dataset):,} samples, the selector was made for "
                f"num_samples={selector.config.num_samples:,}: ids would name the wrong samples"
            )
        if per_sample is not None and (recollate or isinstance(per_sample, str)):
            raise errors.ConfigError(
                f"per_sample={per_sample!r} must be a list of names, and left out with recollate=True, which takes no "
                "rows"
            )
        self.dataset = dataset
        self.selector = selector
        self._score = score
        self._reuse_losses = reuse_losses
        self._collate = collate_fn if collate_fn is not None else data.default_collate
        self._device = torch.device(device)
        self._num_workers = num_workers
        self._per_sample = per_sample
        self._recollate = recollate
        self._is_tried = per_sample is not None or recollate
        self._observed = True
        self.draw: Draw | None = None
        """The last draw: which ids the batch just yielded holds."""
        self.weight = 0
        """How many samples the mean of losses·scale represents: b, or all that were scored where the scale is unbiased.

        The weight of this rank's mean beside that of other ranks; see `step.rank_factor`.
        """

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (batch, scale) for every step of the next epoch, see `epoch`."""
        self.finish_epoch()
        yield from self.epoch(self.selector.next_epoch)

    def __len__(self) -> int:
        """The number of steps of the epoch that is iterated, or else of the next one."""
        return self.selector.steps(min(self.selector.next_epoch, self.selector.config.num_epochs - 1))

    @property
    def sampler(self) -> SelectiveLoader:
        """This loader: it decides on the order."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs, see `Selector.state_dict`."""
        return self.selector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Continue from `state_dict`'s return, see `Selector.load_state_dict`."""
        return self.selector.load_state_dict(state)

    def epoch(self, epoch: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (batch of b samples, scale float32[b]) for every step of an epoch; then score what it hid.

        Raises:
            ShapeError: a batch does not have a row for each sample; `observe` was promised for the step before and did
                not come; or as `Selector.select` raises.
            ConfigError: Accelerate accumulates gradients, and the loader was not prepared for it.
        """
        check_accumulation()
        selector, timing = self.selector, self.selector.ledger.timing
        ahead: Iterator[_Fetched] | None = None
        self._observed = True
        for ids_B in selector.epoch(epoch):
            if not self._observed:
                raise errors.ShapeError("reuse_losses=True needs loader.observe(losses) after every step")
            if self._num_workers > 0 and ahead is None:
                ahead = self._fetch_ahead(selector.batches())
            elif not self._is_tried:
                with timing("data"), torch.random.fork_rng(devices=[]):
                    self._try(_few(ids_B), self._fetch)
            blind = self._reuse_losses and not selector.wants_scores
            skipped = selector.ledger.skipped
            if blind:
                draw = selector.select(ids_B)
                with timing("data"):
                    batch = self._take(next(ahead), draw, ids_B) if ahead else self._fetch(draw.ids).batch
            else:
                with timing("data"):
                    whole = next(ahead) if ahead else self._fetch(ids_B)
                with timing("score"):
                    losses_B = self._score(whole.batch)
                draw = selector.select(ids_B, losses_B)
                with timing("data"):
                    batch = self._take(whole, draw, ids_B)
            self.draw, self._observed = draw, not blind
            num_scored = ids_B.size - (selector.ledger.skipped - skipped)
            self.weight = num_scored if selector.config.selection.reweight == "unbiased" else draw.ids.size
            scale = torch.from_numpy(draw.scale).to(self._device)
            with timing("train"):
                yield batch, scale
        if not self._observed:
            raise errors.ShapeError("reuse_losses=True needs loader.observe(losses) after every step")
        self._score_hidden()

    def _score_hidden(self) -> None:
        selector, timing = self.selector, self.selector.ledger.timing
        for hidden_B in selector.hidden_batches():
            scored_B = hidden_B
            if hidden_B.size == 1 and self.draw is not None:  # BatchNorm cannot do with one: score another beside it
                scored_B = np.append(hidden_B, self.draw.ids[:1])
            with timing("data"):
                whole = self._fetch(scored_B)
            with timing("score"):
                observed = self._score(whole.batch)
            selector.refresh(hidden_B, observed if scored_B is hidden_B else _first(observed, 1))

    def finish_epoch(self) -> None:
        """Score what the open epoch hid, and close it at the current step; nothing where it is closed already.

        For loops that never ask for a batch behind the last one, and for an epoch that is cut short; see
        `Selector.finish_epoch`. Every rank calls it.
        """
        self._score_hidden()
        self.selector.finish_epoch()

    def observe(self, losses: Any) -> None:
        """Hand over the training losses [b], or signals, of the batch just yielded; ignored where it was scored."""
        self.selector.observe(losses)
        self._observed = True

    def _take(self, whole: _Fetched, draw: Draw, ids_B: NDArray[np.int64]) -> Any:
        if draw.positions.size == ids_B.size:
            return whole.batch
        if not self._recollate:
            return batches.take(whole.batch, draw.positions, ids_B.size, self._per_sample)
        if isinstance(whole.samples, list) and len(whole.samples) == ids_B.size:
            return self._fetched([whole.samples[position] for position in draw.positions.tolist()], draw.ids).batch
        return self._fetch(draw.ids).batch  # __getitems__ returned a batch

    def _fetch(self, ids: NDArray[np.int64]) -> _Fetched:
        many = getattr(self.dataset, "__getitems__", None)
        indices = ids.tolist()
        return self._fetched(many(indices) if many is not None else [self.dataset[index] for index in indices], ids)

    def _fetched(self, samples: Any, ids: NDArray[np.int64]) -> _Fetched:
        return self._checked(_Fetched(samples, self._collate(samples)), ids)

    def _checked(self, fetched: _Fetched, ids: NDArray[np.int64]) -> _Fetched:
        if not self._recollate:
            batches.check(fetched.batch, ids.size, self._per_sample)
        return fetched._replace(batch=self.to_device(fetched.batch))

    def _try(self, few: NDArray[np.int64], fetch: Callable[[NDArray[np.int64]], Any]) -> None:
        """Fetch a batch of another size: a leaf that has B rows by chance does not follow the number of samples."""
        try:
            fetch(few)
        except errors.ShapeError as error:
            raise errors.ShapeError(
                f"fetched {few.size} samples, to see which leaves of a batch follow their number: {error}"
            ) from error
        self._is_tried = True

    def to_device(self, batch: Any) -> Any:
        """Move a batch to where this loader's batches go."""
        return batches.to_device(batch, self._device)

    def _fetch_ahead(self, meta_batches: list[NDArray[np.int64]]) -> Iterator[_Fetched]:
        tried = [] if self._is_tried else [_few(meta_batches[0])]
        loader = data.DataLoader(
            self.dataset,
            batch_sampler=[ids_B.tolist() for ids_B in [*tried, *meta_batches]],
            num_workers=self._num_workers,
            collate_fn=_Keeping(self._collate) if self._recollate else self._collate,
            pin_memory=self._device.type == "cuda",
        )
        fetched = (_Fetched(*batch) if self._recollate else _Fetched(None, batch) for batch in loader)
        for few in tried:
            self._try(few, lambda few: self._checked(next(fetched), few))
        for ids_B in meta_batches:
            yield self._checked(next(fetched), ids_B)


def _first(observed: Any, num: int) -> Any:
    """Return the losses, or signals by name, of the first samples."""
    if isinstance(observed, Mapping):
        return {name: values[:num] for name, values in observed.items()}
    return observed[:num]


def _few(ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids_B[: _NUM_TRIED if ids_B.size > _NUM_TRIED else 1]

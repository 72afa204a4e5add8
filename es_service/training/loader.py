"""The selective loader: fetches meta-batches, scores them, and yields the mini-batches to train on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from es_service import errors
from es_service.selector import Selector
from es_service.training import batches
from es_service.training.accumulation import check_accumulation
from es_service.training.fetching import Fetched, Fetcher, random_as_it_was
from es_service.training.recollating import first_difference
from es_service.training.selected import SelectedBatches

if TYPE_CHECKING:
    from es_service.scorer import Scorer

__all__ = ["SelectiveLoader"]

_NUM_TRIED = 2  # samples


class SelectiveLoader(SelectedBatches):
    """Fetch, score, draw; what comes out is the mini-batch to train on. `es.wrap` makes one of a torch DataLoader.

        for batch, scale in loader:                         # once per epoch
            losses = per_sample_loss(model(batch), ...)     # [b]
            loader.mean(losses).backward()                  # of losses * scale
            ...

    Instead of `mean`, multiply by the scale yourself, and call `loader.observe(losses)` where `reuse_losses=True`.

    Args:
        dataset: map-style, with `__getitems__` or `__getitem__`; item i is the sample of id i.
        selector: hands out the ids and draws.
        score: batch -> losses[B], or signals by name, without touching the model; `training.scoring.score` makes one.
        reuse_losses: you call `mean` or `observe` after every step; steps that draw without losses (annealing,
            `random`, `full`) then take them from there instead of from a separate scoring pass.
        collate_fn: list of samples -> batch, or what `__getitems__` returns -> batch; torch's default otherwise.
        device: moves every batch there; of a module, to where its parameters are. From worker processes to a GPU they
            go by way of pinned memory, asynchronously.
        num_workers: processes that fetch ahead; 0 fetches in this one, and then no more than is needed.
        per_sample: names of the leaves of a batch that have a row per sample, such as ["image", "targets.boxes"] or
            ["0", "1"], see `training.trees`; all others then go into every mini-batch as they are. None: every leaf
            with rows must have one for each sample, and a batch of two samples is fetched once to see that it has.
        recollate: how a mini-batch is made of a meta-batch. None: its rows are taken; but where a `collate_fn` of your
            own pads sequences of different lengths, they are collated again, so that text is padded to the longest of
            b samples instead of B, as long as that changes nothing but padding. True: always collated again, which
            batches need that cannot be taken apart, graphs for example; `collate_fn` must not draw at random then.
            False: rows are always taken.
        augment: (batch, ids int64[B], epoch) -> the batch that is scored and trained on, once for each batch, on its
            device. It draws by the ids and the epoch alone: then views are the same after a resume, and however ranks
            divide an epoch.
        scorer: an `es.Scorer`, whose losses take the place of scoring passes; then only what is drawn is fetched.
        workers: further arguments of torch's DataLoader: `prefetch_factor`, `persistent_workers`, `timeout`,
            `worker_init_fn`, `multiprocessing_context`, `generator`.

    Raises:
        ConfigError: the data set has another length than the selector's n, both `per_sample` and `recollate` are
            given, or a setting of the worker processes is refused.
    """

    def __init__(
        self,
        dataset: Any,
        selector: Selector,
        score: Callable[[Any], Any],
        *,
        reuse_losses: bool = False,
        collate_fn: Callable[[Any], Any] | None = None,
        device: torch.device | str | torch.nn.Module = "cpu",
        num_workers: int = 0,
        per_sample: Sequence[str] | None = None,
        recollate: bool | None = None,
        augment: Callable[[Any, NDArray[np.int64], int], Any] | None = None,
        scorer: Scorer | None = None,
        **workers: Any,
    ) -> None:
        super().__init__(selector, score, reuse_losses=reuse_losses, device=device, scorer=scorer)
        if per_sample is not None and (recollate or isinstance(per_sample, str)):
            raise errors.ConfigError(
                f"per_sample={per_sample!r} must be a list of names, and left out with recollate=True, which takes no "
                "rows"
            )
        self.dataset = dataset
        self._check_length()
        if recollate is None and (collate_fn in (None, data.default_collate) or per_sample is not None):
            recollate = False  # rows of it are what collating them again would give
        self._augment = augment
        self._per_sample = per_sample
        self._recollate = recollate
        self._is_tried = per_sample is not None or recollate is True
        self._fetcher = Fetcher(dataset, collate_fn or data.default_collate, recollate, num_workers, workers)

    def __len__(self) -> int:
        """The number of steps of the epoch that is iterated, or else of the next one.

        Exact once the epoch is open; for one to come as `total_steps`.
        """
        return self.selector.steps(min(self._at_hand(), self.selector.config.num_epochs - 1))

    @property
    def total_steps(self) -> int:
        """The steps of all epochs together, for a learning-rate schedule; fewer where epochs are pruned.

        The most there may be for methods that decide by the losses how much they prune (infobatch, kakurenbo).
        """
        config, world_size = self.selector.config, self.selector.exchange.position.world_size
        return sum(config.num_steps(epoch, world_size) for epoch in range(config.num_epochs))

    @property
    def batch_size(self) -> int:
        """B, the samples of a meta-batch."""
        return self.selector.config.batch_size

    @property
    def sampler(self) -> SelectiveLoader:
        """This loader: frameworks look here for `set_epoch`."""
        return self

    def epoch(self, epoch: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (batch of b samples, scale float32[b]) for every step of an epoch; then score what it hid.

        Raises:
            ShapeError: a batch does not have a row for each sample; `observe` was promised for the step before and did
                not come; or as `Selector.select` raises.
            ConfigError: the data set has another length than before, or cannot be sent to worker processes; or
                Accelerate accumulates gradients, and the loader was not prepared for it.
        """
        check_accumulation()
        self._check_length()
        selector, timing = self.selector, self.selector.ledger.timing
        ahead: Iterator[Fetched] | None = None
        self._observed = True
        for ids_B in selector.epoch(epoch):
            is_blind, ahead_B = self._is_blind(), self._losses_ahead()
            if self._fetcher.num_workers > 0 and ahead is None:
                ahead = self._fetch_ahead(epoch, selector.batches())
            elif not self._is_tried:
                with timing("data"), random_as_it_was():
                    self._try(_few(ids_B), self._fetch)
            if (is_blind or ahead_B is not None) and ahead is None:  # no more is fetched than is drawn
                draw = self._select(ids_B, ahead_B=ahead_B)
                with timing("data"):
                    batch = self._view(self._fetch(draw.ids).batch, draw.ids, epoch)
            else:
                with timing("data"):
                    fetched = next(ahead) if ahead else self._fetch(ids_B)
                    whole = fetched.batch if is_blind else self._view(fetched.batch, ids_B, epoch)
                taken = functools.partial(self._taken, fetched, whole, ids_B, None if is_blind else epoch)
                draw = self._select(ids_B, None if is_blind else whole, taken, ahead_B)
                with timing("data"):
                    batch = taken(draw.positions)
                    if is_blind:
                        batch = self._view(batch, draw.ids, epoch)
            yield from self._yielded(batch)
        self._check_observed()
        self._score_hidden()

    def _score_hidden(self) -> None:
        selector, timing = self.selector, self.selector.ledger.timing
        for hidden_B in selector.hidden_batches():
            scored_B = hidden_B
            if hidden_B.size == 1 and self.draw is not None:  # BatchNorm cannot do with one: score another beside it
                scored_B = np.append(hidden_B, self.draw.ids[:1])
            with timing("data"):
                whole = self._view(self._fetch(scored_B).batch, scored_B, selector.next_epoch)
            with timing("score"):
                observed = self._score(whole)
            selector.refresh(hidden_B, observed if scored_B is hidden_B else _first(observed, 1))

    def finish_epoch(self) -> None:
        """Score what the open epoch hid, and close it at the current step; nothing where it is closed already.

        For loops that never ask for a batch behind the last one, and for an epoch that is cut short; see
        `Selector.finish_epoch`. Every rank calls it.
        """
        self._score_hidden()
        super().finish_epoch()

    # -- batches ----------------------------------------------------------------------------------------------------

    def _view(self, batch: Any, ids: NDArray[np.int64], epoch: int) -> Any:
        """Return a fetched batch as it is scored and trained on: on the device, augmented."""
        moved = self.to_device(batch)
        if self._augment is None:
            return moved
        return self._augment(moved, ids.copy(), epoch)  # torch warns about arrays that are not writable

    def _taken(
        self, fetched: Fetched, whole: Any, ids_B: NDArray[np.int64], viewed: int | None, positions: NDArray[np.int64]
    ) -> Any:
        """Return some of the samples: rows of the batch of all, or collated again and seen as this epoch sees them."""
        if positions.size == ids_B.size:
            return whole
        again = self._collated_again(fetched, positions, ids_B)
        if again is None:
            return batches.take(whole, positions, ids_B.size, self._per_sample)
        return again if viewed is None else self._view(again, ids_B[positions], viewed)

    def _collated_again(self, fetched: Fetched, positions: NDArray[np.int64], ids_B: NDArray[np.int64]) -> Any:
        """Return some of the samples, padded to the longest of them; None where rows of what was fetched are taken."""
        samples = fetched.samples
        is_asked = self._recollate or (self._recollate is None and samples is not None)
        if not is_asked:
            return None
        if samples is None or len(samples) != ids_B.size:
            return self._fetch(ids_B[positions]).batch  # __getitems__ returned a batch
        with random_as_it_was():
            again = self._fetcher.collate([samples[position] for position in positions.tolist()]).batch
        try:
            rows = batches.take(fetched.batch, positions, ids_B.size)
        except errors.ShapeError:
            if self._recollate:
                return again  # cannot be taken apart, and so not compared
            raise
        path = first_difference(rows, again)
        if path is None:
            return again
        if self._recollate:
            raise errors.ShapeError(
                f"recollate=True: the drawn samples, collated again, are not those that were scored; leaf {path!r} "
                "differs by more than padding: collate_fn draws at random, or its rows depend on the other samples of "
                "a batch. Leave recollate out, then rows of the scored batch are trained on"
            )
        self._recollate = self._fetcher.collate.keeps = False
        return None

    def _fetch(self, ids: NDArray[np.int64]) -> Fetched:
        return self._checked(self._fetcher.fetch(ids), ids)

    def _checked(self, fetched: Fetched, ids: NDArray[np.int64]) -> Fetched:
        if not self._recollate:
            batches.check(fetched.batch, ids.size, self._per_sample)
        return fetched

    def _try(self, few: NDArray[np.int64], fetch: Callable[[NDArray[np.int64]], Any]) -> None:
        """Fetch a batch of another size: a leaf that has B rows by chance does not follow the number of samples."""
        try:
            fetch(few)
        except errors.ShapeError as error:
            raise errors.ShapeError(
                f"fetched {few.size} samples, to see which leaves of a batch follow their number: {error}"
            ) from error
        self._is_tried = True

    def _fetch_ahead(self, epoch: int, meta_batches: list[NDArray[np.int64]]) -> Iterator[Fetched]:
        tried = [] if self._is_tried else [_few(meta_batches[0])]
        fetched = self._fetcher.ahead(epoch, [*tried, *meta_batches], pin=self.device.type == "cuda")
        for few in tried:
            self._try(few, lambda few: self._checked(next(fetched), few))
        for ids_B in meta_batches:
            yield self._checked(next(fetched), ids_B)

    def _check_length(self) -> None:
        num = self.selector.config.num_samples
        if len(self.dataset) != num:
            raise errors.ConfigError(
                f"the data set has {len(self.dataset):,} samples, the selector was made for num_samples={num:,}: ids "
                "would name the wrong samples"
            )


def _first(observed: Any, num: int) -> Any:
    """Return the losses, or signals by name, of the first samples."""
    if isinstance(observed, Mapping):
        return {name: values[:num] for name, values in observed.items()}
    return observed[:num]


def _few(ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids_B[: _NUM_TRIED if ids_B.size > _NUM_TRIED else 1]

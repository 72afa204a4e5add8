"""`stream`: selection in batches as they come, from Ray Data or an iterable data set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from es_service import errors
from es_service.attach import attach
from es_service.connect import ExchangeName
from es_service.selection.config import Selection
from es_service.selector import Selector
from es_service.streamed import ids_of
from es_service.training.batches import check, take
from es_service.training.observed import Signals
from es_service.training.selected import SelectedBatches
from es_service.training.wrapped import reuses, scorer

__all__ = ["SelectedStream", "stream"]

Source = Callable[[int], Iterable[Any]]
Ids = Callable[[Any], Any] | str


def stream(
    batches: Source | Iterable[Any],
    selection: Selection,
    *,
    epochs: int,
    model: torch.nn.Module,
    losses: Callable[[torch.nn.Module, Any], Signals],
    id: Ids = "id",  # noqa: A002
    batch_size: int | None = None,
    num_samples: int | None = None,
    run: str | None = None,
    exchange: ExchangeName | Literal["in-process"] | None = None,
    micro_batch_size: int | None = None,
    per_sample: Sequence[str] | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    reuse_losses: bool | None = None,
    **options: Any,
) -> SelectedStream:
    """Return an iterable of (batch, scale float32[b]) that scores each batch as it comes, and draws from it.

        shard = ray.train.get_dataset_shard("train")
        stream = es.stream(shard.iter_torch_batches(batch_size=64), selection, epochs=6, model=model, losses=losses,
                           batch_size=64)
        for epoch in range(6):
            for batch, scale in stream:
                optimizer.zero_grad()
                stream.mean(losses(model, batch)).backward()    # the mean of losses * scale
                optimizer.step()

    A batch carries a number for each of its samples, see `Selector.stream`. Nothing is planned: there are no lengths
    and no pruning, and an epoch cannot be continued in its middle.

    Args:
        batches: what can be iterated once per epoch: Ray Data's `iter_torch_batches(...)`, a
            DataLoader. Or a function: epoch -> batches of that epoch.
        selection: what to select, and how.
        epochs: E, how many the loop makes.
        model: to be scored; batches go to where its parameters are.
        losses: (model, batch) -> losses float[b], one per sample; or signals by name, "loss" among them.
        id: where a batch keeps the numbers of its samples, int64[B]: a key of it, or a function of it.
        batch_size: B, the usual size of a batch; None takes it from a DataLoader.
        num_samples: n, if it is known; None lets the table grow.
        run: names the run; several ranks need it. With a Ray at hand, a score server then holds the table.
        exchange: as in `es.connect`, or "in-process", where it should not be decided by what is there.
        micro_batch_size: as for `es.wrap`; so are `per_sample`, `autocast`, `reuse_losses` and `options`.

    Raises:
        ConfigError: batches that can be gone through only once, an unknown batch size, a selection that plans what an
            epoch holds; or as `es.Selector` and `es.connect` raise.
    """
    score = scorer(model, losses, micro_batch_size=micro_batch_size, per_sample=per_sample, autocast=autocast)
    source = _source(batches, epochs)
    selector = attach(
        selection,
        num_samples=num_samples,
        num_epochs=epochs,
        batch_size=_batch_size(batches) if batch_size is None else batch_size,
        streamed=True,
        run=run,
        exchange=exchange,
        **options,
    )
    selector.config.check_streams()
    return SelectedStream(
        source,
        selector,
        score,
        ids=id,
        model=model,
        per_sample=per_sample,
        reuse_losses=reuses(selection, reuse_losses),
    )


class SelectedStream(SelectedBatches):
    """What `es.stream` returns: (batch, scale) of every step, iterated once per epoch.

    Args:
        source: epoch -> batches.
        selector: draws.
        score: batch -> losses[B], or signals by name, without touching the model.
        ids: where a batch keeps the numbers of its samples.
        model: batches go to where its parameters are.
        per_sample: names of the leaves of a batch that have a row per sample, where not all have.
        reuse_losses: as for `SelectiveLoader`.
    """

    def __init__(
        self,
        source: Source,
        selector: Selector,
        score: Callable[[Any], Any],
        *,
        ids: Ids,
        model: torch.nn.Module,
        per_sample: Sequence[str] | None,
        reuse_losses: bool,
    ) -> None:
        super().__init__(selector, score, reuse_losses=reuse_losses, device=model)
        self._source, self._ids, self._per_sample = source, ids, per_sample

    def epoch(self, epoch: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (batch of b samples, scale float32[b]) for every batch of an epoch.

        Raises:
            ShapeError: a batch does not have a row for each id; `observe` was promised for the step before and did not
                come; or as `Selector.stream` and `select` raise.
            DataError: the epoch has no batch.
        """
        timing, step = self.selector.ledger.timing, -1
        self._observed = True
        for step, batch in enumerate(self.selector.stream(epoch, self._source(epoch), ids=self._ids)):  # noqa: B007
            is_blind = self._is_blind()
            ids_B = ids_of(batch, self._ids)
            with timing("data"):
                check(batch, len(ids_B), self._per_sample)
                whole = self.to_device(batch)
            draw = self._select(ids_B, None if is_blind else whole)
            if draw.positions.size < len(ids_B):
                with timing("data"):
                    whole = take(whole, draw.positions, len(ids_B), self._per_sample)
            yield from self._yielded(whole)
        self._check_observed()
        if step < 0:
            raise errors.DataError(
                f"epoch {epoch} of the stream has no batch: give what can be iterated once per epoch, or a "
                "function, epoch -> its batches"
            )


def _source(batches: Any, epochs: int) -> Source:
    if isinstance(batches, Iterator) and epochs != 1:
        raise errors.ConfigError(
            f"the batches, a {type(batches).__name__}, can be gone through only once, and epochs={epochs}: give a "
            "function, epoch -> its batches, such as lambda epoch: shard.iter_torch_batches(batch_size=64)"
        )
    if isinstance(batches, Iterable):
        return lambda _: batches
    if not callable(batches):
        raise errors.ConfigError(
            f"batches must be iterable, or a function of the epoch that returns what is, got {type(batches).__name__}"
        )
    return batches  # type: ignore[no-any-return]


def _batch_size(batches: Any) -> int:
    for one in (batches, getattr(batches, "batch_sampler", None)):
        size = getattr(one, "batch_size", None)
        if isinstance(size, int):
            return size
    raise errors.ConfigError(
        f"how many samples a batch has cannot be seen from a {type(batches).__name__}: give batch_size=, which the "
        "ledger and the schedule of annealing count by"
    )

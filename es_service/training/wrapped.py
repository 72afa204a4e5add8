"""`wrap`: a torch DataLoader that selects."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal

import torch
from torch.utils import data

from es_service import errors
from es_service.attach import attach
from es_service.connect import ExchangeName
from es_service.selection.config import Selection
from es_service.training import scoring
from es_service.training.fetching import settings_of_workers
from es_service.training.loader import SelectiveLoader
from es_service.training.observed import Signals
from es_service.whereabouts import num_ranks

__all__ = ["reuses", "scorer", "wrap"]


def wrap(
    loader: data.DataLoader[Any],
    selection: Selection,
    *,
    epochs: int,
    model: torch.nn.Module,
    losses: Callable[[torch.nn.Module, Any], Signals],
    run: str | None = None,
    exchange: ExchangeName | Literal["in-process"] | None = None,
    micro_batch_size: int | None = None,
    per_sample: Sequence[str] | None = None,
    recollate: bool | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    reuse_losses: bool | None = None,
    **options: Any,
) -> SelectiveLoader:
    """Return a loader over the same data that yields what selection draws: (batch, scale float32[b]) of every step.

        loader = es.wrap(DataLoader(data, 64, shuffle=True), selection, epochs=6, model=model, losses=losses)
        for epoch in range(6):
            for batch, scale in loader:
                optimizer.zero_grad()
                loader.mean(losses(model, batch)).backward()    # the mean of losses * scale
                optimizer.step()

    The data set, `collate_fn`, the worker processes and all that concerns them are taken over. `batch_size` is B, the
    meta-batch of this rank. The selector replaces the sampler: every epoch is in a random order of its own, also
    with shuffle=False, and ranks divide it between them. `drop_last=True` is the selection's, if either has it.
    Batches come on the device of the model, from worker processes to a GPU by way of pinned memory.

    Args:
        loader: over a map-style data set. Its sampler may be torch's RandomSampler, SequentialSampler or
            DistributedSampler; what another one intends would be lost, and it is refused.
        selection: what to select, and how.
        epochs: E, how many the loop makes.
        model: to be scored; batches go to where its parameters are.
        losses: (model, batch) -> losses float[b], one per sample; or signals by name, "loss" among them.
        run: names the run; several ranks need it. With a Ray at hand, a score server then holds the table.
        exchange: as in `es.connect`, or "in-process", where it should not be decided by what is there.
        micro_batch_size: most samples of one forward pass of scoring.
        per_sample: names of the leaves of a batch that have a row per sample, where not all have.
        recollate: whether drawn samples are collated again; see `SelectiveLoader`.
        autocast: makes the context of each forward pass of scoring, e.g. `lambda: torch.autocast("cuda")`.
        reuse_losses: False scores every step, also those that draw without losses; then neither `mean` nor
            `observe` need be called. None: True, unless the selection skips bad losses, which have to be known first.
        options: further arguments of `es.connect` or `es.Selector`. Where the data set is one of Hugging Face,
            `labels` and `preview` may be the names of columns.

    Raises:
        ConfigError: the loader cannot be taken over, see above; or as `es.Selector` and `es.connect` raise.
    """
    _check(loader)
    if loader.drop_last and isinstance(selection, Selection):
        selection = dataclasses.replace(selection, drop_last=True)
    selector = attach(
        selection,
        num_samples=len(loader.dataset),  # type: ignore[arg-type]
        num_epochs=epochs,
        batch_size=loader.batch_size,  # type: ignore[arg-type]
        run=run,
        exchange=exchange,
        dataset=loader.dataset,
        **options,
    )
    return SelectiveLoader(
        loader.dataset,
        selector,
        scorer(model, losses, micro_batch_size=micro_batch_size, per_sample=per_sample, autocast=autocast),
        reuse_losses=reuses(selection, reuse_losses),
        collate_fn=loader.collate_fn,
        device=model,
        num_workers=loader.num_workers,
        per_sample=per_sample,
        recollate=recollate,
        **settings_of_workers(loader),
    )


def reuses(selection: Selection, asked: bool | None) -> bool:
    """Return whether losses of training are used again; bad ones that are to be skipped have to be known before."""
    return selection.on_bad_loss == "raise" if asked is None else asked


def scorer(
    model: torch.nn.Module, losses: Callable[[torch.nn.Module, Any], Signals], **settings: Any
) -> Callable[[Any], Any]:
    """Return batch -> losses[B], or signals by name, of `scoring.score` with these settings.

    Raises:
        ConfigError: the model is not a module, or the losses are not a function.
    """
    if not isinstance(model, torch.nn.Module):
        raise errors.ConfigError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not callable(losses):
        raise errors.ConfigError(f"losses must be a function, (model, batch) -> one loss per sample, got {losses!r}")
    return lambda batch: scoring.score(model, batch, losses, **settings)


def _check(loader: Any) -> None:
    """Raise ConfigError for what cannot be taken over."""
    if not isinstance(loader, data.DataLoader):
        raise errors.ConfigError(f"es.wrap takes a torch.utils.data.DataLoader, got a {type(loader).__name__}")
    if isinstance(loader.dataset, data.IterableDataset):
        raise errors.ConfigError(
            f"the data set, a {type(loader.dataset).__name__}, is an IterableDataset, whose samples have no numbers: "
            'use es.stream(loader, selection, epochs=..., model=..., losses=..., id="id"), with a number for each '
            "sample in the batches"
        )
    if not isinstance(loader.dataset, Sized):
        raise errors.ConfigError(f"the data set, a {type(loader.dataset).__name__}, has no length: give it a __len__")
    made_by = type(loader.batch_sampler).__name__
    if loader.batch_size is None and loader.batch_sampler is not None:
        raise errors.ConfigError(
            f"the loader has batch_sampler={made_by}, and the selector decides which samples a batch holds: give the "
            "DataLoader a batch_size instead, or select in the batches as they come: es.stream(loader, ..., id=...)"
        )
    if loader.batch_size is None:
        raise errors.ConfigError(
            "batch_size=None leaves it to the data set to make batches: give the DataLoader a batch_size, the "
            "meta-batch that is drawn from; a data set with __getitems__ may still return whole batches"
        )
    if not getattr(loader, "in_order", True):  # older versions of torch keep it always
        raise errors.ConfigError("in_order=False: batches have to come in the order of the plan; leave it out")
    _check_sampler(loader.sampler, len(loader.dataset))


def _check_sampler(sampler: Any, num_samples: int) -> None:
    name = type(sampler).__name__
    instead = (
        "the selector decides which samples an epoch holds. Leave the sampler out; or select in the batches that it "
        "makes, with es.stream(loader, ..., id=...)"
    )
    kinds = (data.RandomSampler, data.SequentialSampler, data.DistributedSampler)
    if type(sampler) not in kinds:
        hint = ", wrap a torch.utils.data.Subset of the data" if isinstance(sampler, data.SubsetRandomSampler) else ""
        raise errors.ConfigError(f"the loader has the sampler {name}, and {instead}{hint}")
    if isinstance(sampler, data.RandomSampler) and (sampler.replacement or sampler.num_samples != num_samples):
        raise errors.ConfigError(
            f"the loader has a RandomSampler with replacement={sampler.replacement} and "
            f"num_samples={sampler.num_samples:,} of {num_samples:,}, and {instead}"
        )
    if isinstance(sampler, data.DistributedSampler) and sampler.num_replicas != num_ranks():
        raise errors.ConfigError(
            f"the loader has a DistributedSampler for {sampler.num_replicas} ranks, and this process is one of "
            f"{num_ranks()}: call torch.distributed.init_process_group() first, or leave the sampler out: the "
            "selector divides an epoch between the ranks"
        )

"""Scoring: per-sample losses of a meta-batch from a forward pass that leaves the model exactly as it was.

The pass uses train-mode statistics, so that a loss means the same as in the training step that follows it: BatchNorm
normalises with the batch at hand, dropout drops. What such a pass changes along the way is put back, bit for bit.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.training import batches
from es_service.training.losses import check_per_sample
from es_service.training.observed import Signals, joined

__all__ = ["score", "untouched", "unwrap"]


def score(
    model: torch.nn.Module,
    batch: Any,
    forward_losses: Callable[[torch.nn.Module, Any], Signals] | None = None,
    *,
    losses: Callable[[Any, Any], Signals] | None = None,
    inputs: Callable[[Any], Any] | None = None,
    forward: Callable[[torch.nn.Module, Any], Any] | None = None,
    micro_batch_size: int | None = None,
    per_sample: Sequence[str] | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
    """Return the loss of every sample of a batch, without gradient and without a trace in the model.

    Say what the losses are either by `forward_losses`, the same function that `step.train_step` takes, or by `losses`
    and, unless the model takes the batch by keyword, `inputs` or `forward`. They run under the autocast that surrounds
    the call.

    Under DistributedDataParallel the module beneath it is called, so ranks need not score at the same time. With
    `fully_shard` (FSDP2) and SyncBatchNorm ranks communicate within the forward pass: there all ranks must score, in
    equally many passes.

    Args:
        model: bare, or wrapped in DistributedDataParallel or torch.compile. If it is in training mode, modules of it
            that were put in evaluation mode, e.g. a frozen BatchNorm, stay so; if it is in evaluation mode, or all
            layers with parameters in it are, all of it trains meanwhile.
        batch: of B samples, on the model's device; with `micro_batch_size` one that `training.batches` can take apart.
        forward_losses: (model, batch) -> losses[b], one per sample of that batch; or several such tensors by the name
            of the signal, "loss" among them. It must call the model that it is given, which is the one beneath DDP.
        losses: (outputs, batch) -> the same.
        inputs: batch -> what goes into the model, as its only argument.
        forward: (model, batch) -> outputs. With neither this nor `inputs`, a batch that is a mapping goes into the
            model by keyword: `model(**batch)`.
        micro_batch_size: most samples of one forward pass, None takes all at once. BatchNorm's statistics are those of
            the micro-batch.
        per_sample: names of the leaves that have a row per sample, where not all have; see `training.trees`.
        autocast: makes the context of each forward pass; None of them and no surrounding one means full precision.

    Returns:
        float32[B] losses, in the order of the batch, or float32[B] of each signal by its name. They may be NaN or
        infinite: callers check that.

    Raises:
        ShapeError: the losses are not one per sample, or a batch to be cut has no row for each sample.
        ConfigError: micro_batch_size below 1; not one way to get the losses, but none or several.
    """
    if forward_losses is None:
        forward_losses = _in_two(losses, inputs, forward)
    elif (losses, inputs, forward) != (None, None, None):
        raise errors.ConfigError("score takes forward_losses, or losses with inputs or forward, but not both")
    bare = unwrap(model)
    parts: list[Signals] = []
    with torch.no_grad(), untouched(bare):
        if not _trains(bare):
            bare.train()
        for part, length in _parts(batch, micro_batch_size, per_sample):
            with autocast(), _no_autocast_cache():
                signals = forward_losses(bare, part)
            for values in signals.values() if isinstance(signals, Mapping) else (signals,):
                check_per_sample(values, length)
            parts.append(signals)
    if not parts:
        return np.empty(0, dtype=np.float32)
    seen = joined(parts)
    if isinstance(seen, Mapping):
        return {name: values.cpu().numpy() for name, values in seen.items()}
    return seen.cpu().numpy()


def _in_two(
    losses: Callable[[Any, Any], Signals] | None,
    inputs: Callable[[Any], Any] | None,
    forward: Callable[[torch.nn.Module, Any], Any] | None,
) -> Callable[[torch.nn.Module, Any], Signals]:
    """Return (model, batch) -> losses, of a forward pass and what becomes of its outputs."""
    if losses is None or not (inputs is None or forward is None):
        raise errors.ConfigError(
            "score needs either forward_losses ((model, batch) -> losses), or losses ((outputs, batch) -> losses) and "
            "at most one of inputs (batch -> argument) and forward ((model, batch) -> outputs)"
        )

    def run(model: torch.nn.Module, batch: Any) -> Any:
        if forward is not None:
            return forward(model, batch)
        if inputs is not None:
            return model(inputs(batch))
        if isinstance(batch, Mapping):
            return model(**batch)
        raise errors.ConfigError(
            f"score cannot tell what of a batch of type {type(batch).__name__} goes into the model: pass "
            "forward_losses ((model, batch) -> losses), or with losses either inputs (batch -> argument) or forward "
            "((model, batch) -> outputs)"
        )

    return lambda model, batch: losses(run(model, batch), batch)


def _trains(model: torch.nn.Module) -> bool:
    """Whether a model is in training mode, and any of its layers; a module put around one says nothing about it."""
    return model.training and any(module.training for module in model.modules() if module._parameters)


def _parts(
    batch: Any, micro_batch_size: int | None, per_sample: Sequence[str] | None
) -> Iterator[tuple[Any, int | None]]:
    """Yield the micro-batches with their lengths; a batch that need not be cut may be one whose length is unknown."""
    try:
        num = batches.batch_length(batch, per_sample)
    except errors.ShapeError:
        if micro_batch_size is not None:
            raise
        yield batch, None
        return
    sizes = batches.even_sizes(num, micro_batch_size)
    yield from zip(batches.split(batch, sizes, per_sample), sizes, strict=True)


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module beneath DistributedDataParallel and DataParallel, or the model itself."""
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    compiled = getattr(model, "_orig_mod", None)  # torch.compile(DistributedDataParallel(...))
    if isinstance(compiled, wrappers):
        model = compiled
    while isinstance(model, wrappers):
        model = model.module
    return model


@contextlib.contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Put back, at the end and whatever happens, what forward passes change in a model and around it.

    That is: every buffer (its values, and which tensor it is, also where the pass replaced, added or removed it), the
    mode of every module, the states of torch's random generators on the CPU and on the model's devices, and the
    parameters that `fully_shard` gathered: each rank has its shards of them again.

    Parameters and gradients are not kept: use it under `torch.no_grad()`, where a forward pass changes neither.
    """
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    buffers = [buffer for buffer in model.buffers() if not _repeats(buffer)]
    with torch.no_grad():
        kept = [buffer.clone() for buffer in buffers]
    random_states = _random_states(model)
    try:
        yield
    finally:
        for module, training, own in modules:
            module.training = training
            if not _same(module._buffers, own):
                module._buffers.clear()
                module._buffers.update(own)
        if buffers:
            with torch.no_grad():
                torch._foreach_copy_(buffers, kept)
        for set_state, state in random_states:
            set_state(state)
        for sharded in sharded_modules(model):
            sharded.reshard()


def sharded_modules(model: torch.nn.Module) -> list[Any]:
    """Return the modules of a model that `fully_shard` (FSDP2) took."""
    library = sys.modules.get("torch.distributed.fsdp")  # it takes a while to import, and who shards has it
    kind = getattr(library, "FSDPModule", ())
    return [module for module in model.modules() if isinstance(module, kind)]


def _same(now: dict[str, torch.Tensor | None], before: dict[str, torch.Tensor | None]) -> bool:
    """Whether a module still has the very tensors it had as buffers; their values may differ."""
    return len(now) == len(before) and all(now.get(name, now) is buffer for name, buffer in before.items())


def _repeats(buffer: torch.Tensor) -> bool:
    """Whether several entries share one memory cell (an expanded tensor): torch writes into no such buffer."""
    return any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


def _random_states(model: torch.nn.Module) -> list[tuple[Callable[[torch.Tensor], None], torch.Tensor]]:
    """Return (function that sets it, state) of the CPU's generator and of those of the model's other devices."""
    states: list[tuple[Callable[[torch.Tensor], None], torch.Tensor]] = [(torch.set_rng_state, torch.get_rng_state())]
    tensors = itertools.chain(model.parameters(), model.buffers())
    for device in {tensor.device for tensor in tensors} - {torch.device("cpu")}:
        backend: Any = getattr(torch, device.type, None)  # torch.cuda, torch.xpu, …
        if hasattr(backend, "get_rng_state"):
            on_device = () if device.type == "mps" else (device,)
            states.append((_setter(backend, on_device), backend.get_rng_state(*on_device)))
    return states


def _setter(backend: Any, on_device: tuple[torch.device, ...]) -> Callable[[torch.Tensor], None]:
    return lambda state: backend.set_rng_state(state, *on_device)


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Keep autocast from caching weights cast here: older versions of torch hand them to a training step
    under the same autocast, without gradient (github.com/pytorch/pytorch/issues/158232).
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)

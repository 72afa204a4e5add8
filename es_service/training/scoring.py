"""Scoring: per-sample losses of a meta-batch from a forward pass that leaves the model exactly as it was.

The pass uses train-mode statistics, so that a loss means the same as in the training step that follows it: BatchNorm
normalises with the batch at hand, dropout drops. What such a pass changes along the way is put back, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.training import batches

__all__ = ["score", "untouched", "unwrap"]


def score(
    model: torch.nn.Module,
    batch: Any,
    *,
    inputs: Callable[[Any], Any],
    losses: Callable[[Any, Any], torch.Tensor],
    micro_batch_size: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> NDArray[np.float32]:
    """Return the loss of every sample of a batch, without gradient and without a trace in the model.

    Under DistributedDataParallel the module beneath it is called, so ranks need not score at the same time.
    (FullyShardedDataParallel and SyncBatchNorm communicate within their own forward pass: there all ranks must score.)

    Args:
        model: bare, or wrapped in DistributedDataParallel. If it is in training mode, modules of it that were put in
            evaluation mode, a frozen BatchNorm say, stay so; if it is in evaluation mode, all of it trains meanwhile.
        batch: of B samples, on the model's device; anything `training.batches` can take apart.
        inputs: batch -> what goes into the model.
        losses: (outputs, batch) -> losses[b], one per sample of that batch.
        micro_batch_size: most samples of one forward pass, None takes all at once. BatchNorm's statistics are those of
            the micro-batch.
        autocast: makes the context of each forward pass; None of them and no surrounding one means full precision.

    Returns:
        float32[B] losses, in the order of the batch. They may be NaN or infinite: whoever uses them checks that.

    Raises:
        ShapeError: the losses are not one per sample, or the batch has no length.
        ConfigError: micro_batch_size below 1.
    """
    bare = unwrap(model)
    size = batches.batch_length(batch) if micro_batch_size is None else micro_batch_size
    parts = batches.split(batch, max(size, 1) if micro_batch_size is None else size)
    losses_B: list[torch.Tensor] = []
    with torch.no_grad(), untouched(bare), _training(bare):
        for part in parts:
            with autocast(), _no_autocast_cache():
                values = losses(bare(inputs(part)), part)
            _check_losses(values, batches.batch_length(part))
            losses_B.append(values.float())
    if not losses_B:
        return np.empty(0, dtype=np.float32)
    return torch.cat(losses_B).cpu().numpy()  # type: ignore[no-any-return]


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
    mode of every module, and the states of torch's random generators on the CPU and on the model's devices.
    Parameters and gradients are not kept: use it under `torch.no_grad()`, where a forward pass changes neither.
    """
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    buffers = list({id(buffer): buffer for buffer in model.buffers() if not _overlaps(buffer)}.values())
    with torch.no_grad():
        kept = [buffer.clone() for buffer in buffers]
    random_states = _random_states(model)
    try:
        yield
    finally:
        for module, training, own in modules:
            module.training = training
            if module._buffers != own and not _same(module._buffers, own):
                module._buffers.clear()
                module._buffers.update(own)
        if buffers:
            with torch.no_grad():
                torch._foreach_copy_(buffers, kept)
        for set_state, state in random_states:
            set_state(state)

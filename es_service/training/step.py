"""One optimizer step over a mini-batch, in micro-batches where it would not fit at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from es_service import errors
from es_service.training import batches
from es_service.training.observed import Signals, joined, losses_in

__all__ = ["autocast_for", "train_step"]


def autocast_for(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context for training on this device: bfloat16 on a GPU that has it, none on a CPU."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    scale: torch.Tensor,
    forward_losses: Callable[[torch.nn.Module, Any], Signals],
    *,
    micro_batch_size: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Signals:
    """Minimise mean(losses·scale) of a mini-batch by one step: ⌈b/b_micro⌉ forward and backward passes.

    Args:
        model: in training mode; gradients of a DistributedDataParallel model are averaged once, in the last pass.
        optimizer: its gradients are cleared before.
        batch: of b samples.
        scale: float32[b].
        forward_losses: (model, batch) -> losses[b], one per sample; or signals by name, "loss" among them.
        micro_batch_size: most samples of a pass; None takes the whole mini-batch at once.
        autocast: context of the forward passes.

    Returns:
        The losses float32[b], or the signals, without gradient, in the order of the batch.

    Raises:
        ShapeError: the losses are not one per sample.
    """
    num = scale.numel()
    optimizer.zero_grad(set_to_none=True)
    observed = []
    sizes = batches.even_sizes(num, micro_batch_size)
    parts, scales = batches.split(batch, sizes), torch.split(scale, sizes)
    for index, (part, part_scale) in enumerate(zip(parts, scales, strict=True)):
        is_last = index == len(scales) - 1
        with contextlib.nullcontext() if is_last else _without_sync(model):
            with autocast():
                signals = forward_losses(model, part)
            losses = losses_in(signals)
            if losses.shape != part_scale.shape:
                raise errors.ShapeError(
                    f"the loss function returned shape {tuple(losses.shape)} for {part_scale.numel()} samples: "
                    "it must give one loss per sample (reduction='none')"
                )
            (losses.float() * part_scale).sum().div(num).backward()  # type: ignore[no-untyped-call]
        observed.append(signals)
    optimizer.step()
    return joined(observed)


def _without_sync(model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Hold back the gradient exchange of DistributedDataParallel, where the model is one."""
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()

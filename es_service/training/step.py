"""One optimizer step over a mini-batch, in micro-batches where it would not fit at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from es_service import errors
from es_service.training import batches, scoring
from es_service.training.observed import Signals, joined, losses_in

__all__ = ["autocast_for", "rank_factor", "train_step"]


def autocast_for(device: torch.device, dtype: str = "auto") -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context for passes on this device.

    Args:
        device: of the model.
        dtype: "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it, float32 elsewhere.
    """
    if dtype == "bfloat16" or (dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def train_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    scale: torch.Tensor,
    forward_losses: Callable[[torch.nn.Module, Any], Signals],
    *,
    weight: float | None = None,
    micro_batch_size: int | None = None,
    per_sample: Sequence[str] | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Signals:
    """Minimise mean(losses·scale) of a mini-batch by one step: ⌈b/b_micro⌉ forward and backward passes.

    With a model in DistributedDataParallel or `fully_shard` (FSDP2) it is the mean over the mini-batches of all ranks,
    also where they differ in size. All ranks call it.

    Args:
        model: in training mode; gradients of a DistributedDataParallel model are averaged once, in the last pass, those
            of FSDP2 in each, and there all ranks make as many passes as the one with the largest mini-batch.
        optimizer: its gradients are cleared before.
        batch: of b samples.
        scale: float32[b].
        forward_losses: (model, batch) -> losses[b], one per sample; or signals by name, "loss" among them.
        weight: what this rank's mean counts for beside the other ranks'; None for b. See `SelectiveLoader.weight`.
        micro_batch_size: most samples of a pass; None takes the whole mini-batch at once.
        per_sample: names of the leaves that have a row per sample, where not all have; see `training.trees`.
        autocast: context of the forward passes.

    Returns:
        The losses float32[b], or the signals, without gradient, in the order of the batch.

    Raises:
        ShapeError: the losses are not one per sample.
        ConfigError: with FSDP2, a rank has fewer samples than another needs passes; all ranks raise it.
    """
    num = scale.numel()
    factor = rank_factor(model, num if weight is None else weight, scale.device)
    optimizer.zero_grad(set_to_none=True)
    observed = []
    sizes = _sizes(model, num, micro_batch_size, scale.device)
    parts, scales = batches.split(batch, sizes, per_sample), torch.split(scale, sizes)
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
            (losses.float() * part_scale).sum().div(num).mul(factor).backward()  # type: ignore[no-untyped-call]
        observed.append(signals)
    optimizer.step()
    return joined(observed)


def rank_factor(model: torch.nn.Module, weight: float, device: torch.device) -> torch.Tensor | float:
    """Return what to multiply a rank's mean loss by, so that the ranks' average counts each by its weight.

    DistributedDataParallel and `fully_shard` (FSDP2) average the gradients of their ranks, W of them, as if all had as
    many samples. With the factor W·weight/Σweight, of weights that are numbers of samples, it becomes the mean over the
    samples of all ranks. It is 1 where all weights are equal, and for any other model. All ranks call it, once a step.

    Args:
        model: that takes the step.
        weight: this rank's, above 0.
        device: where the factor is wanted, that of the model.
    """
    groups, num_ranks = _averaging(model), 1
    if not groups:
        return 1.0
    total = torch.full((), float(weight), device=device)  # filled there: nothing is copied, nothing waits
    for group in groups:
        torch.distributed.all_reduce(total, group=group)
        num_ranks *= torch.distributed.get_world_size(group)
    return 1.0 if num_ranks == 1 else weight * num_ranks / total


def _averaging(model: torch.nn.Module) -> list[Any]:
    """Return the process groups over which a model's gradients are averaged, one after the other."""
    parallel = _parallel(model)
    if parallel is not None:
        return [parallel.process_group]
    sharded = scoring.sharded_modules(model)
    if sharded and not _meshes(model):  # all is gathered, by an evaluation perhaps: the mesh is one of the shards
        for module in sharded:
            module.reshard()
    return list(_meshes(model)[0].get_all_groups()) if sharded else []


def _meshes(model: torch.nn.Module) -> list[Any]:
    """Return the mesh of each sharded parameter. Ranks of tensor parallelism in it have the same samples each."""
    return [parameter.device_mesh for parameter in model.parameters() if hasattr(parameter, "device_mesh")]


def _sizes(model: torch.nn.Module, num: int, most: int | None, device: torch.device) -> list[int]:
    """Return the sizes of the micro-batches; with FSDP2, whose passes all ranks make together, as many on each."""
    sizes = batches.even_sizes(num, most)
    if most is None or not scoring.sharded_modules(model):
        return sizes
    extremes = torch.tensor([len(sizes), -num], device=device)
    for group in _averaging(model):
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX, group=group)
    passes, fewest = int(extremes[0]), -int(extremes[1])
    if fewest < passes:
        raise errors.ConfigError(
            f"micro_batch_size={most} makes {passes} passes for one rank's mini-batch, while another has only {fewest} "
            "sample(s), and with fully_shard all ranks make the same number of passes: take a larger one"
        )
    return batches.in_pieces(num, passes)


def _without_sync(model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Hold back the gradient exchange of DistributedDataParallel, where the model is one."""
    parallel = _parallel(model)
    return contextlib.nullcontext() if parallel is None else parallel.no_sync()


def _parallel(model: torch.nn.Module) -> torch.nn.parallel.DistributedDataParallel | None:
    """Return the model as DistributedDataParallel, beneath torch.compile too; None where it is none."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, torch.nn.parallel.DistributedDataParallel) else None

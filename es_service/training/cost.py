"""What a backward pass costs in forward passes, measured on the model, the batch and the device that train."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from es_service.training import batches, scoring
from es_service.training.observed import Signals, losses_in

__all__ = ["backward_cost"]

_ALTERNATIONS = 5
_BUDGET_S = 2.0  # past it, no further alternation begins
_LONGEST_PASS_S = 0.25  # a batch that takes longer to score is measured on fewer of its samples
_FEWEST = 2  # what a BatchNorm needs
_LEAST = 0.1  # of a model so small that the measurement shows noise


def backward_cost(
    model: torch.nn.Module,
    batch: Any,
    score: Callable[[Any], Any],
    forward_losses: Callable[[torch.nn.Module, Any], Signals],
    *,
    micro_batch_size: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    clock: Callable[[], float] | None = None,
) -> float:
    """Return c: a forward and a backward pass over a batch take 1 + c times as long as scoring it.

    Both are timed in turns, and the shortest of each counts: by the clock on a GPU, else by the time of the
    processors, which depends little on what else the machine does. It takes a few seconds at most. The model stays
    as it is, bit for bit: weights, buffers, gradients, and the states of random generators.

    Args:
        model: bare, in training mode.
        batch: of B samples, on the model's device. Where they take long, or do not fit into memory with what a
            backward pass needs, fewer of them are measured.
        score: scores a batch, as the training does.
        forward_losses: (model, batch) -> losses, or signals by name.
        micro_batch_size: most samples of a pass with gradient; None takes all at once.
        autocast: context of the forward passes.
        clock: seconds; None for one of these.
    """
    parameters = list(model.parameters())
    if clock is None:
        clock = time.perf_counter if _on_gpu(parameters) else time.process_time
    gradients = [parameter.grad for parameter in parameters]

    def seconds(work: Callable[[Any], Any]) -> float:
        for parameter in parameters:
            parameter.grad = None
        _wait(parameters)
        began = clock()
        work(batch)
        _wait(parameters)
        return clock() - began

    def train(batch: Any) -> None:
        for part in batches.split(batch, batches.even_sizes(batches.batch_length(batch), micro_batch_size)):
            with autocast():
                signals = forward_losses(model, part)
            losses_in(signals).float().mean().backward()  # type: ignore[no-untyped-call]

    try:
        with scoring.untouched(model):
            while True:
                num = batches.batch_length(batch)
                try:
                    first_s = seconds(score)
                    if first_s <= _LONGEST_PASS_S or num <= _FEWEST:
                        seconds(train)  # warms up
                        break
                    num = int(num * _LONGEST_PASS_S / first_s)
                except torch.cuda.OutOfMemoryError:
                    if num <= _FEWEST:
                        raise
                    torch.cuda.empty_cache()
                    num //= 2
                batch = batches.take(batch, range(max(_FEWEST, num)))
            ends, forward_s, both_s = time.monotonic() + _BUDGET_S, math.inf, math.inf
            for _ in range(_ALTERNATIONS):
                forward_s, both_s = min(forward_s, seconds(score)), min(both_s, seconds(train))
                if time.monotonic() > ends:
                    break
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return round(max(_LEAST, both_s / forward_s - 1), 3)


def _wait(parameters: list[torch.nn.Parameter]) -> None:
    """Return once the device of the model has done what was asked for."""
    if _on_gpu(parameters):
        torch.cuda.synchronize()


def _on_gpu(parameters: list[torch.nn.Parameter]) -> bool:
    return any(parameter.is_cuda for parameter in parameters)

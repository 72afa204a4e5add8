"""What passes cost, measured on the model, the batch and the device that train."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from es_service.training import batches, scoring
from es_service.training.observed import Signals, losses_in
from es_service.training.passes import ScoringPasses, arrange, forward_signals
from es_service.training.settings import TrainSettings
from es_service.training.step import autocast_for
from es_service.training.tasks.base import Task

__all__ = ["backward_cost", "measured", "on_task", "pass_seconds"]

T = TypeVar("T")

_ALTERNATIONS = 5
_BUDGET_S = 2.0  # past it, no further alternation begins
_LONGEST_PASS_S = 0.25  # a batch that takes longer to score is measured on fewer of its samples
_SHORTEST_PASS_S = (
    0.01  # of one that takes less, most would be what a pass costs whatever its size: samples are repeated
)
_FEWEST, _MOST = 2, 1 << 16  # samples; what a BatchNorm needs
_MOST_TIMES = 8  # so many more samples in one go
_LEAST = 0.1  # of a model that trains next to nothing, e.g. a head alone


def backward_cost(*passes: Any, **settings: Any) -> float:
    """Return c: a forward and a backward pass over a batch take 1 + c times as long as scoring it; see
    `pass_seconds`.
    """
    forward_s, both_s = pass_seconds(*passes, **settings)
    return round(max(_LEAST, both_s / forward_s - 1), 3)


def pass_seconds(
    model: torch.nn.Module,
    batch: Any,
    score: Callable[[Any], Any],
    forward_losses: Callable[[torch.nn.Module, Any], Signals],
    *,
    micro_batch_size: int | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    clock: Callable[[], float] | None = None,
) -> tuple[float, float]:
    """Return the seconds a sample of scoring a batch, and of a forward and a backward pass over it.

    Both are timed in turns, and the shortest of each counts: by the clock on a GPU, else by the time of the
    processors, which depends little on what else the machine does. It takes a few seconds at most. The model stays
    as it is, bit for bit: weights, buffers, gradients, and the states of random generators.

    Args:
        model: bare, in training mode.
        batch: of B samples, on the model's device. Where they take long, or do not fit into memory with what a
            backward pass needs, fewer of them are measured. Where they take less than 10 ms they are repeated, up to
            65,536 samples: else the time would be that of calls, not of arithmetic.
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
    whole, num_passes = batches.batch_length(batch), 1

    def seconds(work: Callable[[Any], Any]) -> float:
        for parameter in parameters:
            parameter.grad = None
        _wait(parameters)
        began = clock()
        work(batch)
        _wait(parameters)
        return clock() - began

    def train(batch: Any) -> None:
        for part in batches.split(batch, batches.in_pieces(batches.batch_length(batch), num_passes)):
            with autocast():
                signals = forward_losses(model, part)
            losses_in(signals).float().mean().backward()  # type: ignore[no-untyped-call]

    most = _MOST
    try:
        with scoring.untouched(model):
            while True:
                num = batches.batch_length(batch)
                num_passes = len(batches.even_sizes(min(num, whole), micro_batch_size))
                try:
                    if (first_s := seconds(score)) > _LONGEST_PASS_S and num > _FEWEST:
                        wanted = most = max(_FEWEST, int(num * _LONGEST_PASS_S / first_s))
                    else:
                        seconds(train)  # warms up
                        first_s = seconds(score)
                        times = min(_MOST_TIMES, math.ceil(_SHORTEST_PASS_S / max(first_s, 1e-9)), most // num)
                        if times <= 1:
                            break
                        wanted = times * num
                except torch.cuda.OutOfMemoryError:
                    if num <= _FEWEST:
                        raise
                    torch.cuda.empty_cache()
                    wanted = most = max(_FEWEST, num // 2)
                batch = batches.take(batch, np.arange(wanted) % num)
            ends, forward_s, both_s = time.monotonic() + _BUDGET_S, math.inf, math.inf
            for _ in range(_ALTERNATIONS):
                forward_s, both_s = min(forward_s, seconds(score)), min(both_s, seconds(train))
                if time.monotonic() > ends:
                    break
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return forward_s / num, both_s / num


def measured(measure: Callable[..., T], task: Task, settings: TrainSettings, batch_size: int) -> T:
    """Return what `backward_cost` or `pass_seconds` finds for a task's new model, as a training with these settings
    does where it begins.
    """
    torch.manual_seed(settings.seed)
    model = task.build_model()
    arrange(model, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    score = ScoringPasses(model.to(device), forward_signals(task), settings, device)
    found = on_task(measure, task, model, score, settings, batch_size)
    torch.cuda.empty_cache()  # for the runs that follow, in processes of their own
    return found


def on_task(
    measure: Callable[..., T],
    task: Task,
    model: torch.nn.Module,
    score: ScoringPasses,
    settings: TrainSettings,
    batch_size: int,
) -> T:
    """Return what `backward_cost` or `pass_seconds` finds for a bare model on samples from all over the train set."""
    num = len(task.train_set)
    ids = np.linspace(0, num - 1, min(num, batch_size)).astype(np.int64).tolist()
    return measure(
        model,
        batches.to_device(task.train_set.__getitems__(ids), score.device),
        score,
        score.forward_losses,
        micro_batch_size=settings.micro_batch_size,
        autocast=lambda: autocast_for(score.device),
    )


def _wait(parameters: list[torch.nn.Parameter]) -> None:
    """Return once the device of the model has done what was asked for."""
    if _on_gpu(parameters):
        torch.cuda.synchronize()


def _on_gpu(parameters: list[torch.nn.Parameter]) -> bool:
    return any(parameter.is_cuda for parameter in parameters)

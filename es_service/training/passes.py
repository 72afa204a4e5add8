"""The passes of a training's steps: the model arranged as its settings say, and the passes that score."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from es_service import errors
from es_service.selection.config import Selection
from es_service.training import batches, scoring
from es_service.training.observed import Signals
from es_service.training.settings import TrainSettings
from es_service.training.step import autocast_for
from es_service.training.tasks.base import Task

__all__ = ["ScoringPasses", "arrange", "compile_errors", "forward_signals"]

_CHECKPOINTING = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # newer transformers, all others
_log = logging.getLogger(__name__)


def arrange(model: torch.nn.Module, settings: TrainSettings) -> None:
    """Change a new model in place: gradient checkpointing, memory format, compilation.

    Raises:
        ConfigError: gradient checkpointing is asked for, and the model does not offer it.
    """
    if settings.gradient_checkpointing:
        _enable_checkpointing(model)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        _compile(model)


def _enable_checkpointing(model: torch.nn.Module) -> None:
    offered = _offered(model)
    if not offered:
        raise errors.ConfigError(
            f"--gradient-checkpointing needs a model with the method {_CHECKPOINTING[1]}(), as transformers has it; "
            f"{type(model).__name__} has none: leave the flag out, or add the method to it"
        )
    for enable in offered:
        names = [name for name in inspect.signature(enable).parameters if name.endswith("checkpointing_kwargs")]
        try:
            enable(**{name: {"use_reentrant": False} for name in names})
        except ValueError as error:  # transformers, where an architecture does not support it
            raise errors.ConfigError(f"--gradient-checkpointing: {error}") from error


def _offered(module: torch.nn.Module) -> list[Callable[..., Any]]:
    """Return the methods that enable gradient checkpointing: the module's own, or those of modules in it."""
    for name in _CHECKPOINTING:
        if callable(found := getattr(module, name, None)):
            return [found]
    return [found for child in module.children() for found in _offered(child)]


def _compile(model: torch.nn.Module) -> None:
    """Compile a model in place, so that its state_dict stays the same.

    By a function around it: torch.compile leaves torch's own modules out, of which an nn.Sequential is one.
    """
    forward = model.forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    model.forward = torch.compile(run)


def forward_signals(task: Task, selection: Selection | None = None) -> Callable[[torch.nn.Module, Any], Signals]:
    """Return (model, batch) -> what a selection goes by: the losses, and where it asks for more, signals by name."""
    signals = () if selection is None else selection.signals
    further = [one for one in signals if one not in ("loss", "irreducible_loss")]

    def forward(model: torch.nn.Module, batch: Any) -> Signals:
        outputs = model(task.inputs(batch))
        losses = task.losses(outputs, batch)
        if not further:
            return losses
        with torch.no_grad():
            given = task.signals(outputs, batch)
        return {"loss": losses, **{name: given[name] for name in further}}

    return forward


@contextlib.contextmanager
def compile_errors(settings: TrainSettings) -> Iterator[None]:
    """Raise ConfigError where torch.compile was asked for and fails, as it does in the first passes."""
    if not settings.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)
        raise errors.ConfigError(
            f"--compile: torch.compile cannot compile the model ({reason}): see that there is a C++ compiler, on a GPU "
            "Triton too, or leave --compile out"
        ) from error


class ScoringPasses:
    """Scores batches: batch -> losses[B], or signals by name, each in as few passes as memory allows.

    A pass for which the device has too little memory is made again in halves, and so are those after it.

    Args:
        model: as `workers.prepare` returned it.
        forward_losses: see `scoring.score`.
        settings: of the training.
        device: where the model is.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        forward_losses: Callable[[torch.nn.Module, Any], Signals],
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        self._model, self.forward_losses, self.device = model, forward_losses, device
        self._dtype = settings.scoring_dtype
        self.batch_size = settings.scoring_batch_size
        """Most samples of a pass; None for no limit."""

    def __call__(self, batch: Any) -> Any:
        """Return numpy's float32[B], or such arrays by the names of signals; see `scoring.score`."""
        before = self.batch_size
        while (found := self._tried(batch)) is None:
            pass
        if self.batch_size != before:
            _log.warning(
                "scoring ran out of memory: from now on at most %d samples in a pass; --scoring-batch-size sets the "
                "number it starts with",
                self.batch_size,
            )
        return found

    def _tried(self, batch: Any) -> Any:
        """Return what `scoring.score` does; None where memory ran out, having halved the size of the passes."""
        try:
            return scoring.score(
                self._model,
                batch,
                self.forward_losses,
                micro_batch_size=self.batch_size,
                autocast=lambda: autocast_for(self.device, self._dtype),
            )
        except torch.cuda.OutOfMemoryError:
            size = max(batches.even_sizes(batches.batch_length(batch), self.batch_size))
            if size == 1:
                raise
            self.batch_size = math.ceil(size / 2)
        return None

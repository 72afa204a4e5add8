"""LoRA adapters by peft, and the names of the layers that can have them."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from es_service import errors
from es_service.training.tasks.folders import imported

__all__ = ["add_adapters", "targets_of"]

_ALPHA = 2  # times the rank
_DROPOUT = 0.0


def targets_of(model: torch.nn.Module, asked: str | None) -> list[str]:
    """Return the names of the layers that get adapters: those asked for, or all linear layers but the head.

    Args:
        model: may be without memory.
        asked: names, separated by commas: the last part of a layer's path, or more of it.

    Raises:
        ConfigError: the model has no such linear layer.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    paths = [path for path, module in model.named_modules() if _is_linear(module) and module is not head]
    known = sorted({path.rpartition(".")[2] for path in paths})
    if asked is None:
        return known
    targets = [name.strip() for name in asked.split(",") if name.strip()]
    if not targets:
        raise errors.ConfigError(f"--lora-targets {asked!r} names no module; linear layers are {', '.join(known)}")
    paths += [path for path, module in model.named_modules() if module is head]
    for target in targets:
        if not any(path == target or path.endswith(f".{target}") for path in paths):
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise errors.ConfigError(
                f"--lora-targets {target}: the model has no such linear layer; {hint}there are {', '.join(known)}"
            )
    return targets


def add_adapters(model: torch.nn.Module, rank: int, targets: list[str]) -> torch.nn.Module:
    """Put LoRA adapters into a model and freeze all else; their weights come from torch's global generator.

    An adapter adds 2·B·A x to its layer's output, with A random and B zero at first: the model starts as it was.

    Raises:
        ConfigError: peft is not installed, or cannot do it.
    """
    peft: Any = imported("peft", "--lora")
    settings = peft.LoraConfig(
        r=rank, lora_alpha=_ALPHA * rank, lora_dropout=_DROPOUT, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        adapted: torch.nn.Module = peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise errors.ConfigError(f"--lora: peft cannot adapt this model: {error}") from error
    return adapted


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"  # the latter in GPT-2

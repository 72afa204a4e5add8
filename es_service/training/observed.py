"""The result of a forward pass: a batch's losses, or several signals of each sample by name, "loss" among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from es_service import errors

__all__ = ["Signals", "joined", "losses_in"]

Signals: TypeAlias = torch.Tensor | Mapping[str, torch.Tensor]


def losses_in(signals: Signals) -> torch.Tensor:
    """Return the losses, differentiable if they were; ShapeError if there are none among the signals."""
    if not isinstance(signals, Mapping):
        return signals
    if "loss" not in signals:
        raise errors.ShapeError(f"there are the signals {', '.join(map(repr, signals))}, and no 'loss'")
    return signals["loss"]


def joined(parts: Sequence[Signals]) -> Signals:
    """Return the signals of consecutive parts of a batch as those of the batch: float32 each, without gradient."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: torch.cat([part[name].detach().float() for part in parts]) for name in first}  # type: ignore[index]
    return torch.cat([losses_in(part).detach().float() for part in parts])

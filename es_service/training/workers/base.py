"""What the training loop needs of its workers; `local` and `ray` provide it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["Workers"]


class Workers(Protocol):
    """The group of workers, seen from one of them."""

    rank: int
    world_size: int
    device: torch.device

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Move the model to this worker's device, wrapped for data-parallel training where there are several."""
        ...

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Give every rank the buffers of rank 0, e.g. BatchNorm's running statistics: those a checkpoint holds."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's plain value, in the order of ranks; all ranks call it."""
        ...

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Report an epoch's metrics and store a checkpoint, which rank 0 writes with `save`; all ranks call it."""
        ...

    def raise_if_stopped(self) -> None:
        """Raise StoppedError where this run was asked to stop; rank 0 calls it about twice a second."""
        ...

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """Open the folder of the last checkpoint, None without one."""
        ...

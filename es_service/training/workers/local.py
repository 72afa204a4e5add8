"""One worker in this process, without Ray."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from es_service import errors

__all__ = ["LocalWorkers"]


class LocalWorkers:
    """A group of one; see `Workers`.

    Args:
        folder: for checkpoints; the newest one is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.rank = 0
        self.world_size = 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._folder = folder

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """See `Workers.prepare`."""
        return model.to(self.device)

    def share_buffers(self, model: torch.nn.Module) -> None:
        """See `Workers.share_buffers`."""

    def gather(self, value: Any) -> list[Any]:
        """See `Workers.gather`."""
        return [value]

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """See `Workers.report`; the checkpoint is written beside and renamed into place."""
        place, beside = self._folder / f"epoch-{metrics['epoch']:05d}", self._folder / "partial"
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            save(beside)
            shutil.rmtree(place, ignore_errors=True)
            beside.rename(place)
            for old in self._checkpoints()[:-1]:
                shutil.rmtree(old)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a disk is full
            shutil.rmtree(beside, ignore_errors=True)  # what is there of it may be what fills the disk
            raise errors.StorageError(
                f"cannot write the checkpoint {place}: {error}; check the free space and the permissions there, and "
                "continue with --resume"
            ) from error

    def raise_if_stopped(self) -> None:
        """See `Workers.raise_if_stopped`; watchers of a run in this process can raise there."""

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """See `Workers.checkpoint`."""
        found = self._checkpoints()
        yield found[-1] if found else None

    def _checkpoints(self) -> list[Path]:
        return sorted(self._folder.glob("epoch-*"))

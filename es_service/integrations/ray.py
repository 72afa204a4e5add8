"""Ray Train, a training function of your own: the selector's part of a checkpoint.

    epoch = resume_or_reset(selector, train.get_checkpoint())       # on every rank, before the first epoch
    ...
    save(selector, folder)                                          # on every rank, between two epochs
    train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None)

Ranks wait for each other in both, however long that takes: one may evaluate, or fetch a checkpoint, for longer than
the selector's `deadline_s`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.collective import barrier

from es_service import errors
from es_service.selector import Selector
from es_service.training.checkpoints import read_checkpoint, write_checkpoint

__all__ = ["resume_or_reset", "save"]

_FOLDER = "es_service"  # of the selector, in that of a checkpoint


def resume_or_reset(selector: Selector, checkpoint: train.Checkpoint | None) -> int:
    """Continue from a checkpoint, or forget what an earlier start of the run observed; return the epoch to begin with.

    Model and optimizer are yours to load. Every rank calls it; the number of ranks may be another than it was.

    Args:
        selector: of `es.connect`, or with one worker an `es.Selector`.
        checkpoint: what `train.get_checkpoint()` returned; None where there is none.

    Returns:
        The epoch, num_epochs where all are made.

    Raises:
        ConfigError: this is no training function of Ray Train; or the state was saved inside an epoch, by one worker,
            and there are several now.
        RunMismatchError: the checkpoint is of a run with another config.
        StorageError: it has no state of a selector, or a damaged one.
    """
    _rank()
    if checkpoint is None:
        selector.reset()
        epoch = 0
    else:
        epoch = selector.load_state_dict(_state_in(checkpoint))
    barrier()  # before it, no rank may be waited for in an epoch
    return epoch


def save(selector: Selector, folder: str | os.PathLike[str]) -> None:
    """Write the state of a selector into the folder of a checkpoint: rank 0 does, once all ranks have closed the epoch.

    Every rank calls it, between two epochs; one worker with an `es.Selector` may inside an epoch, too.

    Args:
        selector: of the run.
        folder: local; the state becomes a folder `es_service` in it.

    Raises:
        ConfigError: this is no training function of Ray Train.
        EpochOrderError: over several ranks, inside an epoch; of a stream before `selector.finish_epoch()`.
        StorageError: the folder cannot be written.
    """
    rank = _rank()
    barrier()  # behind it, all ranks have closed the epoch
    if rank != 0:
        return
    state, place = selector.state_dict(), Path(folder) / _FOLDER
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_checkpoint(place, state, {})
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where a disk is full
        raise errors.StorageError(
            f"cannot write the selector's state to {place}: {error}; check the free space and the permissions there"
        ) from error


def _rank() -> int:
    try:
        rank: int = train.get_context().get_world_rank()
        return rank
    except (RuntimeError, DeprecationWarning) as error:
        raise errors.ConfigError(
            f"this is for training functions of Ray Train, which its workers run ({error}); elsewhere call "
            "selector.state_dict() and selector.load_state_dict(state)"
        ) from error


def _state_in(checkpoint: Any) -> dict[str, Any]:
    """Return the selector's state in a checkpoint."""
    if not isinstance(checkpoint, train.Checkpoint):
        raise errors.ConfigError(
            f"checkpoint must be what train.get_checkpoint() returns, or None, got {type(checkpoint).__name__}"
        )
    with checkpoint.as_directory() as folder:
        place = Path(folder) / _FOLDER
        if not place.is_dir():
            raise errors.StorageError(
                f"{checkpoint} has no state of a selector: call es.integrations.ray.save(selector, folder), on every "
                "rank, before the folder is reported"
            )
        return read_checkpoint(place, (), torch.device("cpu"))[0]

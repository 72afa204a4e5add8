"""Rank and world size of this process, from the caller, Ray Train, torch.distributed, or a launcher.

Nothing is imported to find out: a library that has not been imported yet cannot have started a group.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Callable
from typing import NamedTuple

from es_service import errors
from es_service.exchange.base import Position
from es_service.selection.settings import as_integer

__all__ = ["Whereabouts", "check_alone", "given", "has_ray", "num_ranks", "whereabouts"]


class Whereabouts(NamedTuple):
    """Position of a process in its group.

    Attributes:
        position: its rank, of how many.
        generation: 32 hexadecimal digits that this life of the group shares.
        in_group: whether the ranks are processes of a group that Ray Train or torch.distributed knows.
    """

    position: Position
    generation: str
    in_group: bool


def given(rank: int | None, world_size: int | None) -> Position | None:
    """Return the position that the caller gave, None where it gave none; ConfigError for half of one."""
    if (rank is None) != (world_size is None):
        raise errors.ConfigError(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None or world_size is None:
        return None
    num = as_integer("world_size", world_size, least=1)
    return Position(as_integer("rank", rank, least=0, end=num), num)


def whereabouts(claimed: Position | None, generation: str | None) -> Whereabouts:
    """Return this process's position; where a group has to agree on its generation, all its ranks call it.

    Args:
        claimed: what the caller gave.
        generation: likewise, any text that this life of the group shares.

    Raises:
        ConfigError: ranks were given without a generation; or a launcher started several processes, and the
            rank of this one is not known yet.
    """
    position, share = claimed, None
    found = _group() if position is None else None
    if found is not None:
        position, share = found
    elif position is None:
        _check_launched(launched := _launched(), generation)
        position = launched or Position(0, 1)
    if generation is None and share is None and position.world_size > 1:
        raise errors.ConfigError(
            f"rank={position.rank} of world_size={position.world_size} was given by hand: give generation= too, any "
            "text that all ranks of one start share and a restarted group does not (a start time, a job id)"
        )
    if generation is None:
        generation = uuid.uuid4().hex if share is None else share(uuid.uuid4().hex)
    return Whereabouts(position, hashlib.sha256(generation.encode()).hexdigest()[:32], share is not None)


def check_alone() -> None:
    """Raise ConfigError where this process belongs to a group of several ranks."""
    found = _group()
    if found is not None and found[0].world_size > 1:
        raise errors.ConfigError(
            f"this process is rank {found[0].rank} of {found[0].world_size}, and an es.Selector of its own would train "
            "every rank on the same samples: take es.connect(run, selection, ...), with which ranks share a table and "
            "each gets its part of an epoch; or give world_size=1 where all ranks are to train on the same samples, or "
            "one of them selects for all"
        )


def num_ranks() -> int:
    """Return how many ranks the group of this process has, by Ray Train or torch.distributed; 1 without one."""
    found = _group()
    return 1 if found is None else found[0].world_size


def has_ray() -> bool:
    """Return whether this process is connected to a Ray, or the environment names one."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return True
    return bool(os.environ.get("RAY_ADDRESS"))


def _group() -> tuple[Position, Callable[[str], str]] | None:
    """Return this process's place in its group, and how to give all of it the text of rank 0; None without a group."""
    if "ray.train" in sys.modules:
        from ray import train
        from ray.train import collective

        try:
            context = train.get_context()
        except (RuntimeError, DeprecationWarning):  # Ray's answers outside a training function, and inside a trial
            pass
        else:
            place = Position(context.get_world_rank(), context.get_world_size())
            return place, lambda text: str(collective.broadcast_from_rank_zero(text))
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return Position(distributed.get_rank(), distributed.get_world_size()), _broadcast
    return None


def _broadcast(text: str) -> str:
    from torch import distributed

    shared = [text]
    distributed.broadcast_object_list(shared)
    return shared[0]


def _launched() -> Position | None:
    """Return what torchrun, or another launcher, sets in the environment where it started several processes."""
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return Position(rank, world_size) if 0 <= rank < world_size > 1 else None


def _check_launched(launched: Position | None, generation: str | None) -> None:
    if launched is not None and generation is None:
        raise errors.ConfigError(
            f"this process was started as rank {launched.rank} of {launched.world_size} (RANK and WORLD_SIZE in the "
            "environment say so, torchrun sets them), but torch.distributed is not initialised: call "
            "torch.distributed.init_process_group() before es.connect; or give generation=, any text that all ranks of "
            "one start share and a restarted group does not; a process that is alone says rank=0, world_size=1"
        )

"""Peers: an all-gather of messages of any size among the ranks, with a deadline and with this package's errors.

    row of an all-gather    size uint64 | message | zeros up to the capacity, which all ranks share

The capacity grows to what the longest message needs: ranks see each other's sizes, so all of them ask again, and from
then on one all-gather does. Bytes travel as bytes: no id passes through a float.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from es_service import errors
from es_service.exchange.base import Position

__all__ = ["Peers", "pack", "unpack"]

_T = TypeVar("_T")
_SIZE = struct.Struct("<Q")
_CAPACITY = 4096  # bytes of the first all-gather, the same on every rank


def pack(message: bytes, capacity: int) -> NDArray[np.uint8]:
    """Return a message as uint8[capacity]: its size, as much of it as fits, zeros."""
    row = np.zeros(capacity, dtype=np.uint8)
    data = np.frombuffer(_SIZE.pack(len(message)) + message, dtype=np.uint8)[:capacity]
    row[: data.size] = data
    return row


def unpack(row: NDArray[np.uint8]) -> tuple[bytes, int]:
    """Return what `pack` made a row of: the message, or as much as fitted, and the capacity it needs."""
    size = int(_SIZE.unpack(row[: _SIZE.size].tobytes())[0])
    return row[_SIZE.size : _SIZE.size + size].tobytes(), _SIZE.size + size


class Peers:
    """The ranks of this process's torch.distributed, in a separate process group.

    The group is of gloo wherever torch has it, beside nccl for training too: what is exchanged lies in host memory at
    both ends, and gloo raises where a rank is missing, while nccl ends the process.

    Args:
        deadline_s: seconds that any wait for the other ranks may take.

    Raises:
        ConfigError: torch.distributed is not initialised.
        ServerUnavailableError: not every rank came in time.
    """

    def __init__(self, deadline_s: float) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            raise errors.ConfigError(
                "exchange 'collective' goes over torch.distributed, which is not initialised here: call "
                "torch.distributed.init_process_group first, or train with Ray Train's TorchTrainer, which does"
            )
        self.position = Position(distributed.get_rank(), distributed.get_world_size())
        self._deadline_s = deadline_s
        self._capacity = _CAPACITY
        self._failure: errors.ServerUnavailableError | None = None
        backend = "gloo" if distributed.is_gloo_available() else distributed.get_backend()
        self._device = torch.device("cuda" if backend == "nccl" else "cpu")
        timeout = datetime.timedelta(seconds=deadline_s)
        self._group = self._in_time(lambda: distributed.new_group(backend=backend, timeout=timeout), "to connect")

    def gather(self, message: bytes, doing: str) -> list[bytes]:
        """Return every rank's message, in the order of ranks; all ranks call it.

        Args:
            message: of any size, which may differ from rank to rank.
            doing: what for, for the error: "waited for the other ranks <doing>".

        Raises:
            ServerUnavailableError: a rank did not come in time, or is gone; no later call can succeed.
        """
        while True:
            rows = self._in_time(lambda: self._all_gather(pack(message, self._capacity)), doing)
            messages, needed = zip(*map(unpack, rows), strict=True)
            if max(needed) <= self._capacity:
                return list(messages)
            self._capacity = max(needed)  # all ranks see the same sizes, so all of them ask again

    def _all_gather(self, row: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        mine = torch.from_numpy(row).to(self._device)
        theirs = [torch.empty_like(mine) for _ in range(self.position.world_size)]
        distributed.all_gather(theirs, mine, group=self._group)
        return [one.cpu().numpy() for one in theirs]

    def _in_time(self, call: Callable[[], _T], doing: str) -> _T:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        try:
            return call()
        except RuntimeError as error:  # all that torch.distributed raises where ranks are late or gone
            self._failure = errors.ServerUnavailableError(
                f"rank {self.position.rank} of {self.position.world_size} waited for the other ranks {doing}, at most "
                f"{self._deadline_s:g} s: one of them is late, left its loop early, or died; start all ranks again "
                f"from the last checkpoint, or give deadline_s= more ({str(error).splitlines()[0]})"
            )
            raise self._failure from error

    def close(self) -> None:
        """Leave the group."""
        if distributed.is_initialized() and self._group is not None:
            distributed.destroy_process_group(self._group)
        self._group = None
        self._failure = self._failure or errors.ServerUnavailableError(
            "this exchange was closed: connect again to continue"
        )

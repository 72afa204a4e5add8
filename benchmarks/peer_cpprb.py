"""cpprb's prioritized replay buffer, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer
from numpy.typing import NDArray

from benchmarks.peer_work import Step, do_work

ALPHA, BETA = 1.0, 0.4  # drawn by the priority itself


@contextmanager
def in_process(rows: int, batch_size: int, num: int) -> Iterator[Step]:
    """The buffer as it is."""
    buffer = PrioritizedReplayBuffer(rows, {"id": {"dtype": np.int64}}, alpha=ALPHA)
    buffer.add(id=np.arange(rows), priorities=np.ones(rows))

    def step(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
        buffer.update_priorities(ids, values)
        return buffer.sample(num, BETA)["id"].ravel()

    yield step


if __name__ == "__main__":
    do_work({"cpprb": in_process}, {"cpprb": version("cpprb")})

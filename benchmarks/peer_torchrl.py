"""TorchRL's prioritized replay buffer, in this process and hosted by a Ray actor.

Its compiled part fits the one version of torch that it was built with, and names a function that others lack. Buffers
never call that one, so names are looked up where they are called (RTLD_LAZY), and other versions of torch do too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer_work import Step, do_work


def look_up_late() -> None:
    """Let the compiled modules that are imported from now on find their names when they use them."""
    sys.setdlopenflags(os.RTLD_LAZY)


look_up_late()

import ray  # noqa: E402
import torch  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from torchrl.data import (  # noqa: E402
    LazyTensorStorage,
    PrioritizedReplayBuffer,
    RayReplayBuffer,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers.samplers import PrioritizedSampler  # noqa: E402

ALPHA, BETA = 1.0, 0.4  # drawn by the priority itself


def _rows(num: int) -> TensorDict:
    return TensorDict({"id": torch.arange(num)}, batch_size=[num])


@contextmanager
def in_process(rows: int, batch_size: int, num: int) -> Iterator[Step]:
    """The buffer as it is."""
    buffer = PrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=LazyTensorStorage(rows), batch_size=num)
    buffer.extend(_rows(rows))

    def step(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
        buffer.update_priority(torch.from_numpy(ids), torch.from_numpy(values))
        return buffer.sample()["id"].numpy()

    yield step


@contextmanager
def over_ray(rows: int, batch_size: int, num: int, transport: str = "ray") -> Iterator[Step]:
    """The buffer inside an actor: a call that updates and a call that samples."""
    if not ray.is_initialized():
        environment = {"worker_process_setup_hook": look_up_late}
        ray.init("local", include_dashboard=False, log_to_driver=False, runtime_env=environment)
    kind: Any = RayReplayBuffer  # whose own type hints know one transport
    buffer = kind(
        replay_buffer_cls=TensorDictReplayBuffer,
        storage=partial(LazyTensorStorage, rows),
        sampler=partial(PrioritizedSampler, max_capacity=rows, alpha=ALPHA, beta=BETA),
        batch_size=num,
        remote_config={"num_cpus": 0},
        transport=transport,
    )
    try:
        buffer.extend(_rows(rows))

        def call(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
            buffer.update_priority(torch.from_numpy(ids), torch.from_numpy(values))
            return buffer.sample()["id"].numpy()

        def message(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
            reported = {"index": torch.from_numpy(ids), "td_error": torch.from_numpy(values)}
            buffer.update_tensordict_priority(TensorDict(reported, batch_size=[batch_size]))
            return buffer.sample()["id"].numpy()

        yield call if transport == "ray" else message
    finally:
        buffer.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    do_work(
        {
            "torchrl": in_process,
            "torchrl over Ray": over_ray,
            "torchrl over Ray, its own transport": partial(over_ray, transport="distributed"),
        },
        {"torchrl": version("torchrl"), "torch": torch.__version__},
    )

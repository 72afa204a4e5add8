"""TransferQueue: B rows go into a partition, and a sampler of ours at its controller picks b of them by weight.

It is a queue between jobs: rows are consumed, nobody keeps a score of a sample over the steps, and its samplers see no
values, so the weights travel beside the request. Rows of a step that is over are cleared outside the time taken.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

os.environ.setdefault("TQ_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # with more it warns at every call

import numpy as np
import ray
import torch
import transfer_queue
from numpy.typing import NDArray
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue.sampler import BaseSampler

from benchmarks.peer_work import Step, do_work

FIELDS = ["id", "value"]


class WeightedSampler(BaseSampler):
    """Takes the first arrivals of an exponential race."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = np.random.default_rng(0)

    def sample(
        self, ready_indexes: list[int], batch_size: int, *args: Any, weights: Any = None, **kwargs: Any
    ) -> tuple[list[int], list[int]]:
        """Return b of the indexes, drawn by weight, and all of them as consumed."""
        arrivals = -np.log(self._rng.random(len(ready_indexes))) / weights
        taken = np.argpartition(arrivals, batch_size)[:batch_size]
        return [ready_indexes[place] for place in taken.tolist()], ready_indexes


@contextmanager
def queued(rows: int, batch_size: int, num: int) -> Iterator[Step]:
    """A controller and one storage unit, each a Ray actor spoken to by sockets."""
    if not ray.is_initialized():
        ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False, num_cpus=8)
    settings = {"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}
    config = OmegaConf.create(settings, flags={"allow_objects": True})
    config.controller = {"sampler": WeightedSampler()}
    transfer_queue.init(config)
    client = transfer_queue.get_client()
    steps = itertools.count()
    cleared: list[str] = []

    def step(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
        partition = f"step-{next(steps)}"
        data = {"id": torch.from_numpy(ids), "value": torch.from_numpy(values)}
        client.put(TensorDict(data, batch_size=[batch_size]), partition_id=partition)
        meta = client.get_meta(FIELDS, num, partition, task_name="train", sampling_config={"weights": values})
        cleared.append(partition)
        return client.get_data(meta)["id"].numpy()

    def tidy() -> None:
        while cleared:
            client.clear_partition(cleared.pop())

    step.tidy = tidy  # type: ignore[attr-defined]
    try:
        yield step
    finally:
        transfer_queue.close()


if __name__ == "__main__":
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    do_work({"TransferQueue": queued}, {"TransferQueue": version("TransferQueue")})

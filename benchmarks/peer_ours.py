"""es_service among its peers: a table in this process, and one behind a Ray actor with the exchange `sync`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import es_service as es
from benchmarks.peer_work import Step, do_work

SELECTION = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=0)


def _step(selector: es.Selector) -> Step:
    ids_of_step: list[NDArray[np.int64]] = []

    def batches() -> Iterator[NDArray[np.int64]]:
        while True:
            yield ids_of_step.pop()

    stream = selector.stream(0, batches(), ids=lambda ids: ids)

    def step(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
        ids_of_step.append(ids)
        next(stream)
        return selector.select(ids, values).ids

    return step


@contextmanager
def in_process(rows: int, batch_size: int, num: int) -> Iterator[Step]:
    """A Selector that holds the table itself."""
    yield _step(es.Selector(SELECTION, num_samples=rows, num_epochs=1, batch_size=batch_size))


@contextmanager
def over_ray(rows: int, batch_size: int, num: int) -> Iterator[Step]:
    """One whose table a Ray actor holds; every step waits for it."""
    import ray

    from es_service.actors import launch

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    run = f"bench-peers-{rows}-{batch_size}"
    shape = {"num_samples": rows, "num_epochs": 1, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as storage:
        selector = es.connect(run, SELECTION, **shape, exchange="sync", storage=storage)
        yield _step(selector)
        selector.close()
        launch.stop(run)


if __name__ == "__main__":
    do_work({"es_service": in_process, "es_service over Ray": over_ray}, {"es_service": es.__version__})

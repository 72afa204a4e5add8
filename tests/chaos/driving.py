"""Training runs that depend only on their seed, so that a disturbed one can be compared with an undisturbed one."""

from __future__ import annotations

import dataclasses
import os
import signal
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import es_service as es
from es_service.actors import launch
from es_service.actors.calls import call_patiently
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.storage.table_files import encode_table

SHAPE = {"num_samples": 600, "num_epochs": 4, "batch_size": 32}
Hook = Callable[[int, int], None]


def nothing(epoch: int, step: int) -> None:
    """Disturb nothing."""


@dataclasses.dataclass
class Outcome:
    """What a training drew, step by step, and the table it left.

    Attributes:
        drawn: (epoch, step, rank, ids) of each draw.
        table: as an Arrow IPC file.
    """

    drawn: list[tuple[int, int, int, list[int]]]
    table: bytes


def selection_of(kind: str, seed: int) -> es.Selection:
    """One of a few selections that together use all there is to restore: plans, pruning, hidden samples, scales."""
    if kind == "eswp":
        return es.Selection(es.methods.evolved(), ratio=0.4, prune_ratio=0.3, anneal=(0.25, 0), max_age=2, seed=seed)
    if kind == "infobatch":
        return es.Selection(es.methods.infobatch(), anneal=(0, 0.25), seed=seed)
    return es.Selection(es.methods.evolved(), ratio=0.4, anneal=(0, 0), seed=seed)


def losses_of(seed: int, epoch: int, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Losses that depend on the sample and the epoch alone."""
    return np.random.default_rng([seed, epoch]).exponential(size=SHAPE["num_samples"]).astype(np.float32)[ids]


def connect(
    run: str, storage: str, selection: es.Selection, exchange: Any, world_size: int = 1, **more: Any
) -> list[es.Selector]:
    """All ranks of a training, in this process."""
    generation = uuid.uuid4().hex
    place = {"storage": storage, "exchange": exchange, "world_size": world_size, "generation": generation}
    return [es.connect(run, selection, **SHAPE, **place, rank=rank, **more) for rank in range(world_size)]


def alone(selection: es.Selection, world_size: int = 1) -> list[es.Selector]:
    """The same without any server."""
    keeper = LocalRun(RunConfig(selection=selection, **SHAPE))
    ranks = [Embedded(keeper, Position(rank, world_size)) for rank in range(world_size)]
    return [es.Selector(selection, **SHAPE, exchange=rank) for rank in ranks]


def train(
    selectors: list[es.Selector], first_epoch: int = 0, last_epoch: int = SHAPE["num_epochs"], hook: Hook = nothing
) -> list[tuple[int, int, int, list[int]]]:
    """Drive all ranks in lockstep; `hook` is called before each step, and with step -1 before each epoch."""
    seed, drawn = selectors[0].config.selection.seed, []
    for epoch in range(first_epoch, last_epoch):
        hook(epoch, -1)
        for step, row in enumerate(zip(*(selector.epoch(epoch) for selector in selectors), strict=True)):
            hook(epoch, step)
            for rank, (selector, ids) in enumerate(zip(selectors, row, strict=True)):
                if selector.wants_scores:
                    draw = selector.select(ids, losses_of(seed, epoch, ids))
                else:
                    draw = selector.select(ids)
                    selector.observe(losses_of(seed, epoch, draw.ids))
                drawn.append((epoch, step, rank, draw.ids.tolist()))
    return drawn


def outcome(selectors: list[es.Selector], drawn: list[tuple[int, int, int, list[int]]]) -> Outcome:
    """End a training."""
    table: pa.Table = selectors[0].table()
    for selector in selectors:
        selector.close()
    return Outcome(drawn, encode_table(table))


def undisturbed(selection: es.Selection, world_size: int = 1) -> Outcome:
    """What the training comes to when nothing goes wrong."""
    selectors = alone(selection, world_size)
    return outcome(selectors, train(selectors))


def pid_of(run: str, shard: int = 0) -> int:
    """Return the process of a shard, waiting for one that is restarting."""
    ask = launch.find_shards(run)[shard].pid.options(concurrency_group=launch.READ_GROUP)
    return int(call_patiently(ask.remote, 60.0, "ask for its pid"))


def kill(run: str, shard: int = 0) -> None:
    """SIGKILL a shard."""
    os.kill(pid_of(run, shard), signal.SIGKILL)

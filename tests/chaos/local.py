"""A score server that lives in this process and can be killed and brought back: ranks reach it as they do an actor.

No Ray: what a rank says and hears is what it would over Ray; a call that was under way when the server was killed ends
as Ray lets it end. The killed server is fenced by its successor, which has its actor's name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import driving

import es_service as es
from es_service import errors
from es_service.actors.calls import AwayError
from es_service.actors.score_server import ScoreServer
from es_service.actors.score_shard import ScoreShard
from es_service.actors.served_run import ServedRun
from es_service.exchange.base import Position
from es_service.exchange.degraded import DegradedExchange
from es_service.exchange.leased import Leased
from es_service.exchange.prefetch import Prefetch
from es_service.exchange.remote import Remote
from es_service.exchange.sync import Sync
from es_service.selection.run import RunConfig
from es_service.storage import runs

GENERATION = "0e" * 16
KINDS: dict[str, type[Remote]] = {"leased": Leased, "sync": Sync, "prefetch": Prefetch}


class Local:
    """See the module's text.

    Attributes:
        after: what is done, once, behind a call of a method.
    """

    def __init__(self, storage: str, config: RunConfig, count: int = 1) -> None:
        self._storage, self._config = storage, config
        self._lock = threading.RLock()  # one call at a time, as an actor's default group has it
        self._generation = 0
        self._past: list[ScoreShard | ScoreServer] = []
        self.after: dict[str, Callable[[], object]] = {}
        self.shards: list[Any] = [None] * count
        for index in range(count):
            self._serve(index)

    @property
    def server(self) -> ScoreServer:
        server = self.shards[0]
        assert isinstance(server, ScoreServer)
        return server

    def _serve(self, index: int) -> None:
        where, count = (self._storage, "mine", runs.config_to_dict(self._config)), len(self.shards)
        self.shards[index] = (
            ScoreShard(ServedRun(*where), index, count)
            if index
            else ScoreServer(*where, count, self._ask_shard, "local")
        )
        self._past.append(self.shards[index])

    def _ask_shard(self, index: int, method: str, *args: Any) -> Callable[[], Any]:
        return lambda: getattr(self.shards[index], method)(*args)

    def restart(self) -> None:
        """SIGKILL of the score server, and what Ray does then."""
        with self._lock:
            self._generation += 1
            self._serve(0)

    def finish(self) -> None:
        for server in reversed(self._past):
            server.finish()

    # -- as `Connection` ----------------------------------------------------------------------------------------------

    def ask(self, shard: int, method: str, *args: Any, group: str | None = None, **named: Any) -> Any:
        reference: Future[Any] = Future()
        if group is None:
            with self._lock:
                self._answer(reference, shard, method, *args, **named)
        else:
            self._answer(reference, shard, method, *args, **named)
        return reference

    def _answer(self, reference: Future[Any], shard: int, method: str, *args: Any, **named: Any) -> None:
        generation = self._generation
        try:
            answer = getattr(self.shards[shard], method)(*args, **named)
        except errors.EsServiceError as error:
            reference.set_exception(error)
            return
        finally:
            act = self.after.pop(method, None)
            if act is not None:
                act()
        if self._generation != generation:
            reference.set_exception(AwayError(f"cannot {method}: the score server is restarting"))
        else:
            reference.set_result(answer)

    def wait(self, reference: Any, deadline_s: float, doing: str) -> Any:
        return reference.result(0)

    def reconnect(self) -> bool:
        return False


def connect(
    local: Any, selection: es.Selection, exchange: str, world_size: int = 1, generation: str = GENERATION, **more: Any
) -> list[es.Selector]:
    """All ranks of a training on this server."""
    config = RunConfig(selection=selection, **driving.SHAPE)
    ranks: list[es.Selector] = []
    for rank in range(world_size):
        inner = KINDS[exchange]("mine", config, Position(rank, world_size), generation, connection=local, **more)
        outer = DegradedExchange(inner) if more.get("on_unavailable") == "continue" else inner
        ranks.append(es.Selector(selection, **driving.SHAPE, exchange=outer))
    return ranks


def train(
    selectors: list[es.Selector],
    first_epoch: int = 0,
    last_epoch: int = driving.SHAPE["num_epochs"],
    hook: driving.Hook = driving.nothing,
) -> list[tuple[int, int, int, list[int]]]:
    """As `driving.train`, with a thread for each rank, in lockstep; raises what the first of them raised."""
    seed = selectors[0].config.selection.seed
    drawn: list[list[tuple[int, int, int, list[int]]]] = [[] for _ in selectors]
    failures: list[BaseException] = []
    called: set[tuple[int, int]] = set()
    once = threading.Lock()

    def disturb(epoch: int, step: int) -> None:
        barrier.wait(60.0)
        with once:
            if (epoch, step) not in called:
                called.add((epoch, step))
                hook(epoch, step)
        barrier.wait(60.0)

    def run(rank: int) -> None:
        selector = selectors[rank]
        try:
            for epoch in range(first_epoch, last_epoch):
                for step, ids in enumerate(selector.epoch(epoch)):
                    disturb(epoch, step)
                    draw = selector.select(ids, driving.losses_of(seed, epoch, ids))
                    drawn[rank].append((epoch, step, rank, draw.ids.tolist()))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                failures.append(error)
            barrier.abort()

    barrier = threading.Barrier(len(selectors))
    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(selectors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
    return sorted(one for ranks in drawn for one in ranks)

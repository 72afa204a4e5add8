"""Score servers started, found and stopped, and scorers started: the one place where a class becomes a Ray actor."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from es_service import errors
from es_service.actors.calls import DEADLINE_S, call, call_patiently
from es_service.actors.score_server import ScoreServer
from es_service.actors.score_shard import ScoreShard
from es_service.actors.scorer_host import ScorerHost
from es_service.actors.served_run import ServedRun
from es_service.selection.run import RunConfig
from es_service.storage import runs

__all__ = ["NAMESPACE", "READ_GROUP", "actor_name", "find", "find_shards", "is_up", "start", "start_scorers", "stop"]

Handle: TypeAlias = Any  # a Ray ActorHandle, whose own type hints know no remote method

NAMESPACE = "es_service"
READ_GROUP = "read"
_WRITE_GROUP = "write"
_START_DEADLINE_S = 60.0
_FINISH_DEADLINE_S = 60.0
_WRITE_DEADLINE_S = 600.0
_MAX_PENDING_CALLS = 1000  # of one process at one shard; a rank has some 70 under way at most
# What the score server asks of other shards on its readers' behalf:
_READS = {"answer", "counts", "copy_records", "num_samples", "storage_failure", "reduction"}
_WRITES = {"write_history", "write_part"}  # takes seconds, beside its other calls
_ONCE = {"answer", "reduction"}  # the others may be asked again: a shard that restarts is waited for

_remote: Any = ray.remote  # its type hints leave concurrency_groups out
_nodes: Any = ray.nodes  # it has none


def actor_name(run: str, shard: int = 0) -> str:
    """Return the name of a run's score server, or of another of its shards, in the namespace `es_service`."""
    name = f"score-server:{runs.check_run_name(run)}"
    return f"{name}:{shard}" if shard else name


def _find(run: str, shard: int) -> Handle:
    return ray.get_actor(actor_name(run, shard), namespace=NAMESPACE)


def _asker(run: str) -> Callable[..., Callable[[], Any]]:
    """Return how the score server calls the run's other shards, see `ShardGroup`."""
    handles: dict[int, Handle] = {}

    def ask(index: int, method: str, *args: Any) -> Callable[[], Any]:
        doing = f"{method.replace('_', ' ')} (shard {index} of run {run!r})"
        try:
            actor = handles.get(index) or handles.setdefault(index, _find(run, index))
        except ValueError as error:
            raise errors.ServerUnavailableError(f"cannot {doing}: it is not there; connect again") from error
        bound = getattr(actor, method)
        if method in _READS:
            bound = bound.options(concurrency_group=READ_GROUP)
        deadline_s = DEADLINE_S
        if method in _WRITES:
            bound, deadline_s = bound.options(concurrency_group=_WRITE_GROUP), _WRITE_DEADLINE_S
        asked = [bound.remote(*args)]

        def wait() -> Any:
            try:
                if method in _ONCE:
                    return call(asked[0], deadline_s, doing)
                return call_patiently(lambda: asked.pop() if asked else bound.remote(*args), deadline_s, doing)
            except errors.ServerUnavailableError:
                handles.pop(index, None)  # it may be gone for good, and another started under its name
                raise

        return wait

    return ask


class _Shard(ScoreShard):
    """A shard in a process of its own."""

    def __init__(self, storage: str, run: str, config: dict[str, Any], index: int, count: int) -> None:
        super().__init__(ServedRun(storage, run, config), index, count)


class _Server(ScoreServer):
    """A score server that finds its other shards on Ray."""

    def __init__(self, storage: str, run: str, config: dict[str, Any], count: int, training: Any = None) -> None:
        actor = ray.get_runtime_context().get_actor_id()
        super().__init__(storage, run, config, count, _asker(run), actor, training)
        _log_to_stderr()


def _log_to_stderr() -> None:
    """Let what this package logs reach the actor's log file, one line each; the process is the actor's own."""
    log = logging.getLogger("es_service")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False


_ServerActor = _remote(concurrency_groups={READ_GROUP: 2})(_Server)
_ShardActor = _remote(concurrency_groups={READ_GROUP: 2, _WRITE_GROUP: 1})(_Shard)
_ScorerActor = _remote(ScorerHost)


def find(run: str) -> Handle:
    """Return the run's score server; RunNotFoundError where none is running."""
    try:
        return _find(run, 0)
    except ValueError as error:
        raise errors.RunNotFoundError(
            f"no score server for run {run!r} on this Ray cluster: es.connect() starts one, or the run has ended"
        ) from error


def is_up(run: str) -> bool:
    """Return whether a score server of this run is there."""
    try:
        _find(run, 0)
    except ValueError:
        return False
    return True


def find_shards(run: str, deadline_s: float = _START_DEADLINE_S) -> list[Handle]:
    """Return all shards of a run, the score server first; RunNotFoundError where one is not there."""
    server = find(run)
    _, _, count = _identity(server, deadline_s)
    try:
        return [server, *(_find(run, shard) for shard in range(1, count))]
    except ValueError as error:
        raise errors.RunNotFoundError(
            f"a shard of run {run!r} is gone from this Ray cluster: es.connect() starts it again"
        ) from error


def _identity(actor: Handle, deadline_s: float = _START_DEADLINE_S) -> tuple[errors.EsServiceError | None, str, int]:
    identity = actor.identity.options(concurrency_group=READ_GROUP)
    found: tuple[errors.EsServiceError | None, str, int]
    found = call_patiently(identity.remote, deadline_s, "start the score server")
    return found


def start(
    run: str,
    config: RunConfig,
    storage: str,
    *,
    shards: int | None = None,
    training: dict[str, Any] | None = None,
    detached: bool = True,
) -> list[Handle]:
    """Return the run's shards, the score server first, started if absent; many callers may do so at once.

    Args:
        run: name of the run.
        config: what the run is; the server refuses callers with another one when they join.
        storage: folder or URI for its snapshots, as seen from each shard's node; a path must be absolute.
        shards: S; None takes those that are up, else one. They are spread over the nodes.
        training: how a run that begins is trained, see `RunStorage.begin`.
        detached: outlive the calling process, until `stop`; False ties it to the caller's life.

    Raises:
        ConfigError: more shards than samples.
        RunNameError: the name cannot be used.
        RunMismatchError, StorageError: another run of this name is up or in the storage; it cannot be written.
        ServerUnavailableError: it did not answer in time.
    """
    config.check_shards(shards or 1)
    options = {
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached" if detached else None,
        "num_cpus": 0,
        "memory": 1,  # a byte: an actor that asks for nothing at all Ray places without looking at the strategy
        "max_restarts": -1,
        "max_pending_calls": _MAX_PENDING_CALLS,
        "max_task_retries": 0,  # Ray would re-execute and reorder: clients retry, by sequence number
    }
    described = runs.config_to_dict(config)
    nodes = sorted(node["NodeID"] for node in _nodes() if node["Alive"])
    place = _place(run, 0, nodes) if (shards or 1) > 1 else "DEFAULT"
    server = _ServerActor.options(name=actor_name(run), scheduling_strategy=place, **options)
    actors = [server.remote(storage, run, described, shards or 1, training)]
    failure, place, count = _identity(actors[0])
    if failure is None:
        if place != storage:
            raise errors.RunMismatchError(
                f"a score server for run {run!r} is up and keeps it in {place}, not in {storage}: use that storage, "
                "or another run name"
            )
        if count != (shards or count):
            raise errors.RunMismatchError(
                f"a score server for run {run!r} is up with {count} shard(s), not {shards}: use shards={count}, or "
                "stop it first; it starts again from storage with any number"
            )
        for shard in range(1, count):
            place = _place(run, shard, nodes)
            actor = _ShardActor.options(name=actor_name(run, shard), scheduling_strategy=place, **options)
            actors.append(actor.remote(storage, run, described, shard, count))
    failures = [failure, *(_identity(actor)[0] for actor in actors[1:])]
    for actor, found in zip(actors, failures, strict=True):
        if found is not None:  # it could not begin: nothing is lost with it
            ray.kill(actor)
    for found in failures:
        if found is not None:
            raise found
    return actors


def _place(run: str, shard: int, nodes: list[str]) -> Any:
    """Return where a shard should live: one node after the other, from one that the run's name picks.

    A node that is lost is not insisted on.
    """
    return NodeAffinitySchedulingStrategy(nodes[(zlib.crc32(run.encode()) + shard) % len(nodes)], soft=True)


def stop(run: str) -> None:
    """End the run's score server and all its shards, once their state is on storage.

    It names the run, so it ends that run's server whichever process started it.

    Raises:
        RunNotFoundError: none is running.
    """
    server = find(run)
    listed = ray.util.list_named_actors(all_namespaces=True)
    others = {one["name"] for one in listed if one["namespace"] == NAMESPACE}
    actors = [server]
    for name in others:
        if name.startswith(f"{actor_name(run)}:"):
            with contextlib.suppress(ValueError):  # it ended by itself
                actors.append(ray.get_actor(name, namespace=NAMESPACE))
    finishing = [actor.finish.options(concurrency_group=READ_GROUP).remote() for actor in actors]
    for actor, finished in zip(actors, finishing, strict=True):
        with contextlib.suppress(errors.ServerError):  # it does not answer: its journal is what there is
            call(finished, _FINISH_DEADLINE_S, "finish")
        ray.kill(actor)


def start_scorers(num: int, num_gpus: float) -> list[Handle]:
    """Start so many scorers, which end with this process; each one's `begin` then makes its proxy."""
    return [_ScorerActor.options(num_cpus=0, num_gpus=num_gpus).remote() for _ in range(num)]

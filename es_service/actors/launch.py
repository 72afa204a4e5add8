"""Starting, finding and stopping score servers: the one place where a class becomes a Ray actor."""

from __future__ import annotations

from typing import Any, TypeAlias

import ray

from es_service import errors
from es_service.actors.calls import call_patiently
from es_service.actors.score_server import ScoreServer
from es_service.selection.scorekeeper import RunConfig
from es_service.storage import runs

__all__ = ["NAMESPACE", "READ_GROUP", "actor_name", "find", "start", "stop"]

Handle: TypeAlias = Any  # a Ray ActorHandle, whose own type hints know no remote method

NAMESPACE = "es_service"
READ_GROUP = "read"
_START_DEADLINE_S = 60.0

_remote: Any = ray.remote  # its type hints leave concurrency_groups out
_ScoreServerActor = _remote(concurrency_groups={READ_GROUP: 2})(ScoreServer)


def actor_name(run: str) -> str:
    """Return the name under which a run's score server is known in the namespace `es_service`."""
    return f"score-server:{runs.check_run_name(run)}"


def find(run: str) -> Handle:
    """Return the run's score server; RunNotFoundError where none is running."""
    try:
        return ray.get_actor(actor_name(run), namespace=NAMESPACE)
    except ValueError as error:
        raise errors.RunNotFoundError(
            f"no score server for run {run!r} on this Ray cluster: es.connect() starts one, or the run has ended"
        ) from error


def start(run: str, config: RunConfig, storage: str, *, detached: bool = True) -> Handle:
    """Return the run's score server, started if absent; any number of callers may do so at once.

    Args:
        run: name of the run.
        config: what the run is; the server refuses callers with another one when they join.
        storage: folder or URI for its snapshots, as seen from the server's node; a path must be absolute.
        detached: outlive the calling process, until `stop`; False ties it to the caller's life.

    Raises:
        RunNameError: the name cannot be used.
        RunMismatchError, StorageError: another run of this name is up or in the storage; it cannot be written.
        ServerUnavailableError: it did not answer in time.
    """
    actor: Handle = _ScoreServerActor.options(
        name=actor_name(run),
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached" if detached else None,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,  # Ray would re-execute and reorder: clients retry, by sequence number
    ).remote(storage, run, runs.config_to_dict(config))
    identity = actor.identity.options(concurrency_group=READ_GROUP)
    failure, place = call_patiently(identity.remote, _START_DEADLINE_S, "start the score server")
    if failure is not None:  # it could not begin: nothing is lost with it
        ray.kill(actor)
        raise failure
    if place != storage:
        raise errors.RunMismatchError(
            f"a score server for run {run!r} is up and keeps it in {place}, not in {storage}: use that storage, "
            "or another run name"
        )
    return actor


def stop(run: str) -> None:
    """End the run's score server; what it has written to storage stays. RunNotFoundError where none is running."""
    ray.kill(find(run))

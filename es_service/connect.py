"""`connect`: a Selector for one of several ranks; a score server on Ray holds the table, or every rank a replica."""

from __future__ import annotations

import hashlib
import sys
import uuid
from typing import TYPE_CHECKING, Any, Literal, get_args

from es_service import errors
from es_service.exchange.base import Exchange, OnUnavailable, Position
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_integer, suggest
from es_service.selector import Selector
from es_service.storage import runs
from es_service.storage.files import absolute

if TYPE_CHECKING:
    from es_service.exchange.collective import Collective
    from es_service.exchange.remote import Remote

__all__ = ["ExchangeName", "connect"]

ExchangeName = Literal["leased", "sync", "prefetch", "collective"]


def connect(
    run: str,
    selection: Selection,
    *,
    num_samples: int | None,
    num_epochs: int,
    batch_size: int,
    irreducible_losses: Any = None,
    exchange: ExchangeName = "leased",
    shards: int | None = None,
    every: int = 1,
    storage: str = runs.DEFAULT_STORAGE,
    rank: int | None = None,
    world_size: int | None = None,
    attempt: str | None = None,
    deadline_s: float = 60.0,
    on_unavailable: OnUnavailable = "raise",
) -> Selector:
    """Return a Selector connected to the run's score server, which is started if absent and outlives its callers.

    Where this process is not connected to Ray, RAY_ADDRESS is connected to, or a Ray is started on this machine (and
    ends with this process, the server with it). Connecting alone only looks: other ranks notice nothing until this one
    opens an epoch, loads or resets. `es_service.actors.launch.stop(run)` ends the server; its storage stays.

    The exchange "collective" has no server and needs no Ray: it goes over torch.distributed, which has to be
    initialised, and every rank holds a replica of the table. Connecting waits for all ranks there.

    Every rank of a training calls it with the same arguments. Inside Ray Train, or with torch.distributed initialised,
    rank, world size and attempt come from there.

    Args:
        run: names the run; letters, digits, '.', '_' and '-'.
        selection: what to select, and how.
        num_samples: n; ids number the samples of the data set from 0. None where they are not known beforehand: the
            table grows with the ids that `selector.stream` brings.
        num_epochs: E, which annealing counts from.
        batch_size: B, the meta-batch of each rank.
        irreducible_losses: float[n], for the method `rho`; see `Selector`.
        exchange: "leased" (nothing on the critical path), "sync" (one call per step), "prefetch" (rows are fetched
            while the forward pass runs; for streams and samplers of one's own) or "collective" (no server, an
            all-gather each `every` steps).
        shards: S, over how many actors the table is spread; None takes those that are up, else one. The selection is
            the same with any number. They are spread over the nodes, which then all need to see the storage.
        every: k, for "collective": another rank's observations are seen at most k - 1 steps late.
        storage: folder or URI for snapshots, as seen from the server's node, or from rank 0 with "collective";
            ~/es_service_runs, or the environment variable ES_SERVICE_STORAGE.
        rank: this rank, where nothing else says it.
        world_size: number of ranks, likewise.
        attempt: any text that all ranks of one start of the group share and a restarted group does not; needed where
            several ranks were given by hand.
        deadline_s: seconds that any wait for the server, or for other ranks, may take. A server that dies and comes
            back within them is not noticed: it knows what it knew, and is told again what it did not write in time.
        on_unavailable: what to do past that: "raise" ServerUnavailableError, "wait" on and log it, or "continue" to
            train without it: from what this rank holds, else on uniform draws, with one loud warning.

    Raises:
        RunNameError, ConfigError: an argument cannot be used.
        RunMismatchError: the run exists with another n, method or seed; or, with "collective", a rank came with
            other arguments.
        StorageError: the storage folder cannot be written.
        ServerUnavailableError: the server did not answer in time; or, with "collective", a rank did not come.
    """
    if not isinstance(selection, Selection):
        raise errors.ConfigError(f"selection must be an es.Selection, got {selection!r}")
    runs.check_run_name(run)
    _check_exchange(exchange, shards, every, on_unavailable)
    config = RunConfig.of(selection, num_samples, num_epochs, batch_size)
    if config.grows and exchange not in ("sync", "prefetch"):
        raise errors.ConfigError(f"exchange {exchange!r} needs ids known beforehand: take 'prefetch' or 'sync'")
    connected: Exchange
    if exchange == "collective":
        connected = _collective(run, config, every, storage, rank, world_size, deadline_s)
    else:
        attended = _remote(
            run, config, exchange, shards, storage, rank, world_size, attempt, deadline_s, on_unavailable
        )
        connected = attended if on_unavailable != "continue" else _unattended(attended)
    return Selector(
        selection,
        num_samples=num_samples,
        num_epochs=num_epochs,
        batch_size=batch_size,
        irreducible_losses=irreducible_losses,
        exchange=connected,
    )


def _unattended(inner: Remote) -> Exchange:
    from es_service.exchange.unattended import Unattended

    return Unattended(inner)


def _check_exchange(name: str, shards: int | None, every: int, on_unavailable: str) -> None:
    if name not in get_args(ExchangeName):
        raise errors.ConfigError(f"unknown exchange {name!r}; {suggest(name, list(get_args(ExchangeName)))}")
    if as_integer("every", every, least=1) != 1 and name != "collective":
        raise errors.ConfigError(
            f"every={every} is a setting of exchange 'collective', the exchange is {name!r}: leave it out"
        )
    if on_unavailable not in get_args(OnUnavailable):
        raise errors.ConfigError(
            f"unknown on_unavailable={on_unavailable!r}; {suggest(on_unavailable, list(get_args(OnUnavailable)))}"
        )
    if on_unavailable != "raise" and name == "collective":
        raise errors.ConfigError(
            f"on_unavailable={on_unavailable!r} is about a score server, which exchange 'collective' has none of"
        )
    if shards is not None and name == "collective":
        raise errors.ConfigError(f"shards={shards} are of a score server, which exchange 'collective' has none of")


def _remote(
    run: str,
    config: RunConfig,
    exchange: Literal["leased", "sync", "prefetch"],
    shards: int | None,
    storage: str,
    rank: int | None,
    world_size: int | None,
    attempt: str | None,
    deadline_s: float,
    on_unavailable: OnUnavailable,
) -> Remote:
    """Return the exchange with the run's score server, which is started if absent."""
    try:
        from es_service.actors import launch
        from es_service.actors.calls import call_patiently
        from es_service.actors.cluster import ensure_ray
        from es_service.exchange.leased import Leased
        from es_service.exchange.prefetch import Prefetch
        from es_service.exchange.sync import Sync
    except ImportError as error:
        raise errors.ConfigError(
            f"exchange {exchange!r} needs Ray: pip install 'es-service[ray]', or take an es.Selector, which needs none "
            f"({error})"
        ) from error

    kinds: dict[str, type[Remote]] = {"leased": Leased, "sync": Sync, "prefetch": Prefetch}
    position, shared = _whereabouts(rank, world_size)
    config.check_world(position.world_size, position.rank)
    group = _attempt(attempt or shared, position)
    ensure_ray()
    server = launch.start(run, config, absolute(storage), shards=shards)[0]
    ask = server.stats.options(concurrency_group=launch.READ_GROUP)
    stats = call_patiently(ask.remote, deadline_s, "ask what the run is")
    runs.check_same(run, runs.config_from_dict(stats["config"]), config)
    return kinds[exchange](run, config, position, group, deadline_s=deadline_s, on_unavailable=on_unavailable)


def _collective(
    run: str,
    config: RunConfig,
    every: int,
    storage: str,
    rank: int | None,
    world_size: int | None,
    deadline_s: float,
) -> Collective:
    """Return the exchange with the other ranks of torch.distributed, once all of them are here."""
    try:
        from es_service.exchange.collective import Collective
        from es_service.exchange.peers import Peers
    except ImportError as error:
        raise errors.ConfigError(
            f"exchange 'collective' needs torch: pip install 'es-service[torch]' ({error})"
        ) from error
    claimed = _given(rank, world_size)
    kept = runs.RunStorage(storage, run)
    peers = Peers(deadline_s)
    try:
        return Collective(run, config, peers, every=every, storage=kept, position=claimed)
    except errors.EsServiceError:
        peers.close()
        raise


def _given(rank: int | None, world_size: int | None) -> Position | None:
    """Return the position that the caller gave, None where it gave none."""
    if (rank is None) != (world_size is None):
        raise errors.ConfigError(f"rank={rank} and world_size={world_size}: give both, or neither")
    return None if rank is None or world_size is None else Position(rank, world_size)


def _whereabouts(rank: int | None, world_size: int | None) -> tuple[Position, str | None]:
    """Return this worker's position, and a text its group shares, from whoever knows."""
    given = _given(rank, world_size)
    if given is not None:
        return given, None
    if "ray.train" in sys.modules:
        found = _from_ray_train()
        if found is not None:
            return found
    if "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            shared = [uuid.uuid4().hex]
            distributed.broadcast_object_list(shared)
            return Position(distributed.get_rank(), distributed.get_world_size()), shared[0]
    return Position(0, 1), None


def _from_ray_train() -> tuple[Position, str] | None:
    """Return position and shared text inside a Ray Train worker, None elsewhere."""
    from ray import train
    from ray.train import collective

    try:
        context = train.get_context()
    except RuntimeError:  # Ray's answer outside a training function
        return None
    shared = collective.broadcast_from_rank_zero(uuid.uuid4().hex)
    return Position(context.get_world_rank(), context.get_world_size()), str(shared)


def _attempt(shared: str | None, position: Position) -> str:
    """Return 32 hexadecimal digits that this life of the group shares."""
    if shared is not None:
        return hashlib.sha256(shared.encode()).hexdigest()[:32]
    if position.world_size > 1:
        raise errors.ConfigError(
            f"rank={position.rank} of world_size={position.world_size} was given by hand: give attempt= too, any text "
            "that all ranks of one start share and a restarted group does not (a start time, a job id)"
        )
    return uuid.uuid4().hex

"""`connect`: a Selector for one of several ranks; a score server on Ray holds the table, or every rank a replica."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from es_service import errors
from es_service.exchange.base import Exchange, OnUnavailable, Position
from es_service.exchange.resume import Resume, check_begun, check_resume
from es_service.kept_samples import Preview
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_integer, as_number, suggest
from es_service.selector import Selector
from es_service.storage import runs
from es_service.storage.files import absolute
from es_service.whereabouts import given, whereabouts

if TYPE_CHECKING:
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
    tokens: Any = None,
    exchange: ExchangeName = "leased",
    shards: int | None = None,
    every: int = 1,
    storage: str | None = None,
    resume: Resume = "auto",
    labels: Any = None,
    label_names: Sequence[str] | None = None,
    preview: Preview | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    generation: str | None = None,
    deadline_s: float = 60.0,
    on_unavailable: OnUnavailable = "raise",
) -> Selector:
    """Return a Selector connected to the run's score server, which is started if absent and outlives its callers.

    Where this process is not connected to Ray, RAY_ADDRESS is connected to, or a Ray is started on this machine (and
    ends with this process, the server with it). Connecting only reads: other ranks are not affected until this one
    opens an epoch, loads or resets. `es_service.actors.launch.stop(run)` ends the server; its storage stays.

    The exchange "collective" has no server and needs no Ray: it goes over torch.distributed, which has to be
    initialised, and every rank holds a replica of the table. Connecting waits for all ranks there.

    Every rank of a run calls it with the same arguments. Inside Ray Train, or with torch.distributed initialised,
    rank, world size and generation come from there. Several ranks need one Ray: name it in RAY_ADDRESS.

    Args:
        run: names the run; letters, digits, '.', '_' and '-'.
        selection: what to select, and how.
        num_samples: n; ids number the samples of the data set from 0. None where they are not known beforehand: the
            table grows with the ids that `selector.stream` brings.
        num_epochs: E, which annealing counts from.
        batch_size: B, the meta-batch of each rank.
        irreducible_losses: float[n], for the method `rho`; see `Selector`.
        tokens: integers [n], to be counted in the ledger; see `Selector`.
        exchange: "leased" (nothing on the critical path), "sync" (one call per step), "prefetch" (rows are fetched
            while the forward pass runs; for streams and custom samplers) or "collective" (no server, an
            all-gather each `every` steps).
        shards: S, over how many actors the table is spread; None takes those that are up, else one. The selection is
            the same with any number. They are spread over the nodes, which then all need to see the storage.
        every: k, for "collective": another rank's observations are seen at most k - 1 steps late.
        storage: folder or URI for snapshots, as seen from the server's node, or from rank 0 with "collective";
            ~/es_service_runs, or the environment variable ES_SERVICE_STORAGE.
        resume: what to do with a run of this name that was started. "auto": it is continued, from the end of its last
            finished epoch, at `selector.next_epoch`; where there is none, one begins. "must": it has to exist. "never":
            it must be new. A run is started once an epoch of it was opened, and is new again after `selector.reset()`.
        labels: integers [n] from 0, for the run's dashboard, see `Selector`; rank 0 writes them, and has to see the
            storage.
        label_names: what they mean.
        preview: what the dashboard shows of a sample, see `Selector`.
        rank: this rank, where nothing else determines it.
        world_size: number of ranks, likewise.
        generation: any text that all ranks of one start of the group share and a restarted group does not; needed where
            several ranks were given by hand.
        deadline_s: seconds that any wait for the server, or for other ranks, may take. A server that dies and comes
            back within them is not noticed: it restores its state, and ranks resend what it had not written in time.
        on_unavailable: past that "raise" ServerUnavailableError, "wait" (retry, and log it), or "continue" without
            it: train from what this rank holds, else on uniform draws, with one loud warning.

    Raises:
        RunNameError, ConfigError: an argument cannot be used; several processes without a group, or without one Ray.
        RunNotFoundError: resume="must", and there is no such run.
        RunExistsError: resume="never", and it was started.
        RunMismatchError: the run exists with another n, method or seed; or, with "collective", a rank came with
            other arguments.
        StorageError: the storage folder cannot be written.
        ServerUnavailableError: the server did not answer in time; or, with "collective", a rank did not come.
    """
    runs.check_run_name(run)
    every = as_integer("every", every, least=1)
    shards = None if shards is None else as_integer("shards", shards, least=1)
    deadline_s = as_number("deadline_s", deadline_s)
    if not 0 < deadline_s < math.inf:
        raise errors.ConfigError(f"deadline_s must be above 0 and finite, got {deadline_s:g}")
    _check_exchange(exchange, shards, every, on_unavailable)
    check_resume(resume)
    config = RunConfig.of(selection, num_samples, num_epochs, batch_size)
    if config.grows and exchange not in ("sync", "prefetch"):
        raise errors.ConfigError(f"exchange {exchange!r} needs ids known beforehand: take 'prefetch' or 'sync'")
    claimed, place = given(rank, world_size), absolute(runs.DEFAULT_STORAGE if storage is None else storage)
    connected: Exchange
    if exchange == "collective":
        connected = _collective(run, config, every, place, resume, claimed, deadline_s)
    else:
        connected = _remote(
            run, config, exchange, shards, place, resume, claimed, generation, deadline_s, on_unavailable
        )
    return Selector(
        selection,
        num_samples=num_samples,
        num_epochs=num_epochs,
        batch_size=batch_size,
        irreducible_losses=irreducible_losses,
        tokens=tokens,
        exchange=connected,
        run=run,
        storage=place,
        labels=labels,
        label_names=label_names,
        preview=preview,
    )


def _check_exchange(name: str, shards: int | None, every: int, on_unavailable: str) -> None:
    if name not in get_args(ExchangeName):
        raise errors.ConfigError(f"unknown exchange {name!r}; {suggest(name, list(get_args(ExchangeName)))}")
    if every != 1 and name != "collective":
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
    resume: Resume,
    claimed: Position | None,
    generation: str | None,
    deadline_s: float,
    on_unavailable: OnUnavailable,
) -> Exchange:
    """Return the exchange with the run's score server, which is started if absent."""
    try:
        from es_service.actors import launch
        from es_service.actors.calls import call_patiently
        from es_service.actors.cluster import check_shared, ensure_ray
        from es_service.exchange.degraded import DegradedExchange
        from es_service.exchange.leased import Leased
        from es_service.exchange.prefetch import Prefetch
        from es_service.exchange.sync import Sync
    except ImportError as error:
        raise errors.ConfigError(
            f"exchange {exchange!r} needs Ray: pip install 'es-service[ray]', or take an es.Selector, which needs none "
            f"({error})"
        ) from error

    kinds: dict[str, type[Remote]] = {"leased": Leased, "sync": Sync, "prefetch": Prefetch}
    if claimed is not None:
        config.check_world(claimed.world_size, claimed.rank)
    position, group, in_group = whereabouts(claimed, generation)
    config.check_world(position.world_size, position.rank)
    if position.world_size > 1 and (in_group or position.rank > 0):  # rank 0 of ranks in one process may start theirs
        check_shared(position.rank, position.world_size)
    ensure_ray()
    if resume == "must" and not launch.is_up(run):  # else looking for it would begin it
        check_begun(resume, runs.RunStorage(storage, run).exists(), run, storage)
    described = runs.by_user(config, exchange, position.world_size)
    server = launch.start(run, config, storage, shards=shards, training=described)[0]
    ask = server.stats.options(concurrency_group=launch.READ_GROUP)
    stats = call_patiently(ask.remote, deadline_s, "ask what the run is")
    runs.check_same(run, runs.config_from_dict(stats["config"]), config)
    if stats["generation"] != group:  # else another rank of this group has started or reset it
        has_begun = stats["finished_epochs"] > 0 or stats["open_epoch"] is not None
        check_begun(resume, has_begun, run, storage)
    inner = kinds[exchange](run, config, position, group, deadline_s=deadline_s, on_unavailable=on_unavailable)
    return DegradedExchange(inner) if on_unavailable == "continue" else inner


def _collective(
    run: str,
    config: RunConfig,
    every: int,
    storage: str,
    resume: Resume,
    claimed: Position | None,
    deadline_s: float,
) -> Exchange:
    """Return the exchange with the other ranks of torch.distributed, once all of them are here."""
    try:
        from es_service.exchange.collective import Collective
        from es_service.exchange.peers import Peers
    except ImportError as error:
        raise errors.ConfigError(
            f"exchange 'collective' needs torch: pip install 'es-service[torch]' ({error})"
        ) from error
    kept = runs.RunStorage(storage, run)
    peers = Peers(deadline_s)
    try:
        return Collective(run, config, peers, every=every, storage=kept, resume=resume, position=claimed)
    except errors.EsServiceError:
        peers.close()
        raise

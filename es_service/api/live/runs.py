"""Live runs: stats of their score servers and copies of their tables, as fresh as readers need and no fresher.

For any number of readers, a server is asked for its stats at most once a second and for its table at most every
`refresh_s`; without readers it is not asked. A slightly older table is returned while the next is on its way; readers
wait only where it is much older.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from es_service import errors
from es_service.api.live import clusters
from es_service.api.live.priority import stand_back
from es_service.api.live.reader_process import ReaderProcess
from es_service.storage import columns, files
from es_service.storage.plain import plain

__all__ = ["LiveRuns", "LiveTable"]

_STATS_EVERY_S = 1.0
_CONNECT_EVERY_S = 5.0
_PATIENCE_S = 15.0  # a server that has not answered for so long counts as away
_STATS_DEADLINE_S = 10.0
_TABLE_DEADLINE_S = 90.0
_WAITED_FOR = 2.5  # times refresh_s: a table older than that is not shown while there is a newer one to be had


@dataclasses.dataclass
class LiveTable:
    """A copy of a live run's table, and its server's stats of that time."""

    table: pa.Table
    stats: dict[str, Any]
    version: str
    as_of: float  # seconds since 1970
    checked_at: float  # on the monotonic clock


class LiveRuns:
    """Score servers that keep their runs in one storage folder.

    Args:
        storage: that folder, or URI.
        refresh_s: a table is copied at most this often.
        enabled: False looks for none.
        nice: niceness of this process and of the one that asks, once there is a cluster; 0 leaves it as it is.
    """

    def __init__(self, storage: str, refresh_s: float = 2.0, *, enabled: bool = True, nice: int = 0) -> None:
        self._storage = files.absolute(storage).rstrip("/")
        self._refresh_s = refresh_s
        self._enabled, self._nice = enabled, nice
        # A run's lock comes before the others; of those none is taken while another is held.
        self._lock = threading.Lock()
        self._stats_lock = threading.Lock()
        self._process: ReaderProcess | None = None
        self._connecting = False
        self._tried_at = -_CONNECT_EVERY_S
        self._was_connected = False
        self._failure: str | None = None
        self._stats: dict[str, dict[str, Any]] = {}
        self._stats_at = -_STATS_EVERY_S
        self._heard_at: dict[str, float] = {}
        self._pids: dict[str, int] = {}
        self.restarts: dict[str, int] = {}
        self._tables: dict[str, LiveTable] = {}
        self._table_locks: dict[str, threading.Lock] = {}
        self._folder: str | None = None
        self._closed = False

    # -- the cluster --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, str | None]:
        """Return whether there is a Ray cluster to ask: connected, connecting, absent or away; and what is wrong."""
        if self._process is not None and self._process.is_up:
            return {"state": "connected", "detail": None}
        if self._connecting:
            return {"state": "connecting", "detail": None}
        if self._was_connected:
            return {"state": "away", "detail": self._failure or "the Ray cluster went away"}
        return {"state": "absent", "detail": self._failure}

    def connect(self, *, wait: bool = False) -> None:
        """Look for a cluster, unless one is found or was looked for just now; in the background unless `wait`."""
        with self._lock:
            if not self._enabled or self._closed or self._connecting:
                return
            if self._process is not None and self._process.is_up:
                return
            if time.monotonic() - self._tried_at < _CONNECT_EVERY_S:
                return
            self._tried_at = time.monotonic()
            self._connecting = True
        thread = threading.Thread(target=self._connect, name="es-service-connect", daemon=True)
        thread.start()
        if wait:
            thread.join()

    def _connect(self) -> None:
        process, failure = None, None
        try:
            address = clusters.find_address()
            if address is not None:
                stand_back(self._nice)
                modes = [None] if os.environ.get("RAY_AUTH_MODE") else ["token", "disabled"]
                for mode in modes:
                    try:
                        process = ReaderProcess(address, mode)
                        break
                    except errors.ServerUnavailableError as error:
                        failure = str(error)
        finally:
            with self._lock:
                unwanted, process = (process, None) if self._closed else (None, process)
                if process is not None:
                    self._was_connected, failure = True, None
                self._process, self._failure, self._connecting = process, failure, False
                self._stats_at = -_STATS_EVERY_S
            if unwanted is not None:  # closed meanwhile
                unwanted.close()

    def close(self) -> None:
        """Let go of the cluster and of the copies."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def runs(self) -> dict[str, dict[str, Any]]:
        """Return the servers' stats by run, at most a second old; empty where there are no servers."""
        self.connect()
        process = self._process
        if process is None:
            return {}
        with self._stats_lock:
            if time.monotonic() - self._stats_at < _STATS_EVERY_S:
                return self._stats
            try:
                found = plain(process.ask("runs", _STATS_DEADLINE_S)["runs"])
            except errors.ServerUnavailableError as error:
                self._failure, found = str(error), {run: {"error": str(error)} for run in self._stats}
            self._stats_at = now = time.monotonic()
            for run, stats in found.items():
                if self._is_ours(stats):
                    self._heard_at[run] = now
                    self._count_restart(run, stats)
                elif "error" in stats and now - self._heard_at.get(run, -_PATIENCE_S) < _PATIENCE_S:
                    found[run] = self._stats.get(run, stats)  # busy or restarting: its last stats still hold
            self._stats = {run: stats for run, stats in found.items() if self._is_ours(stats)}
            return self._stats

    def _is_ours(self, stats: dict[str, Any]) -> bool:
        return files.absolute(str(stats.get("storage", ""))).rstrip("/") == self._storage

    def _count_restart(self, run: str, stats: dict[str, Any]) -> None:
        before = self._pids.get(run)
        self.restarts.setdefault(run, 0)
        if before is not None and before != stats["pid"]:
            self.restarts[run] += 1
        self._pids[run] = stats["pid"]

    # -- tables -------------------------------------------------------------------------------------------------------

    def table(self, run: str) -> LiveTable | None:
        """Return the run's table, None where no server of it is up."""
        if run not in self.runs():
            self._tables.pop(run, None)
            return None
        with self._lock:
            lock = self._table_locks.setdefault(run, threading.Lock())
        held = self._tables.get(run)
        age = time.monotonic() - held.checked_at if held is not None else float("inf")
        if held is not None and age <= self._refresh_s:
            return held
        if held is not None and age <= _WAITED_FOR * self._refresh_s:
            if lock.acquire(blocking=False):
                self._in_background(lambda: self._refresh_if_old(run), lock)
            return held
        with lock:
            self._refresh_if_old(run)
        return self._tables.get(run)

    def _refresh_if_old(self, run: str) -> None:
        """Refresh it unless another thread has meanwhile; the caller holds the run's lock."""
        held = self._tables.get(run)
        if held is None or time.monotonic() - held.checked_at > self._refresh_s:
            self._refresh(run)

    def _in_background(self, work: Callable[[], None], lock: threading.Lock) -> None:
        def run() -> None:
            try:
                with contextlib.suppress(errors.EsServiceError):  # the reader who cannot wait any more sees it
                    work()
            finally:
                lock.release()

        threading.Thread(target=run, name="es-service-refresh", daemon=True).start()

    def _refresh(self, run: str) -> None:
        process, held = self._process, self._tables.get(run)
        stats = self.runs().get(run)
        if process is None or stats is None:
            return
        if held is not None and held.version == _version(stats):
            held.stats, held.as_of, held.checked_at = stats, time.time(), time.monotonic()
            return
        path = os.path.join(self._place(), f"{run}-{time.monotonic_ns()}.arrow")
        try:
            asked_at = time.time()
            answer = process.ask("table", _TABLE_DEADLINE_S, run=run, path=path)
            table = columns.map_table(path)
        finally:
            with contextlib.suppress(OSError):  # what is mapped stays until its last reader is gone
                os.unlink(path)
        self._tables[run] = LiveTable(table, answer["stats"], _version(answer["stats"]), asked_at, time.monotonic())

    def _place(self) -> str:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="es-service-")
            return self._folder


def _version(stats: dict[str, Any]) -> str:
    names = ("pid", "num_reports", "finished_epochs", "open_epoch")
    return "live-" + "-".join("x" if stats[name] is None else str(stats[name]) for name in names)

"""The list of runs. Those on the requested page are read first, the rest follow.

Runs are looked at in the background, newest first: when their files were written takes no reading. Where that and the
names decide which runs are on a page, those of the page are all that is read. A search, or another order, needs every
run: they are read in the background, too. An answer waits a moment for either, and has the number of runs not read yet.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from es_service import errors
from es_service.api.live.runs import LiveRuns
from es_service.api.runs.descriptions import Descriptions, Signs
from es_service.api.runs.rows import RunQuery, aged, row_of, unreadable
from es_service.storage.listing import Found, find_runs

__all__ = ["Listing", "Page", "RunList"]

_LISTED_EVERY_S = 1.0
_WAIT_S = 0.3


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list.

    Attributes:
        rows: of the page.
        total: rows that match.
        num_pending: runs that were not read yet, and may match.
    """

    rows: list[dict[str, Any]]
    total: int
    num_pending: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A run in the folder; without signs where it cannot be looked into, and the problem, if any."""

    name: str
    begun_ns: int
    signs: Signs | None = None
    problem: str = ""

    @property
    def updated_ns(self) -> int:
        """When it was last written to, 0 where that is not known."""
        return 0 if self.signs is None else self.signs.updated_ns

    def unread(self, problem: str) -> dict[str, Any]:
        """Return the row of it that needs no reading."""
        return unreadable(self.name, problem, self.begun_ns, self.updated_ns)


class _Background:
    """A thread for a work that is done by one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: threading.Event | None = None

    def run(self, work: Callable[[], None]) -> threading.Event:
        """Begin the work unless it is under way; return what is set when it is done."""
        with self._lock:
            if self._under_way is not None:
                return self._under_way
            self._under_way = done = threading.Event()

        def until_done() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._under_way = None
                done.set()

        threading.Thread(target=until_done, name="es-service-runs", daemon=True).start()
        return done


class RunList:
    """The runs of a storage folder; safe to use from many threads.

    Args:
        storage: that folder, or URI.
        descriptions: of its runs.
        live: score servers of some.
    """

    def __init__(self, storage: str, descriptions: Descriptions, live: LiveRuns) -> None:
        self._storage, self._descriptions, self._live = storage, descriptions, live
        self._looking, self._reading = _Background(), _Background()
        self._found = threading.Event()  # the folder was listed once, or cannot be
        self._entries: dict[str, _Entry] = {}
        self._num_left = 0  # runs that were found and never looked at
        self._failure: errors.EsServiceError | None = None
        self._listed_at = -_LISTED_EVERY_S
        self._closed = False

    def close(self) -> None:
        """Stop looking and reading."""
        self._closed = True

    def now(self) -> Listing:
        """Return the runs as they were a second ago, or are known to be by now; StorageError where none can be."""
        if time.monotonic() - self._listed_at >= _LISTED_EVERY_S:
            done = self._looking.run(self._look_at_all)
            self._found.wait()
            done.wait(_WAIT_S)
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        return Listing(self, list(self._entries.values()), self._num_left, self._live.runs())

    def _look_at_all(self) -> None:
        try:
            found = find_runs(self._storage)
            self._num_left = sum(one.name not in self._entries for one in found)
            self._failure = None
            self._found.set()
            self._keep(found)
        except errors.EsServiceError as error:
            self._failure = error
        finally:
            self._listed_at = time.monotonic()
            self._found.set()

    def _keep(self, found: list[Found]) -> None:
        names = {one.name for one in found}
        for gone in set(self._entries) - names:
            del self._entries[gone]
        self._descriptions.forget_others(names)
        for one in reversed(found):  # the newest first
            if self._closed:
                return
            entry = self._look(one)
            self._num_left -= one.name not in self._entries
            if entry is not None:
                self._entries[one.name] = entry

    def _look(self, found: Found) -> _Entry | None:
        """Return a run's entry, None where it was deleted a moment ago."""
        problem = found.problem
        if problem is None:
            try:
                signs = self._descriptions.look(found.name)
                return _Entry(found.name, found.begun_ns, signs) if "run.json" in signs.times else None
            except errors.EsServiceError as error:
                problem = str(error)
        return _Entry(found.name, found.begun_ns, problem=problem)

    def is_pending(self, entry: _Entry) -> bool:
        """Return whether a run would have to be read first."""
        return entry.signs is not None and not self._descriptions.is_read(entry.name, entry.signs)

    def row(self, entry: _Entry, stats: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return a run's row, read if it must be; None where it was deleted a moment ago."""
        problem = entry.problem
        if entry.signs is not None:
            try:
                return aged(row_of(entry.name, self._descriptions.read(entry.name, entry.signs), stats))
            except errors.RunNotFoundError:
                return None
            except errors.EsServiceError as error:  # one damaged run must not hide the others
                problem = str(error)
        return aged(entry.unread(problem))

    def read(self, entries: list[_Entry]) -> None:
        """Have these runs read, the last written first, and wait a moment for it."""

        def work() -> None:
            for entry in sorted(entries, key=lambda one: one.updated_ns, reverse=True):
                if self._closed:
                    return
                if self.is_pending(entry):
                    self.row(entry, None)

        self._reading.run(work).wait(_WAIT_S)


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """The runs at one moment, and those that were not looked at by then.

    What its methods return are rows as `run_rows` makes them.
    """

    runs: RunList
    entries: list[_Entry]
    num_left: int
    live: dict[str, dict[str, Any]]

    def all(self) -> tuple[list[dict[str, Any]], int]:
        """Return the rows of all runs that are read by now, and how many are not."""
        if any(self.runs.is_pending(entry) for entry in self.entries):
            self.runs.read(self.entries)
        read = [entry for entry in self.entries if not self.runs.is_pending(entry)]
        num_pending = self.num_left + len(self.entries) - len(read)
        return [row for entry in read if (row := self._row(entry)) is not None], num_pending

    def page(self, query: RunQuery) -> Page:
        """Return the rows that are asked for."""
        if not query.is_of_folders:
            rows, num_pending = self.all()
            rows = query.ordered(rows)
            return Page(query.cut(rows), len(rows), num_pending)
        by_name = {entry.name: entry for entry in self.entries}
        ordered = query.ordered(map(self._outline, self.entries))
        wanted = [by_name[outline["run"]] for outline in query.cut(ordered)]
        return Page([row for entry in wanted if (row := self._row(entry)) is not None], len(ordered), self.num_left)

    def _outline(self, entry: _Entry) -> dict[str, Any]:
        """Return what is known of a run without reading it; one with a score server is written to all the time."""
        row = self._row(entry) if entry.name in self.live else None
        return entry.unread("") if row is None else row

    def _row(self, entry: _Entry) -> dict[str, Any] | None:
        return self.runs.row(entry, self.live.get(entry.name))

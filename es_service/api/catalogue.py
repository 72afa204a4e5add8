"""The runs there are and the tables to answer from, live ones and stored ones alike."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import OrderedDict
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.api import ledgers
from es_service.api.live import LiveRuns, LiveTable
from es_service.api.problems import Problem
from es_service.api.settings import Settings
from es_service.api.tables import Labels, TableView, timestamp
from es_service.selection.run import RunConfig
from es_service.storage import columns, labels
from es_service.storage.runs import RunStorage, check_run_name, config_to_dict, list_runs

__all__ = ["Catalogue"]

_ROWS_EVERY_S = 1.0
_FILES_EVERY_S = 0.2
_SIGN_OF_LIFE_S = 120.0  # files of a run that changed this recently: somebody trains it
_MOST_VIEWS = 16
_FEW_VIEWS = 4  # a run's newest epochs and what it is now
_MOST_ROWS = 50_000_000  # of all views together, beyond those few: what is worked out of them is kept with them
_NOTES = ("run.json", "result.json", "progress.json", "samples.json")


@dataclasses.dataclass
class _Described:
    """What a run's files say, until one of them changes."""

    times: dict[str, int]  # of its files, nanoseconds since 1970
    snapshots: dict[int, int]
    config: RunConfig
    training: dict[str, Any]
    result: dict[str, Any] | None
    progress: dict[str, Any] | None
    notes: labels.SampleNotes
    search: str | None
    checked_at: float  # on the monotonic clock


class Catalogue:
    """What the service knows of a storage folder; safe to use from many threads.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.storage = settings.storage
        self.live = LiveRuns(settings.storage, settings.refresh_s, enabled=settings.ray, nice=settings.nice)
        self._lock = threading.Lock()
        self._listing = threading.Lock()
        self._described: dict[str, _Described] = {}
        self._rows: list[dict[str, Any]] = []
        self._rows_at = -_ROWS_EVERY_S
        self._views: OrderedDict[Any, TableView] = OrderedDict()
        self._labels: OrderedDict[Any, Labels] = OrderedDict()

    def close(self) -> None:
        """Let go of the Ray cluster."""
        self.live.close()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each run, at most a second old; StorageError where the folder cannot be listed."""
        with self._listing:
            if time.monotonic() - self._rows_at >= _ROWS_EVERY_S:
                names = list_runs(self.storage)
                live = self.live.runs()
                self._rows = [self._row_or_reason(name, live.get(name)) for name in names]
                for gone in set(self._described) - set(names):
                    self._described.pop(gone, None)
                self._rows_at = time.monotonic()
            return [_aged(row) for row in self._rows]

    def _row_or_reason(self, run: str, stats: dict[str, Any] | None) -> dict[str, Any]:
        try:
            return self._row(run, self._describe(run), stats)
        except errors.EsServiceError as error:  # one damaged run must not hide the others
            return {**dict.fromkeys(_ROW), "run": run, "status": "unreadable", "detail": str(error)}

    def row(self, run: str) -> dict[str, Any]:
        """Return one run's row; RunNotFoundError or StorageError where there is none."""
        return _aged(self._row(run, self._describe(run), self.live.runs().get(run)))

    def _describe(self, run: str) -> _Described:
        known = self._described.get(check_run_name(run))
        if known is not None and time.monotonic() - known.checked_at < _FILES_EVERY_S:
            return known
        checked_at, storage = time.monotonic(), RunStorage(self.storage, run)
        infos = storage.filesystem.get_file_info([f"{storage.path}/{name}" for name in _NOTES])
        times = {
            name: info.mtime_ns or 0 for name, info in zip(_NOTES, infos, strict=True) if info.type == fs.FileType.File
        }
        snapshots = columns.snapshot_times(storage.filesystem, storage.path)
        if known is not None and known.times == times:
            known.snapshots, known.checked_at = snapshots, checked_at
            return known
        described = _Described(
            times,
            snapshots,
            storage.config(),
            storage.training() or {},
            storage.result(),
            storage.read_note("progress"),
            labels.read_notes(storage),
            storage.search(),
            checked_at,
        )
        self._described[run] = described
        return described

    def _row(self, run: str, described: _Described, stats: dict[str, Any] | None) -> dict[str, Any]:
        config, training = described.config, described.training
        seconds = [*described.times.values(), *described.snapshots.values()]
        updated = max(seconds) / 1e9
        epoch = max(described.snapshots, default=0)
        progress = described.progress or {}
        if stats is not None:
            epoch = stats["finished_epochs"]
            progress = stats["progress"] or progress
        is_done = described.result is not None or epoch >= config.num_epochs
        if stats is not None and not is_done:
            updated = time.time()
        ledger = ledgers.summary(described.result, progress)
        if is_done:
            status = "finished"
        else:
            status = "live" if stats is not None or time.time() - updated < _SIGN_OF_LIFE_S else "stale"
        num_epochs = config.num_epochs
        told = (progress.get("epoch", 0) + progress.get("done", 0.0)) / num_epochs if progress else 0.0
        return {
            "run": run,
            "status": status,
            "detail": None,
            "task": training.get("task"),
            "method": training.get("method") or config.selection.method.name,
            "search": described.search,
            "num_samples": config.num_samples,
            "epoch": epoch,
            "epochs": num_epochs,
            "done": 1.0 if is_done else round(min(1.0, max(told, epoch / num_epochs)), 4),
            "workers": (stats or {}).get("world_size") or training.get("workers"),
            "exchange": training.get("exchange"),
            "accuracy": ledger["accuracy"],
            "saving": ledger["saving"],
            "seconds": ledger["seconds"],
            "begun_at": timestamp(described.times.get("run.json", 0) / 1e9),
            "updated_at": timestamp(updated),
            "_updated": updated,
        }

    def detail(self, run: str) -> dict[str, Any]:
        """Return all there is to say of a run but its samples."""
        described, stats = self._describe(run), self.live.runs().get(run)
        try:
            table = self.view(run).describe()
        except Problem:
            table = None
        server = None
        if stats is not None:
            counts = ("num_reports", "num_observed", "num_selected", "num_queued")
            names = ("pid", "shards", "world_size", *counts, "table_bytes")
            server = {**{name: stats[name] for name in names}, "restarts": self.live.restarts.get(run, 0)}
        label_names = described.notes.label_names
        return {
            **_aged(self._row(run, described, stats)),
            "config": config_to_dict(described.config),
            "training": described.training or None,
            "table": table,
            "server": server,
            "labels": None if label_names is None else list(label_names),
            "preview": described.notes.preview,
            "snapshots": list(described.snapshots),
        }

    def ledger(self, run: str) -> dict[str, Any]:
        """Return where a run's samples and seconds went."""
        described, stats = self._describe(run), self.live.runs().get(run)
        progress = (stats or {}).get("progress") or described.progress
        return {"run": run, **ledgers.ledger(described.result, progress)}

    def training(self, run: str) -> tuple[dict[str, Any], labels.SampleNotes]:
        """Return how a run is trained, as it noted it, and what is known of its samples."""
        described = self._describe(run)
        return described.training, described.notes

    def snapshots(self, run: str) -> list[int]:
        """Return the epochs for which the storage holds a snapshot, ascending."""
        return list(self._describe(run).snapshots)

    def snapshot_age_s(self, run: str) -> float | None:
        """Return how many seconds ago the newest snapshot was written, None where there is none."""
        newest = max(self._describe(run).snapshots.values(), default=None)
        return None if newest is None else max(0.0, time.time() - newest / 1e9)

    # -- tables -------------------------------------------------------------------------------------------------------

    def view(self, run: str) -> TableView:
        """Return the table to answer from: the live one, else the newest snapshot's.

        Raises:
            RunNotFoundError, StorageError: there is no such run, or it cannot be read.
            Problem: the run has no table yet.
        """
        described = self._describe(run)
        live = self.live.table(run)
        if live is not None and (live.stats["finished_epochs"], live.stats["open_epoch"]) != (0, None):
            return self._live_view(run, described, live)
        if not described.snapshots:
            raise Problem(
                "no-table-yet",
                f"run {run!r} has no table yet: a snapshot is written at the end of each epoch, and no score server of "
                "it is to be seen from here",
                "ask again after its first epoch; for live answers run `serve` with RAY_ADDRESS set to its cluster",
            )
        return self.view_at(run, max(described.snapshots))

    def view_at(self, run: str, epoch: int) -> TableView:
        """Return the table at the end of an epoch; StorageError where the storage holds no snapshot of it."""
        described = self._describe(run)
        if epoch not in described.snapshots:
            raise errors.StorageError(f"run {run!r} keeps no snapshot of epoch {epoch}")
        key = (run, epoch, described.snapshots[epoch])
        if (known := self._known_view(key)) is not None:
            return known
        storage = RunStorage(self.storage, run)
        opened = columns.open_snapshot(storage.filesystem, storage.path, epoch, described.config.end_of_ids)
        view = TableView(
            opened.shards,
            version=f"stored-{epoch}-{opened.written_ns:x}",
            source="storage",
            epoch=epoch,
            as_of=opened.written_ns / 1e9,
            epoch_starts=opened.epoch_starts,
            labels=self._labels_of(run, described),
        )
        return self._keep_view(key, view)

    def _live_view(self, run: str, described: _Described, live: LiveTable) -> TableView:
        key = (run, "live", live.version)
        view = self._known_view(key)
        if view is None:
            finished, starts = RunStorage(self.storage, run).position()
            view = self._keep_view(
                key,
                TableView(
                    [live.table],
                    version=live.version,
                    source="live",
                    epoch=live.stats["finished_epochs"],
                    open_epoch=live.stats["open_epoch"],
                    as_of=live.as_of,
                    epoch_starts=starts if finished == live.stats["finished_epochs"] else None,
                    labels=self._labels_of(run, described),
                ),
            )
        view.as_of = live.as_of  # it still is like this
        return view

    def _known_view(self, key: Any) -> TableView | None:
        with self._lock:
            view = self._views.get(key)
            if view is not None:
                self._views.move_to_end(key)
            return view

    def _keep_view(self, key: Any, view: TableView) -> TableView:
        with self._lock:
            view = self._views.setdefault(key, view)
            if key[1] == "live":  # the one before is of no use to anybody else
                for old in [one for one in self._views if one[:2] == key[:2] and one != key]:
                    del self._views[old]
            while len(self._views) > _MOST_VIEWS or (
                len(self._views) > _FEW_VIEWS and self._rows_viewed() > _MOST_ROWS
            ):
                self._views.popitem(last=False)
            return view

    def _rows_viewed(self) -> int:
        return sum(view.num_rows for view in self._views.values())

    def _labels_of(self, run: str, described: _Described) -> Labels | None:
        if not described.notes.has_labels:
            return None
        key = (run, described.times["run.json"])
        with self._lock:
            if key in self._labels:
                return self._labels[key]
        try:
            codes = labels.read_labels(RunStorage(self.storage, run))
        except errors.StorageError:  # figures are of use without them
            return None
        found = Labels(codes, described.notes.label_names)
        with self._lock:
            self._labels[key] = found
            while len(self._labels) > _MOST_VIEWS:
                self._labels.popitem(last=False)
        return found


_ROW = (
    "run", "status", "detail", "task", "method", "search", "num_samples", "epoch", "epochs", "done", "workers",
    "exchange", "accuracy", "saving", "seconds", "begun_at", "updated_at", "age_s",
)  # fmt: skip


def _aged(row: dict[str, Any]) -> dict[str, Any]:
    updated = row.get("_updated")
    age = None if updated is None else round(max(0.0, time.time() - updated), 3)
    return {name: age if name == "age_s" else row.get(name) for name in _ROW}

"""The runs of a storage folder and their tables, live and stored alike."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Any

from es_service import errors
from es_service.api.guard.problems import Problem
from es_service.api.live.runs import LiveRuns, LiveTable
from es_service.api.runs import ledgers
from es_service.api.runs.descriptions import Described, Descriptions
from es_service.api.runs.listing import Listing, RunList
from es_service.api.runs.rows import aged, row_of
from es_service.api.settings import Settings
from es_service.api.table.view import Labels, TableView
from es_service.storage import columns, labels
from es_service.storage.runs import RunStorage, config_to_dict

__all__ = ["Catalogue"]

_MOST_VIEWS = 16
_FEW_VIEWS = 4  # a run's newest epochs and what it is now
_MOST_ROWS = 50_000_000  # of all views together, beyond those few: what is worked out of them is kept with them


class Catalogue:
    """What the service knows of a storage folder; safe to use from many threads.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.storage = settings.storage
        self.live = LiveRuns(settings.storage, settings.refresh_s, enabled=settings.ray, nice=settings.nice)
        self._descriptions = Descriptions(settings.storage)
        self._runs = RunList(settings.storage, self._descriptions, self.live)
        self._lock = threading.Lock()
        self._views: OrderedDict[Any, TableView] = OrderedDict()
        self._labels: OrderedDict[Any, Labels] = OrderedDict()

    def close(self) -> None:
        """Let go of the Ray cluster."""
        self._runs.close()
        self.live.close()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def rows(self) -> Listing:
        """Return the runs of the folder, to take rows from; StorageError where the folder cannot be listed."""
        return self._runs.now()

    def row(self, run: str) -> dict[str, Any]:
        """Return one run's row; RunNotFoundError or StorageError where there is none."""
        return aged(row_of(run, self._descriptions.get(run), self.live.runs().get(run)))

    def opened(self, run: str) -> RunStorage:
        """Return a run's storage to read from; StorageError where something in it must not be followed."""
        return self._descriptions.opened(run)

    def detail(self, run: str) -> dict[str, Any]:
        """Return a run in detail, without its samples."""
        described, stats = self._descriptions.get(run), self.live.runs().get(run)
        said = described.said
        try:
            table = self.view(run).describe()
        except Problem:
            table = None
        server = None
        if stats is not None:
            counts = ("num_reports", "num_observed", "num_selected", "num_queued")
            names = ("pid", "shards", "world_size", *counts, "table_bytes")
            server = {**{name: stats[name] for name in names}, "restarts": self.live.restarts.get(run, 0)}
        label_names = said.notes.label_names
        return {
            **aged(row_of(run, described, stats)),
            "config": config_to_dict(said.config),
            "training": said.training or None,
            "table": table,
            "server": server,
            "labels": None if label_names is None else list(label_names),
            "preview": said.notes.preview,
            "snapshots": list(described.signs.snapshots),
        }

    def ledger(self, run: str) -> dict[str, Any]:
        """Return where a run's samples and seconds went."""
        said, stats = self._descriptions.get(run).said, self.live.runs().get(run)
        progress = (stats or {}).get("progress") or said.progress
        return {"run": run, **ledgers.ledger(said.result, progress)}

    def training(self, run: str) -> tuple[dict[str, Any], labels.SampleNotes]:
        """Return how a run is trained, as it noted it, and what is known of its samples."""
        said = self._descriptions.get(run).said
        return said.training, said.notes

    def snapshots(self, run: str) -> list[int]:
        """Return the epochs for which the storage holds a snapshot, ascending."""
        return list(self._descriptions.get(run).signs.snapshots)

    def snapshot_age_s(self, run: str) -> float | None:
        """Return how many seconds ago the newest snapshot was written, None where there is none."""
        newest = max(self._descriptions.get(run).signs.snapshots.values(), default=None)
        return None if newest is None else max(0.0, time.time() - newest / 1e9)

    # -- tables -------------------------------------------------------------------------------------------------------

    def view(self, run: str) -> TableView:
        """Return the table to answer from: the live one, else the newest snapshot's.

        Raises:
            RunNotFoundError, StorageError: there is no such run, or it cannot be read.
            Problem: the run has no table yet.
        """
        described = self._descriptions.get(run)
        live = self.live.table(run)
        if live is not None and (live.stats["finished_epochs"], live.stats["open_epoch"]) != (0, None):
            return self._live_view(run, described, live)
        if not described.signs.snapshots:
            raise Problem(
                "no-table-yet",
                f"run {run!r} has no table yet: a snapshot is written at the end of each epoch, and no score server of "
                "it is to be seen from here",
                "ask again after its first epoch; for live answers run `serve` with RAY_ADDRESS set to its cluster",
            )
        return self.view_at(run, max(described.signs.snapshots))

    def view_at(self, run: str, epoch: int) -> TableView:
        """Return the table at the end of an epoch; StorageError where the storage holds no snapshot of it."""
        described = self._descriptions.get(run)
        if epoch not in described.signs.snapshots:
            raise errors.StorageError(f"run {run!r} keeps no snapshot of epoch {epoch}")
        key = (run, epoch, described.signs.snapshots[epoch])
        if (known := self._known_view(key)) is not None:
            return known
        storage = self.opened(run)
        opened = columns.open_snapshot(storage.filesystem, storage.path, epoch, described.said.config.end_of_ids)
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

    def _live_view(self, run: str, described: Described, live: LiveTable) -> TableView:
        key = (run, "live", live.version)
        view = self._known_view(key)
        if view is None:
            finished, starts = self.opened(run).snapshots.position()
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
            if key[1] == "live":  # no reader needs the one before
                for old in [one for one in self._views if one[:2] == key[:2] and one != key]:
                    del self._views[old]
            while len(self._views) > _MOST_VIEWS or (
                len(self._views) > _FEW_VIEWS and self._rows_viewed() > _MOST_ROWS
            ):
                self._views.popitem(last=False)
            return view

    def _rows_viewed(self) -> int:
        return sum(view.num_rows for view in self._views.values())

    def _labels_of(self, run: str, described: Described) -> Labels | None:
        if not described.said.notes.has_labels:
            return None
        key = (run, described.signs.times["run.json"])
        with self._lock:
            if key in self._labels:
                return self._labels[key]
        try:
            codes = labels.read_labels(self.opened(run))
        except errors.StorageError:  # figures are of use without them
            return None
        found = Labels(codes, described.said.notes.label_names)
        with self._lock:
            self._labels[key] = found
            while len(self._labels) > _MOST_VIEWS:
                self._labels.popitem(last=False)
        return found

"""Rows of runs, one each, and how lists of them are filtered and sorted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable
from typing import Any

from es_service.api.runs import ledgers
from es_service.api.runs.descriptions import Described
from es_service.api.table.view import timestamp
from es_service.storage.plain import count, number, text

__all__ = ["FIELDS", "RunQuery", "aged", "row_of", "unreadable"]

_SIGN_OF_LIFE_S = 120.0  # a run whose files changed this recently is being trained
FIELDS = (
    "run", "status", "detail", "task", "method", "search", "num_samples", "epoch", "epochs", "done", "workers",
    "exchange", "accuracy", "saving", "seconds", "begun_at", "updated_at", "age_s",
)  # fmt: skip
"""Of a row."""
_SEARCHED = ("run", "task", "method", "search")
_OF_THE_FOLDER = ("run", "begun_at", "updated_at")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunQuery:
    """What is asked of a list of runs.

    Args:
        words: that the run's, task's, method's or search's name holds; "" for any.
        statuses: one of which a run has; none for any.
        search: whose trials are asked for; "" for any run.
        order: a field.
        descending: the other way round.
        offset, limit: which of those that match.
    """

    words: str = ""
    statuses: Collection[str] = ()
    search: str = ""
    order: str = "updated_at"
    descending: bool = True
    offset: int = 0
    limit: int = 100

    @property
    def is_of_folders(self) -> bool:
        """Whether names and times of files decide which runs these are, so that the other runs need not be read."""
        return not (self.words or self.statuses or self.search) and self.order in _OF_THE_FOLDER

    def ordered(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows that match, in order; those without a value come last."""
        found = [row for row in rows if self._matches(row)]
        known = [row for row in found if row[self.order] is not None]
        known.sort(key=lambda row: (row[self.order], row["run"]), reverse=self.descending)
        return known + [row for row in found if row[self.order] is None]

    def cut(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those of a list that the page shows."""
        return rows[self.offset : self.offset + self.limit]

    def _matches(self, row: dict[str, Any]) -> bool:
        return (
            (not self.statuses or row["status"] in self.statuses)
            and (not self.search or row["search"] == self.search)
            and any(self.words.lower() in (row[key] or "").lower() for key in _SEARCHED)
        )


def row_of(run: str, described: Described, stats: dict[str, Any] | None) -> dict[str, Any]:
    """Return a run's row; `stats` are those of its score server, None where none is found."""
    signs, said = described.signs, described.said
    config, training, progress = said.config, said.training, said.progress or {}
    updated = signs.updated_ns / 1e9
    epoch = max(signs.snapshots, default=0)
    if stats is not None:
        epoch = stats["finished_epochs"]
        progress = stats["progress"] or progress
    is_done = said.result is not None or epoch >= config.num_epochs
    if stats is not None and not is_done:
        updated = time.time()
    ledger = ledgers.summary(said.result, progress)
    if is_done:
        status = "finished"
    else:
        status = "live" if stats is not None or time.time() - updated < _SIGN_OF_LIFE_S else "stale"
    reported = sum(number(progress.get(key)) or 0 for key in ("epoch", "done")) / config.num_epochs
    return {
        "run": run,
        "status": status,
        "detail": None,
        "task": text(training.get("task")),
        "method": text(training.get("method")) or config.selection.method.name,
        "search": said.search,
        "num_samples": config.num_samples,
        "epoch": epoch,
        "epochs": config.num_epochs,
        "done": 1.0 if is_done else round(min(1.0, max(reported, epoch / config.num_epochs)), 4),
        "workers": (stats or {}).get("world_size") or count(training.get("workers")),
        "exchange": text(training.get("exchange")),
        "accuracy": ledger["accuracy"],
        "saving": ledger["saving"],
        "seconds": ledger["seconds"],
        "begun_at": timestamp(signs.times.get("run.json", 0) / 1e9),
        "updated_at": timestamp(updated),
        "_updated": updated,
    }


def unreadable(run: str, why: str, begun_ns: int = 0, updated_ns: int = 0) -> dict[str, Any]:
    """Return the row of a run that cannot be read; its times where the folder has them."""
    return {
        **dict.fromkeys(FIELDS),
        "run": run,
        "status": "unreadable",
        "detail": why,
        "begun_at": timestamp(begun_ns / 1e9) if begun_ns else None,
        "updated_at": timestamp(updated_ns / 1e9) if updated_ns else None,
        "_updated": updated_ns / 1e9 if updated_ns else None,
    }


def aged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as it is now, with its fields in order."""
    updated = row.get("_updated")
    age = None if updated is None else round(max(0.0, time.time() - updated), 3)
    return {name: age if name == "age_s" else row.get(name) for name in FIELDS}

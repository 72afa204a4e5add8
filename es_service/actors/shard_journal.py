"""A shard's journal: the kinds of records, and what recovery does with each.

    reports   the packed reports of a message, as far as they were new: applied again
    state     who may report what (`ReportLedger.to_dict`), as JSON: loaded. With "go_to": k the rows went back to a
              snapshot, which is loaded; with "loading" they were being replaced, and nothing is certain
    roster    the epoch of each rank (`Membership.to_dict`), as JSON, of the score server: loaded
    plan      of the epoch that the next roster record has open, of the score server: kept for it

Recovery = the newest snapshot that can be read, and every record behind the one that the shard noted with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from es_service import errors
from es_service.selection.shards import Shard
from es_service.storage.runs import RunStorage
from es_service.storage.segments import Record

__all__ = ["Journaled", "from_json", "journal_at", "recover", "to_json"]

_log = logging.getLogger(__name__)


class Journaled(Protocol):
    """What a journal keeps, and brings back."""

    @property
    def kinds(self) -> Sequence[str]:
        """Of its records."""

    def load(self, finished_epochs: int, note: dict[str, Any]) -> None:
        """Go to a snapshot, or for 0 to the beginning, and take up what was noted with it, {} where that is lost."""

    def replay(self, record: Record) -> None:
        """Take up a record of one of its kinds."""

    def note(self) -> dict[str, Any]:
        """Return what a snapshot of now has to note."""


def to_json(values: dict[str, Any]) -> bytes:
    """Pack plain values."""
    return json.dumps(values, separators=(",", ":")).encode()


def from_json(payload: bytes) -> dict[str, Any]:
    """Unpack plain values; StorageError where the bytes are not an object."""
    try:
        values = json.loads(payload)
    except ValueError as error:
        raise errors.StorageError(f"the journal holds a record that is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise errors.StorageError(f"the journal holds a JSON {type(values).__name__}, expected an object")
    return values


def recover(storage: RunStorage, shard: Shard, parts: Sequence[Journaled]) -> tuple[int, bool]:
    """Bring all that a shard's journal keeps to where it was when the journal was last written.

    Returns:
        The number of the last record, and whether all that is known to have been written was found.

    Raises:
        StorageError: there are snapshots, and none of them can be read.
    """
    by_kind = {kind: part for part in parts for kind in part.kinds}

    def load(finished: int, note: dict[str, Any]) -> None:
        for part in parts:
            part.load(finished, note)

    failure = errors.StorageError("nothing can be loaded")
    epochs = [*reversed(storage.snapshots.epochs()), 0]
    for finished in epochs:
        try:
            note = _note(storage, shard, finished, is_only=len(epochs) == 1)
            if note is None:
                continue
            load(finished, note)
            last = int(note["journal"])
            for record in storage.journal(shard).records(last):
                if record.kind not in by_kind:
                    raise errors.StorageError(f"the journal holds a record of the unknown kind {record.kind!r}")
                by_kind[record.kind].replay(record)
                last = record.number
            _set_aside(storage, shard, last)
            return last, True
        except errors.StorageError as error:
            _log.error("%s; trying what was written before it", error)
    for finished in epochs[:-1] or epochs:
        try:
            load(finished, {})
        except errors.StorageError as error:
            failure = error
            continue
        behind = 1 + max([*storage.journal(shard).first_records(), *(_number(storage, shard, one) for one in epochs)])
        _set_aside(storage, shard, 0)
        storage.journal(shard).write_base(
            finished, behind
        )  # behind a gap: nothing older is ever joined to what comes now
        return behind, False
    raise failure


def _note(storage: RunStorage, shard: Shard, finished: int, *, is_only: bool = False) -> dict[str, Any] | None:
    """Return what the shard noted with a snapshot; None where its journal does not continue from there."""
    begun_anew = storage.journal(shard).base(finished)
    if finished == 0:
        segments = storage.journal(shard).first_records()
        if begun_anew is None and (segments[:1] == [1] or (not segments and is_only)):
            return {"journal": 0}
    else:
        note = storage.snapshots.note(finished, shard)
        if note is not None and not isinstance(note.get("journal"), int):
            raise errors.StorageError(f"the manifest of epoch {finished} lacks how far the journal was")
        if note is not None and (begun_anew is None or begun_anew < note["journal"]):
            return note
    return None if begun_anew is None else {"journal": begun_anew}


def journal_at(storage: RunStorage, shard: Shard, finished: int) -> int | None:
    """Return the number of the last record that a snapshot holds; None where its journal does not continue there.

    Args:
        storage: of the run.
        shard: which one.
        finished: epochs that the snapshot has behind it, 0 for an empty table.
    """
    note = _note(storage, shard, finished)
    return None if note is None else int(note["journal"])


def _number(storage: RunStorage, shard: Shard, finished: int) -> int:
    """Return how far the journal was at a snapshot, 0 where unknown."""
    with contextlib.suppress(errors.StorageError):
        return journal_at(storage, shard, finished) or 0
    return 0


def _set_aside(storage: RunStorage, shard: Shard, after: int) -> None:
    aside = storage.journal(shard).set_aside(after)
    if aside:
        _log.error("what cannot be used of the journal is kept beside it: %s", ", ".join(aside))

"""Descriptions of runs from their files, read again only where one of them has changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection

from pyarrow import fs

from es_service import errors
from es_service.storage import columns, files
from es_service.storage.described import Description, describe
from es_service.storage.listing import check_run_name
from es_service.storage.runs import RunStorage

__all__ = ["Described", "Descriptions", "Signs"]

_FILES_EVERY_S = 0.2
_FAILED_AGAIN_S = 5.0
_NOTES = ("run.json", "result.json", "progress.json", "samples.json")


@dataclasses.dataclass(frozen=True, slots=True)
class Signs:
    """When a run's files were written, nanoseconds since 1970: costs no reading.

    Attributes:
        times: of run.json and the notes beside it.
        snapshots: by epochs finished.
    """

    times: dict[str, int]
    snapshots: dict[int, int]

    @property
    def updated_ns(self) -> int:
        """The last of them; 0 for none."""
        return max([*self.times.values(), *self.snapshots.values()], default=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """A run's description, and the signs of the files that it was read from."""

    signs: Signs
    said: Description


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    signs: Signs
    said: Description | errors.EsServiceError
    checked_at: float  # on the monotonic clock
    read_at: float

    def holds_at(self, now: float) -> bool:
        """Whether it need not be read again while the files stay as they are; permissions may change without that."""
        return isinstance(self.said, Description) or now - self.read_at < _FAILED_AGAIN_S


class Descriptions:
    """Reads the runs of a storage folder; safe to use from many threads, and holds no lock.

    Args:
        storage: that folder, or URI.
    """

    def __init__(self, storage: str) -> None:
        self._storage = storage
        self._known: dict[str, _Known] = {}

    def get(self, run: str) -> Described:
        """Return a run's description from its files, at most 0.2 s old.

        Raises:
            RunNotFoundError, RunNameError, StorageError: there is no such run, or it cannot be read.
        """
        known = self._known.get(check_run_name(run))
        if known is None or time.monotonic() - known.checked_at >= _FILES_EVERY_S:
            return self.read(run, self.look(run))
        return _result_of(known)

    def look(self, run: str) -> Signs:
        """Return when a run's files were written; StorageError where its folder cannot be looked into."""
        storage = RunStorage(self._storage, run)
        with files.storage_errors("look into", storage.path):
            infos = storage.filesystem.get_file_info([f"{storage.path}/{name}" for name in _NOTES])
        times = {
            name: info.mtime_ns or 0 for name, info in zip(_NOTES, infos, strict=True) if info.type == fs.FileType.File
        }
        return Signs(times, columns.snapshot_times(storage.filesystem, storage.path))

    def is_read(self, run: str, signs: Signs) -> bool:
        """Return whether a run was read, well or not, since its files were last written."""
        known = self._known.get(run)
        return known is not None and known.signs.times == signs.times

    def read(self, run: str, signs: Signs) -> Described:
        """Return a run's description from its files, given when they were written; raises as `get` does."""
        checked_at, known = time.monotonic(), self._known.get(run)
        if known is not None and known.signs.times == signs.times and known.holds_at(checked_at):
            known = dataclasses.replace(known, signs=signs, checked_at=checked_at)
        else:
            try:
                known = _Known(signs, describe(RunStorage(self._storage, run)), checked_at, checked_at)
            except errors.EsServiceError as error:
                known = _Known(signs, error, checked_at, checked_at)
        self._known[run] = known
        return _result_of(known)

    def opened(self, run: str) -> RunStorage:
        """Return a run's storage to read tables from; StorageError where something in it must not be followed."""
        storage = RunStorage(self._storage, run)
        storage.check_contents()
        return storage

    def forget_others(self, runs: Collection[str]) -> None:
        """Forget what is none of these."""
        for gone in set(self._known) - set(runs):
            self._known.pop(gone, None)


def _result_of(known: _Known) -> Described:
    if isinstance(known.said, errors.EsServiceError):
        raise known.said.with_traceback(None)
    return Described(known.signs, known.said)

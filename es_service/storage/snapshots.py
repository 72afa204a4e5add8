"""Snapshots: a run's state between two epochs, as Arrow IPC files with a manifest of their checksums.

    snapshots/<epochs finished, 8 digits>-<stamp>-<n>/shard-<i>.arrow   the rows of ids i, i+S, i+2S, … for S shards
    snapshots/<epochs finished, 8 digits>-<stamp>-<n>/manifest.json     format, epoch_starts, per file bytes and sha256

The files are written where they stay, the manifest last: a snapshot is there if, and only if, its manifest is. Nothing
is renamed, since object stores cannot. The stamp is the writer's, see terms.py; a writer's n-th snapshot of an epoch
replaces the one before it. Of other writers only those count that the present one found when it took the run over.

A snapshot can be read for any number of shards. What a shard notes with its file (how far its journal was) only means
something to a shard of the same place and number.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.selection.past import BEGINNING, Past
from es_service.selection.run import RunState
from es_service.selection.shards import WHOLE, Shard
from es_service.selection.table import arrow_to_records, records_to_arrow
from es_service.storage import files, sealed, spreads
from es_service.storage.manifest import Files, Manifest, shard_file
from es_service.storage.table_files import decode_table, most_bytes, write_table
from es_service.storage.terms import NOBODY, list_claims

__all__ = ["Snapshots"]

_NAME = re.compile(r"([0-9]{8})(?:-([0-9]{8}-[0-9a-f]{8})-([0-9]{4}))?")  # epochs alone: of the format before stamps


def _stamp(name: str) -> str:
    """Return the stamp of the writer of a snapshot by its folder's name."""
    found = _NAME.fullmatch(name)
    return "" if found is None or found[2] is None else found[2]


class Snapshots:
    """Those of a run; see the module's text.

    Args:
        filesystem: that the run is on.
        run_path: folder of the run.
    """

    def __init__(self, filesystem: fs.FileSystem, run_path: str) -> None:
        self._filesystem, self._run_path, self._folder = filesystem, run_path, f"{run_path}/snapshots"

    # -- which there are ----------------------------------------------------------------------------------------------

    def _placed(self) -> tuple[set[str], set[str]]:
        """Return the names of the folders with a manifest, and of those without."""
        infos = files.list_folder(self._filesystem, self._folder, recursive=True)
        found = [info.path[len(self._folder) + 1 :].split("/") for info in infos]
        whole = {names[0] for names in found if names[1:] == ["manifest.json"] and _NAME.fullmatch(names[0])}
        return whole, {names[0] for names in found if _NAME.fullmatch(names[0])} - whole

    def highest_stamp(self) -> str:
        """Return the highest stamp of any snapshot, those that do not count too."""
        whole, partial = self._placed()
        return max([NOBODY, *map(_stamp, whole | partial)])

    def names(self) -> list[str]:
        """Return the folders' names of those that count, ascending; two of an epoch, while one replaces another."""
        names = sorted(self._placed()[0])
        claims = list_claims(self._filesystem, f"{self._run_path}/owners/run")
        if not claims or all(_stamp(name) == claims[-1] for name in names):
            return names
        for stamp in reversed(claims):
            with contextlib.suppress(errors.StorageError):  # damaged, or forgotten while we looked
                path = f"{self._run_path}/owners/run/{stamp}.json"
                accepted = sealed.check(files.read_json(self._filesystem, path), path).get("snapshots")
                if isinstance(accepted, list):  # else it took over just now, and has written nothing
                    return [name for name in names if name in accepted or _stamp(name) == stamp]
        return names

    def folders(self) -> dict[int, str]:
        """Return the folder of each epoch's snapshot, by epochs finished; ascending."""
        return {int(name[:8]): f"{self._folder}/{name}" for name in self.names()}

    def epochs(self) -> list[int]:
        """Return the epochs at whose end there is a snapshot, ascending."""
        return list(self.folders())

    def newest(self) -> int:
        """Return how many epochs the newest has behind it, 0 where there is none."""
        return max(self.epochs(), default=0)

    # -- reading ------------------------------------------------------------------------------------------------------

    def manifest(self, finished_epochs: int) -> Manifest:
        """Return the manifest of an epoch's end; StorageError where the snapshot is missing, or it is damaged."""
        folder = self.folders().get(finished_epochs)
        if folder is None:
            raise errors.StorageError(f"{self._run_path} holds no snapshot of the end of epoch {finished_epochs - 1}")
        return Manifest.read(self._filesystem, folder)

    def note(self, finished_epochs: int, shard: Shard) -> dict[str, Any] | None:
        """Return what this very shard noted with its file; None where it noted nothing or others wrote the snapshot."""
        entries = self.manifest(finished_epochs).files
        note = entries[shard_file(shard.index)]["note"] if len(entries) == shard.count else None
        return note if isinstance(note, dict) else None

    def table_sha256(self, finished_epochs: int) -> str | None:
        """Return the sha256 of the table where it lies in one file; None where shards wrote several."""
        entries = self.manifest(finished_epochs).files
        return str(entries[shard_file(0)]["sha256"]) if len(entries) == 1 else None

    def holds(self, finished_epochs: int, sha256: str) -> bool:
        """Return whether there is a whole snapshot of this epoch with this very table, in one file."""
        try:
            if finished_epochs not in self.epochs() or self.table_sha256(finished_epochs) != sha256:
                return False
            self.read(finished_epochs)
        except errors.StorageError:  # a damaged one: the caller has the table
            return False
        return True

    def read(self, finished_epochs: int, shard: Shard = WHOLE, most_samples: int | None = None) -> RunState:
        """Return the state that was written for this epoch, with the rows of one shard; however many wrote it.

        Raises:
            StorageError: it is missing or damaged, or has more than `most_samples`.
        """
        manifest = self.manifest(finished_epochs)
        starts, num_samples, count = manifest.epoch_starts, manifest.num_samples, len(manifest.files)
        manifest.check_size(most_samples)

        def part(index: int) -> NDArray[np.void]:
            path, own = f"{manifest.folder}/{shard_file(index)}", Shard(index, count)
            num_rows = own.num_rows(num_samples)
            data = files.read_bytes(self._filesystem, path, most_bytes(num_rows))
            if hashlib.sha256(data).hexdigest() != manifest.files[shard_file(index)]["sha256"]:
                raise errors.StorageError(f"{path} is damaged: its sha256 is not the one in the manifest")
            return arrow_to_records(decode_table(data, path, num_rows), num_rows, own)

        if count == shard.count:
            return RunState(part(shard.index), finished_epochs, starts, manifest.past)
        first = part(0)
        whole = np.empty(num_samples, dtype=first.dtype)
        for index in range(count):
            whole[index::count] = part(index) if index else first
        own = np.ascontiguousarray(whole[shard.index :: shard.count])
        return RunState(own, finished_epochs, starts, manifest.past)

    def position(self, finished_epochs: int | None = None) -> tuple[int, tuple[int, ...]]:
        """Return the epochs behind a snapshot, the newest by default, and the run step at which each, and the next one,
        begins; (0, (0,)) where there is none.
        """
        if finished_epochs is None:
            finished_epochs = self.newest()
        if not finished_epochs:
            return 0, (0,)
        return finished_epochs, self.manifest(finished_epochs).epoch_starts

    def past(self, finished_epochs: int) -> Past:
        """Return what is behind the run at an epoch's end; of a run that has none, its beginning."""
        return self.manifest(finished_epochs).past if finished_epochs else BEGINNING

    def table(self, most_samples: int | None = None) -> pa.Table:
        """Return the newest one's table; StorageError where there is none, or it has more than `most_samples`."""
        newest = self.newest()
        if not newest:
            raise errors.StorageError(
                f"{self._run_path} holds no snapshot yet: one is written at the end of each epoch"
            )
        return records_to_arrow(self.read(newest, most_samples=most_samples).records)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, state: RunState, *, stamp: str = NOBODY, keep: int = 3) -> str:
        """Write a run's whole state, see `finish`; return its table's sha256."""
        folder = self.begin(state.finished_epochs, stamp)
        part = self.write_part(folder, state.records, WHOLE)
        self.finish(folder, state.epoch_starts, state.records.size, part, state.past, keep=keep)
        return str(part[shard_file(0)]["sha256"])

    def begin(self, finished_epochs: int, stamp: str = NOBODY) -> str:
        """Make the folder that shards write their parts into; return its path.

        What snapshots that were never finished have left is deleted: a run has one writer, and it writes one at a time.
        """
        whole, partial = self._placed()
        for name in partial:
            if _stamp(name) <= stamp:
                self._delete(name)
        begins = f"{finished_epochs:08d}-{stamp}-"
        last = max((int(name.rpartition("-")[2]) for name in whole if name.startswith(begins)), default=0)
        folder = f"{self._folder}/{begins}{last + 1:04d}"
        files.make_folder(self._filesystem, folder)
        return folder

    def write_part(
        self, folder: str, records: NDArray[np.void], shard: Shard, note: dict[str, Any] | None = None
    ) -> Files:
        """Write a shard's rows; return the file's entry in the manifest, which keeps the shard's note too.

        It also returns the distributions of the rows' columns, which go into another file.
        """
        name = shard_file(shard.index)
        entry = write_table(self._filesystem, f"{folder}/{name}", records, shard)
        return {name: {**entry, "note": note, "spreads": spreads.spreads_of(records)}}

    def finish(
        self,
        folder: str,
        epoch_starts: Sequence[int],
        num_samples: int,
        parts: Files,
        past: Past = BEGINNING,
        *,
        keep: int = 3,
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the manifest, with which the snapshot is there; keep it and the `keep` - 1 epochs before it.

        One of the same epoch is replaced and later ones are dropped: the run went back, and its future will be another.

        Args:
            folder: as `begin` returned it, with a file of each shard in it.
            epoch_starts: the run step at which each finished epoch, and the next one, begins.
            num_samples: rows of the whole table.
            parts: what `write_part` returned, of all shards.
            past: of the run.
            keep: how many epochs have a snapshot.
            confirm: called behind the manifest, before anything older is given up; raises where the snapshot does not
                count, since another one writes the run.

        Raises:
            StorageError: it cannot be written, or a part is not to be seen from here.
        """
        finished_epochs, own = len(epoch_starts) - 1, folder.rpartition("/")[2]
        spread = spreads.merged([entry["spreads"] for entry in parts.values()])
        entries = {name: {key: entry[key] for key in entry if key != "spreads"} for name, entry in parts.items()}
        with files.storage_errors("write the snapshot", folder):
            for name, entry in entries.items():
                if self._filesystem.get_file_info(f"{folder}/{name}").size != entry["bytes"]:
                    raise errors.StorageError(
                        f"{folder}/{name} was written by its shard but is not to be seen here: shards on several nodes "
                        "need a storage that all of them share"
                    )
        self.drop_after(finished_epochs, _stamp(own))
        spreads.SpreadFiles(self._filesystem, self._run_path).write(finished_epochs, spread)
        Manifest.write(self._filesystem, folder, epoch_starts, past, num_samples, entries)
        confirm()
        for name in sorted(self._placed()[0]):
            is_kept = finished_epochs - keep < int(name[:8]) < finished_epochs
            if _stamp(name) <= _stamp(own) and name != own and not is_kept:
                self._delete(name)

    def drop_after(self, finished_epochs: int, stamp: str) -> None:
        """Delete the snapshots of later epochs that writers up to a stamp have left, and their spreads: the run went
        back, and its future will be another one.
        """
        for name in sorted(self._placed()[0], reverse=True):
            if _stamp(name) <= stamp and int(name[:8]) > finished_epochs:
                self._delete(name)
        spreads.SpreadFiles(self._filesystem, self._run_path).drop_after(finished_epochs)

    def _delete(self, name: str) -> None:
        """Delete a snapshot, the manifest first: one that is deleted in part is none."""
        folder = f"{self._folder}/{name}"
        with files.storage_errors("delete the snapshot", folder):
            if self._filesystem.get_file_info(f"{folder}/manifest.json").type == fs.FileType.File:
                self._filesystem.delete_file(f"{folder}/manifest.json")
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_dir(folder)

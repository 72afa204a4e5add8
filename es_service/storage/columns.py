"""Snapshots for readers: a private copy of their files, mapped rather than held in memory.

A table of 10⁷ rows is 440 MB; a reader of a hundred rows of it should not hold it. A run's own files are never
mapped: the kernel ends a process that looks at pages of a file which was truncated meanwhile (SIGBUS). The copy is
an unnamed temporary file: no other process can change it, and it goes when its reader does. Readers check the
manifest, each file's size and its columns; checksums are checked only where a run is continued.
"""

from __future__ import annotations

import dataclasses
import mmap
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs

from es_service import errors
from es_service.selection.shards import Shard
from es_service.storage import files
from es_service.storage.manifest import shard_file
from es_service.storage.snapshots import Snapshots
from es_service.storage.table_files import decode_table, most_bytes

__all__ = ["SnapshotFiles", "map_table", "open_snapshot", "snapshot_times"]

_PIECE_BYTES = 8 << 20
_ALIGNMENT = 64  # bytes, of a file in the copy


@dataclasses.dataclass(frozen=True, slots=True)
class SnapshotFiles:
    """A snapshot that can be read column by column.

    Attributes:
        finished_epochs: epochs behind it.
        epoch_starts: the run step at which each epoch, and the next one, begins.
        shards: one table per shard; shard i of S holds the ids i, i+S, i+2S, …
        written_ns: when it was put into place, nanoseconds since 1970.
    """

    finished_epochs: int
    epoch_starts: tuple[int, ...]
    shards: tuple[pa.Table, ...]
    written_ns: int


def snapshot_times(filesystem: fs.FileSystem, run_path: str) -> dict[int, int]:
    """Return when each snapshot was written, nanoseconds since 1970, by epochs finished; ascending."""
    found = Snapshots(filesystem, run_path).folders()
    paths = [f"{folder}/manifest.json" for folder in found.values()]
    with files.storage_errors("look into", run_path):
        infos = filesystem.get_file_info(paths) if paths else []
    return {
        epoch: info.mtime_ns or 0
        for epoch, info in zip(found, infos, strict=True)
        if info.type == fs.FileType.File  # else it was dropped a moment ago
    }


def open_snapshot(
    filesystem: fs.FileSystem, run_path: str, finished_epochs: int, most_samples: int | None = None
) -> SnapshotFiles:
    """Open the snapshot of an epoch's end.

    Raises:
        StorageError: it is missing or damaged, or has more than `most_samples`.
    """
    manifest = Snapshots(filesystem, run_path).manifest(finished_epochs)
    folder, num_samples = manifest.folder, manifest.num_samples
    path, names = f"{folder}/manifest.json", [shard_file(index) for index in range(len(manifest.files))]
    sizes = {name: entry["bytes"] for name, entry in manifest.files.items()}
    with files.storage_errors("look into", path):
        written_ns = filesystem.get_file_info(path).mtime_ns or 0
    manifest.check_size(most_samples)
    rows = [Shard(index, len(names)).num_rows(num_samples) for index in range(len(names))]
    paths = [f"{folder}/{name}" for name in names]
    for one, name, num in zip(paths, names, rows, strict=True):
        if sizes[name] > most_bytes(num):
            raise errors.StorageError(f"{one} is damaged: it has {sizes[name]:,} bytes for {num:,} rows")
    copies = _copies(filesystem, {one: sizes[name] for one, name in zip(paths, names, strict=True)})
    shards = tuple(decode_table(*of_one) for of_one in zip(copies, paths, rows, strict=True))
    if sum(shard.num_rows for shard in shards) != num_samples:
        raise errors.StorageError(f"{folder} holds another number of rows than its manifest says, {num_samples:,}")
    return SnapshotFiles(finished_epochs, manifest.epoch_starts, shards, written_ns)


def map_table(path: str) -> pa.Table:
    """Return the table of a local Arrow IPC file of our schema, mapped: of a file that no other process can change."""
    with files.storage_errors("read", path), open(path, "rb") as file:
        return decode_table(_mapped(file), path)


def _mapped(file: Any) -> pa.Buffer:
    return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _copies(filesystem: fs.FileSystem, sizes: dict[str, int]) -> list[pa.Buffer]:
    """Return private copies of these files of so many bytes, parts of one mapped file without a name."""
    places = []
    try:
        _check_room(sum(sizes.values()))
        with tempfile.TemporaryFile(prefix="es-service-") as copy:
            for path, size in sizes.items():
                places.append(copy.tell())
                for piece in _pieces(filesystem, path, size):
                    copy.write(piece)
                copy.write(bytes(_ALIGNMENT - size % _ALIGNMENT))
            copy.flush()
            whole = _mapped(copy)
    except OSError as error:  # of the copy: what goes wrong with the run's files is a StorageError
        raise errors.StorageError(
            f"cannot copy {next(iter(sizes))} to a temporary file: {error}; free some space there, or set TMPDIR to a "
            "folder with more"
        ) from error
    return [whole.slice(place, size) for place, size in zip(places, sizes.values(), strict=True)]


def _check_room(num_bytes: int) -> None:
    """Raise OSError where a copy would take more than half of the space there is: others need some too."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if num_bytes > free // 2:
        raise OSError(f"its {num_bytes:,} bytes are more than half of the {free:,} that are free in {folder}")


def _pieces(filesystem: fs.FileSystem, path: str, size: int) -> Iterator[bytes]:
    """Yield the bytes of a file of this size that stays as it is meanwhile; StorageError where it does not."""
    with files.open_file(filesystem, path) as file:
        before = filesystem.get_file_info(path)
        if before.size != size:
            raise errors.StorageError(f"{path} is damaged: it has {before.size:,} bytes, the manifest says {size:,}")
        for start in range(0, size, _PIECE_BYTES):
            yield file.read(min(_PIECE_BYTES, size - start))
        after = filesystem.get_file_info(path)
        if (after.size, after.mtime_ns) != (before.size, before.mtime_ns):
            raise errors.StorageError(f"{path} was changed while it was read: look again once it is written")

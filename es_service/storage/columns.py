"""Snapshots for readers: their columns as they lie on disk, mapped rather than read where the disk is this machine's.

A table of 10⁷ rows is 440 MB; whoever wants a hundred rows of it should not hold it. What is checked is what keeps a
reader from harm: the manifest, each file's size, its columns. The checksums are for those who continue a run.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa
from pyarrow import fs

from es_service import errors
from es_service.selection.shards import Shard
from es_service.storage import files
from es_service.storage.manifest import shard_file
from es_service.storage.snapshots import Snapshots
from es_service.storage.table_files import decode_table, most_bytes

__all__ = ["SnapshotFiles", "map_table", "open_snapshot", "snapshot_times"]


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
    shards = tuple(
        _open(filesystem, f"{folder}/{name}", sizes[name], num) for name, num in zip(names, rows, strict=True)
    )
    if sum(shard.num_rows for shard in shards) != num_samples:
        raise errors.StorageError(f"{folder} holds another number of rows than its manifest says, {num_samples:,}")
    return SnapshotFiles(finished_epochs, manifest.epoch_starts, shards, written_ns)


def map_table(path: str) -> pa.Table:
    """Return the table of a local Arrow IPC file of our schema without reading it into memory."""
    with files.storage_errors("read", path):
        return decode_table(pa.memory_map(path), path)


def _open(filesystem: fs.FileSystem, path: str, size: int, num_rows: int) -> pa.Table:
    with files.storage_errors("read", path):
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(path)
        if info.size != size or size > most_bytes(num_rows):
            raise errors.StorageError(
                f"{path} is damaged: it has {info.size:,} bytes for {num_rows:,} rows, the manifest says {size:,}"
            )
    if isinstance(filesystem, fs.LocalFileSystem):
        return map_table(path)
    return decode_table(files.read_bytes(filesystem, path, size), path, num_rows)

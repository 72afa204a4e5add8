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
from es_service.storage import files, sealed, snapshots

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
    found = snapshots.find_snapshots(filesystem, run_path)
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
    folder = snapshots.find_snapshots(filesystem, run_path).get(finished_epochs)
    if folder is None:
        raise errors.StorageError(f"{run_path} holds no snapshot of the end of epoch {finished_epochs - 1}")
    path = f"{folder}/manifest.json"
    manifest = sealed.check(files.read_json(filesystem, path), path)
    with files.storage_errors("look into", path):
        written_ns = filesystem.get_file_info(path).mtime_ns or 0
    try:
        starts = tuple(int(start) for start in manifest["epoch_starts"])
        sizes = {str(name): int(entry["bytes"]) for name, entry in manifest["files"].items()}
        num_samples = int(manifest["num_samples"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"{path} is damaged: it does not say which files there are") from error
    names = [f"shard-{index}.arrow" for index in range(len(sizes))]
    if sorted(sizes) != sorted(names) or not names:
        raise errors.StorageError(f"{path} does not name the files shard-0.arrow …")
    snapshots.check_size(num_samples, most_samples, folder)
    rows = [Shard(index, len(names)).num_rows(num_samples) for index in range(len(names))]
    shards = tuple(
        _open(filesystem, f"{folder}/{name}", sizes[name], num) for name, num in zip(names, rows, strict=True)
    )
    if sum(shard.num_rows for shard in shards) != num_samples:
        raise errors.StorageError(f"{folder} holds another number of rows than its manifest says, {num_samples:,}")
    return SnapshotFiles(finished_epochs, starts, shards, written_ns)


def map_table(path: str) -> pa.Table:
    """Return the table of a local Arrow IPC file of our schema without reading it into memory."""
    with files.storage_errors("read", path):
        return snapshots.read_ipc(pa.memory_map(path), path)


def _open(filesystem: fs.FileSystem, path: str, size: int, num_rows: int) -> pa.Table:
    with files.storage_errors("read", path):
        info = filesystem.get_file_info(path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(path)
        if info.size != size or size > snapshots.most_bytes(num_rows):
            raise errors.StorageError(
                f"{path} is damaged: it has {info.size:,} bytes for {num_rows:,} rows, the manifest says {size:,}"
            )
    if isinstance(filesystem, fs.LocalFileSystem):
        return map_table(path)
    return snapshots.read_ipc(files.read_bytes(filesystem, path, size), path, num_rows)

"""Snapshots: a run's state between two epochs, as an Arrow IPC file with a manifest that vouches for it.

    snapshots/<epochs finished, 8 digits>/manifest.json     format, epoch_starts, per file bytes and sha256
    snapshots/<epochs finished, 8 digits>/shard-<i>.arrow   the rows of ids i, i+S, i+2S, … for S shards

A snapshot is written in a folder beside, each shard its own file, and renamed into place, so one that is there is
whole. It can be read for any number of shards. What a shard notes with its file (how far its journal was) only means
something to a shard of the same place and number.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.selection.run import RunState
from es_service.selection.shards import WHOLE, Shard
from es_service.selection.table import SCHEMA, arrow_to_records, is_table_schema, records_to_arrow
from es_service.storage import arrow_files, files, sealed, spreads

__all__ = [
    "begin_snapshot",
    "check_size",
    "decode_table",
    "drop_snapshots_after",
    "encode_table",
    "finish_snapshot",
    "list_snapshots",
    "most_bytes",
    "read_ipc",
    "read_note",
    "read_position",
    "read_snapshot",
    "read_table",
    "table_sha256",
    "write_part",
    "write_snapshot",
]

FORMAT = 2
_READABLE = (1, 2)  # 1: without notes
_END_OF_IDS = 1 << 62
_LEAST_ROW_BYTES, _MOST_ROW_BYTES, _HEAD_BYTES = 40, 64, 1 << 16  # of a file: a row, and what is not rows
_MARK = ".partial-"  # between the place of a snapshot and the process that writes it
Files = dict[str, dict[str, Any]]


def _file(index: int) -> str:
    return f"shard-{index}.arrow"


def encode_table(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_table(data: bytes, what: str) -> pa.Table:
    """Return the table of an Arrow IPC file; StorageError, naming `what`, where it is not one of our schema."""
    return read_ipc(data, what)


def read_ipc(source: Any, what: str, most_rows: int | None = None) -> pa.Table:
    """Return the table of an Arrow IPC file, as `decode_table` does; what is mapped stays mapped.

    `most_rows` that it can have; else as many as there are bytes for.
    """

    def check(schema: pa.Schema) -> None:
        if not is_table_schema(schema):
            raise errors.StorageError(f"{what} has columns {schema.names}, expected {SCHEMA.names}")

    num_bytes = source.size() if isinstance(source, pa.NativeFile) else len(source)
    most_rows = num_bytes // _LEAST_ROW_BYTES if most_rows is None else most_rows
    return arrow_files.read_table(source, what, check, most_rows=most_rows)


def most_bytes(num_rows: int) -> int:
    """Return the most bytes that a file of so many rows of a table can have."""
    return _HEAD_BYTES + num_rows * _MOST_ROW_BYTES


def _folder(run_path: str, finished_epochs: int) -> str:
    return f"{run_path}/snapshots/{finished_epochs:08d}"


def write_snapshot(filesystem: fs.FileSystem, run_path: str, state: RunState, *, keep: int = 3) -> str:
    """Write a run's whole state, see `finish_snapshot`; return its table's sha256."""
    beside = begin_snapshot(filesystem, run_path, state.finished_epochs)
    part = write_part(filesystem, beside, state.records, WHOLE)
    finish_snapshot(filesystem, beside, state.epoch_starts, state.records.size, part, keep=keep)
    return str(part[_file(0)]["sha256"])


def begin_snapshot(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> str:
    """Make the folder, beside its place, that shards write their parts into; return its path.

    What snapshots that were never finished have left is deleted: a run has one writer, and it writes one at a time.
    """
    beside = f"{_folder(run_path, finished_epochs)}{_MARK}{os.getpid()}"
    with files.storage_errors("write the snapshot", beside):
        for info in filesystem.get_file_info(fs.FileSelector(f"{run_path}/snapshots", allow_not_found=True)):
            if _MARK in info.base_name:
                filesystem.delete_dir(info.path)
    files.make_folder(filesystem, beside)
    return beside


class _Counted:
    """A file that is being written, with the size and the sha256 of what went into it."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        num_bytes = memoryview(data).nbytes
        self._digest.update(data)
        self._file.write(data)
        self.size += num_bytes
        return num_bytes

    def flush(self) -> None:
        pass  # whoever opened the file closes it

    def entry(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self._digest.hexdigest()}


def write_part(
    filesystem: fs.FileSystem,
    beside: str,
    records: NDArray[np.void],
    shard: Shard,
    note: dict[str, Any] | None = None,
) -> Files:
    """Write a shard's rows; return the file's entry in the manifest, which keeps the shard's note too.

    The bytes are those of `encode_table`. It also says how the rows' columns spread, which goes into a file of its own.
    """
    table = records_to_arrow(records, shard)
    with files.new_file(filesystem, f"{beside}/{_file(shard.index)}") as file:
        counted = _Counted(file)
        with pa.ipc.new_file(pa.PythonFile(counted, mode="w"), table.schema) as writer:
            writer.write_table(table)
    return {_file(shard.index): {**counted.entry(), "note": note, "spreads": spreads.spreads_of(records)}}


def finish_snapshot(
    filesystem: fs.FileSystem,
    beside: str,
    epoch_starts: Sequence[int],
    num_samples: int,
    parts: Files,
    *,
    keep: int = 3,
) -> None:
    """Write the manifest and move the snapshot into place; keep it and the `keep` - 1 epochs before it.

    One of the same epoch is replaced and later ones are dropped: the run went back, and its future will be another.

    Raises:
        StorageError: it cannot be written, or a part is not to be seen from here.
    """
    place, finished_epochs = beside.partition(_MARK)[0], len(epoch_starts) - 1
    run_path = place.rpartition("/snapshots/")[0]
    spread = spreads.merged([entry["spreads"] for entry in parts.values()])
    parts = {name: {key: entry[key] for key in entry if key != "spreads"} for name, entry in parts.items()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "finished_epochs": finished_epochs,
        "epoch_starts": list(epoch_starts),
        "num_samples": num_samples,
        "files": parts,
    }
    with files.storage_errors("write the snapshot", place):
        for name, entry in parts.items():
            if filesystem.get_file_info(f"{beside}/{name}").size != entry["bytes"]:
                raise errors.StorageError(
                    f"{beside}/{name} was written by its shard but is not to be seen here: shards on several nodes "
                    "need a storage that all of them share"
                )
        files.write_json(filesystem, f"{beside}/manifest.json", sealed.seal(manifest))
        if filesystem.get_file_info(place).type != fs.FileType.NotFound:
            filesystem.delete_dir(place)
        drop_snapshots_after(filesystem, run_path, finished_epochs)
        spreads.write_spreads(filesystem, run_path, finished_epochs, spread)
        filesystem.move(beside, place)
        files.sync_folder(filesystem, os.path.dirname(place))
        for seq in list_snapshots(filesystem, run_path):
            if seq <= finished_epochs - keep:
                filesystem.delete_dir(_folder(run_path, seq))


def drop_snapshots_after(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> None:
    """Delete the snapshots of later epochs: the run went back, and its future will be another one."""
    with files.storage_errors("clear snapshots in", run_path):
        for seq in list_snapshots(filesystem, run_path):
            if seq > finished_epochs:
                filesystem.delete_dir(_folder(run_path, seq))
    spreads.drop_after(filesystem, run_path, finished_epochs)


def list_snapshots(filesystem: fs.FileSystem, run_path: str) -> list[int]:
    """Return the epochs for which there is a snapshot, ascending."""
    selector = fs.FileSelector(f"{run_path}/snapshots", allow_not_found=True)
    with files.storage_errors("list", selector.base_dir):
        infos = filesystem.get_file_info(selector)
    return sorted(int(info.base_name) for info in infos if info.base_name.isdecimal())


def _manifest(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> dict[str, Any]:
    folder = _folder(run_path, finished_epochs)
    manifest = files.read_json(filesystem, f"{folder}/manifest.json")
    if manifest.get("format") not in _READABLE:
        raise errors.StorageError(
            f"{folder} has format {manifest.get('format')!r}, this version reads {FORMAT}: upgrade es_service"
        )
    return sealed.check(manifest, f"{folder}/manifest.json")


def _entries(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> Files:
    """Return what the manifest vouches for: sha256 and note by file."""
    manifest = _manifest(filesystem, run_path, finished_epochs)
    try:
        entries = {
            str(name): {"sha256": str(entry["sha256"]), "note": entry.get("note")}
            for name, entry in manifest["files"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise errors.StorageError(f"{_folder(run_path, finished_epochs)}/manifest.json names no files") from error
    if sorted(entries) != sorted(_file(index) for index in range(len(entries))) or not entries:
        raise errors.StorageError(f"{_folder(run_path, finished_epochs)}/manifest.json does not name {_file(0)} …")
    return entries


def read_note(filesystem: fs.FileSystem, run_path: str, finished_epochs: int, shard: Shard) -> dict[str, Any] | None:
    """Return what this very shard noted with its file; None where it noted nothing or others wrote the snapshot."""
    entries = _entries(filesystem, run_path, finished_epochs)
    note = entries[_file(shard.index)]["note"] if len(entries) == shard.count else None
    return note if isinstance(note, dict) else None


def table_sha256(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> str | None:
    """Return the sha256 of the table where it lies in one file; None where shards wrote several."""
    entries = _entries(filesystem, run_path, finished_epochs)
    return entries[_file(0)]["sha256"] if len(entries) == 1 else None


def read_snapshot(
    filesystem: fs.FileSystem,
    run_path: str,
    finished_epochs: int,
    shard: Shard = WHOLE,
    most_samples: int | None = None,
) -> RunState:
    """Return the state that was written for this epoch, with the rows of one shard; however many wrote it.

    Raises:
        StorageError: it is missing or damaged, or has more than `most_samples`.
    """
    manifest = _manifest(filesystem, run_path, finished_epochs)
    try:
        starts = tuple(int(start) for start in manifest["epoch_starts"])
        num_samples = int(manifest["num_samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"the manifest of epoch {finished_epochs} in {run_path} is damaged") from error
    check_size(num_samples, most_samples, _folder(run_path, finished_epochs))
    entries = _entries(filesystem, run_path, finished_epochs)

    def part(index: int) -> NDArray[np.void]:
        path = f"{_folder(run_path, finished_epochs)}/{_file(index)}"
        own = Shard(index, len(entries))
        num_rows = own.num_rows(num_samples)
        data = files.read_bytes(filesystem, path, most_bytes(num_rows))
        if hashlib.sha256(data).hexdigest() != entries[_file(index)]["sha256"]:
            raise errors.StorageError(f"{path} is damaged: its sha256 is not the one in the manifest")
        return arrow_to_records(read_ipc(data, path, num_rows), num_rows, own)

    if len(entries) == shard.count:
        return RunState(part(shard.index), finished_epochs, starts)
    first = part(0)
    whole = np.empty(num_samples, dtype=first.dtype)
    for index in range(len(entries)):
        whole[index :: len(entries)] = part(index) if index else first
    return RunState(np.ascontiguousarray(whole[shard.index :: shard.count]), finished_epochs, starts)


def check_size(num_samples: int, most_samples: int | None, what: str) -> None:
    """Raise StorageError where a snapshot has more samples than its run can have, as far as that is known."""
    if most_samples is None:
        most_samples = _END_OF_IDS
    if not 0 <= num_samples <= most_samples:
        raise errors.StorageError(f"{what} has {num_samples:,} samples, its run has {most_samples:,}")


def read_position(
    filesystem: fs.FileSystem, run_path: str, finished_epochs: int | None = None
) -> tuple[int, tuple[int, ...]]:
    """Return the epochs that a snapshot has behind it, the newest by default, and their starts; (0, (0,)) for none."""
    if finished_epochs is None:
        finished_epochs = max(list_snapshots(filesystem, run_path), default=0)
    if not finished_epochs:
        return 0, (0,)
    try:
        starts = _manifest(filesystem, run_path, finished_epochs)["epoch_starts"]
        return finished_epochs, tuple(int(start) for start in starts)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"the manifest of epoch {finished_epochs} in {run_path} is damaged") from error


def read_table(filesystem: fs.FileSystem, run_path: str, most_samples: int | None = None) -> pa.Table:
    """Return the newest snapshot's table; StorageError where there is none, or it has more than `most_samples`."""
    epochs = list_snapshots(filesystem, run_path)
    if not epochs:
        raise errors.StorageError(f"{run_path} holds no snapshot yet: one is written at the end of each epoch")
    return records_to_arrow(read_snapshot(filesystem, run_path, epochs[-1], most_samples=most_samples).records)

"""Snapshots: a run's state between two epochs, as an Arrow IPC file with a manifest that vouches for it.

    snapshots/<epochs finished, 8 digits>/manifest.json     format, epoch_starts, per file bytes and sha256
    snapshots/<epochs finished, 8 digits>/shard-0.arrow     the table

A snapshot is written in a folder beside and renamed into place, so one that is there is whole.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pyarrow as pa
from pyarrow import fs

from es_service import errors
from es_service.selection.scorekeeper import RunState
from es_service.selection.table import SCHEMA, arrow_to_records, is_table_schema, records_to_arrow
from es_service.storage import files

__all__ = [
    "decode_table",
    "drop_snapshots_after",
    "encode_table",
    "list_snapshots",
    "read_snapshot",
    "read_table",
    "table_sha256",
    "write_snapshot",
]

FORMAT = 1
_TABLE = "shard-0.arrow"


def encode_table(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_table(data: bytes, what: str) -> pa.Table:
    """Return the table of an Arrow IPC file; StorageError, naming `what`, where it is not one of our schema."""
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            if not is_table_schema(reader.schema):
                raise errors.StorageError(f"{what} has columns {reader.schema.names}, expected {SCHEMA.names}")
            return reader.read_all()
    except (pa.ArrowException, OSError) as error:
        raise errors.StorageError(f"{what} is damaged: {error}") from error


def _folder(run_path: str, finished_epochs: int) -> str:
    return f"{run_path}/snapshots/{finished_epochs:08d}"


def write_snapshot(filesystem: fs.FileSystem, run_path: str, state: RunState, *, keep: int = 3) -> str:
    """Write a run's state; keep it and the `keep` - 1 epochs before it; return its sha256.

    One of the same epoch is replaced and later ones are dropped: the run went back, and its future will be another.
    """
    data = encode_table(records_to_arrow(state.records))
    digest = hashlib.sha256(data).hexdigest()
    place = _folder(run_path, state.finished_epochs)
    beside = f"{place}.partial-{os.getpid()}"
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "finished_epochs": state.finished_epochs,
        "epoch_starts": list(state.epoch_starts),
        "num_samples": int(state.records.size),
        "files": {_TABLE: {"bytes": len(data), "sha256": digest}},
    }
    with files.storage_errors("write the snapshot", place):
        if filesystem.get_file_info(beside).type != fs.FileType.NotFound:
            filesystem.delete_dir(beside)
        filesystem.create_dir(beside, recursive=True)
        with filesystem.open_output_stream(f"{beside}/{_TABLE}") as file:
            file.write(data)
        files.write_json(filesystem, f"{beside}/manifest.json", manifest)
        if filesystem.get_file_info(place).type != fs.FileType.NotFound:
            filesystem.delete_dir(place)
        filesystem.move(beside, place)
        for seq in list_snapshots(filesystem, run_path):
            if seq > state.finished_epochs or seq <= state.finished_epochs - keep:
                filesystem.delete_dir(_folder(run_path, seq))
    return digest


def drop_snapshots_after(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> None:
    """Delete the snapshots of later epochs: the run went back, and its future will be another one."""
    with files.storage_errors("clear snapshots in", run_path):
        for seq in list_snapshots(filesystem, run_path):
            if seq > finished_epochs:
                filesystem.delete_dir(_folder(run_path, seq))


def list_snapshots(filesystem: fs.FileSystem, run_path: str) -> list[int]:
    """Return the epochs for which there is a snapshot, ascending."""
    selector = fs.FileSelector(f"{run_path}/snapshots", allow_not_found=True)
    with files.storage_errors("list", selector.base_dir):
        infos = filesystem.get_file_info(selector)
    return sorted(int(info.base_name) for info in infos if info.base_name.isdecimal())


def _manifest(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> dict[str, Any]:
    folder = _folder(run_path, finished_epochs)
    manifest = files.read_json(filesystem, f"{folder}/manifest.json")
    if manifest.get("format") != FORMAT:
        raise errors.StorageError(
            f"{folder} has format {manifest.get('format')!r}, this version reads {FORMAT}: upgrade es_service"
        )
    return manifest


def table_sha256(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> str:
    """Return the sha256 that the manifest of this epoch's snapshot vouches for."""
    manifest = _manifest(filesystem, run_path, finished_epochs)
    try:
        return str(manifest["files"][_TABLE]["sha256"])
    except (KeyError, TypeError) as error:
        folder = _folder(run_path, finished_epochs)
        raise errors.StorageError(f"{folder}/manifest.json does not name {_TABLE}") from error


def _read(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> tuple[dict[str, Any], pa.Table]:
    path = f"{_folder(run_path, finished_epochs)}/{_TABLE}"
    expected = table_sha256(filesystem, run_path, finished_epochs)
    data = files.read_bytes(filesystem, path)
    if hashlib.sha256(data).hexdigest() != expected:
        raise errors.StorageError(f"{path} is damaged: its sha256 is not the one in the manifest")
    return _manifest(filesystem, run_path, finished_epochs), decode_table(data, path)


def read_snapshot(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> RunState:
    """Return the state that was written for this epoch; StorageError where it is missing or damaged."""
    manifest, table = _read(filesystem, run_path, finished_epochs)
    try:
        starts = tuple(int(start) for start in manifest["epoch_starts"])
        num_samples = int(manifest["num_samples"])
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"the manifest of epoch {finished_epochs} in {run_path} is damaged") from error
    return RunState(arrow_to_records(table, num_samples), finished_epochs, starts)


def read_table(filesystem: fs.FileSystem, run_path: str) -> pa.Table:
    """Return the newest snapshot's table; StorageError where there is none."""
    epochs = list_snapshots(filesystem, run_path)
    if not epochs:
        raise errors.StorageError(f"{run_path} holds no snapshot yet: one is written at the end of each epoch")
    return _read(filesystem, run_path, epochs[-1])[1]

"""Snapshots: a run's state between two epochs, as Arrow IPC files with a manifest that vouches for them.

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
import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
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
from es_service.storage.terms import NOBODY, list_claims

__all__ = [
    "begin_snapshot",
    "check_size",
    "decode_table",
    "drop_snapshots_after",
    "encode_table",
    "find_snapshots",
    "finish_snapshot",
    "highest_stamp",
    "list_names",
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
_NAME = re.compile(r"([0-9]{8})(?:-([0-9]{8}-[0-9a-f]{8})-([0-9]{4}))?")  # epochs alone: of the format before stamps
_END_OF_IDS = 1 << 62
_LEAST_ROW_BYTES, _MOST_ROW_BYTES, _HEAD_BYTES = 40, 64, 1 << 16  # of a file: a row, and what is not rows
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


def read_ipc(source: pa.Buffer | bytes, what: str, most_rows: int | None = None) -> pa.Table:
    """Return the table of an Arrow IPC file, as `decode_table` does; what is mapped stays mapped.

    `most_rows` that it can have; else as many as there are bytes for.
    """

    def check(schema: pa.Schema) -> None:
        if not is_table_schema(schema):
            raise errors.StorageError(f"{what} has columns {schema.names}, expected {SCHEMA.names}")

    most_rows = len(source) // _LEAST_ROW_BYTES if most_rows is None else most_rows
    return arrow_files.read_table(source, what, check, most_rows=most_rows)


def most_bytes(num_rows: int) -> int:
    """Return the most bytes that a file of so many rows of a table can have."""
    return _HEAD_BYTES + num_rows * _MOST_ROW_BYTES


def _placed(filesystem: fs.FileSystem, run_path: str) -> tuple[set[str], set[str]]:
    """Return the names of the folders with a manifest, and of those without."""
    selector = fs.FileSelector(f"{run_path}/snapshots", recursive=True, allow_not_found=True)
    with files.storage_errors("list", selector.base_dir):
        infos = filesystem.get_file_info(selector)
    found = [info.path[len(selector.base_dir) + 1 :].split("/") for info in infos]
    whole = {names[0] for names in found if names[1:] == ["manifest.json"] and _NAME.fullmatch(names[0])}
    return whole, {names[0] for names in found if _NAME.fullmatch(names[0])} - whole


def _stamp(name: str) -> str:
    """Return the stamp of the writer of a snapshot by its folder's name."""
    found = _NAME.fullmatch(name)
    return "" if found is None or found[2] is None else found[2]


def highest_stamp(filesystem: fs.FileSystem, run_path: str) -> str:
    """Return the highest stamp of any snapshot, those that do not count too."""
    whole, partial = _placed(filesystem, run_path)
    return max([NOBODY, *map(_stamp, whole | partial)])


def list_names(filesystem: fs.FileSystem, run_path: str) -> list[str]:
    """Return the folders of the snapshots that count, ascending; of one epoch several, while one replaces another."""
    names = sorted(_placed(filesystem, run_path)[0])
    claims = list_claims(filesystem, f"{run_path}/owners/run")
    if not claims or all(_stamp(name) == claims[-1] for name in names):
        return names
    for stamp in reversed(claims):
        with contextlib.suppress(errors.StorageError):  # damaged, or forgotten while we looked
            path = f"{run_path}/owners/run/{stamp}.json"
            accepted = sealed.check(files.read_json(filesystem, path), path).get("snapshots")
            if isinstance(accepted, list):  # else it took over just now, and has written nothing
                return [name for name in names if name in accepted or _stamp(name) == stamp]
    return names


def find_snapshots(filesystem: fs.FileSystem, run_path: str) -> dict[int, str]:
    """Return the folder of each epoch's snapshot, by epochs finished; ascending."""
    names = list_names(filesystem, run_path)
    return {int(name[:8]): f"{run_path}/snapshots/{name}" for name in names}


def list_snapshots(filesystem: fs.FileSystem, run_path: str) -> list[int]:
    """Return the epochs for which there is a snapshot, ascending."""
    return list(find_snapshots(filesystem, run_path))


def write_snapshot(
    filesystem: fs.FileSystem, run_path: str, state: RunState, *, stamp: str = NOBODY, keep: int = 3
) -> str:
    """Write a run's whole state, see `finish_snapshot`; return its table's sha256."""
    folder = begin_snapshot(filesystem, run_path, state.finished_epochs, stamp)
    part = write_part(filesystem, folder, state.records, WHOLE)
    finish_snapshot(filesystem, folder, state.epoch_starts, state.records.size, part, keep=keep)
    return str(part[_file(0)]["sha256"])


def begin_snapshot(filesystem: fs.FileSystem, run_path: str, finished_epochs: int, stamp: str = NOBODY) -> str:
    """Make the folder that shards write their parts into; return its path.

    What snapshots that were never finished have left is deleted: a run has one writer, and it writes one at a time.
    """
    whole, partial = _placed(filesystem, run_path)
    for name in partial:
        if _stamp(name) <= stamp:
            _delete(filesystem, f"{run_path}/snapshots/{name}")
    begins = f"{finished_epochs:08d}-{stamp}-"
    last = max((int(name.rpartition("-")[2]) for name in whole if name.startswith(begins)), default=0)
    folder = f"{run_path}/snapshots/{begins}{last + 1:04d}"
    files.make_folder(filesystem, folder)
    return folder


def _delete(filesystem: fs.FileSystem, folder: str) -> None:
    """Delete a snapshot, the manifest first: one that is deleted in part is none."""
    with files.storage_errors("delete the snapshot", folder):
        if filesystem.get_file_info(f"{folder}/manifest.json").type == fs.FileType.File:
            filesystem.delete_file(f"{folder}/manifest.json")
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(folder)


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
    folder: str,
    records: NDArray[np.void],
    shard: Shard,
    note: dict[str, Any] | None = None,
) -> Files:
    """Write a shard's rows; return the file's entry in the manifest, which keeps the shard's note too.

    The bytes are those of `encode_table`. It also says how the rows' columns spread, which goes into a file of its own.
    """
    table = records_to_arrow(records, shard)
    with files.new_file(filesystem, f"{folder}/{_file(shard.index)}") as file:
        counted = _Counted(file)
        with pa.ipc.new_file(pa.PythonFile(counted, mode="w"), table.schema) as writer:
            writer.write_table(table)
    return {_file(shard.index): {**counted.entry(), "note": note, "spreads": spreads.spreads_of(records)}}


def finish_snapshot(
    filesystem: fs.FileSystem,
    folder: str,
    epoch_starts: Sequence[int],
    num_samples: int,
    parts: Files,
    *,
    keep: int = 3,
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Write the manifest, with which the snapshot is there; keep it and the `keep` - 1 epochs before it.

    One of the same epoch is replaced and later ones are dropped: the run went back, and its future will be another.

    Args:
        filesystem: of the run.
        folder: as `begin_snapshot` returned it, with a file of each shard in it.
        epoch_starts: the run step at which each finished epoch, and the next one, begins.
        num_samples: rows of the whole table.
        parts: what `write_part` returned, of all shards.
        keep: how many epochs have a snapshot.
        confirm: called behind the manifest, before anything older is given up; raises where the snapshot does not
            count, since another one writes the run.

    Raises:
        StorageError: it cannot be written, or a part is not to be seen from here.
    """
    finished_epochs = len(epoch_starts) - 1
    run_path, _, own = folder.rpartition("/snapshots/")[0], *folder.rpartition("/")[1:]
    spread = spreads.merged([entry["spreads"] for entry in parts.values()])
    parts = {name: {key: entry[key] for key in entry if key != "spreads"} for name, entry in parts.items()}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "finished_epochs": finished_epochs,
        "epoch_starts": list(epoch_starts),
        "num_samples": num_samples,
        "files": parts,
    }
    with files.storage_errors("write the snapshot", folder):
        for name, entry in parts.items():
            if filesystem.get_file_info(f"{folder}/{name}").size != entry["bytes"]:
                raise errors.StorageError(
                    f"{folder}/{name} was written by its shard but is not to be seen here: shards on several nodes "
                    "need a storage that all of them share"
                )
    drop_snapshots_after(filesystem, run_path, finished_epochs, _stamp(own))
    spreads.write_spreads(filesystem, run_path, finished_epochs, spread)
    files.write_json(filesystem, f"{folder}/manifest.json", sealed.seal(manifest))
    confirm()
    for name in sorted(_placed(filesystem, run_path)[0]):
        oldest = finished_epochs - keep < int(name[:8]) < finished_epochs
        if _stamp(name) <= _stamp(own) and name != own and not oldest:
            _delete(filesystem, f"{run_path}/snapshots/{name}")


def drop_snapshots_after(filesystem: fs.FileSystem, run_path: str, finished_epochs: int, stamp: str) -> None:
    """Delete the snapshots of later epochs that writers up to a stamp have left: the run went back, and its future will
    be another one.
    """
    for name in sorted(_placed(filesystem, run_path)[0], reverse=True):
        if _stamp(name) <= stamp and int(name[:8]) > finished_epochs:
            _delete(filesystem, f"{run_path}/snapshots/{name}")
    spreads.drop_after(filesystem, run_path, finished_epochs)


@dataclasses.dataclass(frozen=True, slots=True)
class _Manifest:
    """What vouches for a snapshot: its folder, where epochs begin, rows of the table, each file's sha256 and note."""

    folder: str
    epoch_starts: tuple[int, ...]
    num_samples: int
    files: Files


def _manifest(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> _Manifest:
    folder = find_snapshots(filesystem, run_path).get(finished_epochs)
    if folder is None:
        raise errors.StorageError(f"{run_path} holds no snapshot of the end of epoch {finished_epochs - 1}")
    values = files.read_json(filesystem, f"{folder}/manifest.json")
    if values.get("format") not in _READABLE:
        raise errors.StorageError(
            f"{folder} has format {values.get('format')!r}, this version reads {FORMAT}: upgrade es_service"
        )
    sealed.check(values, f"{folder}/manifest.json")
    try:
        entries = {
            str(name): {"sha256": str(entry["sha256"]), "note": entry.get("note")}
            for name, entry in values["files"].items()
        }
        starts = tuple(int(start) for start in values["epoch_starts"])
        manifest = _Manifest(folder, starts, int(values["num_samples"]), entries)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"{folder}/manifest.json is damaged: {error!r}") from error
    if sorted(entries) != sorted(_file(index) for index in range(len(entries))) or not entries:
        raise errors.StorageError(f"{folder}/manifest.json does not name {_file(0)} …")
    return manifest


def read_note(filesystem: fs.FileSystem, run_path: str, finished_epochs: int, shard: Shard) -> dict[str, Any] | None:
    """Return what this very shard noted with its file; None where it noted nothing or others wrote the snapshot."""
    entries = _manifest(filesystem, run_path, finished_epochs).files
    note = entries[_file(shard.index)]["note"] if len(entries) == shard.count else None
    return note if isinstance(note, dict) else None


def table_sha256(filesystem: fs.FileSystem, run_path: str, finished_epochs: int) -> str | None:
    """Return the sha256 of the table where it lies in one file; None where shards wrote several."""
    entries = _manifest(filesystem, run_path, finished_epochs).files
    return str(entries[_file(0)]["sha256"]) if len(entries) == 1 else None


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
    starts, num_samples, entries = manifest.epoch_starts, manifest.num_samples, manifest.files
    check_size(num_samples, most_samples, manifest.folder)

    def part(index: int) -> NDArray[np.void]:
        path, own = f"{manifest.folder}/{_file(index)}", Shard(index, len(entries))
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
    return finished_epochs, _manifest(filesystem, run_path, finished_epochs).epoch_starts


def read_table(filesystem: fs.FileSystem, run_path: str, most_samples: int | None = None) -> pa.Table:
    """Return the newest snapshot's table; StorageError where there is none, or it has more than `most_samples`."""
    epochs = list_snapshots(filesystem, run_path)
    if not epochs:
        raise errors.StorageError(f"{run_path} holds no snapshot yet: one is written at the end of each epoch")
    return records_to_arrow(read_snapshot(filesystem, run_path, epochs[-1], most_samples=most_samples).records)

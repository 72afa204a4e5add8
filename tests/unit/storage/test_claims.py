"""Files of a few KB that claim gigabytes, and files that are larger than they can be: refused before they take memory.

Each is read in a process of its own, which may have little more memory than it has when it begins.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig, RunState
from es_service.selection.table import SCHEMA, ScoreTable, records_to_arrow
from es_service.storage import labels, table_files
from es_service.storage.runs import RunStorage

CONFIG = RunConfig(selection=Selection(methods.evolved(), ratio=0.5), num_samples=100, num_epochs=2, batch_size=10)
HUGE = 100_000_000
ROOM = 400 << 20  # bytes that a reader may take beside what it has when it begins

READER = """
import resource, sys
from pathlib import Path
from es_service import errors
from es_service.storage import columns, files, labels, segments
from es_service.storage.runs import RunStorage
storage = RunStorage(sys.argv[1], "mine")
path = storage.path
def decode_plan():
    from es_service.actors import plan_codec
    plan_codec.decode_plan(files.read_bytes(storage.filesystem, path + "/plan", 1 << 30))
def read_segments():
    folder = path + "/journal/0-of-1"
    listed = segments.JournalFolder(storage.filesystem, folder).segments()
    return [segments.read_segment(storage.filesystem, one) for one in listed]
def export():
    from es_service.api.table.exports import stream
    from es_service.api.table.view import Labels, TableView
    opened = columns.open_snapshot(storage.filesystem, path, 1, 100)
    view = TableView(opened.shards, version="1", source="storage", epoch=1, as_of=0.0,
                     labels=Labels(labels.read_labels(storage), None))
    return sum(map(len, stream(view, "csv", ["id", "label"], None)))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]),) * 2)
try:
    exec(sys.argv[2])
except errors.EsServiceError as error:
    print(type(error).__name__, error)
else:
    print("read")
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 100 samples behind its first epoch."""
    storage = RunStorage(str(tmp_path), "mine")
    storage.begin(CONFIG)
    records = ScoreTable(100).copy_records()
    storage.write_snapshot(RunState(records, 1, (0, 10)))
    labels.write_notes(storage, np.arange(100) % 7, None, None)
    return tmp_path / "mine"


def said(run: Path, read: str) -> str:
    words = [sys.executable, "-c", READER, str(run.parent), read, str(ROOM)]
    found = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout.strip()


def compressed(columns: dict[str, pa.Array], metadata: dict[str, str] | None = None, repeat: int = 1) -> bytes:
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata=metadata)
    batch = pa.record_batch(list(columns.values()), schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for _ in range(repeat):
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def zeros(kind: pa.DataType, num: int) -> pa.Array:
    """A column that shares one buffer with the others, so that the test itself needs little."""
    return pa.Array.from_buffers(kind, num, [None, pa.py_buffer(np.zeros(num * max(1, kind.bit_width // 8), np.uint8))])


def forged_snapshot(run: Path, data: bytes, num_samples: int) -> None:
    folder = next((run / "snapshots").glob("00000001-*"))
    (folder / "shard-0.arrow").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    entry = {**manifest["files"]["shard-0.arrow"], "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest |= {"files": {"shard-0.arrow": entry}, "num_samples": num_samples}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def listed_often(data: bytes, times: int) -> bytes:
    """The file with its first batch in the footer as often as that: one that any writer of Arrow files could make."""
    schema = pa.ipc.open_file(pa.BufferReader(data)).schema
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        empty = pa.record_batch([pa.array([], field.type) for field in schema], schema=schema)
        for _ in range(times):
            writer.write_batch(empty)
    return bytes(sink.getvalue().to_pybytes())


def table_columns(num: int) -> dict[str, pa.Array]:
    return {field.name: zeros(field.type, num) for field in SCHEMA}


def a_snapshot(run: Path) -> None:
    forged_snapshot(run, compressed(table_columns(1 << 21), repeat=64), 64 << 21)


def a_snapshot_of_the_right_length(run: Path) -> None:
    """Its one batch claims 100 rows, its buffers 1 GB."""
    data = bytearray(compressed(table_columns(100)))
    forged_snapshot(run, grown(data, 1 << 30), 100)


def grown(data: bytearray, size: int) -> bytes:
    """The file with its first compressed buffer said to hold that many bytes."""
    begin = data.index(b"\x28\xb5\x2f\xfd") - 8  # zstd's mark, behind the uncompressed length
    data[begin : begin + 8] = size.to_bytes(8, "little")
    return bytes(data)


def a_snapshot_with_empty_batches(run: Path) -> None:
    forged_snapshot(
        run, listed_often(table_files.encode_table(records_to_arrow(ScoreTable(1).copy_records())), 200_000), 100
    )


def history_columns(num: int) -> dict[str, pa.Array]:
    kinds = {"id": pa.int64(), "run_step": pa.int32(), "rank": pa.int32(), "loss": pa.float32()}
    bits = pa.Array.from_buffers(pa.bool_(), num, [None, pa.py_buffer(np.zeros(num // 8 + 1, np.uint8))])
    return {**{name: zeros(kind, num) for name, kind in kinds.items()}, "selected": bits}


def write_history(run: Path, num: int, repeat: int, *, grow: int = 0) -> None:
    data = compressed(history_columns(num), {"format": "1", "first_ids": json.dumps([0] * repeat)}, repeat)
    data = grown(bytearray(data), grow) if grow else data
    folder = run / "history" / "00000000"
    folder.mkdir(parents=True)
    (folder / f"0-of-1-{zlib.crc32(data):08x}.arrow").write_bytes(data)


def a_history(run: Path) -> None:
    write_history(run, 1 << 21, 128)


def a_history_of_one_batch(run: Path) -> None:
    write_history(run, 3 << 20, 1)


def a_history_with_a_large_buffer(run: Path) -> None:
    write_history(run, 100, 1, grow=2 << 30)


def a_history_of_one_sample(run: Path) -> None:
    write_history(run, 1 << 16, 60)


def some_labels(run: Path) -> None:
    (run / "labels.arrow").write_bytes(compressed({"label": zeros(pa.uint8(), HUGE)}, repeat=10))


def labels_of_the_right_length(run: Path) -> None:
    data = bytearray(compressed({"label": zeros(pa.uint8(), 100)}))
    (run / "labels.arrow").write_bytes(grown(data, 2 << 30))


def one_large_label(run: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"label": np.array([2_000_000_000] + [0] * 99, dtype=np.uint32)})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (run / "labels.arrow").write_bytes(sink.getvalue())


def sparse(name: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        path = next(run.glob(name), run / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(6 << 30)

    write.__qualname__ = f"sparse {name}"
    return write


def a_segment(run: Path, num: int = 1 << 21, repeat: int = 64) -> None:
    empty = pa.Array.from_buffers(
        pa.binary(), num, [None, pa.py_buffer(np.zeros(4 * num + 4, np.uint8)), pa.py_buffer(b"")]
    )
    kinds = pa.Array.from_buffers(
        pa.string(), num, [None, pa.py_buffer(np.zeros(4 * num + 4, np.uint8)), pa.py_buffer(b"")]
    )
    data = compressed({"kind": kinds, "payload": empty}, {"format": "1"}, repeat)
    folder = run / "journal" / "0-of-1"
    folder.mkdir(parents=True)
    (folder / f"{1:016d}-{zlib.crc32(data):08x}.arrow").write_bytes(data)


def a_plan(run: Path) -> None:
    schema = pa.schema([("ids", pa.large_binary())])
    batch = pa.record_batch([pa.array([bytes(1 << 28)], pa.large_binary())], schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    (run / "plan").write_bytes(sink.getvalue())


def deep_brackets(run: Path) -> None:
    (run / "progress.json").write_bytes(b"[" * 10_000_000)


SNAPSHOT = "storage.snapshots.read(1)"
TABLE = "storage.table()"
OPENED = "columns.open_snapshot(storage.filesystem, path, 1, 100)"
OF_ONE, OF_AN_EPOCH = "storage.history.sample(0)", "storage.history.epoch(0)"
LABELS = "labels.read_labels(storage)"
FORGED: list[tuple[Callable[[Path], None], str]] = [
    *((make, read) for make in (a_snapshot, a_snapshot_of_the_right_length) for read in (SNAPSHOT, TABLE, OPENED)),
    (a_snapshot_with_empty_batches, SNAPSHOT),
    *((a_history, read) for read in (OF_ONE, OF_AN_EPOCH)),
    *((a_history_of_one_batch, read) for read in (OF_ONE,)),
    *((a_history_with_a_large_buffer, read) for read in (OF_ONE, OF_AN_EPOCH)),
    (a_history_of_one_sample, OF_ONE),
    *((make, LABELS) for make in (some_labels, labels_of_the_right_length, one_large_label)),
    (one_large_label, "export()"),
    (a_segment, "read_segments()"),
    (a_plan, "decode_plan()"),
    (sparse("progress.json"), "storage.read_note('progress')"),
    (sparse("run.json"), "storage.config()"),
    (sparse("labels.arrow"), LABELS),
    (sparse("snapshots/00000001-*/shard-0.arrow"), SNAPSHOT),
    (sparse("snapshots/00000001-*/manifest.json"), OPENED),
    (sparse("spreads/00000001.json"), "storage.spreads.read(1)"),
    (sparse("history/00000000/0-of-1-00000000.arrow"), OF_ONE),
    (deep_brackets, "storage.read_note('progress')"),
]


@pytest.mark.parametrize(("forge", "read"), FORGED, ids=lambda one: getattr(one, "__qualname__", one))
def test_what_claims_more_than_it_can_hold_is_refused(forge: Callable[[Path], Any], read: str, run: Path) -> None:
    forge(run)
    answer = said(run, read)
    assert answer.startswith("StorageError")
    assert "alloc" not in answer  # not because there was no more to be had


@pytest.mark.parametrize("read", [SNAPSHOT, TABLE, OPENED, LABELS, "export()", "storage.config()"])
def test_what_is_as_it_was_written_is_read_within_the_same_room(read: str, run: Path) -> None:
    assert said(run, read) == "read"


def test_a_fifo_is_no_file_and_is_not_waited_for(run: Path) -> None:
    name = "spreads/00000001.json"
    (run / name).unlink()
    os.mkfifo(run / name)
    assert "not a regular file" in said(run, "storage.spreads.read(1)")
    assert "not a regular file" in said(run, f"files.read_bytes(storage.filesystem, path + '/{name}', 1000)")

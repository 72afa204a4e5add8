"""The history of a run: what was observed of each sample and when it was picked, epoch by epoch.

    history/<epoch, 8 digits>/<i>-of-<S>-<crc32 of the file, 8 hex digits>.arrow

One row an observation, ordered by sample id and then by step, so that one sample's rows are found without reading the
rest. It is made of the journal when an epoch is finished; where it would grow beyond its limit the oldest epochs go.

    id        int64
    run_step  int32     counted over the whole run
    rank      int32
    loss      float32   NaN where the sample was picked without its loss having been seen
    selected  bool      back-propagated
    correct, confidence, grad_norm, irreducible_loss   float32, those that the method observes
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from es_service import errors
from es_service.selection.shards import Shard
from es_service.selection.signals import SIGNALS
from es_service.storage import arrow_files, files, sealed

__all__ = ["History", "most_rows"]

FORMAT = 1
_MAX_BYTES = 1 << 30
_BATCH_ROWS = 1 << 16
_MOST_CHECKED = 10_000
_MOST_ROWS, _FEW_ROWS, _MOST_VISITS = 40_000_000, 1 << 22, 64  # see `most_rows`: they are sorted in memory
_MOST_ROW_BYTES, _HEAD_BYTES = 48, 1 << 20  # of a file: a row with all signals, and what is not rows
_MOST_OF_A_SAMPLE = 1_000_000
_checked: dict[str, tuple[int, ...]] = {}  # files in which all was right, by path: their `_state` before they were read
_COLUMNS = {"id": pa.int64(), "run_step": pa.int32(), "rank": pa.int32(), "loss": pa.float32(), "selected": pa.bool_()}
_NAME = re.compile(r"([0-9]+)-of-([0-9]+)-([0-9a-f]{8})\.arrow")
_EPOCH = re.compile(r"[0-9]{8}")
_SAMPLE = pa.schema([("run_step", pa.int32()), ("epoch", pa.int32()), ("loss", pa.float32()), ("selected", pa.bool_())])


def _is_schema(schema: pa.Schema) -> bool:
    signals = [name for name in schema.names if name not in _COLUMNS]
    expected = [*_COLUMNS.items(), *((name, pa.float32()) for name in signals)]
    return set(signals) <= set(SIGNALS) and bool(schema.equals(pa.schema(expected)))


def _parts(filesystem: fs.FileSystem, folder: str) -> list[tuple[str, Shard, str]]:
    named = [(info.path, _NAME.fullmatch(info.base_name)) for info in files.list_folder(filesystem, folder)]
    return sorted((path, Shard(int(n[1]), int(n[2])), n[3]) for path, n in named if n and int(n[1]) < int(n[2]))


@contextlib.contextmanager
def _opened(
    filesystem: fs.FileSystem, path: str, crc32: str, num_samples: int, *, again: bool = True
) -> Iterator[pa.ipc.RecordBatchFileReader]:
    """Open a file of the history; whatever goes wrong in the block is that file's damage.

    All of it is read and checked; unless `again`, a local file only once while it is unchanged, and later only what is
    asked for.
    """

    def check(schema: pa.Schema) -> None:
        version = (schema.metadata or {}).get(b"format", b"").decode(errors="replace")
        sealed.check_format(version, path, (str(FORMAT),))
        if not _is_schema(schema):
            raise errors.StorageError(f"{path} is not a history: its columns are {schema.names}")

    state = None if again or not isinstance(filesystem, fs.LocalFileSystem) else _state(path)
    if state is not None and _checked.get(path) == state:
        with arrow_files.open_checked(path) as reader:
            yield reader
            if _state(path) != state:
                raise errors.StorageError(f"{path} was changed while it was read: look again once it is written")
        return
    most = most_rows(num_samples)
    data = files.read_bytes(filesystem, path, _HEAD_BYTES + most * _MOST_ROW_BYTES)
    if zlib.crc32(data) != int(crc32, 16):
        raise errors.StorageError(f"{path} is damaged: its checksum is not the one in its name")
    with arrow_files.open_table(data, path, check, most_rows=most, row_bytes=_MOST_ROW_BYTES) as reader:
        if state is not None:
            if len(_checked) >= _MOST_CHECKED:
                _checked.clear()
            _checked[path] = state
        yield reader


def _state(path: str) -> tuple[int, ...]:
    """Return what changes whenever a local file is written to, even if its times are set back."""
    with files.storage_errors("read", path):
        found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def most_rows(num_samples: int) -> int:
    """Return how many observations and picks a shard's history of an epoch is made of at most; of more there is none.

    Args:
        num_samples: of the run, or where its ids end. One row a sample is usual; a stream may bring each more often.
    """
    return min(_MOST_ROWS, max(_FEW_ROWS, _MOST_VISITS * num_samples))


class History:
    """That of a run; see the module's text.

    Args:
        filesystem: that the run is on.
        run_path: folder of the run.
        num_samples: -> that the run can have, see `most_rows`.
    """

    def __init__(self, filesystem: fs.FileSystem, run_path: str, num_samples: Callable[[], int]) -> None:
        self._filesystem, self._folder, self._num_samples = filesystem, f"{run_path}/history", num_samples

    def write(self, epoch: int, shard: Shard, table: pa.Table) -> None:
        """Write what one shard has of an epoch, in any order; what was there of it before is replaced.

        Raises:
            StorageError: it cannot be written.
        """
        ids, steps = (table.column(name).to_numpy() for name in ("id", "run_step"))
        if ((ids[1:] < ids[:-1]) | ((ids[1:] == ids[:-1]) & (steps[1:] < steps[:-1]))).any():
            table = table.sort_by([("id", "ascending"), ("run_step", "ascending")])
        table = table.combine_chunks()
        first_ids = json.dumps(table.column("id").to_numpy()[::_BATCH_ROWS].tolist())
        table = table.replace_schema_metadata({"format": str(FORMAT), "first_ids": first_ids})
        data = arrow_files.encode(table, _BATCH_ROWS, "zstd")
        folder = self._epoch(epoch)
        files.make_folder(self._filesystem, folder)
        before = [path for path, own, _ in _parts(self._filesystem, folder) if own == shard]
        path = f"{folder}/{shard.index}-of-{shard.count}-{zlib.crc32(data):08x}.arrow"
        files.write_atomically(self._filesystem, path, data)
        with files.storage_errors("clear the history in", folder):
            for old in before:
                if old != path:
                    self._filesystem.delete_file(old)
        self._keep_within_limit(epoch)

    def has_part(self, epoch: int, shard: Shard) -> bool:
        """Return whether a shard's part of an epoch is there."""
        return any(own == shard for _, own, _ in _parts(self._filesystem, self._epoch(epoch)))

    def epochs(self) -> list[int]:
        """Return the epochs of which there is a history, ascending; the oldest go where it would grow too large."""
        infos = files.list_folder(self._filesystem, self._folder)
        return sorted(int(info.base_name) for info in infos if _EPOCH.fullmatch(info.base_name))

    def drop_from(self, epoch: int) -> None:
        """Delete the history of this epoch and of later ones: the run went back, and they will be others."""
        with files.storage_errors("clear the history in", self._folder):
            for one in self.epochs():
                if one >= epoch:
                    self._filesystem.delete_dir(self._epoch(one))

    def epoch(self, epoch: int) -> pa.Table:
        """Return all rows of an epoch in the order they were reported in: by step, then rank, then id.

        Raises:
            StorageError: the history of this epoch is missing, incomplete or damaged.
        """
        parts = self._whole(epoch)
        if not parts:
            raise errors.StorageError(f"{self._folder} holds no history of epoch {epoch}")
        tables, num_samples = [], self._num_samples()
        for path, _, crc32 in parts:
            with _opened(self._filesystem, path, crc32, num_samples) as reader:
                table = reader.read_all().replace_schema_metadata(None)
                table.validate()
                tables.append(table)
        whole = pa.concat_tables(tables)
        return whole.sort_by([("run_step", "ascending"), ("rank", "ascending"), ("id", "ascending")])

    def sample(self, sample_id: int) -> pa.Table:
        """Return when a sample was observed: run_step int32, epoch int32, loss float32, selected bool; in order.

        A loss is NaN where the sample was picked without its loss having been seen.

        Raises:
            StorageError: a file is damaged.
        """
        num_left, num_samples = _MOST_OF_A_SAMPLE, self._num_samples()
        found = [_SAMPLE.empty_table()]
        for epoch in self.epochs():
            for path, own, crc32 in self._whole(epoch):
                if sample_id % own.count != own.index:
                    continue
                with _opened(self._filesystem, path, crc32, num_samples, again=False) as reader:
                    for batch in _batches(reader, sample_id, path):
                        rows = batch.filter(pc.equal(batch.column("id"), sample_id))
                        num_left -= rows.num_rows
                        if num_left < 0:
                            raise errors.StorageError(f"{path} is damaged: it has sample {sample_id} in too many rows")
                        epochs = pa.array(np.full(rows.num_rows, epoch, dtype=np.int32))
                        columns = [rows.column("run_step"), epochs, rows.column("loss"), rows.column("selected")]
                        found.append(pa.Table.from_arrays(columns, schema=_SAMPLE))
        return pa.concat_tables(found).combine_chunks()

    def _epoch(self, epoch: int) -> str:
        return f"{self._folder}/{epoch:08d}"

    def _whole(self, epoch: int) -> list[tuple[str, Shard, str]]:
        """Return the files of an epoch, one a shard; none where they are not complete."""
        parts = _parts(self._filesystem, self._epoch(epoch))
        for count in {own.count for _, own, _ in parts}:
            found = [part for part in parts if part[1].count == count]
            if sorted(own.index for _, own, _ in found) == list(range(count)):
                return found
        return []

    def _keep_within_limit(self, newest: int) -> None:
        """Delete the oldest epochs while there is more than the limit; the newest stays."""
        infos = files.list_folder(self._filesystem, self._folder, recursive=True)
        total = sum(info.size or 0 for info in infos if info.type == fs.FileType.File)
        with files.storage_errors("clear the history in", self._folder):
            for epoch in self.epochs():
                if total <= _MAX_BYTES or epoch >= newest:
                    return
                folder = self._epoch(epoch)
                total -= sum(info.size or 0 for info in infos if info.path.startswith(f"{folder}/"))
                self._filesystem.delete_dir(folder)


def _batches(reader: pa.ipc.RecordBatchFileReader, sample_id: int, path: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches that may hold a sample."""
    try:
        first_ids = [int(one) for one in json.loads((reader.schema.metadata or {})[b"first_ids"])]
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"{path} is damaged: it does not say where its batches begin") from error
    if len(first_ids) != reader.num_record_batches:
        raise errors.StorageError(
            f"{path} is damaged: it has {reader.num_record_batches} batches, not {len(first_ids)}"
        )
    for place, first in enumerate(first_ids):
        ends_before = place + 1 < len(first_ids) and first_ids[place + 1] < sample_id
        if first <= sample_id and not ends_before:
            batch = reader.get_batch(place)
            if batch.num_rows > _BATCH_ROWS:
                raise errors.StorageError(f"{path} is damaged: it has {batch.num_rows:,} rows in a batch")
            batch.validate()
            yield batch

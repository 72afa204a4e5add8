"""Irreducible losses for RHO-LOSS: what each sample costs a model that was trained on others.

The train set is cut into two halves at random; a model is trained in full on each for half the epochs, and each sample
gets its loss from the model that never saw it. So no held-out data are used up, and no wrong label is learnt by heart.

Reference: Mindermann et al., arXiv 2206.07137 (they set data aside for it).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyarrow import parquet

from es_service import errors
from es_service.selection import keys, methods
from es_service.selection.config import Selection
from es_service.selection.observations import MAX_LOSS
from es_service.selector import Selector
from es_service.storage import arrow_files, files
from es_service.training import batches
from es_service.training.loop import fit_model
from es_service.training.settings import TrainSettings
from es_service.training.tasks.base import Samples, Task
from es_service.training.workers.local import LocalWorkers

__all__ = ["Prepared", "hold_out_losses", "read_losses", "write_losses"]

_COLUMNS = ("irreducible_loss", "last_loss")  # the second is what a table exported from another run has
_BATCH = 500
_HEAD_BYTES, _MOST_ROW_BYTES = 1 << 20, 1024  # of a file of losses, which may have other columns too
_DIGEST = b"sha256"  # of the losses, in the metadata of the files that are written here


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Irreducible losses float32[n], and what they cost: samples scored and trained on, seconds of doing so."""

    losses: NDArray[np.float32]
    scored: int
    trained: int
    seconds: float


def hold_out_losses(
    task: Task, settings: TrainSettings, *, num_epochs: int, batch_size: int, selection_seed: int
) -> Prepared:
    """Train the two hold-out models in this process and return the losses they give to each other's half.

    Args:
        task: whose train set counts.
        settings: of the run it is for; the hold-out models are trained alike.
        num_epochs: of that training; they get half of them, rounded up.
        batch_size: of their steps.
        selection_seed: decides the halves and their order.
    """
    num = len(task.train_set)
    settings = dataclasses.replace(settings, backward_cost=2.0)  # what these models cost is counted in the run
    ids = np.arange(num)
    order = np.argsort(keys.hashes(selection_seed, keys.Purpose.HALVES, 0, ids), kind="stable")
    halves = [np.sort(order[: num // 2]), np.sort(order[num // 2 :])]
    losses, trained, seconds = np.empty(num, dtype=np.float32), 0, 0.0
    for mine, others in (halves, halves[::-1]):
        selector = Selector(
            Selection(methods.full(), seed=selection_seed),
            num_samples=mine.size,
            num_epochs=math.ceil(num_epochs / 2),
            batch_size=min(batch_size, mine.size),
            world_size=1,  # every process that asks trains its own
        )
        with tempfile.TemporaryDirectory() as folder:
            workers = LocalWorkers(Path(folder))
            model = fit_model(cast(Task, _OnSome(task, mine)), selector, settings, workers)[1]
        began = time.monotonic()
        losses[others] = _losses_of(task, model.eval(), others, workers.device)
        seconds += selector.ledger.total_s + time.monotonic() - began
        trained += selector.ledger.trained
    return Prepared(losses=losses, scored=num, trained=trained, seconds=seconds)


def _losses_of(task: Task, model: torch.nn.Module, ids: NDArray[np.int64], device: torch.device) -> NDArray[np.float32]:
    parts = []
    with torch.no_grad():
        for start in range(0, ids.size, _BATCH):
            batch = batches.to_device(task.train_set.__getitems__(ids[start : start + _BATCH].tolist()), device)
            parts.append(task.losses(model(task.inputs(batch)), batch).float().cpu().numpy())
    return np.concatenate(parts)


class _OnSome:
    """A task whose train set is a part of another's; what it does on held-out samples is of no interest."""

    held_out_labels = None
    metric_name = statistics = metric_of = final_metrics = tokens = None

    def __init__(self, task: Task, ids: NDArray[np.int64]) -> None:
        self._task = task
        self.train_set = _Some(task.train_set, ids)
        self.held_out = _Some(task.held_out, np.zeros(1, dtype=np.int64))
        augment = getattr(task, "augment", None)
        self.augment = None if augment is None else lambda batch, ids_B, *when: augment(batch, ids[ids_B], *when)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


class _Some:
    """Some of the samples."""

    def __init__(self, samples: Samples, ids: NDArray[np.int64]) -> None:
        self._samples, self._ids = samples, ids

    def __len__(self) -> int:
        return int(self._ids.size)

    def __getitems__(self, positions: Sequence[int]) -> Any:
        return self._samples.__getitems__(self._ids[np.asarray(positions)].tolist())


def _digest(losses: NDArray[np.float32]) -> str:
    return hashlib.sha256(losses.astype("<f4").tobytes()).hexdigest()


def write_losses(path: str, losses: NDArray[np.float32]) -> None:
    """Write irreducible losses float32[n] as an Arrow IPC file with the columns id and irreducible_loss."""
    table = pa.table({"id": np.arange(losses.size), _COLUMNS[0]: losses})
    table = table.replace_schema_metadata({_DIGEST: _digest(losses)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    filesystem, place = files.open_filesystem(path)
    files.write_atomically(filesystem, place, sink.getvalue().to_pybytes())


def _read_parquet(data: bytes, path: str, num_samples: int) -> pa.Table:
    """Return the columns of a Parquet file that are of use here."""
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        column = _loss_column(file.schema_arrow, path)
        if file.metadata.num_rows != num_samples:
            raise _other_ids(path, file.metadata.num_rows, num_samples)
        return file.read(["id", column])
    except (pa.ArrowException, OSError) as error:
        raise errors.StorageError(f"{path} is not a Parquet file: {error}") from error


def _loss_column(schema: pa.Schema, path: str) -> str:
    column = next((name for name in _COLUMNS if name in schema.names), None)
    if column is None or "id" not in schema.names:
        raise errors.DataError(f"{path} has the columns {schema.names}: id and {' or '.join(_COLUMNS)} are needed")
    for name in ("id", column):
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise errors.DataError(f"{path} has a column {name} of {kind}: it must hold numbers")
    return column


def _other_ids(path: str, num_rows: int, num_samples: int) -> errors.DataError:
    return errors.DataError(f"{path} has {num_rows:,} ids that are not 0 .. {num_samples - 1:,}, each once")


def read_losses(path: str, num_samples: int) -> NDArray[np.float32]:
    """Return irreducible losses float32[n] from an Arrow IPC or Parquet file, in the order of its column id.

    The column is irreducible_loss or last_loss, so that `es-service export` of another run makes such a file.

    Raises:
        StorageError: the file cannot be read, is damaged, or is none of these.
        DataError: it has no such columns, not each id of 0 .. n-1 once, or a loss that is not finite.
    """
    filesystem, place = files.open_filesystem(path)
    data = files.read_bytes(filesystem, place, _HEAD_BYTES + num_samples * _MOST_ROW_BYTES)
    if place.endswith(".parquet"):
        table = _read_parquet(data, path, num_samples)
    else:

        def check(schema: pa.Schema) -> None:
            _loss_column(schema, path)

        table = arrow_files.read_table(data, path, check, most_rows=num_samples, row_bytes=_MOST_ROW_BYTES)
    column = _loss_column(table.schema, path)
    ids = table.column("id").to_numpy()
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.arange(num_samples)):
        raise _other_ids(path, ids.size, num_samples)
    found = table.column(column).take(pa.array(order))
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
        losses: NDArray[np.float32] = found.to_numpy().astype(np.float32)
    noted = (table.schema.metadata or {}).get(_DIGEST)
    if column == _COLUMNS[0] and noted is not None and noted.decode(errors="replace") != _digest(losses):
        raise errors.StorageError(f"{path} is damaged: its sha256 is not the one noted in it")
    usable = np.abs(losses) <= MAX_LOSS  # False for NaN, which a null becomes, too
    if not usable.all():
        first = int(np.argmin(usable))
        value = found[first].as_py()
        raise errors.DataError(
            f"{path}: {column} of id {first} is {'null' if value is None else value}, where a finite number of at most "
            f"{MAX_LOSS:g} is needed: was every sample observed in the run that the file is from?"
        )
    return losses

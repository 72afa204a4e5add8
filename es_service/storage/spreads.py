"""How the columns of a table spread at the end of each epoch: a few KB an epoch, kept when its snapshot is long gone.

    <storage>/<run>/spreads/<epochs finished, 8 digits>.json

A bin is the upper 12 bits of a float32: the sign, the exponent and three bits of the mantissa, that is, eight bins
between x and 2x. No common range is needed, so shards count for themselves and counts are added up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.storage import files, sealed

__all__ = ["COLUMNS", "Spread", "SpreadFiles", "merged", "spreads_of"]

FORMAT = 1
COLUMNS = ("s", "w", "last_loss", "loss_mean", "loss_std", "visits", "selected", "picked_share")
_SHIFT = 20  # bits of a float32 that are left out
_FIRST_OF_NO_NUMBER = 0x7F800000 >> _SHIFT  # the bins of infinity and NaN
_BLOCK = 1 << 16  # rows at a time: what is worked out on the way stays in the cache, and other threads get their turn
Spreads = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """How the values of one column spread.

    Attributes:
        edges: float64[bins + 1] of the bins that are not empty and those between them; the lowest edge is above 0.
        counts: int64[bins].
        num_below: values of 0 or less (or below 1e-38).
        num_missing: samples without a value.
        total: sum of all values.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    num_below: int
    num_missing: int
    total: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spread:
        """Make one from what `spreads_of` returns for a column; KeyError, TypeError or ValueError if it is not that."""
        counts = np.array(values["counts"], dtype=np.int64)
        bits = (int(values["first"]) + np.arange(counts.size + 1)).astype(np.uint32) << np.uint32(_SHIFT)
        edges = bits.view(np.float32).astype(np.float64)
        return cls(edges, counts, int(values["below"]), int(values["missing"]), float(values["sum"]))

    def has_same_counts(self, other: Spread) -> bool:
        """Return whether another one counts as many values in each bin."""
        return (
            np.array_equal(self.edges, other.edges)
            and np.array_equal(self.counts, other.counts)
            and (self.num_below, self.num_missing) == (other.num_below, other.num_missing)
        )

    @property
    def num_values(self) -> int:
        """How many values there are."""
        return int(self.counts.sum()) + self.num_below

    @property
    def mean(self) -> float | None:
        """Mean of all values, None where there is none."""
        return self.total / self.num_values if self.num_values else None

    def over(self, edges: Sequence[float], *, is_log: bool) -> NDArray[np.int64]:
        """Return about how many values lie between each two of these edges, those outside in the first or last.

        Within a bin of its own the values are taken to lie evenly, of the logarithm if `is_log` (values of 0 or less
        are then left out).
        """
        own, asked = self.edges, np.asarray(edges, dtype=np.float64)
        below = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.float64)
        if is_log:
            own, asked = np.log(own), np.log(asked)
        else:
            below += self.num_below
        at = np.interp(asked, own, below) if self.counts.size else np.zeros(asked.size)
        if not is_log and self.num_below:
            at[asked <= 0] = 0.0
        at[0], at[-1] = 0.0, below[-1]
        counts: NDArray[np.int64] = np.diff(np.rint(at).astype(np.int64)).astype(np.int64)
        return counts

    def quantile(self, share: float) -> float | None:
        """Return about the value below which this share of them lies."""
        if not self.num_values:
            return None
        rank = share * self.num_values - self.num_below
        if rank <= 0 or not self.counts.size:
            return 0.0 if self.num_below else float(self.edges[0])
        return float(np.interp(rank, np.concatenate([[0], np.cumsum(self.counts)]), self.edges))


def _values(records: NDArray[np.void]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each column of records as float32, NaN where a sample has no value."""
    seen, nothing = records["visits"] > 0, np.float32(np.nan)
    for name in ("s", "w", "last_loss"):
        yield name, records[name]
    yield "loss_mean", np.where(seen, records["loss_mean"], nothing)
    yield "loss_std", np.where(seen, np.sqrt(np.maximum(records["loss_var"], np.float32(0))), nothing)
    visits, selected = records["visits"].astype(np.float32), records["selected"].astype(np.float32)
    yield "visits", visits
    yield "selected", selected
    yield "picked_share", np.where(seen, selected / np.maximum(visits, np.float32(1)), nothing)


def spreads_of(records: NDArray[np.void]) -> Spreads:
    """Return how each column of records[n] spreads, as plain values."""
    counts = {name: np.zeros(1 << (32 - _SHIFT), dtype=np.int64) for name in COLUMNS}
    totals = dict.fromkeys(COLUMNS, 0.0)
    for start in range(0, records.size, _BLOCK):
        for name, values in _values(records[start : start + _BLOCK]):
            values = np.ascontiguousarray(values, dtype=np.float32)
            counts[name] += np.bincount(values.view(np.uint32) >> np.uint32(_SHIFT), minlength=counts[name].size)
            totals[name] += float(values.sum(dtype=np.float64, where=np.isfinite(values)))
    return {name: _sorted(counts[name], totals[name]) for name in COLUMNS}


def _sorted(counts: NDArray[np.int64], total: float) -> dict[str, Any]:
    """Separate the bins of numbers above 0 from the others: bin 0 has 0 itself, the upper half what is negative."""
    above, below = counts[: counts.size // 2], counts[counts.size // 2 :]
    missing = int(above[_FIRST_OF_NO_NUMBER:].sum() + below[_FIRST_OF_NO_NUMBER:].sum())
    num_below = int(above[0] + below[:_FIRST_OF_NO_NUMBER].sum())
    return _plain(np.concatenate([[0], above[1:_FIRST_OF_NO_NUMBER]]), num_below, missing, total)


def _plain(counts: NDArray[np.int64], below: float, missing: float, total: float) -> dict[str, Any]:
    places = np.flatnonzero(counts)
    first, end = (int(places[0]), int(places[-1]) + 1) if places.size else (0, 0)
    kept = counts[first:end].tolist()
    return {"first": first, "counts": kept, "below": int(below), "missing": int(missing), "sum": total}


def merged(parts: Sequence[Spreads]) -> Spreads:
    """Return the spreads of a table from those of its shards."""
    found = {}
    for name in COLUMNS:
        counts = np.zeros(1 << (31 - _SHIFT), dtype=np.int64)
        for part in parts:
            first, own = part[name]["first"], part[name]["counts"]
            counts[first : first + len(own)] += np.array(own, dtype=np.int64)
        found[name] = _plain(counts, *(sum(part[name][key] for part in parts) for key in ("below", "missing", "sum")))
    return found


class SpreadFiles:
    """Those of a run."""

    def __init__(self, filesystem: fs.FileSystem, run_path: str) -> None:
        self._filesystem, self._folder = filesystem, f"{run_path}/spreads"

    def _file(self, finished_epochs: int) -> str:
        return f"{self._folder}/{finished_epochs:08d}.json"

    def write(self, finished_epochs: int, spreads: Spreads) -> None:
        """Write how a table's columns spread at the end of an epoch."""
        files.make_folder(self._filesystem, self._folder)
        values = {"format": FORMAT, "finished_epochs": finished_epochs, "columns": spreads}
        files.write_json(self._filesystem, self._file(finished_epochs), values)

    def epochs(self) -> list[int]:
        """Return the epochs whose spreads are kept, ascending; none for a run of an earlier version."""
        infos = files.list_folder(self._filesystem, self._folder)
        names = [info.base_name.removesuffix(".json") for info in infos if info.base_name.endswith(".json")]
        return sorted(int(name) for name in names if name.isdecimal())

    def read(self, finished_epochs: int) -> dict[str, Spread]:
        """Return how each column spread at the end of an epoch; StorageError where that is not kept, or damaged."""
        path = self._file(finished_epochs)
        values = files.read_json(self._filesystem, path)
        sealed.check_format(values.get("format"), path, (FORMAT,))
        try:
            return {str(name): Spread.from_dict(one) for name, one in values["columns"].items()}
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise errors.StorageError(f"{path} is damaged: {error}") from error

    def are_of(self, finished_epochs: int, records: NDArray[np.void]) -> bool:
        """Return whether what is kept of an epoch's end was made of these records[n]; without a file, it was not.

        Sums are left out: each number of shards rounds them otherwise.
        """
        if finished_epochs == 0:
            return True
        try:
            kept = self.read(finished_epochs)
        except errors.StorageError:
            return False
        mine = {name: Spread.from_dict(one) for name, one in spreads_of(records).items()}
        return kept.keys() == mine.keys() and all(kept[name].has_same_counts(mine[name]) for name in mine)

    def drop_after(self, finished_epochs: int) -> None:
        """Delete those of later epochs: the run went back, and its future will be another one."""
        for epoch in self.epochs():
            if epoch > finished_epochs:
                with files.storage_errors("clear spreads in", self._folder):
                    self._filesystem.delete_file(self._file(epoch))

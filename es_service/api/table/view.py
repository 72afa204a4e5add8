"""A table to answer from: the columns of the Arrow file, and those derived from them.

One object is one state of a run's table; the next state is another object. Results that need a pass over all n rows
are cached in it, so that each is computed once per state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.api.table.results import Results
from es_service.selection.settings import suggest
from es_service.selection.table import FURTHER_COLUMNS

__all__ = ["COLUMNS", "Labels", "TableView", "floats", "present", "timestamp"]

_STORED = ("id", "s", "w", "last_loss", "visits", "selected", "last_step")
_DERIVED = ("loss_mean", "loss_std", "picked_share", "age", "suspicion")
COLUMNS = (
    "id", "s", "w", "last_loss", "loss_mean", "loss_std", "visits", "selected", "picked_share", "last_step", "age",
    "suspicion", "label", *FURTHER_COLUMNS,
)  # fmt: skip
"""Every column that a sample may have here, in the order they are shown."""

_WHOLE_NUMBERS = ("id", "visits", "selected", "last_step", "age")
_BLOCK = 1 << 18  # rows


class Labels:
    """What the samples of a run are called: codes integer[n] and the name of each code, None for plain numbers."""

    def __init__(self, codes_n: NDArray[Any], names: tuple[str, ...] | None) -> None:
        self.codes_n = codes_n
        self.num = max(int(codes_n.max()) + 1 if codes_n.size else 0, len(names or ()))
        self.names = names

    def name(self, code: int) -> str:
        """Return what a code is called."""
        return self.names[code] if self.names is not None and code < len(self.names) else str(code)

    def code(self, word: str) -> int:
        """Return the code of a name or number; ConfigError where there is none."""
        if self.names is not None and word in self.names:
            return self.names.index(word)
        if word.isdecimal() and len(word) < 10 and int(word) < self.num:
            return int(word)
        known = list(self.names) if self.names is not None else [str(code) for code in range(min(self.num, 50))]
        raise errors.ConfigError(f"no label {word!r}; {suggest(word, known)}")


class TableView(Results):
    """A run's table at one moment.

    Args:
        shards: tables of the score table's schema; shard i of S holds the ids i, i+S, i+2S, …
        version: names this state among all of the run's.
        source: "live" or "storage".
        epoch: epochs finished.
        as_of: when it was like this, seconds since 1970.
        epoch_starts: the run step at which each epoch begins, where that is known.
        open_epoch: epoch under way, None for none.
        labels: of the samples, None where unknown.
    """

    def __init__(
        self,
        shards: Sequence[pa.Table],
        *,
        version: str,
        source: str,
        epoch: int,
        as_of: float,
        epoch_starts: tuple[int, ...] | None = None,
        open_epoch: int | None = None,
        labels: Labels | None = None,
    ) -> None:
        self._shards = tuple(shards)
        self.version, self.source, self.epoch, self.as_of = version, source, epoch, as_of
        self.epoch_starts, self.open_epoch = epoch_starts, open_epoch
        super().__init__(sum(shard.num_rows for shard in shards))
        self.labels = labels if labels is not None and labels.codes_n.size == self.num_rows else None
        further = [name for name in FURTHER_COLUMNS if name in self._shards[0].schema.names]
        self._own = {*_STORED, *further}
        self.columns = tuple(
            name
            for name in COLUMNS
            if name in self._own or name in _DERIVED or (name == "label" and self.labels is not None)
        )

    # -- columns ------------------------------------------------------------------------------------------------------

    def check_column(self, name: str, *, numeric: bool = False) -> str:
        """Return the name; ConfigError where the table has no such column (or, if `numeric`, no numbers in it)."""
        known = [one for one in self.columns if not (numeric and one == "label")]
        if name not in known:
            raise errors.ConfigError(f"no column {name!r}; {suggest(name, known)}")
        return name

    def column(self, name: str) -> NDArray[Any]:
        """Return a column [n] to read from; a number without a value is NaN in floats and -1 in integers."""
        return self.once(
            ("column", name),
            lambda: self._block(name, 0, self.num_rows) if name not in _DERIVED else self._derived(name),
        )

    def _derived(self, name: str) -> NDArray[Any]:
        """Return a derived column, made a block at a time: what is worked out on the way stays small."""
        whole = np.empty(self.num_rows, dtype=self.block(name, 0, 0).dtype)
        for start in range(0, self.num_rows, _BLOCK):
            whole[start : start + _BLOCK] = self.block(name, start, start + _BLOCK)
        return whole

    def block(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return the rows from `start` to `stop` of a column; costs as much as they are many."""
        return self._made(name, lambda stored: self._block(stored, start, stop))

    def at(self, name: str, ids_m: NDArray[np.int64]) -> NDArray[Any]:
        """Return a column at these ids [m]; costs as much as they are many."""
        return self._made(name, lambda stored: self._at(stored, ids_m))

    def _made(self, name: str, get: Callable[[str], NDArray[Any]]) -> NDArray[Any]:
        """Return a column, or a part of it, made of the same part of the stored ones."""
        if name in self._own:
            return get(name)
        if name == "label":
            return get("label")
        if name == "age":
            last = get("last_step")
            return np.where(last < 0, np.int32(-1), np.int32(self.step or 0) - last)
        visits, nothing = get("visits"), np.float32(np.nan)
        if name == "loss_mean":
            return np.where(visits > 0, get("loss_mean"), nothing)
        if name == "loss_std":
            return np.where(visits > 0, np.sqrt(np.maximum(get("loss_var"), np.float32(0))), nothing)
        if name == "picked_share":
            share = get("selected") / np.maximum(visits, 1).astype(np.float32)
            return np.where(visits > 0, share.astype(np.float32), nothing)
        lowest = get("loss_mean") - np.sqrt(np.maximum(get("loss_var"), np.float32(0)))
        return np.where(visits > 1, lowest, nothing)

    def _parts(self, name: str) -> list[NDArray[Any]]:
        if name == "label":
            assert self.labels is not None
            return [self.labels.codes_n]
        return self.once(("parts", name), lambda: [_numpy(shard.column(name)) for shard in self._shards])

    def _block(self, name: str, start: int, stop: int) -> NDArray[Any]:
        parts = self._parts(name)
        stop, num = min(stop, self.num_rows), len(parts)
        if num == 1:
            return parts[0][start:stop]
        block = np.empty(max(0, stop - start), dtype=parts[0].dtype)
        for index, part in enumerate(parts):
            offset = (index - start) % num
            first = (start + offset) // num
            wanted = block[offset::num]
            wanted[:] = part[first : first + wanted.size]
        return block

    def _at(self, name: str, ids_m: NDArray[np.int64]) -> NDArray[Any]:
        parts = self._parts(name)
        if len(parts) == 1:
            found: NDArray[Any] = parts[0][ids_m]
            return found
        found = np.empty(ids_m.size, dtype=parts[0].dtype)
        for index, part in enumerate(parts):
            mine = ids_m % len(parts) == index
            found[mine] = part[ids_m[mine] // len(parts)]
        return found

    @property
    def step(self) -> int | None:
        """The highest run step that a sample was observed at; None before the first."""
        last = self.once(("step",), lambda: int(self.column("last_step").max(initial=-1)))
        return None if last < 0 else last

    def has_value(self, name: str) -> NDArray[np.bool_] | None:
        """Return bool[n], which samples have a value in a column; None for all of them."""

        def work() -> NDArray[np.bool_] | None:
            found = present(name, self.column(name))
            return None if found is None or found.all() else found

        return self.once(("has value", name), work)

    def rows(self, ids_m: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the samples of these ids as plain values, None where there is none."""
        columns = {name: self._plain(name, self.at(name, ids_m)) for name in names}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _plain(self, name: str, values: NDArray[Any]) -> list[Any]:
        if name == "label":
            assert self.labels is not None
            return [self.labels.name(int(code)) for code in values]
        if name in ("last_step", "age"):
            return [None if value < 0 else value for value in values.tolist()]
        if name in _WHOLE_NUMBERS:
            found: list[Any] = values.tolist()
            return found
        return floats(values)

    # -- for answers --------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the table's version and age, as part of every answer."""
        return {
            "source": self.source,
            "version": self.version,
            "epoch": self.epoch,
            "open_epoch": self.open_epoch,
            "step": self.step,
            "as_of": timestamp(self.as_of),
            "age_s": round(max(0.0, time.time() - self.as_of), 3),
            "num_rows": self.num_rows,
            "columns": list(self.columns),
        }


def present(name: str, values: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which values of a column, or of a part of it, there are; None for all of a column that is never empty."""
    if name in ("last_step", "age"):
        found: NDArray[np.bool_] = values >= 0
        return found
    return np.isfinite(values) if values.dtype.kind == "f" else None


def _numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    if column.num_chunks == 1:
        found: NDArray[Any] = column.chunk(0).to_numpy(zero_copy_only=True)
        return found
    return np.ascontiguousarray(column.to_numpy())


def floats(values: NDArray[Any]) -> list[float | None]:
    """Return float32 values as the shortest numbers of seven digits that mean them, None where there is none."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values.tolist()]


def timestamp(seconds: float) -> str:
    """Return a time of day as ISO 8601 in UTC, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"

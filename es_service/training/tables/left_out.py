"""How much of a user's files does not go into a training, or not as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import pyarrow as pa

__all__ = ["LeftOut"]


class _Read(Protocol):
    """What was read of one part of the data; see `read.ReadTable`."""

    @property
    def table(self) -> pa.Table: ...

    @property
    def skipped(self) -> int: ...

    @property
    def broken_files(self) -> tuple[Path, ...]: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Counts of the samples to train on and the held-out ones together.

    Args:
        rows: left out: they cannot be read, or have no label, no text or no image.
        files: left out as a whole; how many rows they had is not known.
        truncated: sequences that were cut to the most tokens that the model takes, or that were asked for.
    """

    rows: int = 0
    files: int = 0
    truncated: int = 0

    @classmethod
    def of(cls, parts: Iterable[_Read], num_used: int, *, truncated: int = 0) -> LeftOut:
        """Return the counts of the parts, of whose rows so many are used."""
        parts = list(parts)
        rows = sum(one.skipped + one.table.num_rows for one in parts) - num_used
        return cls(rows=rows, files=sum(len(one.broken_files) for one in parts), truncated=truncated)

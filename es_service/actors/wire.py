"""Messages between a rank and its score server, packed: one bytes object costs Ray a third less than two arrays.

    report   header | ids int64[B] | float32[B] for each signal, if any | selected int64[b]
    acknowledgement  seq of the rank's last report, seq up to which they are on storage, 1 where storage fails
    weights  acknowledgement | float32[B]
    request  rank, generation, run step | ids int64[B]                for rows that the rank will observe in that step
    rows     seq of the rank's last report, overlaps | 4 bytes [B] for each column, in the order both sides know

All little-endian. Several reports may follow each other in one message. A decoder trusts nothing: lengths are checked
against the bytes before any array is made.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.methods.base import Columns
from es_service.selection.run import Caller
from es_service.selection.signals import SIGNALS

__all__ = [
    "MAX_BYTES",
    "Acknowledgement",
    "Report",
    "decode_acknowledgement",
    "decode_reports",
    "decode_request",
    "decode_rows",
    "decode_weights",
    "encode_acknowledgement",
    "encode_report",
    "encode_request",
    "encode_rows",
    "encode_weights",
    "max_ids",
]

MAX_BYTES = 96 << 10
"""Above 100 KB Ray sends an argument through its object store, at three times the price."""

_HEADER = struct.Struct("<HBxI16sQIII")  # magic, flags, rank, generation, seq, run step, B, b
_REQUEST = struct.Struct("<I16sI")
_ROWS = struct.Struct("<QI")
_ACKNOWLEDGEMENT = struct.Struct("<QQB")
_MAGIC = 0xE5A2
_SIGNAL_BITS = {name: 1 << place for place, name in enumerate(SIGNALS)}
_KNOWN_BITS = sum(_SIGNAL_BITS.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a rank has seen and trained on, in one step.

    Attributes:
        caller: the rank and its generation; a generation is 32 hexadecimal digits.
        seq: counts the rank's reports to this server from 1 within its generation; a repeated one changes nothing.
        run_step: step counted over the whole run.
        ids: int64[B] observed; none where `seen` is None.
        seen: signals by name, float32[B] each, "loss" among them; or None.
        selected: int64[b] ids that were drawn, of these or of an earlier report.
    """

    caller: Caller
    seq: int
    run_step: int
    ids: NDArray[np.int64]
    seen: Columns | None
    selected: NDArray[np.int64]


def max_ids(num_signals: int) -> int:
    """Return how many ids, all of them selected, fit a message that is to stay below `MAX_BYTES`."""
    return (MAX_BYTES - _HEADER.size) // (16 + 4 * num_signals)


def encode_report(report: Report) -> bytes:
    """Pack one report."""
    seen = report.seen or {}
    names = [name for name in SIGNALS if name in seen]
    header = _HEADER.pack(
        _MAGIC,
        sum(_SIGNAL_BITS[name] for name in names),
        report.caller.rank,
        bytes.fromhex(report.caller.generation),
        report.seq,
        report.run_step,
        report.ids.size,
        report.selected.size,
    )
    parts = [header, report.ids.astype("<i8", copy=False).tobytes()]
    parts += [seen[name].astype("<f4", copy=False).tobytes() for name in names]
    parts.append(report.selected.astype("<i8", copy=False).tobytes())
    return b"".join(parts)


def decode_reports(message: bytes) -> Iterator[Report]:
    """Unpack the reports of a message, one after the other.

    Raises:
        ShapeError: the bytes are not reports of this version.
    """
    offset = 0

    def take(dtype: str, num: int) -> NDArray[Any]:
        nonlocal offset
        array: NDArray[Any] = np.frombuffer(message, dtype, num, offset)
        offset += array.nbytes
        return array

    while offset < len(message):
        if len(message) - offset < _HEADER.size:
            raise errors.ShapeError(f"message ends inside a header, at byte {offset} of {len(message)}")
        magic, flags, rank, generation, seq, run_step, num_ids, num_selected = _HEADER.unpack_from(message, offset)
        if magic != _MAGIC or flags & ~_KNOWN_BITS:
            raise errors.ShapeError(
                "message is not a report of this version: do client and server run the same es_service?"
            )
        offset += _HEADER.size
        names = [name for name, bit in _SIGNAL_BITS.items() if flags & bit]
        size = num_ids * (8 + 4 * len(names)) + num_selected * 8
        if len(message) - offset < size:
            raise errors.ShapeError(
                f"message claims {size:,} more bytes at byte {offset}, it has {len(message) - offset:,}"
            )
        ids = take("<i8", num_ids)
        seen = {name: take("<f4", num_ids) for name in names}
        yield Report(Caller(rank, generation.hex()), seq, run_step, ids, seen or None, take("<i8", num_selected))


@dataclasses.dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a shard has of a rank.

    Attributes:
        seq: of the rank's last report that was applied.
        durable: seq of the last one that is on storage: those after it have to be kept, and sent again after a crash.
        failing: the storage cannot be written at the moment.
    """

    seq: int
    durable: int
    failing: bool


def encode_acknowledgement(acknowledgement: Acknowledgement) -> bytes:
    """Pack an acknowledgement."""
    return _ACKNOWLEDGEMENT.pack(acknowledgement.seq, acknowledgement.durable, acknowledgement.failing)


def decode_acknowledgement(message: bytes) -> tuple[Acknowledgement, bytes]:
    """Unpack an acknowledgement; return it with the bytes behind it. ShapeError where there is none."""
    if len(message) < _ACKNOWLEDGEMENT.size:
        raise errors.ShapeError(
            f"answer of {len(message)} bytes is not an acknowledgement: do client and server run the same es_service?"
        )
    seq, durable, failing = _ACKNOWLEDGEMENT.unpack_from(message)
    return Acknowledgement(seq, durable, bool(failing)), message[_ACKNOWLEDGEMENT.size :]


def encode_weights(weights_B: NDArray[np.float32]) -> bytes:
    """Pack the weights that an observation gave."""
    return weights_B.astype("<f4", copy=False).tobytes()


def decode_weights(message: bytes) -> NDArray[np.float32]:
    """Unpack weights float32[B]; ShapeError where the bytes are not that."""
    if len(message) % 4:
        raise errors.ShapeError(
            f"answer of {len(message)} bytes is not weights: do client and server run the same es_service?"
        )
    return np.frombuffer(message, "<f4")


def encode_request(caller: Caller, run_step: int, ids_B: NDArray[np.int64]) -> bytes:
    """Pack a request for rows."""
    header = _REQUEST.pack(caller.rank, bytes.fromhex(caller.generation), run_step)
    return header + ids_B.astype("<i8", copy=False).tobytes()


def decode_request(message: bytes) -> tuple[Caller, int, NDArray[np.int64]]:
    """Unpack a request for rows, (caller, run step, ids); ShapeError where the bytes are not that."""
    if len(message) < _REQUEST.size or (len(message) - _REQUEST.size) % 8:
        raise errors.ShapeError(f"{len(message)} bytes are not a request for rows")
    rank, generation, run_step = _REQUEST.unpack_from(message)
    return Caller(rank, generation.hex()), run_step, np.frombuffer(message, "<i8", offset=_REQUEST.size)


def encode_rows(seq: int, num_overlaps: int, columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack rows.

    Args:
        seq: of the last report of the rank that was applied before they were read.
        num_overlaps: of these ids, how many another rank has asked for and not reported yet.
        columns: 4 bytes a value, [B] each.
    """
    return b"".join((_ROWS.pack(seq, num_overlaps), *(values.tobytes() for values in columns.values())))


def decode_rows(
    message: bytes, num: int, dtypes: Mapping[str, np.dtype[Any]]
) -> tuple[int, int, dict[str, NDArray[Any]]]:
    """Unpack (seq, overlaps, columns of these dtypes, [num] each); ShapeError where the bytes are not that."""
    if len(message) != _ROWS.size + 4 * num * len(dtypes):
        raise errors.ShapeError(
            f"answer of {len(message)} bytes is not {num} rows: do client and server run the same es_service?"
        )
    seq, num_overlaps = _ROWS.unpack_from(message)
    columns: dict[str, NDArray[Any]] = {
        name: np.frombuffer(message, dtype, num, _ROWS.size + 4 * num * place)
        for place, (name, dtype) in enumerate(dtypes.items())
    }
    return seq, num_overlaps, columns

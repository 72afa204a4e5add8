"""Messages between a rank and its score server, packed: one bytes object costs Ray a third less than two arrays.

    report   header | ids int64[B] | float32[B] for each signal, if any | positions uint32[b], if given
    reply    count uint32 | positions uint32[b] | scale float32[b]

All little-endian. Several reports may follow each other in one message. A report names positions already drawn, or
asks for `num` to be drawn; a decoder trusts nothing: lengths are checked against the bytes before any array is made.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns
from es_service.selection.scorekeeper import Caller
from es_service.selection.signals import SIGNALS

__all__ = ["Report", "decode_draw", "decode_reports", "encode_draw", "encode_report"]

_HEADER = struct.Struct("<HBxI16sQIII")  # magic, flags, rank, attempt, seq, run step, B, b
_COUNT = struct.Struct("<I")
_MAGIC = 0xE5A1
_POSITIONS = 1
_SIGNAL_BITS = {name: 2 << place for place, name in enumerate(SIGNALS)}
_KNOWN_BITS = _POSITIONS | sum(_SIGNAL_BITS.values())


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """One step of one rank.

    Attributes:
        caller: the rank and its attempt; an attempt is 32 hexadecimal digits.
        seq: counts the rank's reports from 1 within its attempt; a repeated one changes nothing.
        run_step: step counted over the whole run.
        ids: int64[B].
        seen: signals by name, float32[B] each, "loss" among them; or None.
        positions: int64[b] drawn by the rank itself, or None where the server draws.
        num: b to be drawn by the server.
    """

    caller: Caller
    seq: int
    run_step: int
    ids: NDArray[np.int64]
    seen: Columns | None
    positions: NDArray[np.int64] | None
    num: int


def encode_report(report: Report) -> bytes:
    """Pack one report."""
    seen = report.seen or {}
    names = [name for name in SIGNALS if name in seen]
    flags = sum(_SIGNAL_BITS[name] for name in names) | (_POSITIONS if report.positions is not None else 0)
    num = report.num if report.positions is None else report.positions.size
    header = _HEADER.pack(
        _MAGIC,
        flags,
        report.caller.rank,
        bytes.fromhex(report.caller.attempt),
        report.seq,
        report.run_step,
        report.ids.size,
        num,
    )
    parts = [header, report.ids.astype("<i8", copy=False).tobytes()]
    parts += [seen[name].astype("<f4", copy=False).tobytes() for name in names]
    if report.positions is not None:
        parts.append(report.positions.astype("<u4").tobytes())
    return b"".join(parts)


def decode_reports(message: bytes) -> Iterator[Report]:
    """Unpack the reports of a message, one after the other.

    Raises:
        ShapeError: the bytes are not reports of this version.
    """
    offset = 0
    while offset < len(message):
        if len(message) - offset < _HEADER.size:
            raise errors.ShapeError(f"message ends inside a header, at byte {offset} of {len(message)}")
        magic, flags, rank, attempt, seq, run_step, num_ids, num = _HEADER.unpack_from(message, offset)
        if magic != _MAGIC or flags & ~_KNOWN_BITS:
            raise errors.ShapeError(
                "message is not a report of this version: do client and server run the same es_service?"
            )
        offset += _HEADER.size
        names = [name for name, bit in _SIGNAL_BITS.items() if flags & bit]
        size = num_ids * (8 + 4 * len(names)) + (num * 4 if flags & _POSITIONS else 0)
        if len(message) - offset < size:
            raise errors.ShapeError(
                f"message claims {size:,} more bytes at byte {offset}, it has {len(message) - offset:,}"
            )
        ids = np.frombuffer(message, "<i8", num_ids, offset)
        offset += ids.nbytes
        seen = {}
        for name in names:
            seen[name] = np.frombuffer(message, "<f4", num_ids, offset)
            offset += seen[name].nbytes
        positions = None
        if flags & _POSITIONS:
            positions = np.frombuffer(message, "<u4", num, offset).astype(np.int64)
            offset += num * 4
            if num and int(positions.max()) >= num_ids:
                raise errors.ShapeError(f"position {int(positions.max())} is outside a meta-batch of {num_ids}")
        yield Report(Caller(rank, attempt.hex()), seq, run_step, ids, seen or None, positions, num)


def encode_draw(draw: Draw) -> bytes:
    """Pack what was drawn."""
    return b"".join(
        (
            _COUNT.pack(draw.positions.size),
            draw.positions.astype("<u4").tobytes(),
            draw.scale.astype("<f4").tobytes(),
        )
    )


def decode_draw(message: bytes, ids_B: NDArray[np.int64]) -> Draw:
    """Unpack what was drawn from these ids; ShapeError where the bytes are not that."""
    if len(message) < _COUNT.size or len(message) != _COUNT.size + 8 * (num := _COUNT.unpack_from(message)[0]):
        raise errors.ShapeError(
            f"answer of {len(message)} bytes is not a draw: do client and server run the same es_service?"
        )
    positions = np.frombuffer(message, "<u4", num, _COUNT.size).astype(np.int64)
    scale = np.frombuffer(message, "<f4", num, _COUNT.size + 4 * num).copy()
    if num and int(positions.max()) >= ids_B.size:
        raise errors.ShapeError(f"position {int(positions.max())} is outside a meta-batch of {ids_B.size}")
    return Draw(positions, ids_B[positions], scale)

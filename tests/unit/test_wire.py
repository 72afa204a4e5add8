"""The wire: what goes in comes out, and bytes from anywhere are refused in words."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.selection.run import Caller
from es_service.selection.signals import SIGNALS

HEADER_BYTES = 48

hex_digits = st.binary(min_size=16, max_size=16).map(bytes.hex)


@st.composite
def reports(draw: st.DrawFn) -> wire.Report:
    size = draw(st.integers(1, 20))
    ids = draw(hnp.arrays(np.int64, size, elements=st.integers(-(2**63), 2**63 - 1)))
    values = hnp.arrays(np.float32, size, elements=st.floats(width=32))
    seen = draw(st.none() | st.dictionaries(st.sampled_from(SIGNALS), values, min_size=1))
    selected = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=size))
    return wire.Report(
        caller=Caller(draw(st.integers(0, 2**32 - 1)), draw(hex_digits)),
        seq=draw(st.integers(0, 2**64 - 1)),
        run_step=draw(st.integers(0, 2**32 - 1)),
        ids=ids,
        seen=seen,
        selected=np.array(selected, dtype=np.int64),
    )


def comparable(report: wire.Report) -> tuple[Any, ...]:
    return (
        report.caller,
        report.seq,
        report.run_step,
        report.ids.tobytes(),
        None if report.seen is None else {name: values.tobytes() for name, values in report.seen.items()},
        report.selected.tolist(),
    )


@given(st.lists(reports(), max_size=4))
def test_reports_come_out_as_they_went_in(sent: list[wire.Report]) -> None:
    message = b"".join(wire.encode_report(report) for report in sent)
    received = list(wire.decode_reports(message))
    assert [comparable(one) for one in received] == [comparable(one) for one in sent]
    for one in received:
        assert one.ids.dtype == np.int64
        assert all(values.dtype == np.float32 for values in (one.seen or {}).values())
        assert one.selected.dtype == np.int64


def one_report() -> wire.Report:
    return wire.Report(
        Caller(3, "0f" * 16),
        seq=7,
        run_step=42,
        ids=np.array([5, 2**40, 0, 9], dtype=np.int64),
        seen={"loss": np.array([1, 2, 3, 4], dtype=np.float32)},
        selected=np.array([2**40, 9]),
    )


def test_the_layout_is_the_one_in_the_text() -> None:
    message = wire.encode_report(one_report())
    assert len(message) == HEADER_BYTES - 4 + 4 * 8 + 4 * 4 + 2 * 8
    assert message[:2] == struct.pack("<H", 0xE5A2)


def test_every_truncation_is_refused() -> None:
    message = wire.encode_report(one_report())
    for end in range(1, len(message)):
        with pytest.raises(errors.ShapeError):
            list(wire.decode_reports(message[:end]))


def test_a_second_report_cut_short_is_refused_too() -> None:
    message = wire.encode_report(one_report())
    for end in range(1, len(message)):
        with pytest.raises(errors.ShapeError):
            list(wire.decode_reports(message + message[:end]))


@given(st.integers(0, 91), st.integers(1, 255))
def test_a_flipped_byte_gives_a_shape_error_or_another_report(position: int, flip: int) -> None:
    message = bytearray(wire.encode_report(one_report()))
    message[position % len(message)] ^= flip
    try:
        for report in wire.decode_reports(bytes(message)):
            assert all(values.size == report.ids.size for values in (report.seen or {}).values())
    except errors.ShapeError:
        pass


@given(st.binary(max_size=300))
@example(b"\xa2\xe5")
@example(b"\xa2\xe5" + b"\xff" * 60)
@example(b"\xa2\xe5\x03" + b"\xff" * 60)
def test_bytes_from_anywhere_give_a_shape_error_or_nothing(message: bytes) -> None:
    with contextlib.suppress(errors.ShapeError):
        list(wire.decode_reports(message))


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 0x1F])
def test_a_claim_of_gigabytes_allocates_nothing(flags: int) -> None:
    header = struct.pack("<HBxI16sQIII", 0xE5A2, flags, 0, bytes(16), 1, 0, 2**32 - 1, 2**32 - 1)
    tracemalloc.start()
    try:
        with pytest.raises(errors.ShapeError, match="claims"):
            list(wire.decode_reports(header + bytes(64)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_signals_stand_in_their_own_order_whatever_the_caller_s() -> None:
    report = one_report()
    values = np.array([5, 6, 7, 8], dtype=np.float32)
    assert report.seen is not None
    one = dataclasses.replace(report, seen={"grad_norm": values, **report.seen})
    other = dataclasses.replace(report, seen={**report.seen, "grad_norm": values})
    assert wire.encode_report(one) == wire.encode_report(other)
    [got] = wire.decode_reports(wire.encode_report(one))
    assert got.seen is not None
    assert {name: column.tolist() for name, column in got.seen.items()} == {
        "loss": [1, 2, 3, 4],
        "grad_norm": [5, 6, 7, 8],
    }


@pytest.mark.parametrize("bit", [0x40, 0x80])
def test_an_unknown_flag_or_magic_is_another_version(bit: int) -> None:
    message = bytearray(wire.encode_report(one_report()))
    message[2] |= bit
    with pytest.raises(errors.ShapeError, match="same es_service"):
        list(wire.decode_reports(bytes(message)))
    message = bytearray(wire.encode_report(one_report()))
    message[0] ^= 1
    with pytest.raises(errors.ShapeError, match="same es_service"):
        list(wire.decode_reports(bytes(message)))


@given(hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(width=32)))
def test_weights_come_out_as_they_went_in(weights: NDArray[np.float32]) -> None:
    got = wire.decode_weights(wire.encode_weights(weights))
    assert got.dtype == np.float32
    assert got.tobytes() == weights.tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_half_a_weight_is_refused(size: int) -> None:
    with pytest.raises(errors.ShapeError, match=f"{size} bytes is not weights"):
        wire.decode_weights(b"x" * size)


@pytest.mark.parametrize("num_signals", range(1, len(SIGNALS) + 1))
def test_a_full_piece_stays_below_the_size_that_ray_passes_quickly(num_signals: int) -> None:
    ids = np.arange(wire.max_ids(num_signals))
    seen = {name: ids.astype(np.float32) for name in SIGNALS[:num_signals]}
    message = wire.encode_report(wire.Report(Caller(0, "00" * 16), 1, 0, ids, seen, ids))
    assert wire.MAX_BYTES - 40 < len(message) <= wire.MAX_BYTES


@given(st.integers(0, 2**32 - 1), hex_digits, st.integers(0, 2**32 - 1), hnp.arrays(np.int64, st.integers(0, 20)))
def test_a_request_comes_out_as_it_went_in(rank: int, generation: str, step: int, ids: NDArray[np.int64]) -> None:
    caller, run_step, got = wire.decode_request(wire.encode_request(Caller(rank, generation), step, ids))
    assert (caller, run_step, got.tolist()) == (Caller(rank, generation), step, ids.tolist())


DTYPES = {"s": np.dtype("<f4"), "visits": np.dtype("<u4")}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 2))
def test_rows_come_out_as_they_went_in(seq: int, overlaps: int, num: int, num_columns: int) -> None:
    dtypes = dict(list(DTYPES.items())[:num_columns])
    columns = {name: np.arange(num).astype(dtype) for name, dtype in dtypes.items()}
    got = wire.decode_rows(wire.encode_rows(seq, overlaps, columns), num, dtypes)
    assert got[:2] == (seq, overlaps)
    assert {name: values.tolist() for name, values in got[2].items()} == {
        name: values.tolist() for name, values in columns.items()
    }
    assert {name: values.dtype for name, values in got[2].items()} == dtypes


def test_requests_and_rows_cut_short_are_refused() -> None:
    request = wire.encode_request(Caller(1, "0f" * 16), 3, np.arange(2))
    for end in set(range(len(request))) - {len(request) - 8, len(request) - 16}:  # there it ends behind an id
        with pytest.raises(errors.ShapeError, match="not a request"):
            wire.decode_request(request[:end])
    rows = wire.encode_rows(1, 0, {"s": np.ones(3, dtype=np.float32)})
    for end in range(len(rows)):
        with pytest.raises(errors.ShapeError, match="is not 3 rows"):
            wire.decode_rows(rows[:end], 3, {"s": np.dtype("<f4")})

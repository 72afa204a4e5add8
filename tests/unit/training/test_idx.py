"""IDX files: what is read, and that every kind of damage is named before memory is spent on it."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from es_service import errors
from es_service.training.tasks.idx import read_idx

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def idx_bytes(shape: tuple[int, ...], content: bytes, type_code: int = 0x08) -> bytes:
    return bytes([0, 0, type_code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def write(path: Path, content: bytes, *, gzipped: bool) -> Path:
    path.write_bytes(gzip.compress(content) if gzipped else content)
    return path


@pytest.mark.parametrize("gzipped", [True, False])
@given(values=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, gzipped: bool, values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> None:
    path = write(tmp_path_factory.mktemp("idx") / "x", idx_bytes(values.shape, values.tobytes()), gzipped=gzipped)
    got = read_idx(path)
    assert got.dtype == np.uint8
    assert got.shape == values.shape
    np.testing.assert_array_equal(got, values)
    got[...] = 1  # writable: torch warns about arrays that are not


def test_the_name_does_not_decide_whether_it_is_gzipped(tmp_path: Path) -> None:
    content = idx_bytes(VALUES.shape, VALUES.tobytes())
    np.testing.assert_array_equal(read_idx(write(tmp_path / "plain.gz", content, gzipped=False)), VALUES)
    np.testing.assert_array_equal(read_idx(str(write(tmp_path / "zipped", content, gzipped=True))), VALUES)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**32 - 1,) * 255, (2**32 - 1,)])
def test_an_enormous_header_allocates_nothing(tmp_path: Path, shape: tuple[int, ...], gzipped: bool) -> None:
    path = write(tmp_path / "huge", idx_bytes(shape, b"abc"), gzipped=gzipped)
    tracemalloc.start()
    try:
        with pytest.raises(errors.DataError, match=r"holds only 3") as caught:
            read_idx(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 << 20
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "not an IDX file"),
        (b"\0\0", "not an IDX file"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (idx_bytes((2,), b"abcdefgh", type_code=0x0D), "type 0x0d"),
        (b"\0\0\x08\0", "0 dimensions"),
        (b"\0\0\x08\x02\0\0\0\x01", "2 dimensions"),
        (idx_bytes((2, 3), b"abcde"), "6 bytes; it holds only 5"),
        (idx_bytes((2, 3), b"abcdefg"), "6 bytes; it holds more"),
        (idx_bytes((0, 3), b"a"), "0 bytes; it holds more"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, problem: str, gzipped: bool) -> None:
    path = write(tmp_path / "damaged", content, gzipped=gzipped)
    with pytest.raises(errors.DataError, match=problem) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


@given(data=st.data())
def test_no_cut_and_no_flipped_byte_of_a_gzip_gets_through(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(gzip.compress(idx_bytes(VALUES.shape, VALUES.tobytes()), mtime=0))
    path = tmp_path_factory.mktemp("idx") / "x.gz"
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        whole[data.draw(st.integers(10, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(whole)
    with pytest.raises(errors.DataError, match=r"x\.gz"):
        read_idx(path)


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(errors.DataError, match="cannot read"):
        read_idx(tmp_path)

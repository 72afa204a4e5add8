"""Files that a user names: bounded in size, and never waited for for ever."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from es_service.storage.given import read_given


def test_a_file_is_read_whole_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    assert read_given(str(path), 100_000) == b"x" * 100_000
    with pytest.raises(OSError, match="more than 99,999 bytes"):
        read_given(str(path), 99_999)
    seen = []
    read_given(str(path), 100_000, check=lambda found: seen.append(found.st_size))
    assert seen == [100_000]


def test_what_cannot_be_read_is_an_oserror(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(OSError, match=r"No such file|Is a directory"):
            read_given(str(path), 100)


def test_a_fifo_without_a_writer_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(TimeoutError, match=r"nothing was written to it within 0.1 s"):
        read_given(str(path), 100, patience_s=0.1)


def test_a_fifo_with_a_writer_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as file:  # waits for the reader
            file.write(b"to")
            file.write(b"ken")

    writer = threading.Thread(target=write)
    writer.start()
    assert read_given(str(path), 100) == b"token"
    writer.join()


def test_a_device_without_end_is_given_up(tmp_path: Path) -> None:
    zero = tmp_path / "zero"
    try:
        os.mknod(zero, 0o600 | 0o020000, os.makedev(1, 5))
        with zero.open("rb") as file:
            file.read(1)
    except PermissionError:
        pytest.skip("may make no device here")
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        read_given(str(zero), 1000)

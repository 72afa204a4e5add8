"""What a failing filesystem is said to be: what was tried, where, and what to change only where that would help."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pyarrow import fs

from es_service import errors
from es_service.storage import files

HINT = "check its permissions and free space"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_place_that_refuses_is_to_be_changed(number: int) -> None:
    with pytest.raises(errors.StorageError, match=HINT), files.storage_errors("write", "/place"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ESTALE, errno.ELOOP]
)
def test_any_other_failure_is_only_said(number: int) -> None:
    with (
        pytest.raises(errors.StorageError, match=os.strerror(number)) as caught,
        files.storage_errors("read", "/place"),
    ):
        raise OSError(number, os.strerror(number))
    assert HINT not in str(caught.value)


def test_arrows_failures_are_told_apart_too(tmp_path: Path) -> None:
    local = fs.LocalFileSystem()
    for path, said in ((tmp_path, "not a regular file"), (tmp_path / ("x" * 300), "File name too long")):
        with pytest.raises(errors.StorageError, match=said) as caught:
            files.read_bytes(local, str(path), 1 << 20)
        assert HINT not in str(caught.value)
    denied = "When reading 'x': AWS Error ACCESS_DENIED during HeadObject operation: No response body."
    with pytest.raises(errors.StorageError, match=HINT), files.storage_errors("read", "bucket/x"):
        raise OSError(denied)


def test_arrow_keeps_the_number_of_a_refusal(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "mine"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(errors.StorageError, match=HINT):
        files.read_bytes(fs.LocalFileSystem(), str(path), 1 << 20)


def test_a_name_that_is_not_utf_8_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    place = os.path.join(str(tmp_path), os.fsdecode(b"caf\xe9"))
    with pytest.raises(errors.StorageError, match="cannot read"):
        files.read_bytes(fs.LocalFileSystem(), place, 1 << 20)

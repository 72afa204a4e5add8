"""A home that Ray cannot write its token to: an error that says what to set, and a way that needs no home."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

CONNECT = """
import es_service as es
try:
    es.connect("run", es.Selection(es.methods.full()), num_samples=40, num_epochs=1, batch_size=20, storage="s")
except es.errors.ConfigError as error:
    print(error)
else:
    print("connected")
"""


def connect(cwd: Path, **environment: str) -> str:
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    with tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True) as scratch:
        done = subprocess.run(
            [sys.executable, "-c", CONNECT],
            env={**kept, "RAY_TMPDIR": scratch, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("home", ["file", "file/below", "folder"])
def test_a_home_that_cannot_be_written(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / ".ray" / "auth_token").mkdir(parents=True)  # as good as read-only, for root too
    said = connect(tmp_path, HOME=str(tmp_path / home))
    assert f"HOME={tmp_path / home}" in said
    assert "RAY_AUTH_TOKEN " in said
    assert "RAY_AUTH_TOKEN_PATH" in said


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    said = connect(tmp_path, RAY_AUTH_TOKEN_PATH=str(tmp_path / "absent"))
    assert "RAY_AUTH_TOKEN_PATH" in said
    assert "absent" in said


def test_with_a_token_no_home_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    token = secrets.token_hex(32)
    assert connect(tmp_path, HOME=str(tmp_path / "file"), RAY_AUTH_TOKEN=token) == "connected\n"

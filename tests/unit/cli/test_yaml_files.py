"""Files of settings: what takes long to read, or could, is refused at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from es_service import errors
from es_service.cli import main
from es_service.cli.yaml_files import read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "too large": ("epochs: 2\n" * 2_000_000, "more than 65,536 bytes"),  # 20 MB
    "an alias bomb": (BOMB, "an alias: write the value out"),
    "deep brackets": ("set: " + "[" * 30_000, "nested deeper than 16"),
    "deep blocks": ("".join(f"{' ' * depth}a:\n" for depth in range(300)), "nested deeper than 16"),
    "deep mappings": ("{a: " * 15_000, "nested deeper than 16"),
    "a huge number": (f"epochs: {'9' * 5000}", "cannot read"),
    "a number beyond 64 bits": (f"epochs: {'9' * 30}", "a number beyond 64 bits"),
    "a number of many minutes": ("epochs: 1" + ":59" * 20_000, "a number beyond 64 bits"),
    "no date": ("epochs: 2024-99-99", "cannot read"),
    "no text": ("epochs: \x00", "cannot read"),
    "a python object": ("epochs: !!python/object/apply:os.getcwd []", "cannot read"),
    "a list": ("- 1", "expected settings by name"),
    "a word": ("word", "expected settings by name"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("flag", ["--config", "--space"])
def test_what_cannot_be_read_is_said_soon(
    flag: str, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[case]
    path = tmp_path / "file.yaml"
    path.write_text(text)
    command = ["train", "--storage", str(tmp_path / "s")] if flag == "--config" else ["tune", "--out", str(tmp_path)]
    begin = time.process_time()
    assert main([*command, flag, str(path)]) == 2
    assert time.process_time() - begin < 5  # 20 MB took 40 s
    err = capsys.readouterr().err
    assert message in err
    assert str(path) in err
    assert len(err) < 1000


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"task: \xff")
    with pytest.raises(errors.ConfigError, match=r"cannot read --config .*utf-8"):
        read_yaml("--config", str(path))


def test_what_people_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("# nothing\n")
    assert read_yaml("--config", str(path)) == {}
    path.write_text("epochs: 2\nratio: 0.5\nset: {beta1: 0.1, anneal: [0, 0]}\ndata: null\nseed: 0x10\n")
    expected = {"epochs": 2, "ratio": 0.5, "set": {"beta1": 0.1, "anneal": [0, 0]}, "data": None, "seed": 16}
    assert read_yaml("--config", str(path)) == expected


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """As in `--config <(…)`."""
    end, other = os.pipe()
    os.write(other, b"epochs: 3\n")
    os.close(other)
    try:
        assert read_yaml("--config", f"/dev/fd/{end}") == {"epochs": 3}
    finally:
        os.close(end)

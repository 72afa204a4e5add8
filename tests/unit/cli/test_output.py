"""Where results go: files of every kind, with nothing replaced that is no regular file, and a stdout that may fail."""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import csv, parquet

import es_service as es
from es_service.cli import main, output
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage

NUM = 3000


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `one` of an epoch, and a result with numbers that JSON does not know."""
    place = tmp_path_factory.mktemp("output") / "runs"
    selection = es.Selection(es.methods.full())
    config = RunConfig(selection=selection, num_samples=NUM, num_epochs=1, batch_size=NUM)
    run = RunStorage(str(place), "one")
    run.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), run)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=1, batch_size=NUM, exchange=exchange)
    for ids in selector.epoch(0):
        selector.select(ids)
        selector.observe(1.0 + ids % 7)
    run.write_result({"accuracy": math.nan, "saving": {"samples": math.inf, "cost": 0.5, "seconds": None}})
    return place


@pytest.fixture
def export(storage: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that exports the run and returns status, stdout and stderr."""

    def run(*words: Any) -> tuple[int, str, str]:
        status = main(["export", "one", "--storage", str(storage), *map(str, words)])
        return status, *capsys.readouterr()

    return run


Export = Callable[..., tuple[int, str, str]]

# -- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "begins"),
    [
        ("x.csv", (), b'"id"'),
        ("x.CSV", (), b'"id"'),
        ("x.arrow", (), b"ARROW1"),
        ("x.feather", (), b"ARROW1"),
        ("x.parquet", (), b"PAR1"),
        ("x.pq", (), b"PAR1"),
        ("x", (), b"PAR1"),
        ("x.table", ("--format", "csv"), b'"id"'),
        ("x.csv", ("--format", "csv"), b'"id"'),
    ],
)
def test_a_file_holds_what_its_name_says(
    name: str, words: tuple[str, ...], begins: bytes, tmp_path: Path, export: Export
) -> None:
    assert export("--out", tmp_path / name, *words)[0] == 0
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(("name", "file_format"), [("x.csv", "parquet"), ("x.parquet", "arrow"), ("x.arrow", "csv")])
def test_a_name_that_says_something_else_is_refused(
    name: str, file_format: str, tmp_path: Path, export: Export
) -> None:
    status, out, err = export("--out", tmp_path / name, "--format", file_format)
    assert (status, out) == (2, "")
    assert name in err
    assert f"--format is {file_format}" in err
    assert not list(tmp_path.iterdir())


# -- places -------------------------------------------------------------------------------------------------------


def device(path: Path, minor: int) -> Path:
    """A memory device of the test's own, which the machine's are copies of."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("may make no device here")
    return path


@pytest.mark.parametrize("file_format", ["parquet", "arrow", "csv"])
def test_a_full_device_is_an_error_and_stays(file_format: str, tmp_path: Path, export: Export) -> None:
    full = device(tmp_path / "full", 7)
    status, out, err = export("--out", full, "--format", file_format)
    assert (status, out) == (1, "")
    assert f"cannot write {full}: No space left on device" in err
    assert stat.S_ISCHR(full.lstat().st_mode)
    assert list(tmp_path.iterdir()) == [full]


def test_a_device_is_written_to_and_stays(tmp_path: Path, export: Export) -> None:
    null = device(tmp_path / "null", 3)
    assert export("--out", null)[:2] == (0, f"wrote {NUM:,} rows to {null}\n")
    assert stat.S_ISCHR(null.lstat().st_mode)
    assert list(tmp_path.iterdir()) == [null]


def test_a_fifo_gets_the_table_and_stays(tmp_path: Path, export: Export) -> None:
    fifo, got = tmp_path / "fifo.csv", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()), daemon=True)
    reader.start()
    assert export("--out", fifo)[0] == 0
    assert stat.S_ISFIFO(fifo.lstat().st_mode)
    reader.join(30)
    assert got[0].count(b"\n") == NUM + 1


def test_a_fifo_whose_reader_leaves_is_an_error(tmp_path: Path, export: Export) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)  # less than the table: the reader leaves before all is written

    def leave() -> None:
        select.select([reading], [], [], 30)
        os.close(reading)

    reader = threading.Thread(target=leave, daemon=True)
    reader.start()
    status, out, err = export("--out", fifo, "--format", "csv")
    reader.join(30)
    assert (status, out) == (1, "")
    assert "cannot write" in err
    assert stat.S_ISFIFO(fifo.lstat().st_mode)


def test_a_link_is_followed_and_stays(tmp_path: Path, export: Export) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.parquet", tmp_path / "there" / "target"
    link.symlink_to(target)
    for _ in range(2):  # to nothing, and to a file
        assert export("--out", link)[0] == 0
        assert link.is_symlink()
        assert parquet.read_table(target).num_rows == NUM
    null = device(tmp_path / "null", 3)
    link.unlink()
    link.symlink_to(null)
    assert export("--out", link)[0] == 0
    assert link.is_symlink()
    assert stat.S_ISCHR(null.lstat().st_mode)


def test_a_socket_is_an_error_and_stays(tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert export("--out", "s")[0] == 1
    assert stat.S_ISSOCK((tmp_path / "s").lstat().st_mode)


def test_links_planted_beside_the_place_are_not_followed(tmp_path: Path, export: Export) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("x.csv.partial", f"x.csv.partial-{os.getpid()}"):
        (tmp_path / name).symlink_to(victim)
    assert export("--out", tmp_path / "x.csv")[0] == 0
    assert victim.read_text() == "precious"
    assert csv.read_csv(tmp_path / "x.csv").num_rows == NUM
    assert len(list(tmp_path.iterdir())) == 4


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
from es_service.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("file_format", ["parquet", "arrow", "csv"])
def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(
    file_format: str, storage: Path, tmp_path: Path
) -> None:
    place = tmp_path / "out"
    place.write_text("old")
    words = ["export", "one", "--storage", str(storage), "--out", str(place), "--format", file_format]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"es-service: cannot write {place}: File too large; name another place with --out\n"
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


# -- stdout -------------------------------------------------------------------------------------------------------


def run_with(stdout: Any, *words: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "es_service.cli", *map(str, words)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False, **more)


@pytest.mark.parametrize("words", [("runs",), ("runs", "--json"), ("top", "one"), ("export", "one", "--out", "-")])
def test_a_full_stdout_is_an_error(words: tuple[str, ...], storage: Path, tmp_path: Path) -> None:
    with device(tmp_path / "full", 7).open("wb") as full:
        done = run_with(full, *words, "--storage", storage)
    assert done.returncode == 1
    assert done.stderr == "es-service: cannot write the result to stdout: No space left on device\n"


@pytest.mark.parametrize("words", [("runs",), ("export", "one", "--out", "-")])
def test_a_closed_stdout_is_an_error(words: tuple[str, ...], storage: Path) -> None:
    done = run_with(None, *words, "--storage", storage, preexec_fn=lambda: os.close(1))
    assert done.returncode == 1
    assert done.stderr.startswith("es-service: stdout is closed")
    assert len(done.stderr.splitlines()) == 1


def test_a_closed_stderr_sends_nothing_to_stdout(storage: Path) -> None:
    command = [sys.executable, "-m", "es_service.cli", "top", "absent", "--json", "--storage", str(storage)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False, preexec_fn=lambda: os.close(2))
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_reader_that_has_seen_enough_is_no_error(storage: Path) -> None:
    end, other = os.pipe()
    os.close(end)
    with os.fdopen(other, "wb") as pipe:
        done = run_with(pipe, "export", "one", "--out", "-", "--storage", storage)
    assert (done.returncode, done.stderr) == (0, "")


def test_json_has_null_for_what_is_no_number(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    assert main(["runs", "--json", "--storage", str(storage)]) == 0
    [run] = json.loads(capsys.readouterr().out, parse_constant=refuse)["runs"]
    assert run["accuracy"] is None
    assert run["saving"] == {"samples": None, "cost": 0.5, "seconds": None, "tokens": None}
    output.print_json({"deep": [{"in": (math.nan, -math.inf, 1.5)}]})
    assert capsys.readouterr().out == '{"deep": [{"in": [null, null, 1.5]}]}\n'


@pytest.mark.parametrize("words", [("runs",), ("train", "--run", "x"), ("serve",), ("tune", "--out", "x")])
def test_a_storage_that_is_not_utf_8(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--storage", "s\udcff"]) == 2
    assert capsys.readouterr().err == "es-service: storage: 's\\udcff' is not valid UTF-8\n"

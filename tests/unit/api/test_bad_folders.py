"""A storage folder that others use too: what is no run, or cannot be read as one, hides no run that can be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from es_service.api.runs.catalogue import Catalogue
from es_service.api.runs.rows import RunQuery
from es_service.api.settings import Settings
from es_service.cli import main
from es_service.storage.listing import find_runs, list_runs

NOBODY = 65534
PAGES = ("/v1/runs", "/v1/runs?q=o", "/v1/runs?order=-accuracy", "/v1/runs?order=task", "/-/readyz", "/metrics")


def write(path: Path, **changes: Any) -> None:
    """Change some of a JSON file, or begin it."""
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **changes}))


def nested(depth: int) -> str:
    return '{"format": 1, "config": ' + '{"a":' * depth + "1" + "}" * (depth + 1)


def not_utf_8(run: Path) -> None:
    os.rename(run, os.fsencode(run.parent) + b"/caf\xe9")


def of_another(run: Path) -> None:
    run.chmod(0o700 if os.geteuid() == 0 else 0)


def copy_of(run: Path) -> None:
    run.rename(run.with_name("bad (copy)"))


def with_control_characters(run: Path) -> None:
    run.rename(run.with_name("bad\x1b[2J\nrun"))


def without_config(run: Path, config: Any) -> None:
    write(run / "run.json", config=config)


def about_is_a_folder(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").mkdir()


def about_is_a_fifo(run: Path) -> None:
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")


def link_out(run: Path) -> None:
    outside = run.parent.with_name("outside")
    shutil.move(run, outside)
    run.symlink_to(outside)


def inner_link_out(run: Path) -> None:
    outside = run.parent.with_name("outside")
    shutil.move(run / "snapshots", outside)
    (run / "snapshots").symlink_to(outside)


def note_links_out(run: Path) -> None:
    secret = run.parent.with_name("secret.json")
    secret.write_text('{"accuracy": 0.123, "secret": "of another"}')
    (run / "result.json").unlink()
    (run / "result.json").symlink_to(secret)


def config_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())["config"]
    return found


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a copy": (copy_of, "cannot be used"),
    "a name that is not UTF-8": (not_utf_8, "cannot be used"),
    "a name for terminals": (with_control_characters, "cannot be used"),
    "a folder of another user": (of_another, "ermission denied"),
    "no JSON": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\0"), "run.json"),
    "an empty file": (lambda run: (run / "run.json").write_bytes(b""), "not valid JSON"),
    "a list": (lambda run: (run / "run.json").write_text("[1]"), "expected an object"),
    "deep JSON": (lambda run: (run / "run.json").write_text(nested(100_000)), "run.json"),
    "JSON that is rather deep": (lambda run: (run / "run.json").write_text(nested(200)), "damaged"),
    "deep training": (
        lambda run: write(run / "run.json", training=json.loads('{"a":' * 200 + "1" + "}" * 200)), "more than 50 deep",
    ),
    "a config that is a list": (lambda run: without_config(run, [1, 2]), "damaged"),
    "a config that is a text": (lambda run: without_config(run, "x"), "damaged"),
    "a selection that is a number": (lambda run: without_config(run, {**config_of(run), "selection": 5}), "damaged"),
    "a method of other types": (
        lambda run: without_config(run, {**config_of(run), "selection": {"method": {"a": []}}}), "damaged",
    ),
    "a huge number of epochs": (lambda run: without_config(run, {**config_of(run), "num_epochs": 10**400}), "damaged"),
    "a number too long to read": (lambda run: (run / "run.json").write_text("9" * 5000), "not valid JSON"),
    "a result that is no JSON": (lambda run: (run / "result.json").write_text("{"), "not valid JSON"),
    "run.json is a folder": (about_is_a_folder, "not a file"),
    "run.json is a FIFO": (about_is_a_fifo, "not a file"),
    "history is a FIFO": (lambda run: os.mkfifo(run / "spreads" / "0.json"), "neither a file nor a folder"),
    "a link out of the storage": (link_out, "leads out of the storage"),
    "snapshots that are a link out": (inner_link_out, "leads out of the storage"),
    "a result that is a link out": (note_links_out, "leads out of the storage"),
}  # fmt: skip

ODD: dict[str, Callable[[Path], Any]] = {
    "half a surrogate pair": lambda run: write(run / "run.json", training={"task": "\ud800", "method": "\udfff"}),
    "training that is a text": lambda run: write(run / "run.json", training="x"),
    "training of other types": lambda run: write(run / "run.json", training={"task": [1], "workers": {}}),
    "a search that is a list": lambda run: write(run / "run.json", search=[1]),
    "progress of other types": lambda run: write(run / "progress.json", epoch="three", done=[], history=7, saving=3),
    "progress of no types": lambda run: write(run / "progress.json", epoch=None, done=True, history={"a": 1}),
    "progress in huge numbers": lambda run: write(run / "progress.json", epoch=10**400, done=1e308, seconds=-(10**400)),
    "progress that is NaN": lambda run: write(run / "progress.json", epoch=float("nan"), done=float("inf")),
    "a result that is NaN": lambda run: write(run / "result.json", accuracy=float("nan"), seconds={"total": 10**400}),
    "a result of other types": lambda run: write(
        run / "result.json", accuracy="high", saving=[1], history=[1, {"epoch": "x"}], samples="many"
    ),
    "notes of other types": lambda run: write(run / "samples.json", label_names=[1, "\ud800"], has_labels="yes"),
}


@pytest.fixture
def bad(storage: Path) -> Iterator[Path]:
    """A storage that everybody may read, with the run `good` and the run `bad`, which a test is to spoil."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "runs"
        for name in ("good", "bad"):
            shutil.copytree(storage / "done", place / name)
        (place / "a file").write_text("x")
        (place / "a folder").mkdir()
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        write(place / "bad" / "progress.json", epoch=4, done=0.0)
        (place / "bad" / "spreads").mkdir(exist_ok=True)
        yield place


@contextlib.contextmanager
def as_another_user() -> Iterator[None]:
    """Root may look into every folder; somebody else may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def rows(client: TestClient, path: str = "/v1/runs") -> dict[str, Any]:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return {row["run"]: row for row in strict(answer.text)["runs"]}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_run_that_cannot_be_read_is_one_row_that_says_why(
    kind: str, bad: Path, make_client: Callable[..., TestClient], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in PAGES:  # whatever has to be imported is, before the user changes
        make_client(bad).get(path)
    spoil, why = UNREADABLE[kind]
    spoil(bad / "bad")
    client = make_client(bad)
    with as_another_user() if kind == "a folder of another user" else contextlib.nullcontext():
        for path in PAGES:
            assert client.get(path).status_code == 200, path
        found = rows(client)
        [name] = set(found) - {"good"}
        assert (found["good"]["status"], found[name]["status"]) == ("finished", "unreadable")
        assert why in found[name]["detail"]
        assert name.isprintable()
        assert list(rows(client, "/v1/runs?status=unreadable")) == [name]
        assert 'es_service_runs{status="unreadable"} 1.0' in client.get("/metrics").text
        about_it = client.get("/v1/runs/bad")
        assert about_it.status_code in (200, 404, 503)  # 200 where only its tables lie elsewhere
        assert "of another" not in about_it.text
        assert main(["runs", "--storage", str(bad)]) == 0
        shown = capsys.readouterr().out
        assert main(["runs", "--storage", str(bad), "--json"]) == 0
        told = {one["run"]: one for one in strict(capsys.readouterr().out)["runs"]}
    assert len(shown.splitlines()) == 3
    assert "\x1b" not in shown
    assert told[name]["state"].startswith("unreadable: ")
    assert told["good"]["state"] == "done"


@pytest.mark.parametrize("kind", ODD)
def test_odd_values_leave_a_run_readable(
    kind: str, bad: Path, make_client: Callable[..., TestClient], capsys: pytest.CaptureFixture[str]
) -> None:
    ODD[kind](bad / "bad")
    client = make_client(bad)
    for path in (*PAGES, "/v1/runs/bad", "/v1/runs/bad/ledger", "/v1/runs/bad/coverage", "/v1/runs/bad/samples"):
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.text)
        if path.startswith("/v1"):
            strict(answer.text)
    found = rows(client)
    assert {row["status"] for row in found.values()} == {"finished"}
    for name in ("task", "method", "search"):
        assert found["bad"][name] is None or isinstance(found["bad"][name], str)
    (bad / "bad" / "result.json").unlink(missing_ok=True)
    assert rows(make_client(bad))["bad"]["status"] in ("live", "finished")
    assert main(["runs", "--storage", str(bad)]) == 0
    assert main(["runs", "--storage", str(bad), "--json"]) == 0
    out = capsys.readouterr().out
    strict(out[out.index('{"storage"') :])


def test_links_within_the_storage_are_followed(bad: Path, make_client: Callable[..., TestClient]) -> None:
    (bad / "again").symlink_to(bad / "good")
    (bad / "loop").symlink_to(bad / "loop")
    (bad / "good" / "here").symlink_to(bad / "good")
    link = bad.with_name("a-link-to-it")
    link.symlink_to(bad)
    client = make_client(link)
    found = rows(client)
    assert [found[name]["status"] for name in ("again", "bad", "good")] == ["finished"] * 3
    assert client.get("/v1/runs/again/samples").status_code == 200


@pytest.mark.parametrize("name", ["snapshots", "history", "spreads", "labels.arrow"])
def test_nothing_of_a_run_is_read_from_outside(name: str, bad: Path, make_client: Callable[..., TestClient]) -> None:
    client = make_client(bad)
    assert rows(client)["bad"]["status"] == "finished"  # it is known from now on
    outside = bad.with_name(name)
    place = bad / "bad" / name
    if place.exists():
        shutil.move(place, outside)
    else:
        outside.mkdir()
    place.symlink_to(outside)
    for path in ("samples", "samples/3/history", "distribution/epochs", "export", "coverage"):
        answer = client.get(f"/v1/runs/bad/{path}")
        assert answer.status_code == 503, path
        assert "leads out of the storage" in answer.json()["detail"]


def test_a_run_that_is_deleted_while_it_is_listed_is_left_out(bad: Path) -> None:
    catalogue = Catalogue(Settings(storage=str(bad), ray=False))
    listed = catalogue.rows()
    shutil.rmtree(bad / "bad")
    assert [row["run"] for row in listed.page(RunQuery()).rows] == ["good"]
    assert [row["run"] for row in listed.all()[0]] == ["good"]
    catalogue.close()


def test_what_is_no_run_is_passed_over(bad: Path) -> None:
    assert sorted(list_runs(str(bad))) == ["bad", "good"]
    (bad / "bad" / "run.json").unlink()
    assert [one.name for one in find_runs(str(bad))] == ["good"]

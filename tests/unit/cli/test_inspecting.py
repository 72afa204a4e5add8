"""`runs`, `top` and `export` on storage that a training in this process has written."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

import es_service as es
from es_service.cli import main
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.selection.table import SCHEMA
from es_service.storage import labels
from es_service.storage.runs import RunStorage

NUM = 30


def train(storage: Path, run: str, epochs: int = 2, method: es.methods.Method | None = None) -> es.Selector:
    """Begin a run of 4 epochs, finish some, and leave the rest."""
    selection = es.Selection(method or es.methods.evolved(), ratio=0.5, anneal=(0.0, 0.0), seed=1)
    config = RunConfig(selection=selection, num_samples=NUM, num_epochs=4, batch_size=10)
    place = RunStorage(str(storage), run)
    place.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), place)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=4, batch_size=10, exchange=exchange)
    for epoch in range(epochs):
        for ids in selector.epoch(epoch):
            draw = selector.select(ids, (1 + ids).astype(np.float32) if selector.wants_scores else None)
            selector.observe((1 + draw.ids).astype(np.float32))
    return selector


RESULT = {"accuracy": 0.91234, "saving": {"samples": 0.5, "cost": 0.1667, "seconds": None}}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A folder with a finished run, `older`, and one under way, `newer`."""
    place = tmp_path / "runs"
    train(place, "older", 4)
    RunStorage(str(place), "older").write_result(RESULT)
    train(place, "newer", 2)
    os.utime(place / "older" / "run.json", (1_000_000, 1_000_000))
    return place


def refuse_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def one_json(text: str) -> Any:
    """The one JSON value that a text is; Python's own NaN and Infinity are none."""
    return json.loads(text, parse_constant=refuse_constant)


def fails(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    """Run a command that fails and return what it says; it prints no result."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("es-service: ")
    assert len(err.splitlines()) == 1
    return err


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- runs ---------------------------------------------------------------------------------------------------------


def test_runs_lists_what_there_is_oldest_first(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--storage", str(storage)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, older, newer = out.splitlines()
    assert header.split()[:5] == ["run", "method", "epochs", "samples", "state"]
    assert header.endswith("accuracy  compute saved  time saved")
    assert older.split() == ["older", "evolved", "4", "30", "done", "91.23", "%", "16.7", "%"]
    assert newer.split() == ["newer", "evolved", "4", "30", "2", "of", "4", "epochs", "16.7", "%"]


def test_runs_as_json(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--storage", str(storage), "--json"]) == 0
    value = one_json(capsys.readouterr().out)
    assert value["storage"] == str(storage)
    older, newer = value["runs"]
    assert older == {
        "run": "older",
        "method": "evolved",
        "num_samples": NUM,
        "epochs": 4,
        "finished_epochs": 4,
        "state": "done",
        "accuracy": 0.91234,
        "saving": {**RESULT["saving"], "tokens": None},
        "search": None,
    }
    assert newer["run"] == "newer"
    assert newer["finished_epochs"] == 2
    assert newer["accuracy"] is None
    assert newer["saving"]["samples"] == 0.5  # so far


def test_runs_names_a_method_as_it_was_typed(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunStorage(str(storage), "older").config()
    RunStorage(str(storage), "typed").begin(config, {"task": "fashion", "method": "es"})
    assert main(["runs", "--storage", str(storage), "--json"]) == 0
    found = {run["run"]: run["method"] for run in one_json(capsys.readouterr().out)["runs"]}
    assert found == {"older": "evolved", "newer": "evolved", "typed": "es"}


def test_what_selection_cost_is_not_called_saved(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saving = {"samples": 0.5, "cost": -0.25, "seconds": -0.013}
    RunStorage(str(storage), "older").write_result({**RESULT, "saving": saving})
    assert main(["runs", "--storage", str(storage)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("91.23 %  25.0 % more    1.3 % slower")


def test_runs_of_a_search_name_it(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunStorage(str(storage), "trial-0000")
    place.begin(RunStorage(str(storage), "older").config(), search="found")
    assert main(["runs", "--storage", str(storage), "--json"]) == 0
    found = {run["run"]: run["search"] for run in one_json(capsys.readouterr().out)["runs"]}
    assert found == {"older": None, "newer": None, "trial-0000": "found"}
    assert main(["runs", "--storage", str(storage)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "search"
    assert [row.split()[-1] == "found" for row in rows] == [row.startswith("trial") for row in rows]


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no run").mkdir()
    assert main(["runs", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert main(["runs", "--storage", str(tmp_path), "--json"]) == 0
    assert one_json(capsys.readouterr().out)["runs"] == []


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_one_damaged_run_does_not_hide_the_others(
    storage: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (storage / "newer" / "run.json").write_text("{")
    assert main(["runs", "--storage", str(storage), *flags]) == 0
    out = capsys.readouterr().out
    assert "done" in out
    assert "unreadable" in out


def test_a_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "nowhere")
    assert missing in fails(capsys, 1, "runs", "--storage", missing)
    assert missing in fails(capsys, 1, "runs", "--storage", missing, "--json")
    assert missing in fails(capsys, 1, "top", "older", "--storage", missing)
    assert missing in fails(capsys, 1, "export", "older", "--storage", missing)
    assert not (tmp_path / "nowhere").exists()


# -- top ----------------------------------------------------------------------------------------------------------


def rows_of(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()[1:]]


def with_suspicion(table: pa.Table) -> pa.Table:
    """A stored table, with what the commands work out: every sample here was observed twice or more."""
    suspicion = table["loss_mean"].to_numpy() - np.sqrt(table["loss_var"].to_numpy())
    return table.append_column("suspicion", pa.array(suspicion))


def test_top_shows_the_heaviest_samples(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "older", "--storage", str(storage), "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert out.split()[:3] == ["id", "s", "w"]
    assert [row[0] for row in rows_of(out)] == ["29", "28", "27"]
    assert rows_of(out)[0][3] == "30.0000"  # last_loss


def test_top_shows_ten_unless_told(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "older", "--storage", str(storage)]) == 0
    assert len(rows_of(capsys.readouterr().out)) == 10
    assert main(["top", "older", "--storage", str(storage), "--limit", "1000"]) == 0
    assert len(rows_of(capsys.readouterr().out)) == NUM


@pytest.mark.parametrize("column", SCHEMA.names)
@pytest.mark.parametrize("lowest", [False, True])
def test_top_orders_by_any_column_and_then_by_id(
    storage: Path, column: str, lowest: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--lowest"] if lowest else []
    assert main(["top", "older", "--storage", str(storage), "--by", column, "--limit", "7", "--json", *flags]) == 0
    value = one_json(capsys.readouterr().out)
    assert value["run"] == "older"
    everything = with_suspicion(RunStorage(str(storage), "older").table()).to_pylist()
    everything.sort(key=lambda row: (row[column] if lowest else -row[column], row["id"]))
    assert value["samples"] == everything[:7]


def test_top_leaves_out_what_was_never_observed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "half", 1, es.methods.random())  # 15 of 30
    assert main(["top", "half", "--storage", str(tmp_path), "--by", "last_loss", "--lowest", "--json"]) == 0
    assert all(row["visits"] == 1 for row in one_json(capsys.readouterr().out)["samples"])
    assert main(["top", "half", "--storage", str(tmp_path), "--by", "last_loss", "--limit", "99"]) == 0
    assert len(rows_of(capsys.readouterr().out)) == 15


def test_top_of_samples_never_observed_is_json_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "half", 1, es.methods.random())  # all weigh 1, half have no last_loss
    assert main(["top", "half", "--storage", str(tmp_path), "--limit", "99", "--json"]) == 0
    samples = one_json(capsys.readouterr().out)["samples"]
    assert len(samples) == NUM
    assert {row["last_loss"] is None for row in samples if not row["visits"]} == {True}


def test_errors_of_top(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--storage", str(storage))
    assert "did you mean 'last_loss'?" in fails(capsys, 2, "top", "older", "--by", "lastloss", *place)
    assert "known: id, s, w" in fails(capsys, 2, "top", "older", "--by", "zzzz", *place)
    assert "limit must be at least 1, got 0" in fails(capsys, 2, "top", "older", "--limit", "0", *place)
    assert "-3" in fails(capsys, 2, "top", "older", "--limit", "-3", "--json", *place)
    assert "no run 'absent'" in fails(capsys, 1, "top", "absent", *place)
    assert "'../older'" in fails(capsys, 2, "top", "../older", *place)
    train(storage, "fresh", 0)
    assert "no snapshot yet" in fails(capsys, 1, "top", "fresh", *place)


@pytest.fixture
def labelled(storage: Path) -> Path:
    """The storage, with labels of the run `older`: the id modulo 3."""
    names = ("Pullover", "T-shirt", "Coat")
    labels.write_notes(RunStorage(str(storage), "older"), np.arange(NUM) % 3, names, None)
    return storage


def test_top_names_labels_and_how_suspicious_a_sample_is(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--storage", str(labelled), "--limit", "3")
    assert main(["top", "older", "--by", "suspicion", *place]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[-2:] == ["suspicion", "label"]
    assert [(row[0], row[-1]) for row in rows] == [("29", "Coat"), ("28", "T-shirt"), ("27", "Pullover")]
    assert float(rows[0][-2]) == pytest.approx(30.0, abs=1e-3)  # its loss is the same each time
    assert "--where label=" in fails(capsys, 2, "top", "older", "--by", "label", *place)
    assert main(["top", "newer", *place]) == 0
    assert "label" not in capsys.readouterr().out  # of a run that has none


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["label=Coat"], [29, 26, 23]),
        (["label!=Coat", "last_loss<=10"], [9, 7, 6]),
        (["label=2", "id<20"], [17, 14, 11]),
        (["suspicion>28.5"], [29, 28]),
        (["last_loss=null"], []),
    ],
)
def test_the_filters_of_the_http_api(
    labelled: Path, conditions: list[str], ids: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [word for one in conditions for word in ("--where", one)]
    assert main(["top", "older", "--storage", str(labelled), "--limit", "3", "--json", *where]) == 0
    assert [row["id"] for row in one_json(capsys.readouterr().out)["samples"]] == ids
    place = tmp_path / "some.parquet"
    assert main(["export", "older", "--storage", str(labelled), "--out", str(place), "--json", *where]) == 0
    table = parquet.read_table(place)
    assert one_json(capsys.readouterr().out)["rows"] == table.num_rows
    assert set(ids) <= set(table["id"].to_pylist())
    assert table.num_rows == len(ids) or len(ids) == 3
    assert [name[:3] for name in table["label"].to_pylist()] == [
        ("Pul", "T-s", "Coa")[i % 3] for i in table["id"].to_pylist()
    ]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("selectd=0", "did you mean 'selected'?"),
        ("w", "is not <column><op><value>"),
        ("label>Coat", "labels have no order"),
        ("label=Coats", "did you mean 'Coat'?"),
        ("w>many", "'many' is not a number"),
    ],
)
def test_conditions_that_are_none(
    labelled: Path, condition: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("top", "export"):
        assert message in fails(capsys, 2, command, "older", "--storage", str(labelled), "--where", condition)


def test_top_orders_by_what_the_http_api_shows(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "older", "--storage", str(storage), "--by", "picked_share", "--json"]) == 0
    shares = [row["picked_share"] for row in one_json(capsys.readouterr().out)["samples"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[0] <= 1


# -- export -------------------------------------------------------------------------------------------------------


def read(data: bytes, file_format: str) -> pa.Table:
    if file_format == "parquet":
        return parquet.read_table(io.BytesIO(data))
    if file_format == "arrow":
        return pa.ipc.open_file(data).read_all()
    return csv.read_csv(io.BytesIO(data))


@pytest.mark.parametrize("file_format", ["parquet", "arrow", "csv"])
def test_export_writes_the_whole_table(
    storage: Path, tmp_path: Path, file_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    place = folder / "scores"
    arguments = ["export", "older", "--storage", str(storage), "--format", file_format, "--out", str(place)]
    assert main(arguments) == 0
    assert capsys.readouterr() == (f"wrote 30 rows to {place}\n", "")
    assert files_in(folder) == ["scores"]
    expected = with_suspicion(RunStorage(str(storage), "older").table())
    got = read(place.read_bytes(), file_format)
    if file_format == "csv":
        got = got.cast(expected.schema)
    assert got.to_pydict() == expected.to_pydict()
    assert main([*arguments, "--json"]) == 0  # over the file of before
    assert one_json(capsys.readouterr().out) == {
        "run": "older",
        "file": str(place),
        "format": file_format,
        "rows": NUM,
    }
    assert files_in(folder) == ["scores"]


def test_export_goes_to_a_file_of_the_runs_name_here(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["export", "older", "--storage", str(storage)]) == 0
    assert main(["export", "older", "--storage", str(storage), "--format", "csv"]) == 0
    assert files_in(folder) == ["older.csv", "older.parquet"]


@pytest.mark.parametrize("file_format", ["parquet", "arrow", "csv"])
def test_export_to_stdout(
    storage: Path,
    tmp_path: Path,
    file_format: str,
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert main(["export", "older", "--storage", str(storage), "--format", file_format, "--out", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert err == b""
    expected = with_suspicion(RunStorage(str(storage), "older").table())
    got = read(out, file_format)
    assert (got.cast(expected.schema) if file_format == "csv" else got).to_pydict() == expected.to_pydict()
    assert files_in(folder) == []
    sys.stdout.write("and on")  # it is open still
    assert capsysbinary.readouterr().out == b"and on"


def test_errors_of_export(storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--storage", str(storage))
    out = str(tmp_path / "absent" / "file")
    assert out in fails(capsys, 1, "export", "older", "--out", out, *place)
    assert "--out" in fails(capsys, 2, "export", "older", "--out", "-", "--json", *place)
    assert "no run 'absent'" in fails(capsys, 1, "export", "absent", "--out", str(tmp_path / "file"), *place)
    assert not (tmp_path / "file").exists()


def test_an_export_that_fails_leaves_nothing_behind(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    (folder / "taken").mkdir(parents=True)
    (folder / "taken" / "file").touch()
    fails(capsys, 1, "export", "older", "--storage", str(storage), "--out", str(folder / "taken"))
    assert files_in(folder) == ["taken"]


@pytest.mark.parametrize(
    "arguments", [["top"], ["export", "older", "--format", "xml"], ["top", "older", "--limit", "many"], ["nothing"]]
)
def test_bad_usage_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""

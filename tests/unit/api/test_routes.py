"""Every route on runs as training runs leave them: its values are those on storage, in the shape of OpenAPI."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from pyarrow import csv, parquet

import es_service as es
from es_service.api.models import runs, samples, service
from es_service.api.models import table as tables
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage

JSON_ROUTES = [
    ("/v1/runs", runs.RunList),
    ("/v1/runs/done", runs.RunDetail),
    ("/v1/runs/fresh", runs.RunDetail),
    ("/v1/runs/done/samples", samples.SamplePage),
    ("/v1/runs/half/samples?order=id&where=visits=0&limit=1000", samples.SamplePage),
    ("/v1/runs/done/samples/7", samples.SampleDetail),
    ("/v1/runs/done/samples/7/history", samples.History),
    ("/v1/runs/done/distribution", tables.Distribution),
    ("/v1/runs/half/distribution?column=last_loss&scale=log", tables.Distribution),
    ("/v1/runs/done/distribution/epochs", tables.DistributionOverEpochs),
    ("/v1/runs/done/map", tables.DataMap),
    ("/v1/runs/half/map?where=visits=0", tables.DataMap),
    ("/v1/runs/done/coverage", tables.Coverage),
    ("/v1/runs/half/coverage", tables.Coverage),
    ("/v1/runs/half/staleness", tables.Staleness),
    ("/v1/runs/done/effective_sample_size", tables.EffectiveSampleSize),
    ("/v1/runs/done/ledger", runs.Ledger),
    ("/v1/runs/fresh/ledger", runs.Ledger),
    ("/v1/compare?a=done&b=other", runs.Comparison),
    ("/v1/session", service.Session),
    ("/-/healthz", service.Health),
    ("/-/readyz", service.Health),
]


def refuse_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def get(client: TestClient, path: str, status: int = 200) -> Any:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return json.loads(answer.content, parse_constant=refuse_constant)


def table(storage: Path, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = RunStorage(str(storage), run).table().to_pylist()
    return found


@pytest.mark.parametrize(("path", "model"), JSON_ROUTES, ids=[path for path, _ in JSON_ROUTES])
def test_answers_have_the_shape_that_openapi_promises(path: str, model: Any, client: TestClient) -> None:
    model.model_validate_json(client.get(path).content, strict=False)
    get(client, path)


@pytest.mark.parametrize("path", [path for path, _ in JSON_ROUTES if path.startswith(("/v1/runs", "/v1/compare"))])
def test_what_the_reader_has_is_not_sent_again(path: str, client: TestClient) -> None:
    first = client.get(path)
    tag = first.headers["etag"]
    again = client.get(path, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag
    other = client.get(path, headers={"If-None-Match": 'W/"something else"'})
    assert other.status_code == 200


# -- runs ---------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_what_came_of_them(client: TestClient) -> None:
    found = get(client, "/v1/runs?order=run")
    assert found["total"] == 4
    rows = {row["run"]: row for row in found["runs"]}
    assert list(rows) == ["done", "fresh", "half", "other"]
    assert {run: row["status"] for run, row in rows.items()} == {
        "done": "finished", "other": "finished", "half": "live", "fresh": "live",
    }  # fmt: skip
    done = rows["done"]
    assert (done["method"], done["task"], done["num_samples"], done["epoch"], done["epochs"]) == (
        "es", "fashion", 60, 4, 4,
    )  # fmt: skip
    assert (done["accuracy"], done["saving"]["samples"], done["seconds"], done["done"]) == (0.9, 0.5, 2.0, 1.0)
    assert rows["half"]["done"] == 0.25
    assert rows["half"]["accuracy"] is None
    assert 0 <= done["age_s"] < 3600


def test_the_trials_of_a_search_are_told_apart(make_client: Callable[..., TestClient], tmp_path: Path) -> None:
    config = RunConfig(selection=es.Selection(es.methods.evolved()), num_samples=20, num_epochs=1, batch_size=5)
    for run, search in (("plain", None), ("one", "betas"), ("two", "betas"), ("three", "ratios")):
        RunStorage(str(tmp_path), run).begin(config, {"method": "es"}, search=search)
    client = make_client(tmp_path)
    assert {row["run"]: row["search"] for row in get(client, "/v1/runs")["runs"]} == {
        "plain": None, "one": "betas", "two": "betas", "three": "ratios",
    }  # fmt: skip
    assert {row["run"] for row in get(client, "/v1/runs?search=betas")["runs"]} == {"one", "two"}
    assert get(client, "/v1/runs?search=bet")["total"] == 0
    assert {row["run"] for row in get(client, "/v1/runs?q=rati")["runs"]} == {"three"}


def test_runs_can_be_searched_sorted_and_paged(client: TestClient) -> None:
    assert [row["run"] for row in get(client, "/v1/runs?q=AL")["runs"]] == ["half"]
    assert get(client, "/v1/runs?q=fashion")["total"] == 4
    assert {row["run"] for row in get(client, "/v1/runs?status=finished")["runs"]} == {"done", "other"}
    assert get(client, "/v1/runs?status=stale&status=unreadable")["runs"] == []
    assert [row["run"] for row in get(client, "/v1/runs?order=-run&limit=2&offset=1")["runs"]] == ["half", "fresh"]
    assert get(client, "/v1/runs?order=-accuracy&limit=1")["runs"][0]["run"] == "done"
    assert "accuracy" in get(client, "/v1/runs?order=acuracy", 422)["detail"]


def test_a_run_interrupted_long_ago_is_stale_and_a_damaged_one_hides_no_other(
    storage: Path, tmp_path: Path, make_client: Callable[..., TestClient]
) -> None:
    place = tmp_path / "runs"
    shutil.copytree(storage, place)
    old = time.time() - 1000
    for path in (place / "half").rglob("*.json"):
        os.utime(path, (old, old))
    (place / "other" / "run.json").write_text("{")
    rows = {row["run"]: row for row in get(make_client(place), "/v1/runs")["runs"]}
    assert rows["half"]["status"] == "stale"
    assert rows["half"]["age_s"] == pytest.approx(1000, abs=60)
    assert rows["other"]["status"] == "unreadable"
    assert "not valid JSON" in rows["other"]["detail"]
    assert rows["done"]["status"] == "finished"


def test_a_run_says_what_it_is(client: TestClient) -> None:
    found = get(client, "/v1/runs/done")
    assert found["config"]["num_samples"] == 60
    assert found["labels"] == ["hat", "shoe, left", "sock"]
    assert found["preview"] == "text/plain"
    assert found["snapshots"] == [2, 3, 4]
    assert found["table"]["source"] == "storage"
    assert found["table"]["epoch"] == 4
    assert found["server"] is None
    fresh = get(client, "/v1/runs/fresh")
    assert (fresh["table"], fresh["labels"], fresh["snapshots"]) == (None, None, [])


def test_the_ledger_is_the_results(client: TestClient) -> None:
    found = get(client, "/v1/runs/done/ledger")
    assert found["available"]
    assert found["samples"] == {"scored": 90, "trained": 120, "full": 240}
    assert found["seconds"]["train"] == 1.2
    assert found["history"][0]["accuracy"] == 0.5
    assert found["history"][0]["train_loss"] is None
    nothing = get(client, "/v1/runs/fresh/ledger")
    assert (nothing["available"], nothing["samples"], nothing["history"]) == (False, None, [])
    half = get(client, "/v1/runs/half/ledger")
    assert half["available"]
    assert [(one["epoch"], one["trained"], one["accuracy"]) for one in half["history"]] == [(0, 30, None)]


# -- samples ------------------------------------------------------------------------------------------------------


def test_samples_are_those_of_the_table(client: TestClient, storage: Path) -> None:
    expected = sorted(table(storage, "done"), key=lambda row: (-row["w"], row["id"]))
    found = get(client, "/v1/runs/done/samples?limit=1000")
    assert found["total"] == found["matching"] == 60
    assert found["next"] is None
    step = max(row["last_step"] for row in expected)
    for got, row in zip(found["samples"], expected, strict=True):
        assert got["id"] == row["id"]
        for name in ("s", "w", "last_loss", "loss_mean"):
            assert got[name] == pytest.approx(row[name], rel=1e-6)
        assert got["loss_std"] == pytest.approx(math.sqrt(max(0, row["loss_var"])), rel=1e-5, abs=1e-6)
        assert (got["visits"], got["selected"], got["last_step"]) == (row["visits"], row["selected"], row["last_step"])
        assert got["age"] == step - row["last_step"]
        assert got["picked_share"] == pytest.approx(row["selected"] / row["visits"], rel=1e-6)
        assert got["label"] == ["hat", "shoe, left", "sock"][row["id"] % 3]


def test_pages_follow_one_another(client: TestClient) -> None:
    found, path = [], "/v1/runs/done/samples?order=-last_loss&limit=7&columns=id&where=label=hat"
    cursor = ""
    while cursor is not None:
        page = get(client, path + (f"&cursor={cursor}" if cursor else ""))
        assert all(list(row) == ["id"] for row in page["samples"])
        found += [row["id"] for row in page["samples"]]
        cursor = page["next"]
    assert sorted(found) == list(range(0, 60, 3))


def test_samples_never_seen_have_no_losses(client: TestClient) -> None:
    found = get(client, "/v1/runs/half/samples?where=visits=0&order=id&limit=1000")
    assert found["matching"] == 30
    for row in found["samples"]:
        assert row["last_loss"] is row["loss_mean"] is row["loss_std"] is row["age"] is row["last_step"] is None
        assert "label" not in row
    assert get(client, "/v1/runs/half/samples?where=visits=0&order=-last_loss")["samples"] == []


def test_one_sample_and_where_it_stands(client: TestClient, storage: Path) -> None:
    rows = table(storage, "done")
    found = get(client, "/v1/runs/done/samples/7")
    assert found["sample"]["w"] == pytest.approx(rows[7]["w"], rel=1e-6)
    assert found["rank"]["w"]["position"] == 1 + sum(row["w"] > rows[7]["w"] for row in rows)
    assert found["preview"] == "text/plain"


def test_the_history_shows_each_epoch_that_is_kept(client: TestClient) -> None:
    found = get(client, "/v1/runs/done/samples/7/history")
    assert [one["epoch"] for one in found["snapshots"]] == [2, 3, 4]
    visits = [one["visits"] for one in found["snapshots"]]
    assert visits == [2, 3, 4]


def test_the_distribution_moves_over_epochs_on_one_scale(client: TestClient) -> None:
    found = get(client, "/v1/runs/done/distribution/epochs?column=s&bins=8")
    told = [(one["epoch"], one["source"]) for one in found["epochs"]]
    assert told == [(1, "summary"), (2, "storage"), (3, "storage"), (4, "storage")]
    assert all(sum(one["counts"]) == 60 for one in found["epochs"])
    assert len(found["edges"]) == 9
    assert len({json.dumps(one["counts"]) for one in found["epochs"]}) > 1
    last = get(client, "/v1/runs/done/distribution?column=s&bins=8")
    assert found["epochs"][-1]["mean"] == last["mean"]


# -- export -------------------------------------------------------------------------------------------------------


def exported(client: TestClient, path: str) -> pa.Table:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    if "format=arrow" in path:
        return pa.ipc.open_stream(answer.content).read_all()
    if "format=csv" in path:
        return csv.read_csv(io.BytesIO(answer.content))
    return parquet.read_table(io.BytesIO(answer.content))


@pytest.mark.parametrize("file_format", ["parquet", "arrow", "csv"])
def test_an_export_is_the_whole_table(file_format: str, client: TestClient, storage: Path) -> None:
    got = exported(client, f"/v1/runs/half/export?format={file_format}")
    expected = RunStorage(str(storage), "half").table()
    assert got.num_rows == 60
    for name in ("id", "w", "s", "visits", "selected"):
        column = got[name].cast(expected.schema.field(name).type)
        assert column.equals(expected[name].cast(column.type)), name
    seen = np.array(expected["visits"]) > 0
    for name in ("last_loss", "loss_mean", "loss_std", "age", "last_step"):
        assert got[name].null_count == 30, name
        assert [one is not None for one in got[name].to_pylist()] == seen.tolist()
    disposition = client.get(f"/v1/runs/half/export?format={file_format}").headers["content-disposition"]
    assert disposition == f'attachment; filename="half.{file_format}"'


@pytest.mark.parametrize("file_format", ["parquet", "arrow", "csv"])
def test_an_export_takes_conditions_and_columns(file_format: str, client: TestClient) -> None:
    path = f"/v1/runs/done/export?format={file_format}&columns=label,id&where=label=shoe, left"
    got = exported(client, path)
    assert got.column_names == ["label", "id"]
    assert got["id"].to_pylist() == list(range(1, 60, 3))
    assert set(got["label"].to_pylist()) == {"shoe, left"}
    empty = exported(client, path + "&where=w<-5") if file_format != "csv" else None
    assert empty is None or (empty.num_rows == 0 and empty.column_names == ["label", "id"])


# -- what cannot be answered --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("/v1/runs/absent", 404, "no-such-run"),
        ("/v1/runs/absent/samples", 404, "no-such-run"),
        ("/v1/compare?a=done&b=absent", 404, "no-such-run"),
        ("/v1/runs/fresh/samples", 409, "no-table-yet"),
        ("/v1/runs/done/samples/60", 404, "no-such-sample"),
        ("/v1/runs/done/samples/60/history", 404, "no-such-sample"),
        ("/v1/runs/done/samples?where=label=hut", 400, "bad-query"),
        ("/v1/runs/done/samples?where=w", 422, "invalid-parameter"),
        ("/v1/runs/done/samples?limit=0", 422, "invalid-parameter"),
        ("/v1/runs/done/samples?limit=1001", 422, "invalid-parameter"),
        ("/v1/runs/done/samples?cursor=abc", 400, "bad-query"),
        ("/v1/runs/done/samples?order=confidence", 400, "bad-query"),
        ("/v1/runs/done/distribution?bins=1001", 422, "invalid-parameter"),
        ("/v1/runs/done/distribution?column=label", 422, "invalid-parameter"),
        ("/v1/runs/done/map?points=5001", 422, "invalid-parameter"),
        ("/v1/runs/..%2Fother", 404, "no-such-route"),
        ("/v1/runs/.hidden", 422, "invalid-parameter"),
        ("/v1/runs/done/samples/-1", 422, "invalid-parameter"),
        ("/v1/nothing", 404, "no-such-route"),
        ("/static/..%2f..%2fapp.py", 404, "no-such-route"),
        ("/static/nothing.js", 404, "no-such-route"),
    ],
)
def test_errors_are_problems_with_a_hint(path: str, status: int, slug: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.headers["content-type"] == "application/problem+json"
    found = service.ProblemBody.model_validate_json(answer.content)
    assert (answer.status_code, found.status, found.type) == (status, status, f"urn:es-service:problem:{slug}")
    assert found.hint or slug == "no-preview"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/done/samples", "/metrics"])
def test_nothing_can_be_written(method: str, path: str, client: TestClient) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


def test_a_storage_that_went_away_is_unavailable(
    storage: Path, tmp_path: Path, make_client: Callable[..., TestClient]
) -> None:
    place = tmp_path / "runs"
    shutil.copytree(storage, place)
    client = make_client(place)
    assert get(client, "/-/readyz") == {"status": "ready"}
    shutil.rmtree(place)
    found = get(client, "/-/readyz", 503)
    assert str(place) in found["detail"]
    assert get(client, "/-/healthz") == {"status": "ok"}


def test_a_damaged_snapshot_is_a_problem_not_a_crash(
    storage: Path, tmp_path: Path, make_client: Callable[..., TestClient]
) -> None:
    place = tmp_path / "runs"
    shutil.copytree(storage, place)
    path = next((place / "done" / "snapshots").glob("00000004-*")) / "shard-0.arrow"
    whole = path.read_bytes()
    for damaged in (whole[:-50], b"\0" * len(whole), whole[: len(whole) // 2] * 2):
        path.write_bytes(damaged)
        found = get(make_client(place), "/v1/runs/done/samples", 503)
        assert "damaged" in found["detail"]
    path.unlink()
    assert "no such file" in get(make_client(place), "/v1/runs/done/samples", 503)["detail"]


def test_events_of_a_finished_run_are_one_and_the_end(client: TestClient) -> None:
    answer = client.get("/v1/runs/done/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache, private"
    assert answer.headers["x-accel-buffering"] == "no"  # nginx would hold events back
    head, data, name, *rest = answer.text.split("\n")
    assert head == "event: finished"
    assert name.startswith("id: stored-4-")
    assert json.loads(data.removeprefix("data: "))["run"] == "done"
    assert rest == ["", ""]
    assert client.get("/v1/runs/absent/events").status_code == 404

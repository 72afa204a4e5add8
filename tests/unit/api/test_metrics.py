"""Metrics: what is exposed, and that the Grafana dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from es_service.actors.call_times import EDGES_S, CallTimes, merged
from es_service.api.metrics import NAMES

ROOT = Path(__file__).parents[3]
BOARD = ROOT / "deploy" / "grafana" / "es_service.json"
OF_TYPE = {"counter": "_total", "histogram": ""}


def samples(client: TestClient) -> dict[str, list[Any]]:
    """Samples by metric, as Prometheus' own parser reads them."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        found[family.name + OF_TYPE.get(family.type, "")] = family.samples
    return found


def test_what_is_exposed_is_what_is_named(client: TestClient) -> None:
    client.get("/v1/runs")
    found = samples(client)
    assert set(found) == set(NAMES)
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    for name in NAMES:
        assert f"`{name}`" in page, f"docs/reference/metrics.md does not name {name}"


def test_requests_are_counted_by_route_and_status(storage: Path, make_client: Callable[..., TestClient]) -> None:
    client = make_client(storage)
    for path in ("/v1/runs/done", "/v1/runs/other", "/v1/runs/absent", "/elsewhere", "/another"):
        client.get(path)
    counted = {
        (one.labels["route"], one.labels["status"]): one.value
        for one in samples(client)["es_service_api_requests_total"]
    }
    assert counted["/v1/runs/{run}", "200"] == 2
    assert counted["/v1/runs/{run}", "404"] == 1
    assert counted["none", "404"] == 2  # addresses that are none make no series of their own
    timed = [
        one
        for one in samples(client)["es_service_api_request_seconds"]
        if one.name.endswith("_count") and one.labels["route"] == "/v1/runs/{run}"
    ]
    assert timed[0].value == 3


def test_runs_are_counted_and_live_ones_measured(client: TestClient) -> None:
    found = samples(client)
    assert {one.labels["status"]: one.value for one in found["es_service_runs"]} == {"finished": 2, "live": 2}
    [seen] = found["es_service_selection_seen_ratio"]
    assert (seen.labels["run"], seen.value) == ("half", 0.5)
    [epochs] = [one for one in found["es_service_run_epochs"] if one.labels["run"] == "half"]
    assert epochs.value == 1
    assert [one.value for one in found["es_service_ray_up"]] == [0]


def test_the_grafana_board_uses_just_these_names() -> None:
    board = json.loads(BOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 10
    used = set(re.findall(r"\bes_service_\w+", " ".join(expressions)))
    series = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used}
    assert series <= set(NAMES)
    assert set(NAMES) - series <= {"es_service_server_selected_samples_total", "es_service_server_table_bytes"}
    for template in board["templating"]["list"]:
        assert set(re.findall(r"\bes_service_\w+", json.dumps(template))) <= set(NAMES)
    places = [panel["gridPos"] for panel in board["panels"]]
    taken = {
        (x, y)
        for one in places
        for x in range(one["x"], one["x"] + one["w"])
        for y in range(one["y"], one["y"] + one["h"])
    }
    assert len(taken) == sum(one["w"] * one["h"] for one in places)  # no panel lies over another
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize("name", NAMES)
def test_names_follow_the_conventions(name: str) -> None:
    assert re.fullmatch(r"es_service_[a-z_]+", name)
    assert not re.search(r"_(ms|milliseconds|percent|kb|mb)$", name)
    assert NAMES[name]


def test_call_times_are_counted_in_bins_and_added_up_over_shards() -> None:
    times, other = CallTimes(), CallTimes()
    for seconds in (0.0, 0.0001, 0.0002, 99.0):
        times.add("observe", seconds)
    other.add("observe", 0.002)
    other.add("report", 0.5)
    found = merged([times.to_dict(), other.to_dict()])
    counts = found["observe"]["counts"]
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 1, 5)
    assert counts[EDGES_S.index(0.0025)] == 1
    assert found["observe"]["total_s"] == pytest.approx(99.0023)
    assert sum(found["report"]["counts"]) == 1
    assert times.to_dict()["observe"]["counts"][EDGES_S.index(0.0025)] == 0  # merging changes no part

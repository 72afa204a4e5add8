"""`python -m benchmarks.exchanges` as a user runs it, at a size where its figures mean nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures(ray_head: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("exchanges")
    words = ["-m", "benchmarks.exchanges", "--quick", "--json", "--workers", "2", "--out", str(folder)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder  # one object is all that stdout gets


def test_exchanges_reach_the_same_accuracy(figures: tuple[dict[str, Any], Path]) -> None:
    training = figures[0]["training"]
    assert {(run["exchange"], run["workers"]) for run in training["runs"]} == {("leased", 2), ("collective(8)", 2)}
    assert training["accuracies_equal"] == {"2": True}
    assert len({run["accuracy"] for run in training["runs"]}) == 1
    for run in training["runs"]:
        assert 0 < run["exchange_ms_per_step"] < run["ms_per_step"]
        assert run["trained"] == 80  # a quarter of 320 images


def test_services_are_measured_and_the_model_is_checked(figures: tuple[dict[str, Any], Path]) -> None:
    found = figures[0]
    services = found["services"]
    assert all(services[name] > 0 for name in ("client_s", "plan_row_s", "plan_row_bytes"))
    assert all(per_id > 0 for _, per_id in (services[name] for name in ("observe_s", "report_s", "apply_s")))
    assert len(found["model"]["served"]) == 10 * 5 * 2
    assert len(found["model"]["epochs"]) == 4 * 5
    [row] = found["check"]
    assert row["clients"] == 2
    assert row["measured_p50_ms"] > 0
    assert row["predicted_p50_ms"] > 0
    assert found["planning_check"]["measured_s"] > 0


def test_the_figures_are_kept_and_drawn(figures: tuple[dict[str, Any], Path]) -> None:
    found, folder = figures
    assert json.loads((folder / "exchanges.json").read_text()) == found
    assert (folder / "exchanges.png").read_bytes()[:4] == b"\x89PNG"

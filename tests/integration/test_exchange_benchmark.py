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

pytestmark = pytest.mark.thorough


def run_benchmark(folder: Path, *more: str) -> dict[str, Any]:
    words = ["-m", "benchmarks.exchanges", "--quick", "--json", "--out", str(folder), *more]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)  # one object is all that stdout gets
    assert json.loads((folder / "exchanges.json").read_text()) == found
    return found


def test_exchanges_reach_the_same_accuracy(ray_head: Any, tmp_path: Path) -> None:
    training = run_benchmark(tmp_path, "--workers", "2")["training"]
    assert (tmp_path / "exchanges.png").read_bytes()[:4] == b"\x89PNG"
    assert {(run["exchange"], run["workers"]) for run in training["runs"]} == {("leased", 2), ("collective(8)", 2)}
    assert training["accuracies_equal"] == {"2": True}
    assert len({run["accuracy"] for run in training["runs"]}) == 1
    for run in training["runs"]:
        assert 0 < run["exchange_ms_per_step"] < run["ms_per_step"]
        assert run["trained"] == 80  # a quarter of 320 images


def test_services_are_measured_and_the_model_is_checked(ray_head: Any, tmp_path: Path) -> None:
    found = run_benchmark(tmp_path, "--simulate-only")
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

"""The benchmark over Ray still runs, end to end, at a size where its figures mean nothing: structure, never speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
def test_the_service_is_measured(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.service", "--quick", "--json", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert {(one["kind"], one["pace"]) for one in results["calls"]} == {
        (kind, pace) for kind in ("empty", "sync", "leased", "prefetch") for pace in ("back to back", "paced")
    }
    assert {one["batch_size"] for one in results["calls"]} == {128, 1024}
    assert {one["rows"] for one in results["kernel"]} == {10**4, 10**5}
    assert len(results["figures"]) >= 15
    for figure in results["figures"]:
        assert figure["value"] is not None
        assert figure["reached"] in (True, False)
    assert results["memory"]["num_clients"] == 8
    assert results["reading"]["reads"] >= 1


@pytest.mark.thorough
def test_ours_does_the_work_of_the_peers() -> None:
    sizes = ["--batch-sizes", "64,128", "--rows", "2000", "--steps", "5"]
    words = [sys.executable, "-m", "benchmarks.peers", "--json", "--only", "ours,redis", "--rounds", "1", *sizes]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)
    named = {(one["peer"], one["batch_size"]) for one in results["measured"]}
    assert named >= {(name, size) for name in ("es_service", "es_service over Ray") for size in (64, 128)}
    assert all(one["p50_ms"] > 0 for one in results["measured"])
    assert results["not_run"] or any(name == "Redis sorted set" for name, _ in named)


@pytest.mark.thorough
def test_a_trainer_with_a_scorer_is_measured() -> None:
    words = [sys.executable, "-m", "benchmarks.scorers", "--json", "--epochs", "4", "--limit", "300"]
    done = subprocess.run(
        [*words, "--runs", "full, alone;es, scorer small"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(done.stdout)["runs"]
    assert [one["scorers"] for one in results["full, alone"]] == [None]
    [helped] = results["es, scorer small"]
    assert helped["samples"]["scored"] == 0 < helped["scorers"]["passes"]

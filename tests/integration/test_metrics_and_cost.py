"""A task with a metric of its own, tokens and a measured backward pass: over two ranks, and in a comparison."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matthews_task import HELD_OUT, NUM, build_task
from pyarrow import parquet

from es_service.cli import text
from es_service.storage.runs import RunStorage
from tests.unit.training.test_metrics_by_name import by_hand

TESTS = Path(__file__).parents[1]
TASK = ("--task", "matthews_task:build_measured", "--epochs", 3)


def es_service(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run it where the task's module is."""
    command = [sys.executable, "-m", "es_service.cli", *map(str, words)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_two_ranks_make_one_metric_one_cost_and_one_count(ray_head: Any, tmp_path: Path) -> None:
    words = ("--method", "eswp", "--workers", 2, "--exchange", "collective", "--storage", tmp_path, "--run", "two")
    result = json.loads(es_service("train", *TASK, *words, "--json").stdout)
    [saved] = sorted((tmp_path / "two" / "train").glob("**/training.pt"))[-1:]
    task = build_task()
    model = task.build_model()
    model.load_state_dict(torch.load(saved, weights_only=True)["model"])
    expected = by_hand(model, task)
    assert result["metric"] == "matthews"
    assert result["metrics"] == pytest.approx(expected, rel=1e-6)
    assert result["metrics"]["mirrored"] * HELD_OUT == pytest.approx(round(expected["mirrored"] * HELD_OUT))
    all_tokens = 3 * sum(range(1, NUM + 1))
    tokens, samples = result["tokens"], result["samples"]
    assert tokens["full"] == pytest.approx(all_tokens, rel=0.02)  # ranks have equally many samples: one sits out
    assert 0 < tokens["trained"] < tokens["full"]
    assert result["saving"]["tokens"] == pytest.approx(1 - tokens["trained"] / tokens["full"])
    each = 1 + result["backward_cost"]
    assert result["saving"]["cost"] == pytest.approx(
        1 - (samples["scored"] + each * samples["trained"]) / (each * samples["full"])
    )
    progress = RunStorage(str(tmp_path), "two").read_note("progress")
    assert progress is not None
    assert (progress["tokens"], progress["backward_cost"]) == (tokens, result["backward_cost"])
    assert progress["history"][-1]["metrics"] == pytest.approx(result["metrics"])
    shown = text.summary(result)
    assert f"  matthews               {result['metrics']['matthews']:.4f} on held-out samples" in shown
    assert f"  mirrored               {result['metrics']['mirrored']:.4f} on held-out samples" in shown
    assert f"counted as {result['backward_cost']:.2f} forward passes, measured" in shown
    assert f"{tokens['trained']:,} back-propagated" in shown


@pytest.mark.thorough
def test_a_comparison_is_decided_by_the_metric_and_counts_all_runs_alike(tmp_path: Path) -> None:
    words = ("--methods", "es", "--seeds", 1, "--jobs", 1, "--out", tmp_path / "out")
    printed = es_service("compare", *TASK, *words).stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["metric"], results["metrics"]) == ("matthews", ["matthews", "mirrored"])
    cost = results["backward_cost"]
    runs = parquet.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    for run in runs:
        outcome = json.loads((tmp_path / "out" / "runs" / run["run"] / "outcome.json").read_text())
        assert outcome["result"]["backward_cost"] == cost
        passes = run["scored"] + (1 + cost) * run["trained"]
        assert run["cost"] == pytest.approx(passes / ((1 + cost) * NUM * 3))
        assert run["matthews"] == outcome["result"]["metrics"]["matthews"]
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["es"]["difference_to_full"]["mean"] == pytest.approx(
        rows["es"]["matthews"]["mean"] - rows["full"]["matthews"]["mean"]
    )
    assert "saving at equal matthews" in printed
    assert f"cost: a backward pass counted as {cost:.2f} forward passes" in printed
    assert f"a backward counted as {cost:.2f}" in (tmp_path / "out" / "report.md").read_text()

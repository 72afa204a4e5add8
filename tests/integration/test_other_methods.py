"""A method of an installed package, as a user of `es-service` meets it: trained, compared, served, continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from es_service.storage.runs import RunStorage

COMMON = ("--batch-size", 32, "--set", "anneal=[0,0]", "--seed", 3, "--json")


@pytest.fixture
def es_service(example_method: Path) -> Any:
    """A function that runs the command where the package is installed, with a Ray of its own if it needs one."""
    path = os.pathsep.join([str(example_method), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: Any, expect: int = 0, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "es_service.cli", *map(str, words)],
            env={**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": "", **more},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, done.stderr
        return done

    return run


def columns(storage: Path, run: str) -> dict[str, bytes]:
    table = RunStorage(str(storage), run).table()
    return {name: table[name].to_numpy().tobytes() for name in table.column_names}


def test_it_trains_and_is_continued_with_and_without_ray(few_images: Path, es_service: Any, tmp_path: Path) -> None:
    """The score server's actor and Ray's workers make it from its name and settings: the same table, bit for bit."""
    common = ("train", "--data", few_images, "--storage", tmp_path, *COMMON, "--epochs", 2)
    for exchange in ("embedded", "leased"):
        done = es_service(*common, "--method", "margin", "--set", "at=0.5", "--exchange", exchange, "--run", exchange)
        result = json.loads(done.stdout)
        assert result["method"] == "margin"
        assert result["samples"] == {"scored": 2 * 512, "trained": 2 * 128, "full": 2 * 512}
        selection = json.loads((tmp_path / exchange / "run.json").read_text())["config"]["selection"]
        assert selection["method"] == "margin"
        assert selection["settings"] == {"at": 0.5, "beta": 0.5}
    assert columns(tmp_path, "leased") == columns(tmp_path, "embedded")
    resume = ("train", "--storage", tmp_path, "--run", "embedded", "--resume")
    assert json.loads(es_service(*resume, "--json").stdout)["method"] == "margin"
    assert "'at': 0.5" in es_service(*resume, "--set", "at=0.6", expect=1).stderr
    # Who only looks at the run does not need the package; who continues it does.
    absent = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    assert "margin" in es_service("runs", "--storage", tmp_path, **absent).stdout
    assert "unknown method 'margin'" in es_service(*resume, expect=2, **absent).stderr


def test_a_cluster_without_the_package_says_so(
    few_images: Path, ray_head: Any, es_service: Any, tmp_path: Path
) -> None:
    words = ("train", "--data", few_images, "--storage", tmp_path, *COMMON, "--epochs", 1, "--method", "margin")
    refused = es_service(*words, "--run", "served", expect=2, RAY_ADDRESS=os.environ["RAY_ADDRESS"])
    assert "unknown method 'margin'" in refused.stderr
    assert "needs that package wherever a process of the run is" in refused.stderr


@pytest.mark.thorough  # a task in the current directory is found the same way
def test_a_method_in_the_current_directory_is_named_by_its_factory(
    few_images: Path, ray_head: Any, es_service: Any, example_method: Path, tmp_path: Path
) -> None:
    """Ray's processes on this machine find it where the command was started."""
    source = (example_method / "es_margin" / "__init__.py").read_text()
    (tmp_path / "my_methods_of_today.py").write_text(source)
    (tmp_path / "settings.yaml").write_text("method: my_methods_of_today:margin\nset: {at: 0.5}\n")
    words = ("train", "--data", few_images, "--storage", "runs", *COMMON, "--epochs", 1, "--config", "settings.yaml")
    result = json.loads(es_service(*words, cwd=tmp_path, RAY_ADDRESS=os.environ["RAY_ADDRESS"]).stdout)
    assert result["method"] == "my_methods_of_today:margin"
    assert result["run"].startswith("fashion-my_methods_of_today-margin-")
    about = json.loads((tmp_path / "runs" / result["run"] / "run.json").read_text())
    assert about["config"]["selection"]["method"] == "my_methods_of_today:Margin"


@pytest.mark.thorough  # a unit test parses the same words
def test_it_is_compared_with_the_others(few_images: Path, es_service: Any, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    words = ("--epochs", 2, "--batch-size", 32, "--seeds", 1, "--jobs", 1, "--json")
    done = es_service("compare", "--data", few_images, "--out", out, "--methods", "margin:at=0.5", *words)
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["margin:at=0.5"]["samples"]["trained"] < rows["full"]["samples"]["trained"]

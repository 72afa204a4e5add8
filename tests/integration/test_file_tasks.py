"""Tasks from files on Ray Train: the workers read the files again, and get the same samples."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import image_files
import pytest

from es_service.storage.runs import RunStorage

NUM = 160
ES = ("--method", "es", "--set", "anneal=[0.2,0]", "--seed", 3, "--epochs", 4)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A file of short texts, one of them too long and one broken, and a file of held-out ones with the same."""
    draw = random.Random(0)
    for name, num in (("films_train.jsonl", NUM), ("films_test.jsonl", 20)):
        with (tmp_path / name).open("w") as file:
            for number in range(num):
                words = ("good", "great", "fine") if number % 2 else ("bad", "awful", "dull")
                text = " ".join(draw.choices((*words, "film", "plot", "score"), k=99 if number == 7 else 6))
                file.write(json.dumps({"text": text, "label": ("no", "yes")[number % 2]}) + "\n")
            file.write('{"text": "cut o')
    return tmp_path / "films_train.jsonl"


def train(folder: Path, run: str, *words: Any) -> tuple[dict[str, Any], str]:
    """The result of a run in a process of its own, and what it printed beside it."""
    command = [sys.executable, "-m", "es_service.cli", "train", "--storage", folder / "runs", "--run", run, "--json"]
    done = subprocess.run([*map(str, (*command, *words))], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result, done.stderr


def text_of(films: Path) -> tuple[Any, ...]:
    return ("--task", "text", "--data", films, "--model", "bow", "--max-length", 40, "--skip-broken", *ES)


def columns(folder: Path, run: str) -> dict[str, bytes]:
    """The final table, bit for bit."""
    table = RunStorage(str(folder / "runs"), run).table()
    return {name: table[name].to_numpy().tobytes() for name in table.column_names}


def test_two_workers_train_on_the_samples_of_one_file(films: Path, ray_head: Any, tmp_path: Path) -> None:
    one, _ = train(tmp_path, "one", *text_of(films), "--batch-size", 32, "--exchange", "embedded")
    both, printed = train(tmp_path, "both", *text_of(films), "--batch-size", 16, "--exchange", "leased", "--workers", 2)
    assert (one["workers"], both["workers"]) == (1, 2)
    for name in ("samples", "label_names", "label_shares", "left_out", "metric"):
        assert both[name] == one[name]
    assert both["left_out"] == {"rows": 2, "files": 0, "truncated": 2}
    assert both["tokens"]["full"] == one["tokens"]["full"]
    assert columns(tmp_path, "both")["visits"] == columns(tmp_path, "one")["visits"]
    assert both["accuracy"] > 0.6
    warned = [line for line in printed.splitlines() if "truncated" in line]
    assert warned == ["es-service: warning: 2 of 180 samples were truncated to 40 tokens (--max-length)"]  # no worker's


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["text", "images"])
def test_one_worker_makes_the_table_of_a_run_without_ray(task: str, films: Path, ray_head: Any, tmp_path: Path) -> None:
    """Augmented images too: the worker shows the same views."""
    if task == "images":
        image_files.write_folder(tmp_path / "set", "train", *image_files.pictures(48, side=16))
        words = ("--task", "images", "--data", tmp_path / "set", "--limit", 30, "--batch-size", 10, *ES)
    else:
        words = (*text_of(films), "--batch-size", 16)
    results = [train(tmp_path, exchange, *words, "--exchange", exchange)[0] for exchange in ("embedded", "leased")]
    assert columns(tmp_path, "leased") == columns(tmp_path, "embedded")
    assert results[0]["history"][-1]["train_loss"] == results[1]["history"][-1]["train_loss"]
    assert results[0]["metrics"] == results[1]["metrics"]

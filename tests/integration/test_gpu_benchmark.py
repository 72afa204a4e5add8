"""The benchmark for a GPU, on the CPU at a size where its figures mean nothing: stopped half-way, and continued."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import gpu, gpu_data


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Threads that share a core with other tests spend most of their time on each other."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """CIFAR-10's files with a few images of noise."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in gpu_data.IMAGES:
        images, labels = [], [k % 10 for k in range(40)]
        for _ in labels:
            file = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "png")
            images.append({"bytes": file.getvalue(), "path": None})
        pq.write_table(pa.table({"img": images, "label": labels}), folder / name)
    return folder


def test_it_keeps_what_finished_when_time_is_up_and_continues(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, out = tmp_path / "packed.tar", tmp_path / "out"
    lines = out / "runs.jsonl"
    words = ["--tiny", "--data", str(packed), "--out", str(out), "--no-exchanges"]
    words += ["--methods", "es", "--seeds", "1", "--epochs", "1"]
    assert gpu.main(["pack", "--data", str(data), "--packed", str(packed)]) == 0

    started = []

    def clock() -> float:
        """Seconds that pass as soon as the second run has started."""
        started.append(capsys.readouterr().err.count(" s left: "))
        return 3600.0 if sum(started) == 2 else 0.0

    assert gpu.main(words, clock) == 0
    table = capsys.readouterr().out
    begun = lines.read_bytes()
    assert [json.loads(line)["values"]["spec"]["method"] for line in begun.splitlines()] == ["probe"]
    assert "full-s0: interrupted at the end of the time" in table.split("Not run:")[1]

    assert gpu.main([*words, "--minutes", "60"]) == 0
    assert lines.read_bytes().startswith(begun)
    ran = [json.loads(line)["values"] for line in lines.read_text().splitlines()]
    assert Counter(one["spec"]["method"] for one in ran) == Counter(["probe", "full", "es"])
    assert not any(one["error"] for one in ran)
    assert (out / "table.md").read_text() in capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert "### CIFAR-10, ResNet-18\n\n32 samples, 1 epoch," in table
    assert ", 1 ep. | undecided |" in table
    assert table.count("| `full` |") == 1
    assert table.split("Not run:")[1].strip() == "- GSM8K: --data has no gsm8k_train.parquet and gsm8k_test.parquet"

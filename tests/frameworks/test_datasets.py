"""Data sets of Hugging Face: `labels` and `preview` of a run may be the names of their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures
from torch.utils.data import DataLoader

import es_service as es
from es_service import errors
from es_service.storage import labels as sample_notes
from es_service.storage.runs import RunStorage

NUM = 40


def make_set() -> Dataset:
    rows = {
        "x": [float(row) for row in range(NUM)],
        "text": [f"sentence {row}" for row in range(NUM)],
        "image": [Pictures.fromarray(np.full((6, 6), row, dtype=np.uint8)) for row in range(NUM)],
        "kind": [row % 2 for row in range(NUM)],
        "tags": [[1] * (row % 3) for row in range(NUM)],
    }
    kinds = ClassLabel(names=["even", "odd"])
    return Dataset.from_dict(
        rows,
        Features(
            {"x": Value("float32"), "text": Value("string"), "image": Image(), "kind": kinds, "tags": [Value("int64")]}
        ),
    )


def collate(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[row["x"]] for row in rows])


def wrap(**options: Any) -> es.SelectiveLoader:
    return es.wrap(
        DataLoader(make_set(), batch_size=8, collate_fn=collate),
        es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0)),
        epochs=1,
        model=torch.nn.Linear(1, 1),
        losses=lambda model, batch: model(batch).square().squeeze(1),
        **options,
    )


@pytest.mark.parametrize("preview, kind", [("text", "text/plain"), ("image", "image/png")])
def test_columns_label_and_show_the_samples_of_a_run(preview: str, kind: str, tmp_path: Path) -> None:
    loader = wrap(run="columns", storage=str(tmp_path), labels="kind", preview=preview)
    for batch, _ in loader:
        loader.mean(batch.square().squeeze(1) * torch.ones(1, requires_grad=True)).backward()
    storage = RunStorage(str(tmp_path), "columns")
    notes = sample_notes.read_notes(storage)
    assert (notes.label_names, notes.preview) == (("even", "odd"), kind)
    assert sample_notes.read_labels(storage).tolist() == make_set()["kind"][:]
    shown = storage.previews.find(3, storage.previews.index())
    assert shown is not None
    assert shown == b"sentence 3" if kind == "text/plain" else shown.startswith(b"\x89PNG")


@pytest.mark.parametrize("column", ["text", "tags"])
def test_a_column_that_holds_no_labels_is_refused(column: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ShapeError, match="labels must be one integer for each of the 40 samples"):
        wrap(run="columns", storage=str(tmp_path), labels=column)


@pytest.mark.parametrize("setting", ["labels", "preview"])
def test_a_column_that_is_not_there_is_named(setting: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=f"{setting}='nope' .* has the columns x, text, image, kind"):
        wrap(run="columns", storage=str(tmp_path), **{setting: "nope"})

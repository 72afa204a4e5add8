"""Models of images from folders as transformers writes them, and data sets as `datasets` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import image_files
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from es_service import errors
from es_service.selection.named import preset
from es_service.training.driver import train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task, images
from es_service.training.tasks.options import TaskOptions

NUM, SIDE = 24, 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return image_files.write_parquet(tmp_path, "all", *image_files.pictures(NUM, side=SIDE))


def config(**settings: Any) -> transformers.PretrainedConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTConfig(**{**sizes, "image_size": SIDE, "patch_size": 8, "num_labels": 3, **settings})


def write_model(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(1)
    transformers.ViTForImageClassification(config(**settings)).save_pretrained(folder)
    return folder


def build(data: Path, model: Path, **options: Any) -> images.ImageClassification:
    task = build_task("images", str(data), options=TaskOptions(model=str(model), **options))
    assert isinstance(task, images.ImageClassification)
    return task


def weights(model: torch.nn.Module, part: str) -> torch.Tensor:
    (found,) = [value for name, value in model.state_dict().items() if name.endswith(part)]
    return found


def test_a_model_with_weights_is_fine_tuned(data: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    task = build(data, folder)
    assert (task.defaults.optimizer, task.defaults.learning_rate) == ("adamw", 5e-5)
    saved = transformers.ViTForImageClassification.from_pretrained(folder)
    model = task.build_model()
    assert torch.equal(weights(model, "classifier.weight"), saved.classifier.weight)
    batch = task.train_set.__getitems__([0, 1])
    inputs = (task.inputs(batch) / 255 - torch.tensor(images.models.MEAN).view(3, 1, 1)) / torch.tensor(
        images.models.STD
    ).view(3, 1, 1)
    torch.testing.assert_close(model.eval()(task.inputs(batch)), saved(inputs).logits)
    run = TrainingSpec(
        run="r",
        storage=str(tmp_path / "runs"),
        task="images",
        data=str(data),
        options=TaskOptions(model=str(folder)),
        method="es",
        selection=preset("es"),
        exchange="embedded",
        epochs=1,
        batch_size=8,
    )
    assert np.isfinite(train(run, lambda progress: None)["held_out_loss"])


def test_a_folder_without_weights_is_trained_from_scratch(data: Path, tmp_path: Path) -> None:
    config(num_labels=7).save_pretrained(tmp_path / "model")
    task = build(data, tmp_path / "model")
    assert (task.defaults.optimizer, task.defaults.learning_rate) == ("adamw", 1e-3)
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(weights(task.build_model(), "classifier.weight"))
    assert models[0].shape == (3, 16)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize("num_before", [2, 10])
def test_a_head_of_another_number_of_classes_is_replaced_and_said(
    num_before: int, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "model", num_labels=num_before)
    model = build(data, folder).build_model()
    assert weights(model, "classifier.weight").shape == (3, 16)
    before = transformers.ViTForImageClassification.from_pretrained(folder).state_dict()
    kept = "embeddings.cls_token"
    assert torch.equal(weights(model, kept), next(value for name, value in before.items() if name.endswith(kept)))
    assert f"its head is for {num_before} classes, and the data have 3" in caplog.text
    assert "classifier.bias, classifier.weight" in caplog.text


def test_images_are_scaled_and_normalised_as_the_folder_says(data: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", image_size=24)
    assert build(data, folder).train_set.images.shape[1:] == (24, 24, 3)  # type: ignore[attr-defined]
    said = {"size": {"height": 24, "width": 24}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    model = build(data, folder).build_model()
    assert isinstance(model.mean, torch.Tensor)
    assert (model.mean.flatten() / 255).tolist() == pytest.approx([0.5, 0.4, 0.3])
    with pytest.raises(errors.ConfigError, match=r"does not take images of 32×32 pixels"):
        build(data, folder, image_size=32)


def test_what_is_no_model_of_images_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.DataError, match="its configuration cannot be loaded"):
        build(data, tmp_path / "empty")
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(errors.ConfigError, match="does not take images of 16×16 pixels"):
        build(data, tmp_path / "bert")
    config(num_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(errors.ConfigError, match="with red, green and blue"):
        build(data, tmp_path / "grey")


def test_weights_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config(hidden_size=32, num_labels=5).save_pretrained(folder)
    with pytest.raises(errors.DataError, match=r"its weights are not of its config\.json: .*cls_token"):
        build(data, folder).build_model()
    folder = write_model(tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(errors.DataError, match="its weights cannot be loaded"):
        build(data, folder).build_model()


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_a_data_set_of_datasets_is_read(form: str, tmp_path: Path) -> None:
    pictures, labels = image_files.pictures(NUM, side=SIDE)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(image_files.NAMES))}
    )
    rows = {"image": [Image.fromarray(one) for one in pictures], "label": labels.tolist()}
    made = datasets.Dataset.from_dict(rows, features=features)
    if form == "parquet":
        made.to_parquet(tmp_path / "all.parquet")
        task = build_task("images", str(tmp_path / "all.parquet"))
    else:
        datasets.DatasetDict({"train": made, "test": made.select(range(6))}).save_to_disk(tmp_path / "all")
        task = build_task("images", str(tmp_path / "all"))
        assert len(task.held_out) == 6
    assert task.label_names == image_files.NAMES
    known = {one.tobytes(): label for one, label in zip(pictures, labels.tolist(), strict=True)}
    batch = task.train_set.__getitems__(range(len(task.train_set)))
    assert [known[one.tobytes()] for one in batch.inputs.numpy()] == batch.targets.tolist()

"""Training on images: the models, every method, a resumed run, and what the dashboard shows."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch import nn

import es_service as es
from es_service import errors
from es_service.api.runs.previews import Previews
from es_service.selection.named import PRESETS, preset
from es_service.storage.runs import RunStorage
from es_service.training import irreducible
from es_service.training.driver import train
from es_service.training.loop import fit
from es_service.training.settings import TrainSettings
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task, images
from es_service.training.tasks.images import models
from es_service.training.tasks.options import MODELS, TaskOptions
from es_service.training.workers.local import LocalWorkers

NUM, SIDE = 60, 8


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8×8 pixels, in three classes."""
    folder = tmp_path_factory.mktemp("images")
    image_files.write_parquet(folder, "validation", *image_files.pictures(24, side=SIDE, seed=1))
    return image_files.write_parquet(folder, "train", *image_files.pictures(NUM, side=SIDE))


def build(data: Path, **options: Any) -> images.ImageClassification:
    task = build_task("images", str(data), options=TaskOptions(**options))
    assert isinstance(task, images.ImageClassification)
    return task


# -- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "millions"),
    [
        ("resnet18", 32, 11.2),
        ("resnet18", 96, 11.2),
        ("resnet50", 32, 23.5),
        ("vit_tiny", 28, 5.4),
        ("vit_tiny", 32, 5.4),
        ("vit_tiny", 96, 5.5),
    ],
)
def test_a_model_gives_logits_for_images_of_bytes(name: str, side: int, millions: float) -> None:
    model = models.build_named(name, side, side, 10)
    assert sum(weights.numel() for weights in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    logits = model(torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2))
    assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(weights.grad is not None for weights in model.parameters())


def test_small_images_keep_their_resolution_in_the_first_layer() -> None:
    for side, reduced in ((32, 32), (64, 64), (96, 24)):
        stem = models.build_named("resnet18", side, side, 10).net.stem
        assert isinstance(stem, nn.Module)
        assert stem(torch.zeros(1, 3, side, side)).shape[2:] == (reduced, reduced)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_block_of_a_resnet_begins_as_its_shortcut(name: str) -> None:
    blocks = models.build_named(name, 16, 16, 10).net.blocks
    assert isinstance(blocks, nn.Sequential)
    for block in blocks:
        x = torch.rand(2, next(block.parameters()).shape[1], 4, 4)
        assert torch.equal(block(x.clone()), block.shortcut(x).relu())  # type: ignore[operator, union-attr]


def test_images_are_normalised_on_their_way_into_the_model() -> None:
    batch = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (models.MEAN, models.STD))
    torch.testing.assert_close(models.Normalised(nn.Identity())(batch), (batch / 255 - mean) / std)


def test_a_transformer_needs_whole_patches(tmp_path: Path) -> None:
    path = image_files.write_parquet(tmp_path, "all", *image_files.pictures(24, side=30))
    with pytest.raises(errors.ConfigError, match=r"30×30 pixels into patches of 4×4.*--image-size 32"):
        build(path, model="vit_tiny")
    assert build(path, model="vit_tiny", image_size=32).train_set.images.shape[1:] == (32, 32, 3)  # type: ignore[attr-defined]


def test_a_model_that_is_not_there_is_named_with_the_nearest(data: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"--model resnet8: .*resnet18.*--download"):
        build(data, model="resnet8")
    with pytest.raises(errors.ConfigError, match=r"--metric f1: the task 'images' has accuracy"):
        build(data, metric="f1")


def test_defaults_are_those_of_the_model(data: Path) -> None:
    for name in MODELS["images"]:
        defaults = build(data, model=name).defaults
        kind = (defaults.optimizer, defaults.learning_rate, defaults.weight_decay)
        assert kind == (("adamw", 1e-3, 0.05) if name == "vit_tiny" else ("sgd", 0.1, 5e-4))
        assert (defaults.batch_size, defaults.backward_cost) == (128, None)


# -- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PRESETS)
def test_every_method_trains(method: str, data: Path, tmp_path: Path) -> None:
    """A small model in the place of the named ones: methods do not know of it."""

    def small() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
        return models.Normalised(net)

    task = dataclasses.replace(build(data), model=small)
    selection, settings = preset(method), TrainSettings(learning_rate=0.02)
    known = None
    if "irreducible_loss" in selection.signals:
        known = irreducible.hold_out_losses(task, settings, num_epochs=2, batch_size=20, selection_seed=0).losses
    selector = es.Selector(selection, num_samples=NUM, num_epochs=6, batch_size=20, irreducible_losses=known)
    reached = fit(task, selector, settings, LocalWorkers(tmp_path))
    assert reached["accuracy"] > 0.6  # a third by chance


def spec(data: Path, storage: Path, **settings: Any) -> TrainingSpec:
    return TrainingSpec(
        **{
            "run": "r",
            "storage": str(storage),
            "task": "images",
            "data": str(data),
            "options": TaskOptions(model="resnet18"),
            "method": "eswp",
            "selection": preset("eswp", ratio=0.5, anneal=(0.0, 0.0)),
            "exchange": "embedded",
            "epochs": 2,
            "batch_size": 20,
            **settings,
        }
    )


def test_a_run_is_resumed_bit_by_bit_and_its_samples_are_shown(data: Path, tmp_path: Path) -> None:
    class InterruptedHere(Exception):
        pass

    def interrupt(progress: dict[str, Any]) -> None:
        if progress["progress"]["epoch"] == 1:
            raise InterruptedHere

    def end(storage: Path) -> tuple[dict[str, torch.Tensor], bytes]:
        (place,) = (storage / "r" / "checkpoints").glob("epoch-*")
        saved = torch.load(place / "training.pt", map_location="cpu", weights_only=True)
        return saved["model"], (place / "scores.arrow").read_bytes()

    result = train(spec(data, tmp_path / "whole"), lambda progress: None)
    assert result["task"] == "images"
    with pytest.raises(InterruptedHere):
        train(spec(data, tmp_path / "parts"), interrupt)
    assert train(spec(data, tmp_path / "parts", resume=True), lambda progress: None)["accuracy"] == result["accuracy"]
    (model, table), (again, same_table) = end(tmp_path / "whole"), end(tmp_path / "parts")
    assert all(torch.equal(weights, again[name]) for name, weights in model.items())
    assert table == same_table

    training = RunStorage(str(tmp_path / "whole"), "r").training()
    assert training is not None
    kind, content = Previews(own_tasks=False).show("r", training, 7)
    assert kind == "image/png"
    with Image.open(io.BytesIO(content)) as shown:
        assert np.array_equal(np.array(shown), image_files.pictures(NUM, side=SIDE)[0][7])


def test_cifar_10_trains(shared_data: Path, tmp_path: Path) -> None:
    for part, name in (("train", "cifar10_train.parquet"), ("test", "cifar10_test.parquet")):
        parquet.write_table(parquet.read_table(shared_data / name).slice(0, 64), tmp_path / f"{part}.parquet")
    task = build(tmp_path / "train.parquet")
    assert (len(task.train_set), len(task.held_out)) == (64, 64)
    assert task.train_set.__getitems__([0]).inputs.shape == (1, 32, 32, 3)
    result = train(spec(tmp_path / "train.parquet", tmp_path / "runs", epochs=1), lambda progress: None)
    assert np.isfinite(result["held_out_loss"])

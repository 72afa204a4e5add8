"""The fashion task: what comes with the package never changes, other folders are read, missing files are named."""

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.training.tasks import TASKS, base, build_task, fashion
from es_service.training.tasks.fashion import ImageSet
from es_service.training.tasks.supervised import Batch, Classification

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(scope="module")
def task() -> Classification:
    return fashion.build()


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()) if path.suffix == ".gz" else header + values.tobytes())


def write_folder(folder: Path, suffix: str = ".gz") -> Path:
    """A folder in the standard layout: 5 images to train on, 3 held out, image i full of i."""
    folder.mkdir(parents=True)
    for part, num in (("train", 5), ("t10k", 3)):
        numbers = np.arange(num, dtype=np.uint8)
        images = np.broadcast_to(numbers[:, None, None], (num, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", numbers)
    return folder


def sets(task: Classification) -> list[ImageSet]:
    found = [samples for samples in (task.train_set, task.held_out) if isinstance(samples, ImageSet)]
    assert len(found) == 2
    return found


def test_it_is_a_task(task: Classification) -> None:
    as_task: base.Task = task  # mypy checks the rest
    assert as_task.name in TASKS
    assert task.labels.dtype == np.int64


def test_the_split_is_stratified_and_disjoint(task: Classification) -> None:
    assert (len(task.train_set), len(task.held_out)) == (8_000, 2_000)
    assert np.bincount(task.labels).tolist() == [800] * 10
    assert np.bincount(task.held_out_labels).tolist() == [200] * 10
    images = np.concatenate([images.images_n for images in sets(task)])
    assert len({image.tobytes() for image in images}) == 10_000


def test_the_ids_never_change(task: Classification) -> None:
    """Scores, checkpoints and published figures speak of these ids."""
    digest = hashlib.sha256()
    for images in sets(task):
        digest.update(images.images_n.tobytes() + images.targets_n.astype("<i8").tobytes())
    assert digest.hexdigest() == ("2d1330e8efb58e9e9c2c7b0af44f88cc3ba1492e644875e7fd54aae0bb733aab")


def test_batches_are_normalised_and_deterministic(task: Classification) -> None:
    batch = task.train_set.__getitems__(range(8_000))
    assert isinstance(batch, Batch)
    assert batch.inputs.shape == (8_000, 1, 28, 28)
    assert (batch.inputs.dtype, batch.targets.dtype) == (torch.float32, torch.int64)
    assert abs(batch.inputs.mean().item()) < 0.02
    assert abs(batch.inputs.std().item() - 1) < 0.02
    ids = [7, 7_999, 0, 7]
    some = task.train_set.__getitems__(ids)
    assert torch.equal(some.inputs, batch.inputs[ids])
    assert torch.equal(some.targets, torch.from_numpy(task.labels[ids]))
    again = task.train_set.__getitems__(np.array(ids).tolist())
    again.inputs.zero_()  # the caller's own: the data set does not notice
    assert torch.equal(task.train_set.__getitems__(ids).inputs, some.inputs)


@pytest.mark.parametrize("ids", [[8_000], [-1], [0, -8_001]])
def test_ids_outside(task: Classification, ids: list[int]) -> None:
    with pytest.raises(IndexError):
        task.train_set.__getitems__(ids)


def test_the_model_comes_from_the_seed(task: Classification) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([value.flatten() for value in task.build_model().state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.usefixtures("_one_thread")
def test_it_learns(task: Classification) -> None:
    """A few steps on few images: loss down, predictions right."""
    torch.manual_seed(0)
    model = task.build_model()
    batch = task.train_set.__getitems__(range(32))
    optimizer = torch.optim.SGD(model.parameters(), lr=task.defaults.learning_rate, momentum=0.9)
    first = task.losses(model(task.inputs(batch)), batch)
    assert first.shape == (32,)
    for _ in range(20):
        losses = task.losses(model(task.inputs(batch)), batch)
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    correct = task.metric(model(task.inputs(batch)), batch)
    assert correct.dtype == torch.bool
    assert losses.mean() < 0.3 * first.mean()
    assert correct.float().mean() > 0.9


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("parent", [True, False])
def test_a_folder_of_the_standard_files(tmp_path: Path, suffix: str, parent: bool) -> None:
    write_folder(tmp_path / "fashion-mnist", suffix)
    task = build_task("fashion", str(tmp_path if parent else tmp_path / "fashion-mnist"))
    assert isinstance(task, Classification)
    assert (len(task.train_set), len(task.held_out)) == (5, 3)
    assert task.labels.tolist() == [0, 1, 2, 3, 4]
    assert sets(task)[0].images_n[:, 3, 3].tolist() == [0, 1, 2, 3, 4]


def test_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "_DEBIAN_FOLDER", tmp_path / "fashion-mnist")
    with pytest.raises(errors.DataError, match="dataset-fashion-mnist"):
        fashion.build("debian")
    write_folder(tmp_path / "fashion-mnist")
    assert len(fashion.build("debian").train_set) == 5


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match="give the folder that holds train-images") as caught:
        fashion.build(str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "f")
    (folder / f"{name}.gz").unlink()
    with pytest.raises(errors.DataError, match=f"no file {name} or {name}.gz in {folder}: give"):
        fashion.build(str(folder))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f")
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(4, dtype=np.uint8))
    with pytest.raises(errors.DataError, match=r"train files in .* do not belong together"):
        fashion.build(str(folder))
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.array([0, 1, 10, 2, 3], dtype=np.uint8))
    with pytest.raises(errors.DataError, match="label 10 at position 2"):
        fashion.build(str(folder))


def test_images_of_another_size() -> None:
    with pytest.raises(errors.DataError, match="28x28"):
        ImageSet(np.zeros((2, 32, 32), dtype=np.uint8), np.zeros(2, dtype=np.uint8))


def test_an_unknown_task_gets_a_suggestion() -> None:
    with pytest.raises(errors.ConfigError, match="did you mean 'fashion'"):
        build_task("fasion")
    with pytest.raises(errors.ConfigError, match="known: fashion, flights, reviews"):
        build_task("zzz")


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}])
def test_defaults_are_checked(change: dict[str, float]) -> None:
    settings = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, **change}
    with pytest.raises(errors.ConfigError):
        base.TaskDefaults(**settings)  # type: ignore[arg-type]


def test_importing_the_package_needs_no_torch() -> None:
    code = "import sys, es_service; assert 'torch' not in sys.modules, 'torch'; assert 'ray' not in sys.modules, 'ray'"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)

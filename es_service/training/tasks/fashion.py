"""Fashion-MNIST: 28×28 grey images of ten kinds of clothing. 10,000 of them come with the package.

Reference: Xiao, Rasul, Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms*,
arXiv 1708.07747.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from es_service import errors
from es_service.storage.png import encode_png
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.idx import read_idx
from es_service.training.tasks.resnet import SmallResNet
from es_service.training.tasks.splits import stratified_split
from es_service.training.tasks.supervised import Batch, Classification

__all__ = ["CLASSES", "ImageSet", "build"]

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Names of the labels 0 .. 9."""

_MEAN, _STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to [0, 1]
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_FOLDER_NAME = "fashion-mnist"
_TRAIN, _TEST = "train", "t10k"
_HELP = (
    "give the folder that holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (each also as .gz), 'debian' for that of the Debian package dataset-fashion-mnist, "
    "or nothing for the 10,000 images that come with es_service"
)


class ImageSet:
    """Images in memory as bytes; batches are normalised as they are fetched.

    Args:
        images_n: uint8[n, 28, 28].
        labels_n: integer[n], in [0, 10).

    Raises:
        DataError: the arrays do not belong together, or a label is outside [0, 10).
    """

    def __init__(self, images_n: NDArray[np.uint8], labels_n: NDArray[np.integer]) -> None:
        if images_n.shape[1:] != (28, 28) or labels_n.shape != images_n.shape[:1]:
            raise errors.DataError(
                f"images of shape {images_n.shape} and labels of shape {labels_n.shape} are not n images of 28x28 "
                "with a label each: the files do not belong together"
            )
        outside = np.flatnonzero((labels_n < 0) | (labels_n >= len(CLASSES)))
        if outside.size:
            raise errors.DataError(
                f"label {labels_n[outside[0]]} at position {outside[0]}: there are only 0 .. {len(CLASSES) - 1}"
            )
        self.images_n = images_n
        self.targets_n = labels_n.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images_n)

    def __getitems__(self, ids: Sequence[int]) -> Batch:
        """Return images float32[B, 1, 28, 28] of about zero mean and unit variance, and labels int64[B].

        Args:
            ids: each in [0, n).

        Raises:
            IndexError: an id outside.
        """
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and ids_B.min() < 0:
            raise IndexError(f"sample id {ids_B.min()} is negative")
        images = torch.from_numpy(self.images_n[ids_B]).unsqueeze(1).float()
        images.mul_(1.0 / (255.0 * _STD)).sub_(_MEAN / _STD)
        return Batch(images, torch.from_numpy(self.targets_n[ids_B]))


def build(data: str | None = None) -> Classification:
    """Build the task.

    Args:
        data: None for the 10,000 images that come with the package, split into 8,000 to train on and 2,000 held out,
            the classes in equal parts, always the same. Otherwise the folder of the four standard files, or one that
            holds it as `fashion-mnist`, or what the Debian package was unpacked into, or "debian" where it is
            installed: 60,000 to train on and 10,000 held out.

    Raises:
        DataError: a folder or file is missing, damaged, or of another format.
    """
    if data is not None:
        folder = _folder(data)
        train_set, held_out = _load(folder, _TRAIN), _load(folder, _TEST)
    else:
        bundled = _load_bundled()
        train_set, held_out = (
            ImageSet(bundled.images_n[ids], bundled.targets_n[ids]) for ids in stratified_split(bundled.targets_n)
        )
    return Classification(
        name="fashion",
        train_set=train_set,
        held_out=held_out,
        label_names=CLASSES,
        model=SmallResNet,
        defaults=TaskDefaults(epochs=8, batch_size=64, learning_rate=0.1),
        proxies={"small": _small},
        preview=lambda sample_id: encode_png(train_set.images_n[sample_id]),
    )


def _small() -> nn.Module:
    """Return a model of images at half the resolution: a pass over it costs a twentieth of one over `SmallResNet`."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, len(CLASSES)),
    )


def _folder(data: str) -> Path:
    """Return the folder that `data` means: itself, the `fashion-mnist` in it, or the Debian package's."""
    folder = _DEBIAN_FOLDER if data == "debian" else Path(data).expanduser()
    if not folder.is_dir():
        raise errors.DataError(f"no folder {folder}: {_HELP}")
    below = (folder, folder / _FOLDER_NAME, folder / _DEBIAN_FOLDER.relative_to("/"))
    return next((place for place in below if any(place.glob(f"{_TRAIN}-images-idx3-ubyte*"))), folder)


def _load_bundled() -> ImageSet:
    inside = resources.files(__package__) / "fashion_mnist"
    with contextlib.ExitStack() as stack:  # file by file: of a zipped package, only files can be had before 3.12
        names = (f"{_TEST}-images-idx3-ubyte.gz", f"{_TEST}-labels-idx1-ubyte.gz")
        images, labels = (stack.enter_context(resources.as_file(inside / name)) for name in names)
        return ImageSet(read_idx(images), read_idx(labels))


def _load(folder: Path, part: str) -> ImageSet:
    images_n = read_idx(_file(folder, f"{part}-images-idx3-ubyte"))
    labels_n = read_idx(_file(folder, f"{part}-labels-idx1-ubyte"))
    try:
        return ImageSet(images_n, labels_n)
    except errors.DataError as error:
        raise errors.DataError(f"the {part} files in {folder} cannot be used: {error}") from None


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise errors.DataError(f"no file {name} or {name}.gz in {folder}: {_HELP}")

"""Fashion-MNIST: 28×28 grey images of ten kinds of clothing. 10,000 of them come with the package.

Reference: Xiao, Rasul, Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms*,
arXiv 1708.07747.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.training import losses
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.idx import read_idx
from es_service.training.tasks.resnet import SmallResNet

__all__ = ["CLASSES", "FashionTask", "ImageBatch", "ImageSet", "build"]

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Names of the labels 0 .. 9."""

_MEAN, _STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to [0, 1]
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_FOLDER_NAME = "fashion-mnist"
_TRAIN, _TEST = "train", "t10k"
_HELD_OUT_SHARE = 5  # one in five of the images that come with the package
_HELP = (
    "give the folder that holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (each also as .gz), 'debian' for that of the Debian package dataset-fashion-mnist, "
    "or nothing for the 10,000 images that come with es_service"
)


class ImageBatch(NamedTuple):
    """A batch: images float32[B, 1, 28, 28] of about zero mean and unit variance, and labels int64[B]."""

    images: torch.Tensor
    labels: torch.Tensor


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
        self.labels_n = labels_n.astype(np.int64)

    def __len__(self) -> int:
        return len(self.images_n)

    def __getitems__(self, ids: Sequence[int]) -> ImageBatch:
        """Return the batch of these ids, each in [0, n), in this order; IndexError for one outside."""
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and ids_B.min() < 0:
            raise IndexError(f"sample id {ids_B.min()} is negative")
        images = torch.from_numpy(self.images_n[ids_B]).unsqueeze(1).float()
        images.mul_(1.0 / (255.0 * _STD)).sub_(_MEAN / _STD)
        return ImageBatch(images, torch.from_numpy(self.labels_n[ids_B]))


class FashionTask:
    """Classification of Fashion-MNIST; see `Task` for the meaning of each part."""

    name = "fashion"
    defaults = TaskDefaults(epochs=8, batch_size=64, learning_rate=0.1)

    def __init__(self, train_set: ImageSet, held_out: ImageSet) -> None:
        self.train_set = train_set
        self.held_out = held_out

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64[n] of the train set."""
        return self.train_set.labels_n

    def build_model(self) -> torch.nn.Module:
        """Return a new `SmallResNet`."""
        return SmallResNet(len(CLASSES))

    def inputs(self, batch: ImageBatch) -> torch.Tensor:
        """Return the images float32[B, 1, 28, 28]."""
        return batch.images

    def losses(self, outputs: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Return the cross entropies float32[B] of logits float[B, 10]."""
        return losses.cross_entropy(outputs, batch.labels)

    def correct(self, outputs: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Return bool[B], whether the largest logit is the label's."""
        return outputs.argmax(dim=1) == batch.labels


def build(data: str | None = None) -> FashionTask:
    """Build the task.

    Args:
        data: None for the 10,000 images that come with the package, split into 8,000 to train on and 2,000 held out,
            the classes in equal parts, always the same. Otherwise the folder of the four standard files, or one that
            holds it as `fashion-mnist`, or what the Debian package was unpacked into, or "debian" where it is
            installed: 60,000 to train on and 10,000 held out.

    Raises:
        DataError: a folder or file is missing, damaged, or not what its name says.
    """
    if data is not None:
        folder = _folder(data)
        return FashionTask(_load(folder, _TRAIN), _load(folder, _TEST))
    bundled = _load_bundled()
    train_ids, held_out_ids = _split(bundled.labels_n)
    return FashionTask(_subset(bundled, train_ids), _subset(bundled, held_out_ids))


def _subset(images: ImageSet, ids: NDArray[np.int64]) -> ImageSet:
    return ImageSet(images.images_n[ids], images.labels_n[ids])


def _split(labels_n: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and those to hold out, in an order that no version of any library can change."""
    mixed = np.arange(labels_n.size, dtype=np.uint64) + np.uint64(1)  # SplitMix64, spelled out for that reason
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    order = np.argsort(mixed, kind="stable")
    is_held_out = np.zeros(labels_n.size, dtype=bool)
    for label in range(len(CLASSES)):
        of_class = order[labels_n[order] == label]
        is_held_out[of_class[: of_class.size // _HELD_OUT_SHARE]] = True
    return order[~is_held_out[order]], order[is_held_out[order]]


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

"""Images from your own files: `--task images --data FILES --model resnet18`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.storage.png import encode_png
from es_service.training.tables import holdout
from es_service.training.tables.labels import Labels, read_labels
from es_service.training.tables.left_out import LeftOut
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.images import loading, models, places
from es_service.training.tasks.images.augment import CropAndFlip
from es_service.training.tasks.images.folder_models import FolderModel
from es_service.training.tasks.images.loading import OnDemand, Pixels, part
from es_service.training.tasks.images.source import Source
from es_service.training.tasks.options import MODELS, TaskOptions
from es_service.training.tasks.supervised import Batch, Classification

__all__ = ["ImageClassification", "ImageSet", "build"]

_AUGMENT = "crop,flip"
_SHOWN = 256  # pixels of a preview's longer side
_RESNET = TaskDefaults(epochs=30, batch_size=128, learning_rate=0.1, backward_cost=None)
_TRANSFORMER = TaskDefaults(
    epochs=30, batch_size=128, learning_rate=1e-3, optimizer="adamw", weight_decay=0.05, backward_cost=None
)
_FINE_TUNED = TaskDefaults(
    epochs=3, batch_size=64, learning_rate=5e-5, optimizer="adamw", weight_decay=0.01, warm_up=0.1, backward_cost=None
)


class ImageSet:
    """Images of one size, and their labels.

    Args:
        images: uint8[n, h, w, 3].
        labels_n: int64[n].
    """

    def __init__(self, images: Pixels, labels_n: NDArray[np.int64]) -> None:
        self.images, self.targets_n = images, labels_n

    def __len__(self) -> int:
        return self.targets_n.size

    def __getitems__(self, ids: Sequence[int]) -> Batch:
        """Return images uint8[B, h, w, 3] and labels int64[B]; IndexError for an id outside [0, n)."""
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and ids_B.min() < 0:
            raise IndexError(f"sample id {ids_B.min()} is negative")
        return Batch(torch.from_numpy(self.images[ids_B]), torch.from_numpy(self.targets_n[ids_B]))

    def load(self, ids_m: NDArray[np.int64]) -> None:
        """Decode these samples, the only ones asked for from now on; see `OnDemand.loaded` for what it raises."""
        if isinstance(self.images, OnDemand):
            self.images = self.images.loaded(ids_m)

    def png(self, sample_id: int) -> bytes:
        """Return a sample as a PNG file, every k-th pixel of large ones."""
        image = self.images[np.array([sample_id])][0]
        step = -(-max(image.shape) // _SHOWN)
        return encode_png(np.ascontiguousarray(image[::step, ::step]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClassification(Classification):
    """Batches are images uint8[B, h, w, 3] and labels; a model gets uint8[B, 3, h, w], channels last in memory."""

    train_set: ImageSet
    left_out: LeftOut | None = None

    def load(self, ids_m: NDArray[np.int64]) -> None:
        """See `Task`."""
        self.train_set.load(ids_m)

    def inputs(self, batch: Any) -> torch.Tensor:
        """Return the images as uint8[B, 3, h, w]."""
        images: torch.Tensor = batch[0].permute(0, 3, 1, 2)
        return images


def build(data: str, options: TaskOptions) -> ImageClassification:
    """Build the task, whose images to train on are not decoded yet; see docs/how-to/images.md.

    Args:
        data: images and labels: see `places.find`.
        options: the model, where the held-out samples are, columns, size, augmentation.

    Raises:
        ConfigError: an option does not fit the data, the model does not fit the images, or a package is missing.
        DataError: files are missing or damaged.
    """
    model = options.model or MODELS["images"][0]
    if options.metric not in (None, "accuracy"):
        raise errors.ConfigError(f"--metric {options.metric}: the task 'images' has accuracy alone")
    folder = None if model in MODELS["images"] else FolderModel(model, download=bool(options.download))
    size = options.image_size or (folder.image_size if folder else None)
    parts = places.find(data, options.held_out)
    train_set, labels, source = _read(parts.train, options, size)
    sources = [source]
    if parts.held_out is not None:
        held_out, _, source = _read(parts.held_out, options, size, like=(train_set, labels))
        sources.append(source)
    else:
        assert parts.share is not None
        rows, held_out_rows = holdout.split(len(train_set), parts.share, train_set.targets_n)
        train_set, held_out = (
            ImageSet(part(train_set.images, some), train_set.targets_n[some]) for some in (rows, held_out_rows)
        )
    held_out.load(np.arange(len(held_out)))
    height, width = train_set.images.shape[1:3]
    num_classes = len(labels.values)
    if num_classes < 2:
        only = (labels.names or labels.values)[0]
        raise errors.DataError(
            f"{data}: all samples have one label, {only}: name the folder above that of the class, or another column"
        )
    if folder is not None:
        folder.check(height, width, num_classes)
        make: Callable[[], torch.nn.Module] = functools.partial(folder.build, num_classes)
        defaults = _FINE_TUNED if folder.is_pretrained else _TRANSFORMER
    else:
        if model == "vit_tiny":
            models.patch_of(height, width)
        make = functools.partial(models.build_named, model, height, width, num_classes)
        defaults = _TRANSFORMER if model == "vit_tiny" else _RESNET
    num_used = len(train_set) + len(held_out)
    ways = (options.augment or _AUGMENT).split(",")
    return ImageClassification(
        name="images",
        train_set=train_set,
        held_out=held_out,
        label_names=labels.names,
        model=make,
        defaults=defaults,
        preview=train_set.png,
        left_out=LeftOut.of(sources, num_used),
        augment=None if ways == ["none"] else CropAndFlip(crop="crop" in ways, flip="flip" in ways),
    )


def _read(
    paths: Sequence[Path], options: TaskOptions, size: int | None, like: tuple[ImageSet, Labels] | None = None
) -> tuple[ImageSet, Labels, Source]:
    """Return the samples of a part that have an image and a label, and where they come from; `like` is the part that is
    trained on.
    """
    source, skip_broken = places.read(paths, options), bool(options.skip_broken)
    shape, known = (like[0].images.shape[1:3], like[1]) if like else (None, None)
    labels = read_labels(source.table, source.column, like=known, skip_broken=skip_broken)
    images, rows = loading.load(source.images, size, skip_broken=skip_broken, like=shape)
    _, of_images, of_labels = np.intersect1d(rows, labels.rows_n, assume_unique=True, return_indices=True)
    if not of_images.size:
        raise errors.DataError(f"{paths[0]}: no sample has both an image that can be read and a label")
    labels_n = labels.labels_n[of_labels]
    return ImageSet(images if of_images.size == rows.size else part(images, of_images), labels_n), labels, source

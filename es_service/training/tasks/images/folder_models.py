"""Models of transformers, from a folder in Hugging Face's layout; without weights in it, from scratch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import torch

from es_service import errors
from es_service.training.tasks.folders import ModelFolder
from es_service.training.tasks.images.models import MEAN, STD, Normalised
from es_service.training.tasks.options import MODELS

__all__ = ["FolderModel"]

_log = logging.getLogger(__name__)


class FolderModel:
    """A model for `transformers.AutoModelForImageClassification`.

    Args:
        place: the folder, or with `download` a name on the Hugging Face hub.
        download: allow it to be fetched.

    Attributes:
        image_size: pixels of the square images that it is for; None where it does not say.
        is_pretrained: whether there are weights.

    Raises:
        ConfigError: transformers is missing, or there is no such folder.
        DataError: it has no model.
    """

    def __init__(self, place: str, *, download: bool) -> None:
        self._folder = ModelFolder(place, download=download, models=MODELS["images"])
        self._config = self._folder.load("its configuration", self._folder.library.AutoConfig.from_pretrained)
        self.is_pretrained = self._folder.has_weights
        prepared: Mapping[str, Any] = {}
        with contextlib.suppress(errors.DataError):  # it need not have any
            mixin = self._folder.library.ImageProcessingMixin
            prepared = self._folder.load("its image processor", mixin.get_image_processor_dict)[0]
        self._mean, self._std = (
            prepared.get(name) or usual for name, usual in (("image_mean", MEAN), ("image_std", STD))
        )
        sizes = (prepared.get("crop_size"), prepared.get("size"), getattr(self._config, "image_size", None))
        self.image_size = next((size for size in map(_side, sizes) if size is not None), None)

    def check(self, height: int, width: int, num_classes: int) -> None:
        """Raise ConfigError where it is no model of images, or not of images of this size; no weights are read."""
        try:
            with torch.device("meta"), self._folder.quietly():
                net = self._folder.library.AutoModelForImageClassification.from_config(self._sized(num_classes))
                net.eval()(torch.empty(2, 3, height, width))
        except NotImplementedError:  # an operation that a meta device lacks: training shows
            pass
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise errors.ConfigError(
                f"--model {self._folder.name} does not take images of {width}×{height} pixels, with red, green and "
                f"blue: {error}"
            ) from error

    def build(self, num_classes: int) -> Normalised:
        """Return a new model with so many classes; a head of another number of them is replaced, and logged.

        Raises:
            DataError: the weights cannot be read, or are not those of the model.
        """
        auto = self._folder.library.AutoModelForImageClassification
        if not self.is_pretrained:
            return Normalised(auto.from_config(self._sized(num_classes)), self._mean, self._std)
        num_before = self._config.num_labels
        net, found = self._folder.load(
            "its weights",
            auto.from_pretrained,
            config=self._sized(num_classes),
            ignore_mismatched_sizes=True,  # found by ourselves below
            dtype=torch.float32,
            output_loading_info=True,
        )
        others = [name for name, before, _ in found["mismatched_keys"] if before[0] != num_before]
        if others:
            raise errors.DataError(
                f"--model {self._folder.name}: its weights are not of its config.json: {', '.join(sorted(others))}"
            )
        new = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
        if new:
            _log.warning(
                "--model %s: its head is for %s classes, and the data have %s; these weights are new: %s",
                *(self._folder.name, num_before, num_classes, ", ".join(new)),
            )
        return Normalised(net, self._mean, self._std)

    def _sized(self, num_classes: int) -> Any:
        """Return its config with so many classes."""
        config = type(self._config).from_dict(self._config.to_dict())
        config.num_labels = num_classes
        return config


def _side(size: Any) -> int | None:
    """Return the pixels of a square's side, of a size as image processors and models have it."""
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    elif isinstance(size, (list, tuple)) and size:
        size = size[0]
    return size if isinstance(size, int) and not isinstance(size, bool) else None

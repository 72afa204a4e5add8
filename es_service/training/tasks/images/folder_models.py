"""Models of transformers, from a folder in Hugging Face's layout; without weights in it, from scratch."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from es_service import errors
from es_service.selection.settings import suggest
from es_service.training.tasks.images.models import MEAN, STD, Normalised
from es_service.training.tasks.options import MODELS

__all__ = ["FolderModel"]

_log = logging.getLogger(__name__)
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


class FolderModel:
    """A model for `transformers.AutoModelForImageClassification`.

    Args:
        place: the folder, or with `download` a name on the Hugging Face hub.
        download: allow it to be fetched.

    Attributes:
        image_size: pixels of the square images that it is for; None where it does not say.
        is_pretrained: whether there are weights.

    Raises:
        ConfigError: transformers is missing, there is no such folder, or it has no model of images.
    """

    def __init__(self, place: str, *, download: bool) -> None:
        try:
            import transformers
            from transformers.image_processing_base import ImageProcessingMixin
        except ImportError as error:
            raise errors.ConfigError(
                f"--model {place}: a model from a folder needs transformers: pip install 'es-service[transformers]' "
                f"({error})"
            ) from error
        if not (download or os.path.isdir(place)):
            raise errors.ConfigError(
                f"--model {place}: {suggest(place, MODELS['images'])}; or give a folder with a model of transformers, "
                "or the name of one on the Hugging Face hub with --download"
            )
        self._place, self._where = place, {"local_files_only": not download}
        try:
            self._config = transformers.AutoConfig.from_pretrained(place, **self._where)
        except (OSError, ValueError) as error:
            raise errors.ConfigError(f"--model {place} has no model that transformers can read: {error}") from error
        self.is_pretrained = not os.path.isdir(place) or any(name.endswith(_WEIGHTS) for name in os.listdir(place))
        try:
            prepared: Mapping[str, Any] = ImageProcessingMixin.get_image_processor_dict(place, **self._where)[0]
        except (OSError, ValueError):
            prepared = {}
        self._mean, self._std = (
            prepared.get(name) or usual for name, usual in (("image_mean", MEAN), ("image_std", STD))
        )
        sizes = (prepared.get("crop_size"), prepared.get("size"), getattr(self._config, "image_size", None))
        self.image_size = next((size for size in map(_side, sizes) if size is not None), None)

    def check(self, height: int, width: int, num_classes: int) -> None:
        """Raise ConfigError where it is no model of images, or not of images of this size; no weights are read."""
        import transformers

        try:
            with torch.device("meta"):
                net = transformers.AutoModelForImageClassification.from_config(self._sized(num_classes))
                net.eval()(torch.empty(2, 3, height, width))
        except NotImplementedError:  # an operation that a meta device lacks: training shows
            pass
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise errors.ConfigError(
                f"--model {self._place} does not take images of {width}×{height} pixels, with red, green and blue: "
                f"{error}"
            ) from error

    def build(self, num_classes: int) -> Normalised:
        """Return a new model with so many classes; a head of another number of them is replaced, and logged.

        Raises:
            DataError: the weights cannot be read, or are not those of the model.
        """
        import transformers

        auto = transformers.AutoModelForImageClassification
        if not self.is_pretrained:
            return Normalised(auto.from_config(self._sized(num_classes)), self._mean, self._std)
        num_before = self._config.num_labels
        try:
            net, found = auto.from_pretrained(
                self._place,
                config=self._sized(num_classes),
                ignore_mismatched_sizes=True,  # found by ourselves below
                dtype=torch.float32,
                output_loading_info=True,
                **self._where,
            )
        except Exception as error:  # safetensors and torch have errors of their own
            raise errors.DataError(f"the weights in {self._place} cannot be used: {error}") from error
        others = [name for name, before, _ in found["mismatched_keys"] if before[0] != num_before]
        if others:
            raise errors.DataError(
                f"the weights in {self._place} are not of its config.json: {', '.join(sorted(others))}"
            )
        new = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
        if new:
            _log.warning(
                "--model %s: its head is for %s classes, and the data have %s; these weights are new: %s",
                *(self._place, num_before, num_classes, ", ".join(new)),
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

"""Augmentation: random crops and flips, which follow from the sample's id, the epoch and the seed alone.

So scoring and the step after it see the same view, however a batch is cut, on any number of ranks and after a resume.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from es_service.training import batches
from es_service.training.tasks.splits import stream_of, words
from es_service.training.tasks.supervised import Batch

__all__ = ["CropAndFlip"]

_PURPOSE = 0x1AE5  # its own stream of random numbers
_PADDING = 8  # the crop is drawn from the image with an eighth of its side added on each side


class CropAndFlip:
    """Another view of the images of a batch, on the device where it is.

    Args:
        crop: shift by up to an eighth of the side, 4 pixels of 32; what comes in is black.
        flip: mirror left and right, with probability 1/2.
    """

    def __init__(self, *, crop: bool, flip: bool) -> None:
        self.crop, self.flip = crop, flip

    def __call__(self, batch: Batch, ids_B: NDArray[np.int64], epoch: int, seed: int = 0) -> Batch:
        """Return the batch with other images uint8[B, h, w, 3], of the samples int64[B], in an epoch of a training."""
        images = batch[0]
        _, height, width, _ = images.shape
        vertical, horizontal = (height // _PADDING, width // _PADDING) if self.crop else (0, 0)
        words_B = words(ids_B, stream_of(_PURPOSE, seed, epoch))
        drawn = np.stack(
            [
                words_B % np.uint64(2 * vertical + 1),
                (words_B >> np.uint64(20)) % np.uint64(2 * horizontal + 1),
                (words_B >> np.uint64(40)) % np.uint64(2) * np.uint64(self.flip),
            ]
        )
        top, left, flipped = batches.moved(torch.from_numpy(drawn.astype(np.int64)), images.device).unsqueeze(2)
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        columns = torch.where(flipped == 1, columns.flip(0), columns)
        padded = F.pad(images, (0, 0, horizontal, horizontal, vertical, vertical))
        which = torch.arange(len(images), device=images.device).view(-1, 1, 1)
        return Batch(padded[which, (top + rows).unsqueeze(2), (left + columns).unsqueeze(1)], batch[1])

"""Images of one size: in memory where they fit, else decoded each time they are needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.training.tasks.images.decoding import Encoded, Raw, check_pillow, pixels_of, shape_of

__all__ = ["Held", "OnDemand", "Pixels", "load", "part"]

_log = logging.getLogger(__name__)
_MOST_BYTES = 2 << 30  # of the decoded images of one part of the data; what is larger is decoded each time
_PIECE = 64  # images that a thread decodes in turn
_THREADS = min(8, os.cpu_count() or 1)


class OnDemand:
    """Images that are decoded each time: images[ids_B] is uint8[B, h, w, 3], as of an array.

    Args:
        encoded: where they come from.
        rows_n: int64[n], which of them these are.
        shape: (h, w) of each.
        size: pixels of the square that they are scaled to, None where they have this shape.
        whose: what has this shape, for a message about another.
    """

    def __init__(
        self, encoded: Encoded, rows_n: NDArray[np.int64], shape: tuple[int, int], size: int | None, whose: str = ""
    ) -> None:
        self._encoded, self._rows_n, self._size, self._whose = encoded, rows_n, size, whose
        self.shape = (rows_n.size, *shape, 3)

    def __getitem__(self, ids_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[B, h, w, 3]; DataError where one cannot be decoded."""
        rows = self._rows_n[ids_B]
        images = np.empty((rows.size, *self.shape[1:]), dtype=np.uint8)

        def fill(position: int) -> None:
            images[position] = pixels_of(self._encoded, int(rows[position]), self._size)

        for _, error in _failures(fill, rows.size):
            raise error
        return images

    def part(self, ids_m: NDArray[np.int64]) -> OnDemand:
        """Return some of them, not decoded yet."""
        return OnDemand(self._encoded, self._rows_n[ids_m], (self.shape[1], self.shape[2]), self._size, self._whose)

    def loaded(self, ids_m: NDArray[np.int64]) -> Pixels:
        """Return the images with these in memory, and only these, if that takes at most 2 GiB; else as they are.

        What is too large for it is only looked at, and where images are scaled not even that.

        Raises:
            ConfigError, DataError: as `load`, about one of these.
        """
        of_these = self.part(ids_m)
        found, _ = of_these.looked_at(skip_broken=False)
        if isinstance(found, OnDemand):
            return self
        return found if ids_m.size == self.shape[0] else Held(found, ids_m, self.shape[0])

    def looked_at(self, *, skip_broken: bool) -> tuple[NDArray[np.uint8] | OnDemand, NDArray[np.int64]]:
        """Return those that can be read, in memory if that takes at most 2 GiB; and which these are, int64[m]."""
        num, height, width, _ = self.shape
        encoded, rows, size = self._encoded, self._rows_n.tolist(), self._size
        images = np.empty(self.shape, dtype=np.uint8) if num * height * width * 3 <= _MOST_BYTES else None
        if images is None:
            _log.warning(
                "%s images of %s×%s pixels take more than %s GiB: they are decoded each time they are needed",
                *(f"{num:,}", width, height, _MOST_BYTES >> 30),
            )

        def look(position: int) -> None:
            row = rows[position]
            is_whole = images is not None or skip_broken
            pixels = pixels_of(encoded, row, size) if is_whole else None
            found = shape_of(encoded, row) if pixels is None else pixels.shape[:2]
            if found != (height, width):
                raise errors.ConfigError(
                    f"images differ in size: {encoded.where(row)} has {found[1]}×{found[0]} pixels, {self._whose} "
                    f"{width}×{height}: scale all of them, with --image-size {min(height, width)} for example"
                )
            if images is not None and pixels is not None:
                images[position] = pixels

        is_good = np.ones(num, dtype=bool)
        if images is not None or size is None or skip_broken:
            for position, error in _failures(look, num):
                if not skip_broken or not isinstance(error, errors.DataError):
                    raise error
                is_good[position] = False
        good = np.flatnonzero(is_good)
        if good.size < num:
            first_broken = encoded.where(rows[int(np.argmin(is_good))])
            _log.warning(
                "%s of %s images cannot be read and are left out, the first %s", num - good.size, num, first_broken
            )
        if not good.size:
            raise errors.DataError(f"none of {num} images can be read")
        if images is None:
            return self.part(good), good
        return (images if good.size == num else images[good]), good


class Held:
    """n images of which some are in memory: images[ids_B] is uint8[B, h, w, 3], as of an array.

    Args:
        images: uint8[m, h, w, 3].
        ids_m: int64[m], which of the n these are.
        num: n.
    """

    def __init__(self, images: NDArray[np.uint8], ids_m: NDArray[np.int64], num: int) -> None:
        self.shape = (num, *images.shape[1:])
        self._images, self._place_of = images, np.full(num, -1, dtype=np.int64)
        self._place_of[ids_m] = np.arange(ids_m.size)

    def __getitem__(self, ids_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[B, h, w, 3]; IndexError for one that is not in memory."""
        places = self._place_of[ids_B]
        if places.size and places.min() < 0:
            raise IndexError(f"image {ids_B[int(places.argmin())]} was not loaded: it is not among those trained on")
        images: NDArray[np.uint8] = self._images[places]
        return images


Pixels: TypeAlias = NDArray[np.uint8] | OnDemand | Held


def part(images: Pixels, ids_m: NDArray[np.int64]) -> Pixels:
    """Return some of the images."""
    return images.part(ids_m) if isinstance(images, OnDemand) else images[ids_m]


def load(
    encoded: Encoded, size: int | None, *, skip_broken: bool, like: tuple[int, ...] | None = None
) -> tuple[Pixels, NDArray[np.int64]]:
    """Return images of one size, and which of the encoded ones they are.

    Nothing is decoded yet, see `OnDemand.loaded`; unless broken ones are to be left out, which needs a look at all.

    Args:
        encoded: n of them.
        size: pixels of the square that they are scaled to, None for as they are.
        skip_broken: leave out those that cannot be read, and log how many; else they are an error.
        like: (h, w) that they must have, as others have; None for what the first has.

    Returns:
        uint8[m, h, w, 3] and rows int64[m], ascending.

    Raises:
        ConfigError: they differ in size and none was given, or Pillow is missing.
        DataError: one cannot be read, or none can.
    """
    rows = np.arange(len(encoded))
    if isinstance(encoded, Raw) and size is None and like in (None, encoded.images.shape[1:3]):
        return encoded.images, rows
    check_pillow()
    if size is not None:
        height, width, whose = size, size, ""
    elif like is not None:
        height, width, whose = *like, "those to train on have"
    else:
        first, (height, width) = _first_shape(encoded, skip_broken)
        whose = f"{encoded.where(first)} has"
    images = OnDemand(encoded, rows, (height, width), size, whose)
    return images.looked_at(skip_broken=True) if skip_broken else (images, rows)


def _first_shape(encoded: Encoded, skip_broken: bool) -> tuple[int, tuple[int, int]]:
    """Return the first image that can be read, and its (h, w)."""
    for row in range(len(encoded)):
        try:
            return row, shape_of(encoded, row)
        except errors.DataError:
            if not skip_broken:
                raise
    raise errors.DataError(f"none of {len(encoded)} images can be read")


def _failures(function: Callable[[int], None], num: int) -> Iterator[tuple[int, errors.EsServiceError]]:
    """Call a function for 0 .. num-1, in threads, and yield the errors in order."""

    def run(start: int) -> list[tuple[int, errors.EsServiceError]]:
        found = []
        for position in range(start, min(start + _PIECE, num)):
            try:
                function(position)
            except errors.EsServiceError as error:
                found.append((position, error))
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(run, range(0, num, _PIECE)):
            yield from found

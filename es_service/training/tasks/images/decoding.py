"""Encoded images become bytes of one size: in memory where they fit, else decoded each time they are needed."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.storage.plain import printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Encoded", "OnDemand", "Pixels", "Raw", "decode", "load", "part"]

_log = logging.getLogger(__name__)
_MOST_BYTES = 2 << 30  # of the decoded images of one part of the data; what is larger is decoded each time
_PIECE = 64  # images that a thread decodes in turn
_ORIENTATION, _TURNED = 0x0112, 5  # of EXIF: the tag, and from which value on height and width are exchanged
_THREADS = min(8, os.cpu_count() or 1)


class Encoded(Protocol):
    """Images as PNG, JPEG or whatever else Pillow reads."""

    def __len__(self) -> int:
        """Return n."""
        ...

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Return the content of an image file, or uint8[h, w, 3]; OSError or ValueError where there is none."""
        ...

    def where(self, row: int) -> str:
        """Return what messages call an image."""
        ...


class Raw:
    """Images that are not encoded: uint8[n, h, w, 3]."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, row: int) -> NDArray[np.uint8]:
        """Return uint8[h, w, 3]."""
        image: NDArray[np.uint8] = self.images[row]
        return image

    def where(self, row: int) -> str:
        """Return the number of the image."""
        return f"image {row} (from 0)"


class OnDemand:
    """Images that are decoded each time: images[ids_B] is uint8[B, h, w, 3], as of an array.

    Args:
        encoded: where they come from.
        rows_n: int64[n], which of them these are.
        shape: (h, w) of each.
        size: pixels of the square that they are scaled to, None where they have this shape.
    """

    def __init__(self, encoded: Encoded, rows_n: NDArray[np.int64], shape: tuple[int, int], size: int | None) -> None:
        self._encoded, self._rows_n, self._size = encoded, rows_n, size
        self.shape = (rows_n.size, *shape, 3)

    def __getitem__(self, ids_B: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[B, h, w, 3]; DataError where one cannot be decoded."""
        rows = self._rows_n[ids_B]
        images = np.empty((rows.size, *self.shape[1:]), dtype=np.uint8)

        def fill(position: int) -> None:
            images[position] = _pixels(self._encoded, int(rows[position]), self._size)

        for _, error in _failures(fill, rows.size):
            raise error
        return images

    def part(self, ids_m: NDArray[np.int64]) -> OnDemand:
        """Return some of them, not decoded yet."""
        return OnDemand(self._encoded, self._rows_n[ids_m], (self.shape[1], self.shape[2]), self._size)


Pixels: TypeAlias = NDArray[np.uint8] | OnDemand


def part(images: Pixels, ids_m: NDArray[np.int64]) -> Pixels:
    """Return some of the images."""
    return images.part(ids_m) if isinstance(images, OnDemand) else images[ids_m]


def load(
    encoded: Encoded, size: int | None, *, skip_broken: bool, like: tuple[int, ...] | None = None
) -> tuple[Pixels, NDArray[np.int64]]:
    """Return images of one size, and which of the encoded ones they are.

    What takes at most 2 GiB is decoded here. Of what is larger, only the sizes are looked at; and not even these where
    images are scaled, unless broken ones are to be left out.

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
    num = len(encoded)
    if isinstance(encoded, Raw) and size is None and like in (None, encoded.images.shape[1:3]):
        return encoded.images, np.arange(num)
    _check_pillow()
    if size is not None:
        height, width, whose = size, size, ""
    elif like is not None:
        height, width, whose = *like, "those to train on have"
    else:
        first, (height, width) = _first_shape(encoded, skip_broken)
        whose = f"{encoded.where(first)} has"
    images = np.empty((num, height, width, 3), dtype=np.uint8) if num * height * width * 3 <= _MOST_BYTES else None
    if images is None:
        _log.warning(
            "%s images of %s×%s pixels take more than %s GiB: they are decoded each time they are needed",
            *(f"{num:,}", width, height, _MOST_BYTES >> 30),
        )

    def look(row: int) -> None:
        is_whole = images is not None or skip_broken
        pixels = _pixels(encoded, row, size) if is_whole else None
        found = _shape(encoded, row) if pixels is None else pixels.shape[:2]
        if found != (height, width):
            raise errors.ConfigError(
                f"images differ in size: {encoded.where(row)} has {found[1]}×{found[0]} pixels, {whose} "
                f"{width}×{height}: scale all of them, with --image-size {min(height, width)} for example"
            )
        if images is not None and pixels is not None:
            images[row] = pixels

    is_good = np.ones(num, dtype=bool)
    if images is not None or size is None or skip_broken:
        for row, error in _failures(look, num):
            if not skip_broken or not isinstance(error, errors.DataError):
                raise error
            is_good[row] = False
    rows = np.flatnonzero(is_good)
    if rows.size < num:
        first_broken = encoded.where(int(np.argmin(is_good)))
        _log.warning(
            "%s of %s images cannot be read and are left out, the first %s", num - rows.size, num, first_broken
        )
    if not rows.size:
        raise errors.DataError(f"none of {num} images can be read")
    if images is None:
        return OnDemand(encoded, rows, (height, width), size), rows
    return (images if rows.size == num else images[rows]), rows


def decode(content: bytes | NDArray[np.uint8], size: int | None = None) -> NDArray[np.uint8]:
    """Return uint8[h, w, 3] of an image.

    Args:
        content: of its file, or uint8[h, w, 3]. It is turned as its EXIF data ask; grey becomes RGB, and what is
            transparent loses that.
        size: scale the shorter side to so many pixels, and cut a square out of the middle.

    Raises:
        Exception: whatever Pillow raises for a file that is no image, or damaged; ValueError for more than 8 bits.
    """
    from PIL import Image, ImageOps

    with _opened(content) as opened:
        image = opened
        if image.mode[0] in "IF":
            raise ValueError(f"it has more than 8 bits for a pixel (mode {image.mode}): convert it to 8 bits")
        if size is not None:
            opened.draft("RGB", (size, size))  # a JPEG file can be decoded at a fraction of its size
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        image = image.convert("RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        return np.array(image)


def _opened(content: bytes | NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    if not len(content):
        raise ValueError("it is empty")
    return Image.open(io.BytesIO(content)) if isinstance(content, bytes) else Image.fromarray(content)


def _check_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(f"images in files need Pillow: pip install 'es-service[images]' ({error})") from error


def _pixels(encoded: Encoded, row: int, size: int | None) -> NDArray[np.uint8]:
    try:
        return decode(encoded.read(row), size)
    except Exception as error:  # a damaged file may make Pillow raise anything
        raise _unreadable(encoded, row, error) from error


def _shape(encoded: Encoded, row: int) -> tuple[int, int]:
    """Return (h, w) of an image, by the head of its file."""
    try:
        with _opened(encoded.read(row)) as image:
            width, height = image.size
            is_turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= _TURNED
            return (width, height) if is_turned else (height, width)
    except Exception as error:
        raise _unreadable(encoded, row, error) from error


def _first_shape(encoded: Encoded, skip_broken: bool) -> tuple[int, tuple[int, int]]:
    """Return the first image that can be read, and its (h, w)."""
    for row in range(len(encoded)):
        try:
            return row, _shape(encoded, row)
        except errors.DataError:
            if not skip_broken:
                raise
    raise errors.DataError(f"none of {len(encoded)} images can be read")


def _unreadable(encoded: Encoded, row: int, error: Exception) -> errors.DataError:
    why = "it is of no format that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else str(error)
    return errors.DataError(
        f"{encoded.where(row)} cannot be read as an image: {printable(why)}; mend it, or leave such images out with "
        "--skip-broken"
    )


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

"""Encoded images become bytes, red, green and blue."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.storage.plain import printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Encoded", "Raw", "check_pillow", "decode", "pixels_of", "shape_of"]

_ORIENTATION, _TURNED = 0x0112, 5  # of EXIF: the tag, and from which value on height and width are exchanged


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


def check_pillow() -> None:
    """Raise ConfigError where Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(f"images in files need Pillow: pip install 'es-service[images]' ({error})") from error


def pixels_of(encoded: Encoded, row: int, size: int | None) -> NDArray[np.uint8]:
    """Return uint8[h, w, 3] of an image, see `decode`; DataError where it cannot be read."""
    try:
        return decode(encoded.read(row), size)
    except Exception as error:  # a damaged file may make Pillow raise anything
        raise _unreadable(encoded, row, error) from error


def shape_of(encoded: Encoded, row: int) -> tuple[int, int]:
    """Return (h, w) of an image, by the head of its file; DataError where it cannot be read."""
    try:
        with _opened(encoded.read(row)) as image:
            width, height = image.size
            is_turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= _TURNED
            return (width, height) if is_turned else (height, width)
    except Exception as error:
        raise _unreadable(encoded, row, error) from error


def _unreadable(encoded: Encoded, row: int, error: Exception) -> errors.DataError:
    why = "it is of no format that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else str(error)
    return errors.DataError(
        f"{encoded.where(row)} cannot be read as an image: {printable(why)}; mend it, or leave such images out with "
        "--skip-broken"
    )

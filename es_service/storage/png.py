"""Pictures for people: an array of bytes as a PNG file, the smallest part of the format that shows it.

Reference: *Portable Network Graphics (PNG) Specification (Third Edition)*, W3C.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from es_service import errors

__all__ = ["encode_png"]

_COLOR_TYPES = {1: 0, 3: 2}  # channels: grey, RGB


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return a PNG file.

    Args:
        image: uint8[h, w] grey, or uint8[h, w, 3] red, green, blue.

    Raises:
        ShapeError: another shape or dtype, or no pixel at all.
    """
    pixels = image[:, :, None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in _COLOR_TYPES or not pixels.size:
        raise errors.ShapeError(
            f"a picture is uint8[h, w] or uint8[h, w, 3] with at least a pixel, got {image.dtype}{list(image.shape)}"
        )
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    rows = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # each begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, width * channels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

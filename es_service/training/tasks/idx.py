"""Reader for IDX files, the format of MNIST and its relatives, gzipped or not.

A file is: two zero bytes, a type code, the number of dimensions d, d big-endian uint32 sizes, then the values in
C order. Only type code 0x08, unsigned bytes, is read.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from es_service import errors

__all__ = ["read_idx"]

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08
_CHUNK_BYTES = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Return the array of an IDX file of unsigned bytes, in the shape of its header; it is writable.

    Memory grows with the bytes the file really holds, never with what its header promises.

    Args:
        path: of the file; whether it is gzipped is seen from its first bytes, not from its name.

    Raises:
        DataError: the file is missing, unreadable, no IDX file of unsigned bytes, or shorter or longer than its
            header states. The message names the file.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as raw:
            is_gzip = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if is_gzip:
                with gzip.GzipFile(fileobj=raw) as stream:
                    return _read(cast("IO[bytes]", stream), name)
            return _read(raw, name)
    except OSError as error:  # gzip.BadGzipFile, a wrong checksum, is one of them
        raise errors.DataError(f"cannot read {name}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise errors.DataError(f"{name} is damaged, copy it again: {error}") from error


def _read(stream: IO[bytes], name: str) -> NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise errors.DataError(
            f"{name} is not an IDX file: it begins with {magic.hex(' ') or 'nothing'}, not with 00 00"
        )
    if magic[2] != _UINT8:
        raise errors.DataError(f"{name} holds values of type 0x{magic[2]:02x}; only 0x08, unsigned bytes, is read")
    num_dims = magic[3]
    header = stream.read(4 * num_dims)
    if num_dims == 0 or len(header) < 4 * num_dims:
        raise errors.DataError(f"{name} has a header of {num_dims} dimensions that holds {len(header)} bytes")
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4"))
    expected = math.prod(shape)
    content = bytearray()
    while len(content) <= expected:  # one byte past the end, to notice a file that is too long
        chunk = stream.read(min(_CHUNK_BYTES, expected + 1 - len(content)))
        if not chunk:
            break
        content += chunk
    if len(content) != expected:
        found = f"only {len(content):,}" if len(content) < expected else "more"
        raise errors.DataError(
            f"{name} is damaged, copy it again: its header says {shape}, that is {expected:,} bytes; it holds {found}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)

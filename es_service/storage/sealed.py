"""Plain values with a digest of themselves, so that a changed one is noticed where they are read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from es_service import errors

__all__ = ["check", "check_format", "digest", "seal"]

_KEY = "sha256"


def digest(values: Mapping[str, Any], data: bytes = b"") -> str:
    """Return the sha256 of plain values, as JSON writes them, and of the bytes that go with them.

    Raises:
        TypeError, ValueError: they are not plain values.
    """
    others = {key: value for key, value in values.items() if key != _KEY}
    text = json.dumps(json.loads(json.dumps(others)), sort_keys=True, separators=(",", ":"))  # as a reader has them
    sha256 = hashlib.sha256(text.encode())
    sha256.update(data)
    return sha256.hexdigest()


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with their digest, under "sha256"."""
    return {**values, _KEY: digest(values)}


def check(values: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the values; StorageError, naming `what`, where the digest is not theirs. One without a digest is older."""
    if _KEY in values and values[_KEY] != digest(values):
        raise errors.StorageError(f"{what} is damaged: its sha256 is not the one noted in it")
    return values


def check_format(found: Any, what: str, readable: Sequence[Any]) -> None:
    """Raise StorageError, naming `what`, where it is of a format that this version cannot read; the last is its own."""
    if found not in readable:
        raise errors.StorageError(f"{what} has format {found!r}, this version reads {readable[-1]}: upgrade es_service")

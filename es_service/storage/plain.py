"""Values of untrusted JSON files, made fit to be shown: only what every reader of JSON can hold."""

from __future__ import annotations

import math
from typing import Any

from es_service import errors

__all__ = ["count", "number", "plain", "printable", "text"]

_MOST_NESTED = 50
_MOST_INTEGER = 2**63


def plain(value: Any, nested: int = 0) -> Any:
    """Return a value of a JSON file without what other readers stumble over.

    NaN, infinity and integers beyond 64 bits become None; half a surrogate pair in a text becomes "?".

    Raises:
        StorageError: lists and objects lie in one another more than 50 deep.
    """
    if nested > _MOST_NESTED:
        raise errors.StorageError(f"it holds lists or objects that are nested more than {_MOST_NESTED} deep")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) < _MOST_INTEGER else None
    if isinstance(value, dict):
        return {plain(str(key)): plain(one, nested + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, nested + 1) for one in value]
    return value


def text(value: Any) -> str | None:
    """Return a value that is a text, None for any other."""
    return value if isinstance(value, str) else None


def number(value: Any) -> float | int | None:
    """Return a value that is a number, None for any other."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) < float("inf") else None


def count(value: Any) -> int | None:
    """Return a value that is a count, None for any other."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def printable(name: str) -> str:
    """Return a name as it can be shown: characters that cannot be printed, or are not characters, as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in name)

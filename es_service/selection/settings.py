"""Reading settings: numbers that may come from a file or a command line, and words that may be misspelt."""

from __future__ import annotations

import ast
import difflib
import functools
import json
import math
import numbers
import operator
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from es_service import errors

__all__ = ["as_integer", "as_number", "ceil_share", "exact_share", "parse_value", "suggest"]


def as_number(name: str, value: Any) -> float:
    """Return a setting as a float, or raise ConfigError: it is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise errors.ConfigError(f"{name} must be a number, got {value!r}")
    return float(value)


def as_integer(name: str, value: Any, *, least: int, end: int | None = None) -> int:
    """Return a setting as an int in [least, end), or raise ConfigError."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (end is not None and number >= end):
        shown = end if end is None or end < 2**32 else f"2**{(end - 1).bit_length()}"
        domain = f"of at least {least}" if end is None else f"in [{least}, {shown})"
        raise errors.ConfigError(f"{name} must be an integer {domain}, got {value!r}")
    return number


def exact_share(share: float, whole: int) -> Fraction:
    """Return share·whole for the share as it was typed: 0.07 of 100 is 7, where floats make it 7.000000000000001."""
    return Fraction(str(share)) * whole


@functools.lru_cache(maxsize=1024)
def ceil_share(share: float, whole: int) -> int:
    """Return ⌈share·whole⌉, see `exact_share`; steps ask for it, so it is kept."""
    return math.ceil(exact_share(share, whole))


def parse_value(text: str) -> Any:
    """Return a value as it was meant on a command line: JSON, else a Python literal, else the word itself.

    Example:
        >>> [parse_value(text) for text in ("5e-2", ".5", "null", "None", "true", "True", "[0, 0]", "(0, 0)", "topk")]
        [0.05, 0.5, None, None, True, True, [0, 0], (0, 0), 'topk']
    """
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: brackets too deep
            continue
    return text


def suggest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known word, or all of them."""
    near = difflib.get_close_matches(word, known := list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"

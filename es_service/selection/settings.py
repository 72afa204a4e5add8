"""Reading settings: numbers that may come from a file, a command line or an array, and words that may be misspelt."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import json
import math
import numbers
import operator
import sys
from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from es_service import errors

__all__ = [
    "as_flag",
    "as_integer",
    "as_number",
    "as_plain",
    "ceil_share",
    "check_names",
    "exact_share",
    "make_plain",
    "parse_value",
    "suggest",
]


def as_plain(value: Any) -> Any:
    """Return a value without numpy scalars: they, and those in lists, tuples and dicts, become Python's own.

    A float32 becomes the number that it prints as, which is the one that was meant.

    Example:
        >>> as_plain([np.float32(0.1), np.int64(3), np.True_, "race"])
        [0.1, 3, True, 'race']
    """
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(as_plain(one) for one in value)
    if type(value) is dict:
        return {as_plain(key): as_plain(one) for key, one in value.items()}
    return value


def make_plain(settings: Any) -> None:
    """Give the fields of a frozen dataclass the plain Python numbers that they are declared to hold; check strings.

    Raises:
        ConfigError: a float that is not a number, an int that is not an integer, a bool that is neither true nor false.
    """
    for field in dataclasses.fields(settings):
        value = as_plain(getattr(settings, field.name))
        kind, _, optional = str(field.type).partition(" | ")
        if value is None and optional:
            continue
        if kind == "float":
            value = as_number(field.name, value)
        elif kind == "bool":
            value = as_flag(field.name, value)
        elif kind == "int":
            value = as_integer(field.name, value)
        elif kind == "str" and not isinstance(value, str):
            raise errors.ConfigError(f"{field.name} must be a string, got {value!r}")
        object.__setattr__(settings, field.name, value)


def check_names(what: str, values: Any, known: Collection[str]) -> None:
    """Raise ConfigError unless `values` are settings by name, each name one of `known`; `what` has these settings."""
    if not isinstance(values, Mapping):
        raise errors.ConfigError(f"{what} must be settings by name, got {values!r}")
    for name in values:
        if name not in known:
            raise errors.ConfigError(f"{what} has no setting {name!r}; {suggest(name, known)}")


def as_flag(name: str, value: Any) -> bool:
    """Return a setting as a bool, or raise ConfigError: it is neither true nor false."""
    value = as_plain(value)
    if not isinstance(value, bool):
        raise errors.ConfigError(f"{name} must be true or false, got {value!r}")
    return value


def as_number(name: str, value: Any) -> float:
    """Return a setting as a float; ConfigError where it is not a number."""
    value = as_plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise errors.ConfigError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise errors.ConfigError(
            f"{name} must be a number below {sys.float_info.max:.1g}, got {value!r:.20}…"
        ) from None


def as_integer(name: str, value: Any, *, least: int | None = None, end: int | None = None) -> int:
    """Return a setting as an int in [least, end), or raise ConfigError; without `least`, as any int."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is not None and (least is None or least <= number) and (end is None or number < end):
        return number
    shown = end if end is None or end < 2**32 else f"2**{(end - 1).bit_length()}"
    domain = "" if least is None else f" of at least {least}" if end is None else f" in [{least}, {shown})"
    raise errors.ConfigError(f"{name} must be an integer{domain}, got {value!r}")


def exact_share(share: float, whole: int) -> Fraction:
    """Return share·whole for the share as it was typed: 0.07 of 100 is 7, where floats make it 7.000000000000001."""
    return Fraction(str(share)) * whole


@functools.lru_cache(maxsize=1024)
def ceil_share(share: float, whole: int) -> int:
    """Return ⌈share·whole⌉, see `exact_share`; steps ask for it, so it is kept."""
    return math.ceil(exact_share(share, whole))


def parse_value(text: str) -> Any:
    """Return a command-line value parsed as JSON, else as a Python literal, else the word itself.

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


def suggest(word: object, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known word, or all of them."""
    near = difflib.get_close_matches(str(word), known := list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"

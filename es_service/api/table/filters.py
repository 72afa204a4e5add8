"""Filtering, sorting and paging of samples."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.api.table.view import COLUMNS, TableView

__all__ = [
    "CONDITION",
    "ORDER",
    "SOME_COLUMNS",
    "Order",
    "Page",
    "parse_columns",
    "parse_order",
    "select",
    "select_page",
]

_ANY = "|".join(COLUMNS)
CONDITION = rf"^({_ANY})(>=|<=|!=|>|<|=)[^\x00-\x1f]{{1,100}}$"
"""What a condition looks like, as a regular expression."""
ORDER = rf"^-?({'|'.join(name for name in COLUMNS if name != 'label')})$"
SOME_COLUMNS = rf"^({_ANY})(,({_ANY})){{0,{len(COLUMNS)}}}$"

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt, "=": operator.eq,
    }
)  # fmt: skip
_MOST_CONDITIONS = 8
_EXTREMES = 4096  # rows at each end of an order that are kept sorted


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """By which column, and whether the highest come first."""

    column: str
    descending: bool


def parse_order(view: TableView, text: str) -> Order:
    """Return the order that a query names; ConfigError where it is none."""
    name = text.removeprefix("-")
    if name == "label":
        raise errors.ConfigError("samples cannot be ordered by label: filter by where=label=…")
    return Order(view.check_column(name), text.startswith("-"))


def parse_columns(view: TableView, text: str | None) -> tuple[str, ...]:
    """Return the columns that a query names, all for None; ConfigError where one is unknown or repeated."""
    if text is None:
        return view.columns
    names = tuple(view.check_column(name.strip()) for name in text.split(","))
    if len(set(names)) < len(names):
        raise errors.ConfigError(f"columns={text!r} names a column twice")
    return names


def select(view: TableView, conditions: Sequence[str]) -> NDArray[np.bool_] | None:
    """Return bool[n], which samples meet all conditions; None for all of them.

    Raises:
        ConfigError: a condition that is none, or names no column or label.
    """
    if not conditions:
        return None
    if len(conditions) > _MOST_CONDITIONS:
        raise errors.ConfigError(f"{len(conditions)} conditions, at most {_MOST_CONDITIONS} are taken")
    wanted = tuple(sorted(set(conditions)))

    def work() -> NDArray[np.bool_]:
        found = _meets(view, wanted[0])
        for one in wanted[1:]:
            found &= _meets(view, one)
        return found

    return view.once(("where", wanted), work)


def _meets(view: TableView, condition: str) -> NDArray[np.bool_]:
    if not re.match(r"^[a-z_]+(>=|<=|!=|>|<|=).", condition):
        raise errors.ConfigError(
            f"where={condition!r} is not <column><op><value> with op one of {' '.join(_OPERATORS)}"
        )
    name, op, word = re.split(r"(>=|<=|!=|>|<|=)", condition, maxsplit=1)
    view.check_column(name)
    if name == "label" and op not in ("=", "!="):
        raise errors.ConfigError(f"where={condition!r}: labels have no order, use = or !=")
    has_value = view.has_value(name)
    if word == "null":
        if op not in ("=", "!="):
            raise errors.ConfigError(f"where={condition!r}: null has no order, use = or !=")
        present = np.ones(view.num_rows, dtype=bool) if has_value is None else has_value.copy()
        return ~present if op == "=" else present
    value = view.labels.code(word) if name == "label" and view.labels is not None else _number(condition, word)
    column = view.column(name)
    if column.dtype.kind == "f":
        value = float(np.float32(value))  # 0.1 means the 0.1 that the table can hold
    found: NDArray[np.bool_] = _OPERATORS[op](column, value)
    return found if has_value is None else found & has_value


def _number(condition: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise errors.ConfigError(f"where={condition!r}: {word!r} is not a number")
    if abs(value) > 3e38:
        raise errors.ConfigError(f"where={condition!r}: {word!r} is larger than any value of the table")
    return value


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Ids of a page, how many samples meet the conditions, and where the next page begins."""

    ids: NDArray[np.int64]
    matching: int
    next: str | None


def select_page(
    view: TableView, conditions: Sequence[str], order: Order, *, limit: int, offset: int = 0, cursor: str | None = None
) -> Page:
    """Return a page of the samples that meet the conditions, in this order; ties go to the lower id.

    Raises:
        ConfigError: a condition or a cursor that is none, or both an offset and a cursor.
    """
    if cursor is not None and offset:
        raise errors.ConfigError("give an offset or a cursor, not both")
    mask = select(view, conditions)
    after = None if cursor is None else _decode(cursor, order)
    matching = view.num_rows if mask is None else view.once(("count", tuple(sorted(set(conditions)))), mask.sum)
    wanted = offset + limit + 1
    ends, is_all = view.once(("ends", order), lambda: _first(view, order, None, _EXTREMES))
    ids = _after(view, order, ends if mask is None else ends[mask[ends]], after)
    if ids.size < wanted and not is_all:
        rows = np.ones(view.num_rows, dtype=bool) if mask is None else mask.copy()
        if after is not None:
            rows &= _is_after(view.column(order.column), np.arange(view.num_rows), order, after)
        with view.looking():
            ids, _ = _first(view, order, rows, wanted)
    ids = ids[offset:]
    more = ids.size > limit
    ids = ids[:limit]
    return Page(ids, int(matching), _encode(view, order, int(ids[-1])) if more else None)


def _first(view: TableView, order: Order, rows: NDArray[np.bool_] | None, num: int) -> tuple[NDArray[np.int64], bool]:
    """Return the first `num` ids in an order, of these rows or of all; and whether that is all that have a value."""
    has_value = view.has_value(order.column)
    allowed = has_value if rows is None else rows if has_value is None else rows & has_value
    values = view.column(order.column)
    ids = np.flatnonzero(allowed) if allowed is not None else None
    keys = values if ids is None else values[ids]
    if keys.size > num:
        kth = np.partition(keys, keys.size - num if order.descending else num - 1)
        edge = kth[keys.size - num if order.descending else num - 1]
        beyond = np.flatnonzero(keys > edge if order.descending else keys < edge)
        tied = np.flatnonzero(keys == edge)[: num - beyond.size]
        chosen = np.concatenate([beyond, tied])
    else:
        chosen = np.arange(keys.size)
    found = chosen if ids is None else ids[chosen]
    sorted_keys = values[found].astype(np.float64)
    return found[np.lexsort((found, -sorted_keys if order.descending else sorted_keys))], keys.size <= num


def _is_after(
    values: NDArray[Any], ids: NDArray[np.int64], order: Order, after: tuple[float, int]
) -> NDArray[np.bool_]:
    value, last = after
    beyond = values < value if order.descending else values > value
    found: NDArray[np.bool_] = beyond | ((values == value) & (ids > last))
    return found


def _after(view: TableView, order: Order, ids: NDArray[np.int64], after: tuple[float, int] | None) -> NDArray[np.int64]:
    if after is None:
        return ids
    return ids[_is_after(view.column(order.column)[ids], ids, order, after)]


def _encode(view: TableView, order: Order, last: int) -> str:
    value = float(view.column(order.column)[last])
    return base64.urlsafe_b64encode(json.dumps([_name(order), value, last]).encode()).decode().rstrip("=")


def _decode(cursor: str, order: Order) -> tuple[float, int]:
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise errors.ConfigError(f"cursor={cursor!r} is none of ours: take `next` of the page before") from error
    if (
        not isinstance(found, list)
        or len(found) != 3
        or not isinstance(found[1], (int, float))
        or not isinstance(found[2], int)
        or not math.isfinite(found[1])
    ):
        raise errors.ConfigError(f"cursor={cursor!r} is none of ours: take `next` of the page before")
    if found[0] != _name(order):
        raise errors.ConfigError(f"the cursor belongs to order={found[0]}, not to order={_name(order)}")
    return float(found[1]), found[2]


def _name(order: Order) -> str:
    return f"{'-' if order.descending else ''}{order.column}"

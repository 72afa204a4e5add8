"""Pages of samples against the plainest way to make them: all rows as Python values, filtered and sorted."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from es_service import errors
from es_service.api.table import filters
from es_service.api.table.view import TableView

MakeView = Callable[..., TableView]
OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
ORDERED = (
    "id",
    "s",
    "w",
    "last_loss",
    "loss_mean",
    "loss_std",
    "visits",
    "selected",
    "picked_share",
    "age",
    "suspicion",
)


def rows(view: TableView) -> list[dict[str, Any]]:
    return view.rows(np.arange(view.num_rows), view.columns)


def expected(view: TableView, conditions: list[str], order: str) -> list[int]:
    """Ids of the samples that meet the conditions, in an order, worked out row by row."""
    found = rows(view)
    for condition in conditions:
        op = next(one for one in (">=", "<=", "!=", ">", "<", "=") if one in condition)
        name, word = condition.split(op, 1)
        if word == "null":
            found = [row for row in found if (row[name] is None) == (op == "=")]
        else:
            value = word if name == "label" else float(word)
            found = [row for row in found if row[name] is not None and OPERATORS[op](row[name], value)]
    name = order.removeprefix("-")
    found = [row for row in found if row[name] is not None]
    exact = view.column(name).astype(np.float64)  # what is shown is rounded to seven digits
    found.sort(key=lambda row: (-exact[row["id"]] if order.startswith("-") else exact[row["id"]], row["id"]))
    return [row["id"] for row in found]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("order", [sign + name for name in ORDERED for sign in ("", "-")])
def test_pages_by_cursor_are_the_whole_order(order: str, shards: int, make_view: MakeView) -> None:
    view = make_view(97, shards=shards)
    by, cursor, found = filters.parse_order(view, order), None, []
    while True:
        page = filters.select_page(view, ["visits<7"], by, limit=10, cursor=cursor)
        found += page.ids.tolist()
        if page.next is None:
            break
        assert page.ids.size == 10
        cursor = page.next
    assert found == expected(view, ["visits<7"], order)


conditions = st.one_of(
    st.tuples(
        st.sampled_from(["w", "visits", "last_loss", "selected", "id", "loss_std", "age"]),
        st.sampled_from(list(OPERATORS)),
        st.sampled_from(["0", "0.25", "1", "2.5", "40"]),
    ),
    st.tuples(st.sampled_from(["last_loss", "age", "suspicion", "w"]), st.sampled_from(["=", "!="]), st.just("null")),
    st.tuples(st.just("label"), st.sampled_from(["=", "!="]), st.sampled_from(["hat", "shoe, left", "sock"])),
).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(conditions, max_size=3),
    order=st.sampled_from(["-w", "w", "last_loss", "-suspicion", "id"]),
    offset=st.integers(0, 40),
    limit=st.integers(1, 30),
)
def test_a_page_is_what_filtering_and_sorting_gives(
    wanted: list[str], order: str, offset: int, limit: int, make_view: MakeView
) -> None:
    view = make_view(60)
    page = filters.select_page(view, wanted, filters.parse_order(view, order), limit=limit, offset=offset)
    everything = expected(view, wanted, order)
    assert page.ids.tolist() == everything[offset : offset + limit]
    assert (page.next is not None) == (len(everything) > offset + limit)
    assert page.matching == len(expected(view, wanted, "id"))


@pytest.mark.parametrize("op", list(OPERATORS))
@pytest.mark.parametrize("column", [*ORDERED, "last_step"])
def test_a_sample_without_a_value_meets_no_condition_on_it(column: str, op: str, make_view: MakeView) -> None:
    view = make_view(80)
    for word in ("0", "1", "2.5", "30"):
        mask = filters.select(view, [f"{column}{op}{word}"])
        assert mask is not None
        shown = view.rows(np.arange(80), [column])
        assert not any(mask[place] for place, row in enumerate(shown) if row[column] is None)
        assert mask.sum() == len(expected(view, [f"{column}{op}{word}"], "id"))


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_block_of_a_column_is_that_part_of_it(shards: int, make_view: MakeView) -> None:
    view = make_view(53, shards=shards)
    for name in view.columns:
        whole = view.column(name)
        for start, stop in ((0, 53), (1, 4), (7, 8), (13, 40), (50, 70), (53, 53)):
            assert np.array_equal(view.block(name, start, stop), whole[start:stop], equal_nan=whole.dtype.kind == "f")
        ids = np.array([52, 0, 7, 7, 31])
        assert np.array_equal(view.at(name, ids), whole[ids], equal_nan=whole.dtype.kind == "f")


@pytest.mark.parametrize("order", ["-w", "w", "-loss_mean", "visits", "id", "-id"])
def test_what_lies_beyond_the_rows_kept_sorted_is_found_too(order: str, make_view: MakeView) -> None:
    """More rows than `_EXTREMES`, so that late pages and rare matches take the long way."""
    view = make_view(9000, labels=False)
    by = filters.parse_order(view, order)
    everything = expected(view, [], order)
    page = filters.select_page(view, [], by, limit=50, offset=5000)
    assert page.ids.tolist() == everything[5000:5050]
    following = filters.select_page(view, [], by, limit=50, cursor=page.next)
    assert following.ids.tolist() == everything[5050:5100]
    rare = ["s>2.5"]
    assert filters.select_page(view, rare, by, limit=1000).ids.tolist() == expected(view, rare, order)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("ww=1", "did you mean 'w'"),
        ("w=nan", "is not a number"),
        ("w=1e39", "larger than any value"),
        ("label>hat", "no order"),
        ("label=hut", "did you mean 'hat'"),
        ("w>null", "no order"),
        ("w", "is not <column><op><value>"),
    ],
)
def test_a_condition_that_is_none_is_refused(condition: str, said: str, make_view: MakeView) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        filters.select(make_view(10), [condition])


def test_orders_columns_and_cursors_that_are_none_are_refused(make_view: MakeView) -> None:
    view = make_view(30)
    with pytest.raises(errors.ConfigError, match="ordered by label"):
        filters.parse_order(view, "label")
    with pytest.raises(errors.ConfigError, match="twice"):
        filters.parse_columns(view, "id,w,id")
    with pytest.raises(errors.ConfigError, match="no column 'x'"):
        filters.parse_columns(view, "x")
    by = filters.parse_order(view, "-w")
    cursor = filters.select_page(view, [], by, limit=5).next
    assert cursor is not None
    for bad in ("nonsense", "e30", cursor[:-6]):
        with pytest.raises(errors.ConfigError, match="none of ours"):
            filters.select_page(view, [], by, limit=5, cursor=bad)
    with pytest.raises(errors.ConfigError, match="belongs to order=-w"):
        filters.select_page(view, [], filters.parse_order(view, "w"), limit=5, cursor=cursor)
    with pytest.raises(errors.ConfigError, match="not both"):
        filters.select_page(view, [], by, limit=5, cursor=cursor, offset=1)
    with pytest.raises(errors.ConfigError, match="at most 8"):
        filters.select(view, [f"id!={one}" for one in range(9)])


def test_without_labels_there_is_no_label_column(make_view: MakeView) -> None:
    view = make_view(10, labels=False)
    assert "label" not in view.columns
    with pytest.raises(errors.ConfigError, match="no column 'label'"):
        filters.select(view, ["label=hat"])

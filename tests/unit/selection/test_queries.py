"""Questions about a table: exact, the same over any number of shards, and none that answers more than its share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection import queries
from es_service.selection.engine import Engine
from es_service.selection.named import preset
from es_service.selection.reductions import agree, merge
from es_service.selection.shards import Shard
from es_service.selection.table import records_to_arrow

NUM_SAMPLES = 101


def engines(count: int, seed: int = 0, *, observed: int = 80) -> list[Engine]:
    """Shards of one table in which some samples have been observed, with ties."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(NUM_SAMPLES, observed, replace=False)
    losses = np.round(rng.exponential(size=observed), 1).astype(np.float32)
    made = [Engine(preset("loss"), NUM_SAMPLES, Shard(index, count)) for index in range(count)]
    for index, engine in enumerate(made):
        own, drawn = ids % count == index, ids[::3]
        engine.record(ids[own], {"loss": losses[own]}, drawn[drawn % count == index], 0)
    return made


def table(seed: int = 0, **options: Any) -> pa.Table:
    [whole] = engines(1, seed, **options)
    return records_to_arrow(whole.table.copy_records())


columns = st.sampled_from(["w", "last_loss", "id"])


@given(st.integers(0, 20), st.integers(1, 8), st.integers(1, 120), st.booleans(), columns)
def test_the_top_is_that_of_a_sort(seed: int, count: int, num: int, lowest: bool, column: str) -> None:
    parts = agree([queries.top(engine, column, num, lowest) for engine in engines(count, seed)])
    assert sum(part.num_rows for part in parts) <= num
    got = queries.ranked(parts, column, lowest=lowest)
    rows = [row for row in table(seed).to_pylist() if row["visits"] or column == "id"]
    rows.sort(key=lambda row: (row[column] if lowest else -row[column], row["id"]))
    assert repr(got.to_pylist()) == repr(rows[:num])


@given(st.integers(0, 20), st.integers(1, 8), st.integers(1, 50))
def test_a_distribution_is_that_of_the_whole_table(seed: int, count: int, bins: int) -> None:
    found = agree([queries.distribution(engine, "last_loss", bins) for engine in engines(count, seed)])
    values = table(seed).column("last_loss").to_numpy()
    values = values[np.isfinite(values)].astype(np.float64)
    counts, edges = np.histogram(values, bins=bins)
    for one in found:
        assert one.counts.tolist() == counts.tolist()
        assert one.edges.tolist() == edges.tolist()
        assert one.num_missing == NUM_SAMPLES - values.size


def test_of_a_table_that_saw_nothing() -> None:
    blank = engines(3, observed=0)
    [first, *_] = agree([queries.distribution(engine, "last_loss", 4) for engine in blank])
    assert (first.counts.tolist(), first.num_missing) == ([0, 0, 0, 0], NUM_SAMPLES)
    parts = agree([queries.top(engine, "last_loss", 5, False) for engine in blank])
    assert queries.ranked(parts, "last_loss", lowest=False).num_rows == 0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda engine: queries.top(engine, "weight", 3, False), "no column 'weight'"),
        (lambda engine: queries.top(engine, "w", 0, False), "num must be"),
        (lambda engine: queries.distribution(engine, "w", 0), "bins must be"),
        (lambda engine: queries.distribution(engine, "w", 5000), "bins must be"),
    ],
)
def test_what_cannot_be_answered_is_refused(ask: Any, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        agree([ask(engine) for engine in engines(2)])


@pytest.mark.parametrize("column", ["s", "w", "loss_mean", "loss_var", "last_loss"])
def test_samples_never_observed_do_not_count(column: str) -> None:
    """Their s and w are initial ones, which say nothing."""
    [engine] = engines(1)
    assert agree([queries.distribution(engine, column, 5)])[0].num_missing == NUM_SAMPLES - 80
    [rows] = agree([queries.top(engine, column, NUM_SAMPLES, True)])
    assert rows.num_rows == 80
    assert min(rows.column("visits").to_pylist()) == 1


def test_a_table_may_grow_while_it_is_asked() -> None:
    engine = Engine(preset("loss"), 10, grows=True)
    engine.record(np.arange(10), {"loss": np.arange(10, dtype=np.float32)}, np.arange(0), 0)
    asked = queries.top(engine, "w", 3, False)
    next(asked)
    engine.make_room(np.array([5000]))
    [found] = agree([queries.top(engine, "w", 3, False)])
    assert found.column("id").to_pylist() == [7, 8, 9]
    answer = np.array([10])
    for _ in range(100):
        try:
            answer = merge([asked.send(answer)])
        except StopIteration as done:
            rows = done.value.column("id").to_pylist()
            break
    assert rows == [7, 8, 9]

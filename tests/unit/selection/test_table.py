"""The table and the engine on it, against a dictionary of plain floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import engine, methods, observations
from es_service.selection.config import Selection
from es_service.selection.table import RECORD, SCHEMA, ScoreTable, arrow_to_records, records_to_arrow

BETA1, BETA2 = 0.2, 0.9
NUM = 7

batches = st.lists(
    st.tuples(st.integers(0, NUM - 1), st.floats(0, 100, width=32)), min_size=1, max_size=NUM, unique_by=lambda p: p[0]
)


class TableMachine(RuleBasedStateMachine):
    """Any order of steps, records, clears, growth and copies leaves what the dictionaries say."""

    def __init__(self) -> None:
        super().__init__()
        selection = Selection(methods.evolved(BETA1, BETA2), ratio=0.5, anneal=(0, 0), seed=3)
        self.engine = engine.Engine(selection, NUM)
        self.step_number = 0
        self.blank()
        self.snapshots: list[tuple[NDArray[np.void], bytes]] = []

    def blank(self) -> None:
        size = len(self.engine.table)
        self.s = dict.fromkeys(range(size), 1 / NUM)
        self.w = dict.fromkeys(range(size), 1 / NUM)
        self.losses: dict[int, list[float]] = {i: [] for i in range(size)}
        self.selected = dict.fromkeys(range(size), 0)
        self.last_step = dict.fromkeys(range(size), -1)

    def observe(self, batch: list[tuple[int, float]]) -> None:
        for sample, loss in batch:
            old = self.s[sample]
            self.w[sample] = BETA1 * old + (1 - BETA1) * loss
            self.s[sample] = BETA2 * old + (1 - BETA2) * loss
            self.losses[sample].append(loss)
            self.last_step[sample] = self.step_number

    def arrays(self, batch: list[tuple[int, float]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        self.step_number += 1
        ids = np.array([sample for sample, _ in batch], dtype=np.int64)
        return ids, np.array([loss for _, loss in batch], dtype=np.float32)

    @rule(batch=batches, data=st.data())
    def step(self, batch: list[tuple[int, float]], data: st.DataObject) -> None:
        num = data.draw(st.integers(1, len(batch)))
        ids, losses = self.arrays(batch)
        draw = self.engine.step(ids, {"loss": losses}, num, self.step_number)
        assert draw.positions.size == num
        assert draw.ids.tolist() == ids[draw.positions].tolist()
        self.observe(batch)
        for sample in draw.ids.tolist():
            self.selected[sample] += 1

    @rule(batch=batches, data=st.data())
    def blind_step(self, batch: list[tuple[int, float]], data: st.DataObject) -> None:
        num = data.draw(st.integers(1, len(batch)))
        ids, _ = self.arrays(batch)
        draw = self.engine.draw(ids, num, self.step_number)
        assert draw.positions.size == num
        self.engine.record(ids, None, draw.ids, self.step_number)
        for sample in draw.ids.tolist():
            self.selected[sample] += 1

    @rule(batch=batches, data=st.data(), with_losses=st.booleans())
    def record(self, batch: list[tuple[int, float]], data: st.DataObject, with_losses: bool) -> None:
        positions = sorted(data.draw(st.sets(st.integers(0, len(batch) - 1))))
        ids, losses = self.arrays(batch)
        seen = {"loss": losses} if with_losses else None
        self.engine.record(ids, seen, ids[positions], self.step_number)
        if with_losses:
            self.observe(batch)
        for position in positions:
            self.selected[batch[position][0]] += 1

    @rule()
    def clear(self) -> None:
        self.engine.table.clear()
        self.blank()

    @rule(more=st.integers(-3, 9))
    @precondition(lambda self: len(self.engine.table) < 100)
    def grow(self, more: int) -> None:
        before = len(self.engine.table)
        self.engine.table.grow(before + more)
        after = len(self.engine.table)
        assert after == before if more <= 0 else after >= max(2 * before, before + more)
        for sample in range(before, after):
            self.s[sample] = self.w[sample] = 1 / NUM
            self.losses[sample], self.selected[sample], self.last_step[sample] = [], 0, -1

    @rule()
    def snapshot(self) -> None:
        records = self.engine.table.copy_records()
        self.snapshots.append((records, records.tobytes()))

    @rule()
    def gather_and_scribble(self) -> None:
        """What is handed out is a copy: writing to it moves nothing."""
        table = self.engine.table
        rows = np.arange(len(table), dtype=np.int64)
        table.gather(rows)["s"] = -5.0
        table.copy_records()["w"] = -5.0
        table.values("s", rows)[:] = -5.0
        for name in RECORD.names or ():
            table.column(name)[:] = 77

    @rule()
    @precondition(lambda self: bool(self.snapshots))
    def load_own_copy(self) -> None:
        records = self.engine.table.copy_records()
        self.engine.table.clear()
        self.engine.table.load_records(records)
        records["visits"] = 99  # the table took a copy

    @invariant()
    def columns_are_what_the_dictionaries_say(self) -> None:
        table = self.engine.table
        size = len(table)
        assert table.column("s").tolist() == pytest.approx([self.s[i] for i in range(size)], rel=1e-4, abs=1e-6)
        assert table.column("w").tolist() == pytest.approx([self.w[i] for i in range(size)], rel=1e-4, abs=1e-6)
        assert table.column("visits").tolist() == [len(self.losses[i]) for i in range(size)]
        assert table.column("selected").tolist() == [self.selected[i] for i in range(size)]
        assert table.column("last_step").tolist() == [self.last_step[i] for i in range(size)]
        last = [self.losses[i][-1] if self.losses[i] else float("nan") for i in range(size)]
        assert table.column("last_loss").tolist() == pytest.approx(last, nan_ok=True)
        means = [float(np.mean(self.losses[i])) if self.losses[i] else 0.0 for i in range(size)]
        variances = [float(np.var(self.losses[i])) if self.losses[i] else 0.0 for i in range(size)]
        assert table.column("loss_mean").tolist() == pytest.approx(means, rel=1e-4, abs=1e-4)
        assert table.column("loss_var").tolist() == pytest.approx(variances, rel=1e-4, abs=1e-2)

    @invariant()
    def snapshots_never_change(self) -> None:
        for records, content in self.snapshots:
            assert records.tobytes() == content

    @invariant()
    def a_row_is_32_bytes(self) -> None:
        assert self.engine.table.nbytes == 32 * len(self.engine.table)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=30, stateful_step_count=25)


def observed(num_rows: int, observed_rows: list[int]) -> ScoreTable:
    table = ScoreTable(num_rows, 0.5)
    rows = np.array(observed_rows, dtype=np.int64)
    records = table.gather(rows)
    records["s"], records["visits"], records["last_loss"], records["last_step"] = 2.0, 1, 4.0, 3
    table.scatter(rows, records)
    return table


def test_a_row_is_exactly_32_bytes() -> None:
    assert RECORD.itemsize == 32
    assert ScoreTable(1000).nbytes == 32_000


def test_columns_have_the_types_of_the_text() -> None:
    table = ScoreTable(3, 0.25)
    expected = {
        "s": "float32",
        "w": "float32",
        "last_loss": "float32",
        "loss_mean": "float32",
        "loss_var": "float32",
        "visits": "uint32",
        "selected": "uint32",
        "last_step": "int32",
    }
    assert {name: str(table.column(name).dtype) for name in RECORD.names or ()} == expected
    assert SCHEMA.names == ["id", *expected]
    assert str(SCHEMA.field("id").type) == "int64"
    arrow = records_to_arrow(table.copy_records())
    assert arrow.column("s").to_pylist() == [0.25] * 3
    assert arrow.column("id").to_pylist() == [0, 1, 2]
    assert np.isnan(arrow.column("last_loss").to_numpy()).all()


@pytest.mark.parametrize("size", [0, -1])
def test_a_table_has_at_least_one_row(size: int) -> None:
    with pytest.raises(errors.ConfigError, match=f"at least 1, got {size}"):
        ScoreTable(size)


def test_a_table_larger_than_any_machine_is_refused_in_words() -> None:
    with pytest.raises(errors.ConfigError, match="1,000,000,000,000,000 rows needs 32,000,000,000,000,000 bytes"):
        ScoreTable(10**15)


def test_arrow_round_trip_keeps_every_bit() -> None:
    records = observed(9, [0, 4, 8]).copy_records()
    again = arrow_to_records(records_to_arrow(records), 9)
    assert again.tobytes() == records.tobytes()


def test_an_arrow_table_shares_nothing_with_the_live_one() -> None:
    table = observed(5, [1])
    arrow = records_to_arrow(table.copy_records())
    table.clear()
    assert arrow.column("s").to_pylist() == [0.5, 2.0, 0.5, 0.5, 0.5]


def replaced(arrow: pa.Table, name: str, values: Any) -> pa.Table:
    return arrow.set_column(arrow.schema.get_field_index(name), arrow.schema.field(name), values)


def test_damaged_arrow_tables_are_refused() -> None:
    good = records_to_arrow(observed(4, [2]).copy_records())
    damaged: dict[str, pa.Table] = {
        "columns": good.drop_columns(["w"]),
        "has columns": good.rename_columns([*good.column_names[:-1], "last"]),
        "expected 4": good.slice(0, 3),
        "ids are not 0, 1, 2": replaced(good, "id", pa.array([0, 1, 3, 2], pa.int64())),
        "ids are not": replaced(good, "id", pa.array([1, 2, 3, 4], pa.int64())),
        "holds nulls": replaced(good, "visits", pa.array([1, None, 0, 0], pa.uint32())),
        "'s' of the table holds nulls": replaced(good, "s", pa.array([None, 1, 2, 3], pa.float32())),
    }
    for message, table in damaged.items():
        with pytest.raises(errors.StorageError, match=message):
            arrow_to_records(table, 4)
    wider = good.set_column(1, "s", pa.array([1.0, 2.0, 3.0, 4.0], pa.float64()))
    with pytest.raises(errors.StorageError, match="expected"):
        arrow_to_records(wider, 4)


def test_an_arrow_table_with_null_ids_is_refused() -> None:
    good = records_to_arrow(ScoreTable(3).copy_records())
    with pytest.raises(errors.StorageError):
        arrow_to_records(replaced(good, "id", pa.array([0, None, 2], pa.int64())), 3)


def test_an_arrow_table_in_several_chunks_is_the_same_table() -> None:
    records = observed(6, [0, 5]).copy_records()
    arrow = records_to_arrow(records)
    chunked = pa.concat_tables([arrow.slice(0, 2), arrow.slice(2)])
    assert arrow_to_records(chunked, 6).tobytes() == records.tobytes()


def test_the_last_ids_of_twenty_million_rows_work() -> None:
    size = 2 * 10**7
    step = engine.Engine(Selection(methods.evolved(BETA1, BETA2), anneal=(0, 0)), size)
    assert step.table.nbytes == 32 * size
    ids = np.array([size - 1, 0, 2**24, 2**24 + 1, size - 2], dtype=np.int64)
    draw = step.step(ids, {"loss": np.arange(1, 6, dtype=np.float32)}, 2, 0)
    assert set(draw.ids.tolist()) <= set(ids.tolist())
    records = step.table.gather(ids)
    assert records["last_loss"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    neighbours = step.table.gather(np.array([1, 2**24 - 1, 2**24 + 2, size - 3]))
    assert neighbours["visits"].tolist() == [0, 0, 0, 0]


def test_a_diverging_loss_keeps_the_running_moments_free_of_nan() -> None:
    """Losses of a diverging run pass the check up to MAX_LOSS; the table must survive them."""
    step = engine.Engine(Selection(methods.evolved(), anneal=(0, 0)), 2)
    ids = np.array([0, 1])
    with np.errstate(over="ignore"):
        for number, loss in enumerate((1.0, observations.MAX_LOSS, 2e10, 1.0)):
            seen = {"loss": np.full(2, loss, dtype=np.float32)}
            step.record(ids, seen, np.array([], dtype=np.int64), number)
    assert not np.isnan(step.table.column("loss_var")).any()
    assert not np.isnan(step.table.column("loss_mean")).any()

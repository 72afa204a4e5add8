"""Overlaps: a row is a rank's own from its request until it has reported the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from es_service.actors.overlaps import Overlaps


def asked(overlaps: Overlaps, rows: Sequence[int], rank: int, run_step: int, num_rows: int = 10) -> int:
    return overlaps.asked(np.array(rows), rank, run_step, num_rows)


def test_a_row_that_another_rank_holds_is_counted() -> None:
    overlaps = Overlaps()
    assert asked(overlaps, [1, 2, 3], rank=0, run_step=0) == 0
    assert asked(overlaps, [3, 4], rank=1, run_step=0) == 1
    assert asked(overlaps, [1, 2], rank=1, run_step=1) == 2
    assert overlaps.total == 3


def test_one_s_own_rows_do_not_count_and_reported_ones_are_free() -> None:
    overlaps = Overlaps()
    asked(overlaps, [1, 2], rank=0, run_step=0)
    assert asked(overlaps, [2, 3], rank=0, run_step=1) == 0
    overlaps.reported(rank=0, run_step=0)
    assert asked(overlaps, [1], rank=1, run_step=0) == 0
    overlaps.reported(rank=0, run_step=1)
    assert asked(overlaps, [2, 3], rank=1, run_step=1) == 0


def test_a_step_that_was_never_reported_ends_with_the_next() -> None:
    overlaps = Overlaps()
    asked(overlaps, [1], rank=0, run_step=0)
    asked(overlaps, [5], rank=0, run_step=1)
    overlaps.reported(rank=0, run_step=1)
    assert asked(overlaps, [1, 5], rank=1, run_step=2) == 0


def test_a_row_taken_over_is_not_freed_by_the_one_who_had_it() -> None:
    overlaps = Overlaps()
    asked(overlaps, [1], rank=0, run_step=0)
    asked(overlaps, [1], rank=1, run_step=0)
    overlaps.reported(rank=0, run_step=0)
    assert asked(overlaps, [1], rank=2, run_step=0) == 1


def test_it_grows_with_the_table_and_forgets_when_told() -> None:
    overlaps = Overlaps()
    asked(overlaps, [9], rank=0, run_step=0)
    assert asked(overlaps, [9, 999], rank=1, run_step=0, num_rows=1000) == 1
    overlaps.clear()
    assert asked(overlaps, [9, 999], rank=2, run_step=0, num_rows=1000) == 0

"""UnackedRows rows: what was reported last wins over what a shard read before it applied the report."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from es_service.exchange.unacked_rows import UnackedRows

reports = st.lists(st.sets(st.integers(0, 2**20), min_size=1, max_size=8), max_size=12)


@given(reports, st.integers(0, 12), st.sets(st.integers(0, 2**20), min_size=1, max_size=20))
def test_rows_are_as_the_reports_leave_them(sent: list[set[int]], confirmed: int, also: set[int]) -> None:
    """A model in a dict: the shard has applied the reports up to one of them, the rank has sent all."""
    unacked_rows, applied, truth = UnackedRows(), dict[int, int](), dict[int, int]()
    for seq, ids in enumerate(sent, start=1):
        unacked_rows.add(seq, np.array(sorted(ids, key=hash)), {"s": np.full(len(ids), seq, dtype=np.float32)})
        truth |= dict.fromkeys(ids, seq)
        if seq <= confirmed:
            applied |= dict.fromkeys(ids, seq)
    asked = np.array(sorted(also.union(*sent)))
    columns = {"s": np.array([applied.get(one, 0) for one in asked.tolist()], dtype=np.float32)}
    unacked_rows.put_on(min(confirmed, len(sent)), asked, columns)
    assert columns["s"].tolist() == [truth.get(one, 0) for one in asked.tolist()]


def test_ids_that_share_a_slot_are_told_apart() -> None:
    unacked_rows, far = UnackedRows(), 7 + (1 << 18)
    unacked_rows.add(1, np.array([7]), {"s": np.array([0.5], dtype=np.float32)})
    columns = {"s": np.zeros(2, dtype=np.float32)}
    unacked_rows.put_on(0, np.array([7, far]), columns)
    assert columns["s"].tolist() == [0.5, 0.0]


def test_what_is_confirmed_is_forgotten() -> None:
    unacked_rows = UnackedRows()
    unacked_rows.add(1, np.array([7]), {"s": np.array([0.5], dtype=np.float32)})
    columns = {"s": np.array([0.25], dtype=np.float32)}  # another rank's, say, which came after ours
    unacked_rows.put_on(1, np.array([7]), columns)
    assert columns["s"].tolist() == [0.25]


def test_pieces_of_a_step_may_be_read_at_different_times() -> None:
    """Between two pieces of one step the shard applies a report: the first piece still lacks it."""
    unacked_rows = UnackedRows()
    unacked_rows.add(6, np.array([1, 8]), {"s": np.array([0.5, 0.75], dtype=np.float32)})
    first, second = ({"s": np.zeros(1, dtype=np.float32)} for _ in range(2))
    unacked_rows.put_on(5, np.array([1]), first)
    unacked_rows.put_on(6, np.array([8]), second)
    assert (first["s"].tolist(), second["s"].tolist()) == ([0.5], [0.0])

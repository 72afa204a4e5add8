"""From reports to history: which sample was observed when, with what loss, and whether it was picked.

A report may name what was picked of an earlier one (with `sync` it always does): a pick belongs to the last observation
of its sample before it. One that has none, because nothing was scored, becomes a row without a loss.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.actors.shard_journal import from_json, journal_at
from es_service.actors.wire import Report
from es_service.selection.shards import Shard
from es_service.storage.history import most_rows
from es_service.storage.runs import RunStorage

__all__ = ["history_of", "num_rows_of", "write_history"]

I64 = NDArray[np.int64]
_log = logging.getLogger(__name__)


def history_of(reports: Sequence[Report], signals: Sequence[str]) -> pa.Table:
    """Return the rows that these reports make, by sample and report, see `storage.history`.

    Args:
        reports: of one shard and one epoch, in the order they were applied in.
        signals: names of what the method observes, "loss" among them.
    """
    seen_ids, seen_in = _flat([report.ids for report in reports])
    picked_ids, picked_in = _flat([report.selected for report in reports])
    ids, reported = np.concatenate([seen_ids, picked_ids]), np.concatenate([seen_in, picked_in])
    is_pick = np.arange(ids.size) >= seen_ids.size
    order = _by_sample(ids, reported, is_pick)
    kept, selected = _matched(ids[order], is_pick[order])
    rows = order[kept]
    steps = np.array([report.run_step for report in reports], dtype=np.int32)
    ranks = np.array([report.caller.rank for report in reports], dtype=np.int32)
    none = np.full(picked_ids.size, np.nan, dtype=np.float32)
    values = {
        name: np.concatenate([*(report.seen[name] for report in reports if report.seen is not None), none])[rows]
        for name in signals
    }
    reported = reported[rows]
    return pa.table(
        {
            "id": ids[rows],
            "run_step": steps[reported],
            "rank": ranks[reported],
            "loss": values.pop("loss"),
            "selected": selected[kept],
            **values,
        }
    )


def num_rows_of(report: Report) -> int:
    """Return how many rows a report can add to the history."""
    return report.ids.size + report.selected.size


def _flat(ids: Sequence[I64]) -> tuple[I64, I64]:
    """Return all ids, concatenated, and for each the index of its report."""
    sizes = [one.size for one in ids]
    return np.concatenate([*ids, np.empty(0, dtype=np.int64)]), np.repeat(np.arange(len(ids)), sizes)


def _by_sample(ids: I64, reported: I64, is_pick: NDArray[np.bool_]) -> I64:
    """Return the order by sample, then by report; observed before picked."""
    report_bits = int(reported.max(initial=0)).bit_length()
    if int(ids.max(initial=0)).bit_length() + report_bits < 62:  # as one number a row: three times as fast
        return np.argsort(((ids << report_bits | reported) << 1) | is_pick)
    return np.lexsort((is_pick, reported, ids))


def _matched(ids: I64, is_pick: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which entries, in the order of `_by_sample`, become rows, and which of those were picked.

    All observations do, and the picks that belong to none.
    """
    last_seen = np.maximum.accumulate(np.where(is_pick, -1, np.arange(ids.size)))
    picks = np.flatnonzero(is_pick)
    found = last_seen[picks]
    known = (found >= 0) & (ids[found] == ids[picks])
    known[1:] &= ~((found[1:] == found[:-1]) & known[:-1])  # the second pick of one observation is a blind one
    blind = picks[~known]
    kept, selected = ~is_pick, np.zeros(ids.size, dtype=bool)
    kept[blind] = selected[blind] = selected[found[known]] = True
    return kept, selected


def write_history(
    storage: RunStorage, shard: Shard, signals: Sequence[str], finished_epochs: int, allowed: Callable[[], None]
) -> None:
    """Write the history of the last finished epochs that have none yet, and drop the journal that is not needed for it.

    An epoch that ended without a snapshot is separated from its neighbours by its steps.

    Args:
        storage: of the run.
        shard: whose journal it is.
        signals: names of what the method observes.
        finished_epochs: at whose end there is a snapshot.
        allowed: raises StorageError where this process may not write the run any more.
    """
    try:
        epochs = storage.snapshots.epochs()
        numbers = {epoch: journal_at(storage, shard, epoch) for epoch in (0, *epochs) if epoch <= finished_epochs}
        first = min(storage.journal(shard).first_records(), default=1)
        known = [(epoch, number) for epoch, number in numbers.items() if number is not None and number + 1 >= first]
        for (before, begin), (behind, end) in itertools.pairwise(known):
            missing = [epoch for epoch in range(before, behind) if not storage.history.has_part(epoch, shard)]
            if not missing:
                continue
            starts = storage.snapshots.position(behind)[1]
            reports = _reports(storage, shard, begin, end, starts, most_rows(storage.config().end_of_ids))
            for epoch in missing if reports is not None else ():
                own = [one for one in reports or () if starts[epoch] <= one.run_step < starts[epoch + 1]]
                rows = history_of(own, signals)
                allowed()
                storage.history.write(epoch, shard, rows)
        if epochs and (oldest := numbers[epochs[0]]) is not None:
            storage.journal(shard).drop(oldest)
    except errors.EsServiceError as error:
        _log.warning("no history of epoch %d: %s", finished_epochs - 1, error)


def _reports(
    storage: RunStorage, shard: Shard, after: int, upto: int, epoch_starts: Sequence[int], most: int
) -> list[Report] | None:
    """Return the reports that some epochs came to in the end; None where they are too many, or were replaced.

    A checkpoint's table takes the place of all that was reported before it: of its epochs this journal knows nothing.
    """
    reports: list[Report] = []
    num_rows = 0
    for record in storage.journal(shard).records(after):
        if record.number > upto:
            break
        state = from_json(record.payload) if record.kind == "state" else {}
        if state.get("loading"):
            return None
        if state.get("go_to", len(epoch_starts)) < len(epoch_starts):  # to a later epoch, and back again before it
            reports = [one for one in reports if one.run_step < epoch_starts[state["go_to"]]]
            num_rows = sum(map(num_rows_of, reports))
        if record.kind == "reports":
            new = list(wire.decode_reports(record.payload))
            reports += new
            num_rows += sum(map(num_rows_of, new))
            if num_rows > most:
                _log.warning("no history of an epoch with more than %d observations and picks at one shard", most)
                return None
    return reports

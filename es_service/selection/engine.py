"""The engine: one table, one selection, and the step that joins them. Every exchange runs this same arithmetic."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import draws, keys, planning
from es_service.selection.compiled_step import CompiledStep
from es_service.selection.config import Selection
from es_service.selection.methods.base import Columns
from es_service.selection.past import BEGINNING, Past
from es_service.selection.plans import Plan
from es_service.selection.reductions import Agreed
from es_service.selection.repeats import Repeats, among_distinct, num_candidates
from es_service.selection.shards import WHOLE, Shard
from es_service.selection.table import ScoreTable
from es_service.selection.updates import observed

__all__ = ["NOTHING", "Draw", "Engine", "choose", "known_weights", "leased_columns", "observed_weights"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_FREE_GROWTH, _MAX_GROWTH = 1 << 24, 64  # rows that are always let come, and growth by how much beyond them
NOTHING: F32 = np.empty(0, dtype=np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """What to train on.

    Attributes:
        positions: int64[b] into the meta-batch, ascending.
        ids: int64[b], the sample ids at these positions.
        scale: float32[b]; multiply each drawn loss by it before taking their mean. Ones unless re-weighted.
        weights: float[B], by which they were drawn, after `cap` and `power`; of the samples with usable losses, where
            others are skipped. None where everything was taken.
    """

    positions: I64
    ids: I64
    scale: F32
    weights: NDArray[np.floating] | None = None

    @classmethod
    def everything(cls, ids_B: I64) -> Draw:
        """Take the whole meta-batch at scale 1."""
        return cls(np.arange(ids_B.size), ids_B, np.ones(ids_B.size, dtype=np.float32))

    @classmethod
    def of(cls, drawn: draws.Drawn, selection: Selection, ids_B: I64, weights_B: NDArray[np.floating]) -> Draw:
        """Take what was drawn of the meta-batch by these weights, re-weighted as the selection requires."""
        scale_b = drawn.scale(ids_B.size, unbiased=selection.reweight == "unbiased")
        return cls(drawn.positions_b, ids_B[drawn.positions_b], scale_b, weights_B)


def choose(
    selection: Selection,
    ids_B: I64,
    weights_B: F32,
    num: int,
    run_step: int,
    recent_R: F32 = NOTHING,
    repeats: Repeats | None = None,
) -> Draw:
    """Draw `num` of the B by weight: a pure function of its arguments, hence the same wherever it runs.

    Args:
        selection: names the method, the draw, the re-weighting and the seed.
        ids_B: int64[B] sample ids.
        weights_B: float32[B], w of each.
        num: b, in [1, B]; B takes everything.
        run_step: step counted over the whole run, which gives each step its own random numbers.
        recent_R: float32[R], weights that the rank's samples before these had, where the method looks at them.
        repeats: of a batch that holds ids more than once; `ids_B` are then its distinct ones, and the candidates, to
            which `num` and the positions belong, all that it holds.
    """
    keys_B = ids_B
    if repeats is not None:
        ids_B, keys_B, weights_B = repeats.ids_B, repeats.keys_B, weights_B[repeats.of_B]
    if num >= ids_B.size:
        return Draw.everything(ids_B)
    uniforms_B = keys.uniforms(selection.seed, keys.Purpose.DRAW, run_step, keys_B)
    weights = draws.sharpened(selection.method.weigh(weights_B, recent_R), selection.cap, selection.power)
    return Draw.of(draws.DRAWS[selection.draw](weights, num, uniforms_B), selection, ids_B, weights)


def observed_weights(columns: Columns) -> F32:
    """Return w float32[B], NaN for samples never observed, from the columns "w" and "last_loss"."""
    return np.where(np.isnan(columns["last_loss"]), np.float32(np.nan), columns["w"])


def known_weights(columns: Columns) -> F32:
    """Return the weights float32[B] to draw by where nothing new was observed: w, and the most for the never observed.

    Args:
        columns: "w" and "last_loss", float32[B] each.
    """
    weights_B = observed_weights(columns)
    unobserved_B = np.isnan(weights_B)
    if not unobserved_B.any():
        return weights_B
    most = np.float32(1.0) if unobserved_B.all() else weights_B[~unobserved_B].max()
    return np.where(unobserved_B, most, weights_B)


def leased_columns(selection: Selection) -> tuple[str, ...]:
    """Return the columns of the table that a rank needs in order to draw on its own."""
    known = ("w", "last_loss") if selection.method.window or selection.draws_by_known else ()
    return tuple(dict.fromkeys((*selection.method.reads, *known)))


class Engine:
    """A score table, or a shard of one, and the selection that rules it. No locking; ids come checked.

    Args:
        selection: what to select, and how.
        num_samples: n, of the whole run.
        shard: which of the ids this one holds; all of them by default.
        grows: n goes up with the ids that come.
    """

    def __init__(self, selection: Selection, num_samples: int, shard: Shard = WHOLE, *, grows: bool = False) -> None:
        method = selection.method
        self.selection = selection
        self.num_samples = num_samples
        self.shard = shard
        self._first_num_samples = num_samples if grows else None
        self.table = ScoreTable(shard.num_rows(num_samples), method.initial_score(num_samples), method.columns)
        self._compiled = CompiledStep.of(selection)

    def step(
        self,
        ids_B: I64,
        seen: Columns,
        num: int,
        run_step: int,
        recent_R: F32 = NOTHING,
        repeats: Repeats | None = None,
    ) -> Draw:
        """Observe these signals, draw `num` of the B by the new weights, and count the drawn; `repeats` as `choose`."""
        rows_B = self.shard.rows(ids_B)
        if self._compiled is None:
            records_B = observed(self.selection, self.table.gather(rows_B), seen, run_step)
            draw = choose(self.selection, ids_B, records_B["w"], num, run_step, recent_R, repeats)
            records_B["selected"][among_distinct(draw.positions, repeats)] += np.uint32(1)
            self.table.scatter(rows_B, records_B)
            return draw
        words_n = self.table.words
        if self._compiled.races and num < ids_B.size and repeats is None:
            drawn, weights_B = self._compiled.race(words_n, rows_B, ids_B, seen, num, run_step)
            draw = Draw.of(drawn, self.selection, ids_B, weights_B)
        else:
            weights_B = self._compiled.observe(words_n, rows_B, seen, run_step)
            draw = choose(self.selection, ids_B, weights_B, num, run_step, recent_R, repeats)
        self._compiled.add_selected(words_n, rows_B[among_distinct(draw.positions, repeats)])
        return draw

    def draw(
        self, ids_B: I64, num: int, run_step: int, recent_R: F32 = NOTHING, repeats: Repeats | None = None
    ) -> Draw:
        """Draw `num` of the B by what is known of them; nothing is observed, nothing counted; `repeats` as `choose`."""
        if self.selection.method.needs_losses and num < num_candidates(ids_B, repeats):
            weights_B = known_weights(self._known(ids_B))
        else:
            weights_B = np.ones(ids_B.size, dtype=np.float32)
        return choose(self.selection, ids_B, weights_B, num, run_step, recent_R, repeats)

    def record(self, ids_B: I64, seen: Columns | None, selected_b: I64, run_step: int) -> F32:
        """Observe signals, where given, for another process to draw by, and count what was drawn.

        Args:
            ids_B: int64[B], observed.
            seen: their signals; None observes nothing.
            selected_b: int64[b], ids that were drawn, of these or of others.
            run_step: step counted over the whole run.

        Returns:
            The new weights float32[B]; none where nothing was observed.
        """
        weights_B = NOTHING
        if seen is not None:
            rows_B = self.shard.rows(ids_B)
            if self._compiled is None:
                records_B = observed(self.selection, self.table.gather(rows_B), seen, run_step)
                self.table.scatter(rows_B, records_B)
                weights_B = np.ascontiguousarray(records_B["w"])
            else:
                weights_B = self._compiled.observe(self.table.words, rows_B, seen, run_step)
        if selected_b.size:
            self.table.add_selected(self.shard.rows(selected_b))
        return weights_B

    def make_room(self, ids_B: I64) -> None:
        """Let the table grow to hold these ids, where it may.

        Raises:
            IdError: a gap so large that the ids can hardly number samples.
            ConfigError: not enough memory for so many.
        """
        if self._first_num_samples is None:
            return
        num_samples = int(ids_B.max()) + 1
        if num_samples > max(_FREE_GROWTH, _MAX_GROWTH * self.num_samples):
            raise errors.IdError(
                f"id {num_samples - 1:,} lies far beyond the {self.num_samples:,} samples so far, and a table up to it "
                f"takes {num_samples * self.table.dtype.itemsize:,} bytes: number samples from 0 without large gaps, "
                "or give num_samples"
            )
        self.grow_to(num_samples)

    def grow_to(self, num_samples: int) -> None:
        """Let n be this at least."""
        if num_samples > self.num_samples:
            self.table.grow(self.shard.num_rows(num_samples))
            self.num_samples = num_samples

    def ids(self) -> I64:
        """Return the ids of the shard's rows, int64[rows], ascending."""
        return self.shard.ids(self.num_samples)

    def column(self, name: str) -> NDArray[Any]:
        """Return a copy of a column of the shard's rows, [rows]."""
        return self.table.column(name)[: self.shard.num_rows(self.num_samples)]

    def copy_records(self) -> NDArray[np.void]:
        """Return a copy of the shard's rows of the n samples."""
        return self.table.copy_records(self.shard.num_rows(self.num_samples))

    def load_records(self, records: NDArray[np.void]) -> None:
        """Replace the rows by others of the same run; StorageError where they cannot be that."""
        self.check_records(records)
        if self._first_num_samples is not None:
            last_id = (records.size - 1) * self.shard.count + self.shard.index
            self.table.grow(records.size)
            self.num_samples = max(self._first_num_samples, last_id + 1)
        self.table.load_records(records)

    def clear(self) -> None:
        """Forget every observation."""
        self.table.clear()
        self.num_samples = self._first_num_samples or self.num_samples

    def recent(self, ids_R: I64) -> F32:
        """Return the weights float32[R] of samples that came before, NaN for those never observed."""
        return observed_weights(self._known(ids_R))

    def _known(self, ids_B: I64) -> Columns:
        rows_B = self.shard.rows(ids_B)
        return {name: self.table.values(name, rows_B) for name in ("w", "last_loss")}

    def lease(self, ids_m: I64) -> dict[str, NDArray[Any]]:
        """Return copies of `leased_columns` at these ids, [m] each."""
        rows_m = self.shard.rows(ids_m)
        return {name: self.table.values(name, rows_m) for name in leased_columns(self.selection)}

    def check_records(self, records: NDArray[np.void]) -> None:
        """Raise StorageError unless these could be the table's own."""
        if records.size != len(self.table) and self._first_num_samples is None:
            raise errors.StorageError(f"the state holds {records.size:,} samples, expected {len(self.table):,}")
        if records.dtype != self.table.dtype:
            raise errors.StorageError(
                f"the state has the columns {', '.join(records.dtype.names or ())}, expected "
                f"{', '.join(self.table.dtype.names or ())}: it is of a run with another method"
            )

    def plan(self, epoch: int, num_epochs: int, epoch_starts: Sequence[int], past: Past = BEGINNING) -> Agreed[Plan]:
        """Return this shard's part of what an epoch trains on, see `planning.plan_epoch`."""
        own = self.selection, self.num_samples, self.ids(), self.column
        return planning.plan_epoch(*own, epoch, num_epochs, epoch_starts, past)

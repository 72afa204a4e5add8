"""The engine: one table, one selection, and the step that joins them. Every exchange runs this same arithmetic."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from es_service.selection import draws, keys, plans
from es_service.selection.config import Selection
from es_service.selection.table import ScoreTable

__all__ = ["Draw", "Engine", "choose"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """What to train on.

    Attributes:
        positions: int64[b] into the meta-batch, ascending.
        ids: int64[b], the sample ids at these positions.
        scale: float32[b]; multiply each drawn loss by it before taking their mean. Ones unless re-weighted.
    """

    positions: I64
    ids: I64
    scale: F32

    @classmethod
    def everything(cls, ids_B: I64) -> Draw:
        """Take the whole meta-batch at scale 1."""
        return cls(np.arange(ids_B.size), ids_B, np.ones(ids_B.size, dtype=np.float32))


def choose(selection: Selection, ids_B: I64, weights_B: F32, num: int, run_step: int) -> Draw:
    """Draw `num` of the B by weight: a pure function of its arguments, hence the same wherever it runs.

    Args:
        selection: names the draw, the re-weighting and the seed.
        ids_B: int64[B] sample ids.
        weights_B: float32[B], at least 0.
        num: b, in [1, B]; B takes everything.
        run_step: step counted over the whole run, which gives each step its own random numbers.
    """
    if num >= ids_B.size:
        return Draw.everything(ids_B)
    uniforms_B = keys.uniforms(selection.seed, keys.Purpose.DRAW, run_step, ids_B)
    drawn = draws.DRAWS[selection.draw](weights_B, num, uniforms_B)
    scale_b = drawn.scale(ids_B.size, unbiased=selection.reweight == "unbiased")
    return Draw(drawn.positions_b, ids_B[drawn.positions_b], scale_b)


class Engine:
    """A score table and the selection that rules it. Ids have been checked before they get here; no locking.

    Args:
        selection: what to select, and how.
        num_samples: n.
    """

    def __init__(self, selection: Selection, num_samples: int) -> None:
        self.selection = selection
        self.table = ScoreTable(num_samples, selection.method.initial_score(num_samples))

    def step(self, ids_B: I64, losses_B: F32 | None, num: int, run_step: int) -> Draw:
        """Observe the losses where there are some, draw `num` of the B by the new weights, and count the drawn."""
        if losses_B is None:
            draw = choose(self.selection, ids_B, np.ones(ids_B.size, dtype=np.float32), num, run_step)
            self.table.add_selected(draw.ids)
            return draw
        records_B = self._observed(ids_B, losses_B, run_step)
        draw = choose(self.selection, ids_B, records_B["w"], num, run_step)
        records_B["selected"][draw.positions] += np.uint32(1)
        self.table.scatter(ids_B, records_B)
        return draw

    def record(self, ids_B: I64, losses_B: F32 | None, positions_b: I64, run_step: int) -> None:
        """Observe losses for which somebody else has already drawn `positions_b` (possibly none)."""
        if losses_B is None:
            self.table.add_selected(ids_B[positions_b])
            return
        records_B = self._observed(ids_B, losses_B, run_step)
        records_B["selected"][positions_b] += np.uint32(1)
        self.table.scatter(ids_B, records_B)

    def _observed(self, ids_B: I64, losses_B: F32, run_step: int) -> NDArray[np.void]:
        """Return copies of the rows as they are after this observation."""
        records = self.table.gather(ids_B)
        records["s"], records["w"] = self.selection.method.update(np.ascontiguousarray(records["s"]), losses_B)
        visits, mean, variance = records["visits"], records["loss_mean"], records["loss_var"]  # views
        visits += np.uint32(1)
        share = np.reciprocal(visits.astype(np.float32))
        # Welford: var_t = var_{t-1} + ((ℓ - mean_{t-1})·(ℓ - mean_t) - var_{t-1}) / t
        surprise = losses_B - mean
        mean += surprise * share
        surprise *= losses_B - mean
        surprise -= variance
        surprise *= share
        variance += surprise
        records["last_loss"] = losses_B
        records["last_step"] = run_step
        return records

    def plan(self, epoch: int, epoch_starts: list[int], *, everything: bool) -> I64:
        """Return this epoch's ids in their order, int64[m].

        Args:
            epoch: counted from 0.
            epoch_starts: the run step at which each epoch so far began; tells how many epochs old a score is.
            everything: do not prune (annealing).
        """
        num_samples = len(self.table)
        num_kept = self.selection.num_kept(num_samples)
        if everything or num_kept == num_samples:
            ids = np.arange(num_samples, dtype=np.int64)
        else:
            ids = self._prune(epoch, epoch_starts, num_kept)
        return plans.shuffle(ids, seed=self.selection.seed, epoch=epoch)

    def _prune(self, epoch: int, epoch_starts: list[int], num_kept: int) -> I64:
        selection, table = self.selection, self.table
        seen = table.column("visits") > 0
        overdue = np.zeros(len(table), dtype=np.bool_)
        if selection.max_age is not None and epoch - selection.max_age >= 0:
            # Last seen before the epoch `max_age` ago: it has sat out that one and every one since.
            overdue = table.column("last_step") < epoch_starts[epoch - selection.max_age]
        return plans.prune(
            table.column(selection.method.pruning_column()),
            num_kept,
            seed=selection.seed,
            epoch=epoch,
            unobserved_n=np.zeros_like(seen) if selection.prune_unobserved else ~seen,
            overdue_n=overdue & seen,
        )

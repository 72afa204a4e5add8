"""The contract of a method: how observations become weights, and weights the plan of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed

__all__ = ["F32", "Columns", "LastValue", "Method"]

F32: TypeAlias = NDArray[np.float32]
Columns: TypeAlias = Mapping[str, F32]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A rule that turns observations into weights; draws and pruning go by the weights.

    A method is a value: frozen, picklable, equal to another with the same settings. It holds no data and no state;
    all state is the sample's row of the table. Subclasses implement `update`, some of them `weigh` or `plan`; the
    class attributes define the rest.

        observation ── update ──► w, in the table ── weigh ──► weights of one meta-batch ──► draw
                                        └─────────── plan ──► ids of an epoch
    """

    name: ClassVar[str]
    needs_losses: ClassVar[bool] = True
    """A draw needs this step's losses, so a scoring pass has to come first."""
    selects: ClassVar[bool] = True
    """False: every step takes the whole meta-batch."""
    prunes: ClassVar[bool] = True
    """Epochs leave out `Selection.prune_ratio` of the set."""
    decides: ClassVar[bool] = False
    """The share of a meta-batch that steps train on follows from the run, by `plan`: `Selection.ratio` does nothing."""
    keeps_unobserved: ClassVar[bool] = True
    """Plans leave out no sample that was never observed, unless `Selection.prune_unobserved` lets them."""
    signed: ClassVar[bool] = False
    """Weights may be negative: only a draw by rank, topk, can go by them."""
    observes: ClassVar[tuple[str, ...]] = ()
    """Signals a sample must come with, besides its loss."""
    reads: ClassVar[tuple[str, ...]] = ("s",)
    """Columns of the sample's row that `update` reads and overwrites (but `visits`, which the engine counts)."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Further columns of the table; one that is named like a signal holds its last value."""

    @property
    def window(self) -> int:
        """How many of a rank's last samples, the meta-batch at hand among them, `weigh` compares."""
        return 0

    @property
    def averages(self) -> tuple[float, float] | None:
        """Return β1 and β2 where `update` is that of `Evolved`, for which there is machine code; else None."""
        return None

    def initial_score(self, num_samples: int) -> float:
        """Return s and w of a sample that was never observed."""
        raise NotImplementedError  # abstract

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:
        """Return the row's new columns, float32[B] each: "w", and those in `reads`.

        Elementwise and free of state: the same numbers give the same bits wherever they are computed.

        Args:
            old: the columns in `reads` as they were, float32[B] each.
            values_B: float32[B], what the method goes by: the loss, or what `Selection.signal` names.
            seen: all signals of this observation by name, float32[B] each.
        """
        raise NotImplementedError  # abstract

    def weigh(self, weights_B: F32, recent_R: F32) -> NDArray[np.floating]:  # noqa: ARG002 - the contract's argument
        """Return the weights float[B] to draw one meta-batch by, from its w.

        Args:
            weights_B: float32[B], w of each candidate.
            recent_R: float32[R], w of the samples that this rank had before these in the epoch; with these they are
                `window` at most. NaN where one was not observed.
        """
        return weights_B

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return a shard's part of what an epoch trains on; by default all, or a draw by `pruning_column`.

        A generator that runs on every shard; what it has to know of all rows it asks by `reductions` and `prospect`.
        """
        return prospect.pruned_by(self.pruning_column())

    def pruning_column(self) -> str:
        """Return the column of the table that set-level pruning draws by."""
        return "w"

    def settings(self) -> dict[str, Any]:
        """Return the method's own settings, JSON-ready; `METHODS[name](**settings)` makes it again."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LastValue(Method):
    """Goes by what was observed last, s = w = ℓ, and by nothing from before."""

    reads: ClassVar[tuple[str, ...]] = ()

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return 0."""
        return 0.0

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's arguments
        """Return s = w = ℓ."""
        return {"s": values_B, "w": values_B}

"""RHO-LOSS: train on what is not learnt yet, but can be.

Reference: Mindermann et al., *Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt*,
arXiv 2206.07137.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from es_service.selection.methods.base import F32, Columns, LastValue

__all__ = ["Rho", "rho"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rho(LastValue):
    """Loss above the irreducible loss; make it with `rho()`."""

    name: ClassVar[str] = "rho"
    prunes: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    observes: ClassVar[tuple[str, ...]] = ("irreducible_loss",)

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's argument
        """Return s = w = ℓ - irreducible loss."""
        excess_B = values_B - seen["irreducible_loss"]
        return {"s": excess_B, "w": excess_B}


def rho() -> Rho:
    """RHO-LOSS: train on the b of B with the largest reducible loss, w = ℓ - ℓ_irreducible. Needs `draw="topk"`.

    The irreducible loss of a sample is that of a model trained on other data, worked out once: give it as
    `irreducible_losses=` to `es.Selector` or `es.connect`. A mislabelled sample has a high one, so it is left alone.

    Published with ratio 0.1: 32 of 320.

    Reference: Mindermann et al., arXiv 2206.07137.
    """
    return Rho()

"""The contract of a method: how observations become scores and weights."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Method"]

F32 = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A rule that turns observations into weights; draws and pruning go by the weights.

    A method is a value: frozen, picklable, equal to another with the same settings. It holds no data and no state;
    all state is the sample's row of the table. Subclasses implement `update`; the class attributes say the rest.
    """

    name: ClassVar[str]
    needs_losses: ClassVar[bool] = True
    """A draw needs this step's losses, so a scoring pass has to come first."""
    selects: ClassVar[bool] = True
    """False: every step takes the whole meta-batch."""

    def initial_score(self, num_samples: int) -> float:
        """Return s and w of a sample that was never observed."""
        raise NotImplementedError  # abstract: every family says its own

    def update(self, s_B: F32, losses_B: F32) -> tuple[F32, F32]:
        """Return the new (s_B, w_B), float32[B] each, from the old scores and this observation's losses.

        Elementwise and free of state: the same two numbers give the same two bits wherever they are computed.
        """
        raise NotImplementedError  # abstract: every family says its own

    def pruning_column(self) -> str:
        """Return the column of the table that set-level pruning draws by."""
        return "w"

    def settings(self) -> dict[str, Any]:
        """Return the method's own settings, JSON-ready; `METHODS[name](**settings)` makes it again."""
        return dataclasses.asdict(self)

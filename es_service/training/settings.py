"""Optimizer settings of a training run, checked without torch."""

from __future__ import annotations

import dataclasses
import math

from es_service import errors
from es_service.selection.settings import as_integer, as_number, make_plain

__all__ = ["TrainSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How to optimise.

    Args:
        learning_rate: the highest of a one-cycle schedule over the whole training.
        momentum: of SGD, Nesterov's.
        weight_decay: L2.
        micro_batch_size: most samples of one forward or backward pass on a worker; None for no limit.
        backward_cost: forward passes that a backward pass counts as, in the cost of a run; None measures it.
        seed: of the initial weights.

    Raises:
        ConfigError: a value outside its domain.
    """

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    micro_batch_size: int | None = None
    backward_cost: float | None = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0 < as_number("learning_rate", self.learning_rate) < math.inf:
            raise errors.ConfigError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if not 0 <= as_number("momentum", self.momentum) < 1:
            raise errors.ConfigError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 <= as_number("weight_decay", self.weight_decay) < math.inf:
            raise errors.ConfigError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.micro_batch_size is not None:
            as_integer("micro_batch_size", self.micro_batch_size, least=1)
        if self.backward_cost is not None and not 0 < as_number("backward_cost", self.backward_cost) < math.inf:
            raise errors.ConfigError(f"backward_cost must be above 0 and finite, got {self.backward_cost}")
        as_integer("seed", self.seed, least=0, end=2**63)

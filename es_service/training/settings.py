"""Optimizer settings of a training run, checked without torch."""

from __future__ import annotations

import dataclasses
import math

from es_service import errors
from es_service.selection.settings import as_integer, as_number, make_plain, suggest

__all__ = ["DTYPES", "OF_THE_TASK", "OPTIMIZERS", "SCHEDULES", "TrainSettings"]

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("auto", "float32", "bfloat16")
OF_THE_TASK = ("learning_rate", "optimizer", "weight_decay", "warm_up", "schedule", "backward_cost")
"""Settings that are the task's own where they are not given."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How to optimise, and how the passes of a step are made.

    Args:
        learning_rate: the highest of the schedule.
        momentum: of SGD, Nesterov's.
        optimizer: one of `OPTIMIZERS`.
        weight_decay: of SGD an L2 penalty of all parameters; of AdamW decoupled, and of those with two or more
            dimensions only: biases and norms do not decay.
        warm_up: share in [0, 1) of the training in which the learning rate rises.
        schedule: one of `SCHEDULES`, what the learning rate does after it has risen.
        micro_batch_size: most samples of one forward or backward pass on a worker; None for no limit.
        scoring_batch_size: most samples of a pass that scores, or that evaluates; None takes the meta-batch at
            once. It is halved where the device has too little memory.
        scoring_dtype: one of `DTYPES`: of the passes that score; "auto" takes that of the training passes.
        gradient_checkpointing: keep few activations for the backward pass, and compute the others again.
        channels_last: keep the weights of convolutions, and so what comes out of them, in channels last.
        compile: compile the model with `torch.compile`.
        backward_cost: forward passes that a backward pass counts as, in the cost of a run; None measures it.
        seed: of the initial weights.

    Raises:
        ConfigError: a value outside its domain.
    """

    learning_rate: float
    momentum: float = 0.9
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warm_up: float = 0.2
    schedule: str = "cosine"
    micro_batch_size: int | None = None
    scoring_batch_size: int | None = None
    scoring_dtype: str = "auto"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
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
        if not 0 <= as_number("warm_up", self.warm_up) < 1:
            raise errors.ConfigError(f"warm_up is a share of the training in [0, 1), got {self.warm_up}")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("scoring_dtype", DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise errors.ConfigError(f"unknown {name} {value!r}; {suggest(value, known)}")
        for name in ("micro_batch_size", "scoring_batch_size"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), least=1)
        if self.backward_cost is not None and not 0 < as_number("backward_cost", self.backward_cost) < math.inf:
            raise errors.ConfigError(f"backward_cost must be above 0 and finite, got {self.backward_cost}")
        as_integer("seed", self.seed, least=0, end=2**63)

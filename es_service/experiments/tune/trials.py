"""The trials of a search, as the report sees them."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["ENTRY", "FAILED", "FINISHED", "PRUNED", "RUNNING", "Live", "Trial"]

ENTRY = (
    *("epoch", "accuracy", "balanced_accuracy", "held_out_loss", "train_loss"),
    *("scored", "trained", "cost", "seconds"),
)
"""What is kept of an epoch, beside the task's metric by its name.

The last four are as of its end, preparing included; cost in full training runs.
"""
RUNNING, FINISHED, PRUNED, FAILED = "running", "finished", "pruned", "failed"


@dataclasses.dataclass(kw_only=True)
class Trial:
    """One training of a search.

    Args:
        number: its place in the order in which trials began.
        setting: number of its settings: trials of several seeds share it.
        settings: what is searched, with the values tried here.
        seed: of the training and the selection.
        run: name of its run in the search's storage.
        status: RUNNING until it ends; of a stopped search, those remain to be done.
        epochs: of its run, see `objectives.Epochs`.
        error: why it failed.
        retries: how often it was trained again after a failure.
        lost: what those failed attempts cost, in full training runs.
    """

    number: int
    setting: int
    settings: dict[str, Any]
    seed: int
    run: str
    status: str = RUNNING
    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None
    retries: int = 0
    lost: float = 0.0

    @property
    def cost(self) -> float:
        """What it has spent, in full training runs; without failed attempts."""
        return float(self.epochs[-1]["cost"]) if self.epochs else 0.0

    def begin_again(self) -> None:
        """Forget a failure and what led to it, but for its cost."""
        self.lost += self.cost
        self.retries += 1
        self.status, self.error, self.epochs = RUNNING, None, []


_ALIVE: dict[str, Any] = {}


class Live:
    """A base for such objects: at most one of a class is in use at a time."""

    def enter(self) -> None:
        """Make this the object that its class's name stands for."""
        _ALIVE[type(self).__name__] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (type(self).__name__,)


def _find(name: str) -> Any:
    return _ALIVE[name]

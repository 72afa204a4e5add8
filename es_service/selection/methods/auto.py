"""`auto`: Evolved Sampling whose share of each meta-batch follows from the run itself, epoch by epoch."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from es_service import errors
from es_service.selection import reductions
from es_service.selection.methods.evolved import Evolved
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed

__all__ = ["Auto", "auto"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Auto(Evolved):
    """Evolved Sampling that decides its share; make it with `auto()`."""

    name: ClassVar[str] = "auto"
    decides: ClassVar[bool] = True
    beta1: float = 0.2
    beta2: float = 0.9
    gate: float = 1.0
    times: float = 1.0
    floor: float = 0.0625

    def settings(self) -> dict[str, Any]:
        """Return the settings that are free."""
        return {"beta1": self.beta1, "beta2": self.beta2, "gate": self.gate, "times": self.times, "floor": self.floor}

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return all ids, with the share of this epoch's meta-batches to train on."""
        share = yield from self._share(prospect)
        if share is None or share + prospect.scoring_cost >= self.gate:
            decision = {"share": share, "ratio": 1.0}
        else:
            decision = {"share": share, "ratio": min(1.0, max(self.times * share, self.floor))}
        import os
        if os.environ.get("AUTO_SHOW"):
            print("AUTO", prospect.epoch, decision, flush=True)
        return Plan(ids=prospect.ids, ratio=decision["ratio"], decision=decision)

    def _share(self, prospect: Prospect) -> Agreed[float | None]:
        seen = prospect.column("visits") > 0
        [num] = yield from reductions.count(seen)
        if num == 0:
            return None
        weights = prospect.column("w")[seen]
        mean = yield from reductions.exact_mean(weights)
        square = yield from reductions.exact_mean((weights / (mean or 1.0)).astype("float32") ** 2)
        return 1.0 / square if square > 0 else None


def auto(beta1: float = 0.2, beta2: float = 0.9, *, gate: float = 1.0, times: float = 1.0, floor: float = 0.0625) -> Auto:
    """arXiv 2509.23461"""
    return Auto(beta1=beta1, beta2=beta2, gate=gate, times=times, floor=floor)

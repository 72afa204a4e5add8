"""What a run has behind it, besides its table, that the plan of its next epoch may depend on.

It is kept wherever the table is (snapshots, journal, checkpoints): a restart decides an epoch as it was decided before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from es_service.ledger import Ledger
from es_service.selection import decisions

__all__ = ["BEGINNING", "Past"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """See the module's text.

    Attributes:
        ledger: of the run, all ranks together, at the end of the epoch that was closed last; None before that.
        decision: that the last epoch which had one went by, see `Plan.decision`.
        time_saved: share of a full epoch's time that the last epoch saved; None where it selected nothing, or where
            too little was measured, see `Ledger.time_saved_since`.
    """

    ledger: Ledger | None = None
    decision: Mapping[str, Any] | None = None
    time_saved: float | None = None

    @property
    def scoring_cost(self) -> float:
        """What scoring a meta-batch costs, as a share of a full step over it; see `Ledger.scoring_cost`."""
        return (self.ledger or Ledger()).scoring_cost()

    def decision_of(self, epoch: int) -> Mapping[str, Any] | None:
        """Return the decision that an epoch went by, where it is the last one that had one."""
        return self.decision if self.decision is not None and self.decision["epoch"] == epoch else None

    def behind(self, ledgers: list[Ledger], decision: Mapping[str, Any] | None) -> Past:
        """Return what is behind a run after one more epoch, with this decision, and these ledgers of all ranks."""
        merged = Ledger.merge(ledgers) if ledgers else self.ledger
        saved = None if merged is None else merged.time_saved_since(self.ledger or Ledger())
        return Past(ledger=merged, decision=decision or self.decision, time_saved=saved)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, JSON-ready."""
        ledger = None if self.ledger is None else self.ledger.to_dict()
        return {"ledger": ledger, "decision": self.decision, "time_saved": self.time_saved}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Past:
        """Make it of `to_dict`'s values; AttributeError, KeyError, TypeError or ValueError where they are not that."""
        ledger, saved, decision = values["ledger"], values["time_saved"], decisions.checked(values["decision"])
        if saved is not None and (isinstance(saved, bool) or not isinstance(saved, float | int)):
            raise ValueError(f"not the time that an epoch saved: {saved!r}")
        return cls(ledger=None if ledger is None else Ledger.from_dict(ledger), decision=decision, time_saved=saved)


BEGINNING = Past()
"""Of a run that has no epoch behind it."""

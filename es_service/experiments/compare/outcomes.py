"""What came of a run, read back from its folder."""

from __future__ import annotations

import dataclasses
from typing import Any

from es_service.experiments.experiment_spec import RunSpec
from es_service.ledger import SECTIONS

__all__ = ["Measured", "Outcome"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a finished run measured.

    Args:
        accuracy, balanced_accuracy, held_out_loss: of the last epoch, on held-out samples.
        scored, trained: samples forwarded to be scored, and back-propagated; preparing included.
        seconds: by section, with "prepare", "rest" and "total"; None where the run shared its cores.
        accuracy_by_label, trained_by_label, label_shares, label_names: None where a sample has no single label; of a
            label without held-out samples the accuracy is None.
        corrupted_share: of the back-propagated samples, where labels were corrupted on purpose.
        corrupted_share_of_set: of the train set.
        history: per epoch.
    """

    accuracy: float
    balanced_accuracy: float | None
    held_out_loss: float
    scored: int
    trained: int
    full: int
    seconds: dict[str, float] | None
    accuracy_by_label: list[float | None] | None
    trained_by_label: list[float] | None
    label_shares: list[float] | None
    label_names: list[str] | None
    corrupted_share: float | None
    corrupted_share_of_set: float | None
    history: list[dict[str, Any]]

    @property
    def passes(self) -> int:
        """Forward-equivalents: a forward pass 1, a backward pass 2."""
        return self.scored + 3 * self.trained

    @classmethod
    def of(cls, result: dict[str, Any], *, exclusive: bool) -> Measured:
        """Take what is needed from the result of `training.job.train`."""
        samples, prepared = result["samples"], result["prepared"]
        corrupted = result["corrupted"] or {}
        return cls(
            accuracy=result["accuracy"],
            balanced_accuracy=result["balanced_accuracy"],
            held_out_loss=result["held_out_loss"],
            scored=samples["scored"] + prepared["scored"],
            trained=samples["trained"] + prepared["trained"],
            full=samples["full"],
            seconds=_seconds(result["seconds"], prepared["seconds"]) if exclusive else None,
            accuracy_by_label=result["accuracy_by_label"],
            trained_by_label=result["trained_by_label"],
            label_shares=result["label_shares"],
            label_names=result["label_names"],
            corrupted_share=corrupted.get("share_of_trained"),
            corrupted_share_of_set=corrupted.get("share_of_set"),
            history=[_epoch(one, prepared) for one in result["history"]],
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A run that ended.

    Args:
        spec: what it was.
        measured: what came of it; None where it failed.
        error: why it failed.
        wall_s: from its start to its end, loading and evaluation included.
        waited_share: of its time in which it was ready but other processes had its cores.
        machine: what it ran on, in words.
    """

    spec: RunSpec
    measured: Measured | None = None
    error: str | None = None
    wall_s: float = 0.0
    waited_share: float = 0.0
    machine: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        """Make an outcome of what the worker wrote."""
        result = values["result"]
        return cls(
            spec=RunSpec.from_dict(values["spec"]),
            measured=None if result is None else Measured.of(result, exclusive=values["exclusive"]),
            error=values["error"],
            wall_s=values["wall_s"],
            waited_share=values["waited_share"],
            machine=values["machine"],
        )


def _seconds(spent: dict[str, float], prepare: float) -> dict[str, float]:
    sections = {section: spent[section] for section in SECTIONS}
    rest = max(0.0, spent["total"] - sum(sections.values()))
    return {"prepare": prepare, **sections, "rest": rest, "total": spent["total"] + prepare}


def _epoch(entry: dict[str, Any], prepared: dict[str, Any]) -> dict[str, Any]:
    """Return an epoch's entry with the passes made by its end; preparing came before the first."""
    passes = entry["scored"] + prepared["scored"] + 3 * (entry["trained"] + prepared["trained"])
    return {**entry, "passes": passes}

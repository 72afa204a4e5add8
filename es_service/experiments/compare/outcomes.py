"""The outcome of a run, read back from its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from es_service.experiments.compare.comparison import Comparison
from es_service.ledger import SECTIONS
from es_service.training.spec import TrainingSpec

__all__ = ["SCORERS", "SECTION_NAMES", "Measured", "Outcome", "history_table", "metric_names", "results_table"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a finished run measured.

    Args:
        accuracy, balanced_accuracy, held_out_loss: of the last epoch, on held-out samples.
        metric: name of the one that the task is judged by.
        metrics: that one and the final ones, by name.
        scored, trained: samples forwarded to be scored, and back-propagated; preparing included.
        scorers: what scorers did beside the training: samples scored and trained on, seconds, and passes, counted in
            forward passes of the trained model; None without any.
        backward_cost: forward passes that a backward pass counts as.
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
    metric: str
    metrics: dict[str, float]
    scored: int
    trained: int
    full: int
    scorers: dict[str, float] | None
    backward_cost: float
    seconds: dict[str, float] | None
    accuracy_by_label: list[float | None] | None
    trained_by_label: list[float] | None
    label_shares: list[float] | None
    label_names: list[str] | None
    corrupted_share: float | None
    corrupted_share_of_set: float | None
    history: list[dict[str, Any]]

    @property
    def passes(self) -> float:
        """What was spent: a forward pass 1, a backward pass `backward_cost`; with what scorers spent."""
        return self.scored + (1 + self.backward_cost) * self.trained + self.scorer_passes

    @property
    def scorer_passes(self) -> float:
        """What scorers spent."""
        return self.scorers["passes"] if self.scorers else 0.0

    def value(self, metric: str) -> float | None:
        """Return what came of a metric, or of another figure of that name."""
        found: float | None = self.metrics.get(metric, getattr(self, metric, None))
        return found

    @classmethod
    def of(cls, result: dict[str, Any], *, exclusive: bool) -> Measured:
        """Take what is needed from the result of `training.driver.train`."""
        samples, prepared = result["samples"], result["prepared"]
        corrupted = result["corrupted"] or {}
        found = result.get("scorers")
        scorers = None if found is None else {name: found[name] for name in SCORERS}
        return cls(
            accuracy=result["accuracy"],
            balanced_accuracy=result["balanced_accuracy"],
            held_out_loss=result["held_out_loss"],
            metric=result["metric"],
            metrics=result["metrics"],
            scored=samples["scored"] + prepared["scored"],
            trained=samples["trained"] + prepared["trained"],
            full=samples["full"],
            scorers=scorers,
            backward_cost=result["backward_cost"],
            seconds=_seconds(result["seconds"], prepared["seconds"]) if exclusive else None,
            accuracy_by_label=result["accuracy_by_label"],
            trained_by_label=result["trained_by_label"],
            label_shares=result["label_shares"],
            label_names=result["label_names"],
            corrupted_share=corrupted.get("share_of_trained"),
            corrupted_share_of_set=corrupted.get("share_of_set"),
            history=_history(result, scorers),
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

    spec: TrainingSpec
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
            spec=TrainingSpec.from_dict(values["spec"]),
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


def _history(result: dict[str, Any], scorers: dict[str, float] | None) -> list[dict[str, Any]]:
    """Return the epochs with the passes made by the end of each.

    Preparing came before the first; what scorers spent is spread evenly over all.
    """
    prepared, backward_cost, epochs = result["prepared"], result["backward_cost"], result["history"]
    each = scorers["passes"] / len(epochs) if scorers else 0.0
    history = []
    for number, entry in enumerate(epochs, start=1):
        scored, trained = (entry[name] + prepared[name] for name in ("scored", "trained"))
        history.append({**entry, "passes": scored + (1 + backward_cost) * trained + number * each})
    return history


SECTION_NAMES = ("prepare", *SECTIONS, "rest")
SCORERS = ("scored", "trained", "seconds", "passes")
_F64, _I64, _TEXT = pa.float64(), pa.int64(), pa.string()
_RUNS = pa.schema(
    [
        ("run", _TEXT), ("label", _TEXT), ("method", _TEXT), ("settings", _TEXT), ("seed", _I64), ("epochs", _I64),
        ("batch_size", _I64), ("learning_rate", _F64), ("error", _TEXT), ("accuracy", _F64),
        ("balanced_accuracy", _F64), ("held_out_loss", _F64), ("scored", _I64), ("trained", _I64), ("full", _I64),
        ("scorer_passes", _F64), ("cost", _F64), *[(f"{name}_s", _F64) for name in (*SECTION_NAMES, "total", "wall")],
        ("corrupted_share", _F64), ("label_names", pa.list_(_TEXT)), ("label_shares", pa.list_(_F64)),
        ("trained_by_label", pa.list_(_F64)), ("accuracy_by_label", pa.list_(_F64)), ("waited_share", _F64),
        ("machine", _TEXT),
    ]
)  # fmt: skip
_EPOCHS = pa.schema(
    [
        ("run", _TEXT), ("label", _TEXT), ("seed", _I64), ("epoch", _I64), ("accuracy", _F64),
        ("balanced_accuracy", _F64), ("train_loss", _F64), ("held_out_loss", _F64), ("scored", _I64),
        ("trained", _I64), ("cost", _F64), ("seconds", _F64),
    ]
)  # fmt: skip


def results_table(comparison: Comparison, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return one row a run, with a column for each metric that the task names.

    What a run did not measure, or shared with another run, is null.
    """
    rows = [_run(comparison, one) for one in outcomes]
    return pa.Table.from_pylist(rows, schema=_with_metrics(_RUNS, outcomes))


def history_table(comparison: Comparison, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return one row for each epoch of each run; counts, cost and seconds are those of the run up to its end."""
    rows = [
        {
            **{name: entry.get(name) for name in _EPOCHS.names},
            **entry["metrics"],
            "run": one.spec.run,
            "label": one.spec.method,
            "seed": one.spec.seed,
            "cost": entry["passes"] / comparison.whole,
            "seconds": None if one.measured.seconds is None else entry["seconds"],
        }
        for one in outcomes
        if one.measured is not None
        for entry in one.measured.history
    ]
    return pa.Table.from_pylist(rows, schema=_with_metrics(_EPOCHS, outcomes))


def _with_metrics(schema: pa.Schema, outcomes: Sequence[Outcome]) -> pa.Schema:
    """Return the schema with a column for each further metric."""
    measured = [one.measured for one in outcomes if one.measured is not None]
    return pa.schema([*schema, *((name, _F64) for name in metric_names(measured) if name not in schema.names)])


def metric_names(measured: Sequence[Measured]) -> list[str]:
    """Return the metrics that these runs' tasks name, each once."""
    return list(dict.fromkeys(name for one in measured for name in one.metrics))


def _run(comparison: Comparison, outcome: Outcome) -> dict[str, Any]:
    spec, measured = outcome.spec, outcome.measured
    row: dict[str, Any] = {
        **{name: getattr(spec, name) for name in ("run", "seed", "epochs", "batch_size", "learning_rate")},
        "label": spec.method,
        "method": spec.selection.method.name,
        "settings": json.dumps(spec.selection.to_dict(), sort_keys=True),
        "error": outcome.error,
        "waited_share": outcome.waited_share,
        "machine": outcome.machine,
    }
    if measured is not None:
        own = [name for name in _RUNS.names if name not in row and hasattr(measured, name)]
        row.update({name: getattr(measured, name) for name in own})
        row.update(measured.metrics)
        row["cost"] = measured.passes / comparison.whole
        if measured.seconds is not None:
            row.update({f"{name}_s": seconds for name, seconds in measured.seconds.items()})
            row["wall_s"] = outcome.wall_s
    return row

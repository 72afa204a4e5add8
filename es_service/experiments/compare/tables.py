"""The Parquet files of a comparison: one row a run, and one row an epoch of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from es_service.experiments.compare.comparison import Comparison
from es_service.experiments.compare.outcomes import Outcome
from es_service.ledger import SECTIONS

__all__ = ["SECTION_NAMES", "history_table", "results_table"]

SECTION_NAMES = ("prepare", *SECTIONS, "rest")
_F64, _I64, _TEXT = pa.float64(), pa.int64(), pa.string()
_RUNS = pa.schema(
    [
        ("run", _TEXT), ("label", _TEXT), ("method", _TEXT), ("settings", _TEXT), ("seed", _I64), ("epochs", _I64),
        ("batch_size", _I64), ("learning_rate", _F64), ("error", _TEXT), ("accuracy", _F64),
        ("balanced_accuracy", _F64), ("held_out_loss", _F64), ("scored", _I64), ("trained", _I64), ("full", _I64),
        ("cost", _F64), *[(f"{name}_s", _F64) for name in (*SECTION_NAMES, "total", "wall")],
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
    """Return one row a run; what a run did not measure, or shared with another run, is null."""
    return pa.Table.from_pylist([_run(comparison, one) for one in outcomes], schema=_RUNS)


def history_table(comparison: Comparison, outcomes: Sequence[Outcome]) -> pa.Table:
    """Return one row for each epoch of each run; counts, cost and seconds are those of the run up to its end."""
    whole = _whole(comparison)
    rows = [
        {
            **{name: entry.get(name) for name in _EPOCHS.names},
            "run": one.spec.run,
            "label": one.spec.label,
            "seed": one.spec.seed,
            "cost": entry["passes"] / whole,
            "seconds": None if one.measured.seconds is None else entry["seconds"],
        }
        for one in outcomes
        if one.measured is not None
        for entry in one.measured.history
    ]
    return pa.Table.from_pylist(rows, schema=_EPOCHS)


def _whole(comparison: Comparison) -> int:
    """Return the passes of a full run."""
    return 3 * comparison.num_samples * comparison.epochs


def _run(comparison: Comparison, outcome: Outcome) -> dict[str, Any]:
    spec, measured = outcome.spec, outcome.measured
    row: dict[str, Any] = {
        **{name: getattr(spec, name) for name in ("run", "label", "seed", "epochs", "batch_size", "learning_rate")},
        "method": spec.selection["method"],
        "settings": json.dumps(spec.selection, sort_keys=True),
        "error": outcome.error,
        "waited_share": outcome.waited_share,
        "machine": outcome.machine,
    }
    if measured is not None:
        own = [name for name in _RUNS.names if name not in row and hasattr(measured, name)]
        row.update({name: getattr(measured, name) for name in own})
        row["cost"] = measured.passes / _whole(comparison)
        if measured.seconds is not None:
            row.update({f"{name}_s": seconds for name, seconds in measured.seconds.items()})
            row["wall_s"] = outcome.wall_s
    return row

"""What an observation makes of the records of its samples, in numpy; `compiled_step` has the same in machine code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.selection.config import Selection
from es_service.selection.methods.base import Columns

__all__ = ["observed"]


def observed(selection: Selection, records: NDArray[np.void], seen: Columns, run_step: int) -> NDArray[np.void]:
    """Turn records[B] of a table, in place, into what they are after this observation, and return them.

    Args:
        selection: names the method.
        records: of distinct samples.
        seen: their signals.
        run_step: step counted over the whole run.
    """
    method, losses_B = selection.method, seen["loss"]
    old = {name: np.ascontiguousarray(records[name]) for name in method.reads}
    for name, values_B in method.update(old, seen[selection.signal], seen).items():
        records[name] = values_B
    for name in method.columns:
        if name in seen:
            records[name] = seen[name]
    visits, mean, variance = records["visits"], records["loss_mean"], records["loss_var"]  # views
    visits += np.uint32(1)
    share = np.reciprocal(visits.astype(np.float32))
    # Welford: var_t = var_{t-1} + ((ℓ - mean_{t-1})·(ℓ - mean_t) - var_{t-1}) / t
    surprise = losses_B - mean
    mean += surprise * share
    surprise *= losses_B - mean
    surprise -= variance
    surprise *= share
    variance += surprise
    records["last_loss"] = losses_B
    records["last_step"] = run_step
    return records

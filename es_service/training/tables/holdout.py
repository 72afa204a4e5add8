"""A share of the samples is held out, always the same ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.training.tasks.splits import stratified_split

__all__ = ["split"]


def split(
    n: int, share: float, labels_n: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows to train on and those to hold out, both in ascending order; always the same for an n.

    Args:
        n: number of rows.
        share: in (0, 1), of the rows of each class (rounded down) to hold out.
        labels_n: the class of each row; None for no classes.

    Raises:
        DataError: that would leave no row to train on, or hold none out.
    """
    train_rows, held_out_rows = stratified_split(np.zeros(n, dtype=np.int64) if labels_n is None else labels_n, share)
    if not train_rows.size or not held_out_rows.size:
        of = "" if labels_n is None else f" in {np.unique(labels_n).size} classes"
        raise errors.DataError(
            f"holding out {share} of {n} samples{of} leaves {train_rows.size} to train on and {held_out_rows.size} "
            "held out: give more samples, another share, or a file (--held-out)"
        )
    return np.sort(train_rows), np.sort(held_out_rows)

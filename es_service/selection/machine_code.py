"""The hot loops, compiled by numba: what `keys`, `draws.keyed` and `Engine` do in numpy, bit for bit.

numpy goes through the samples once for every operation, at a microsecond a call; these go through them once. Logarithms
stay with numpy: those of another library differ in their last bit. Nothing here may be contracted or reordered, so no
`fastmath`.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from es_service.selection.table import RECORD

__all__ = ["add_selected", "observe_averages", "race_keys", "uniforms"]

_S, _W, _LAST_LOSS, _LOSS_MEAN, _LOSS_VAR, _VISITS, _SELECTED, _LAST_STEP = range(len(RECORD.names or ()))
_ONE_VISIT, _ONE = np.uint32(1), np.float32(1)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    try:
        return numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # there is no folder to keep machine code in: every process compiles its own
        return numba.njit(error_model="numpy")(function)


@_compiled
def uniforms(
    ids_B: NDArray[np.int64],
    stream: np.uint64,
    factors: tuple[np.uint64, np.uint64, np.uint64],
    out_B: NDArray[np.float64],
) -> None:
    """Write the numbers of `keys.uniforms` for one stream; the factors are those of its hash."""
    golden, mix_1, mix_2 = factors
    for i in range(ids_B.size):
        z = np.uint64(ids_B[i]) * golden + stream
        z = (z ^ (z >> np.uint64(30))) * mix_1
        z = (z ^ (z >> np.uint64(27))) * mix_2
        z ^= z >> np.uint64(31)
        out_B[i] = (np.float64(z >> np.uint64(12)) + 0.5) * 2.0**-52


@_compiled
def race_keys(weights_B: NDArray[np.float64], least: float, logarithms_B: NDArray[np.float64]) -> None:
    """Turn logarithms of uniforms into the arrival times of `draws.keyed.race_keys`, in place."""
    for i in range(weights_B.size):
        logarithms_B[i] = -(logarithms_B[i] / max(weights_B[i], least))


@_compiled
def observe_averages(
    words_n: tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.int32]],
    rows_B: NDArray[np.int64],
    values_B: NDArray[np.float32],
    losses_B: NDArray[np.float32],
    betas: tuple[np.float32, np.float32, np.float32, np.float32],
    run_step: np.int32,
    weights_B: NDArray[np.float32],
) -> None:
    """Observe in place what `Engine` observes of a method with two averages; write the new weights to weights_B.

    Args:
        words_n: the table's records as [n, words], three views of the same memory.
        rows_B: distinct, and there.
        values_B: what the method goes by.
        losses_B: of the same samples.
        betas: β1, 1-β1, β2, 1-β2.
        run_step: int32.
        weights_B: w of each.
    """
    floats, counts, steps = words_n
    beta1, rest1, beta2, rest2 = betas
    for i in range(rows_B.size):
        weights_B[i] = beta1 * floats[rows_B[i], _S] + rest1 * values_B[i]  # by itself: the rows come in side by side
    for i in range(rows_B.size):
        row, loss = rows_B[i], losses_B[i]
        floats[row, _S] = beta2 * floats[row, _S] + rest2 * values_B[i]
        floats[row, _W] = weights_B[i]
        floats[row, _LAST_LOSS] = loss
        counts[row, _VISITS] += _ONE_VISIT
        share = _ONE / np.float32(counts[row, _VISITS])
        surprise = loss - floats[row, _LOSS_MEAN]
        mean = floats[row, _LOSS_MEAN] + surprise * share
        floats[row, _LOSS_MEAN] = mean
        variance = floats[row, _LOSS_VAR]
        floats[row, _LOSS_VAR] = variance + (surprise * (loss - mean) - variance) * share
        steps[row, _LAST_STEP] = run_step


@_compiled
def add_selected(counts_n: NDArray[np.uint32], rows_b: NDArray[np.int64]) -> None:
    """Count these rows as back-propagated once more."""
    for i in range(rows_b.size):
        counts_n[rows_b[i], _SELECTED] += _ONE_VISIT

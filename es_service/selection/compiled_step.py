"""A step in machine code, for methods with two averages: in place, with the bits of `Engine` in numpy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from es_service.selection import compiled, draws, keys
from es_service.selection.config import Selection
from es_service.selection.methods.base import Columns, Method
from es_service.selection.table import Words

__all__ = ["CompiledStep"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class CompiledStep:
    """What `Engine` does to a batch's rows, compiled.

    Args:
        code: the loops.
        selection: of a method with two averages.
        averages: β1, β2.
    """

    def __init__(self, code: ModuleType, selection: Selection, averages: tuple[float, float]) -> None:
        self._code = code
        self._seed, self._signal = selection.seed, selection.signal
        self._betas = tuple(np.float32(share) for beta in averages for share in (beta, 1.0 - beta))
        as_they_are = type(selection.method).weigh is Method.weigh and selection.cap == selection.power == 1.0
        self.races = selection.draw == "race" and as_they_are
        """Whether the selection draws by `race`."""

    @classmethod
    def of(cls, selection: Selection) -> CompiledStep | None:
        """Make it, or return None where numpy has to do the work."""
        averages = selection.method.averages
        code = None if averages is None else compiled.loops()
        return None if code is None or averages is None else cls(code, selection, averages)

    def observe(self, words_n: Words, rows_B: I64, seen: Columns, run_step: int) -> F32:
        """Observe in place; return the new weights float32[B]."""
        weights_B = np.empty(rows_B.size, dtype=np.float32)
        observation = (rows_B, seen[self._signal], seen["loss"], self._betas, np.int32(run_step), weights_B)
        self._code.observe_averages(words_n, *observation)
        return weights_B

    def race(
        self, words_n: Words, rows_B: I64, ids_B: I64, seen: Columns, num: int, run_step: int
    ) -> tuple[draws.Drawn, F32]:
        """Observe in place, and draw num < B by the new weights; return these, float32[B], too."""
        weights_B = np.empty(rows_B.size, dtype=np.float32)
        keys_B = np.empty(rows_B.size)
        observation = (rows_B, seen[self._signal], seen["loss"], self._betas, np.int32(run_step), weights_B)
        stream = keys.stream(self._seed, keys.Purpose.DRAW, run_step)
        self._code.observe_and_hash(words_n, *observation, ids_B, stream, keys.FACTORS, keys_B)
        np.log(keys_B, out=keys_B)
        if not self._code.arrivals(weights_B, draws.TINY, keys_B):
            draws.check_weights(weights_B, num)
        return draws.first_arrivals(weights_B, keys_B, num), weights_B

    def add_selected(self, words_n: Words, rows_b: I64) -> None:
        """Count these rows as back-propagated once more."""
        self._code.add_selected(words_n, rows_b)

"""A proxy in a process of its own: what a scorer's actor does."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import cloudpickle

__all__ = ["ScorerHost"]


class ScorerHost:
    """Calls a proxy, one call after the other, in the order in which they were made.

    begin → (score | load)* → state …

    A failed `score` may have changed the proxy. Its caller then does without it, see `es_service.scorer`.
    """

    def __init__(self) -> None:
        self._proxy: Any = None

    def begin(self, make: bytes) -> None:
        """Make the proxy with a function, see `es_service.Scorer`, pickled by cloudpickle; its errors are raised."""
        self._proxy = cloudpickle.loads(make)()

    def score(self, ids_B: NDArray[np.int64], at: float) -> tuple[Any, float]:
        """Return the losses float32[B] of these samples, or signals by name, and the seconds it took."""
        began = time.monotonic()
        signals = self._proxy(ids_B, at)
        return signals, time.monotonic() - began

    def state(self) -> Any:
        """Return what a checkpoint needs of the proxy, None where it keeps nothing."""
        return self._proxy.state() if hasattr(self._proxy, "state") else None

    def load(self, state: Any) -> None:
        """Give the proxy a state, or new weights; the calls after this one see them."""
        self._proxy.load(state)

"""Whether the hot loops run as machine code: where numba is installed (extra `fast`) they do, with the same bits."""

from __future__ import annotations

import functools
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.environment import COMPILED, compiled_wanted

__all__ = ["all_within", "loops"]


@functools.cache
def loops() -> ModuleType | None:
    """Return the compiled loops, `es_service.selection.machine_code`, or None where numpy does the work.

    The first call imports numba (half a second), and compiles what no earlier process has compiled (a few seconds).

    Raises:
        ConfigError: they are asked for, but numba is not installed.
    """
    wanted = compiled_wanted()
    if wanted is False:
        return None
    try:
        from es_service.selection import machine_code
    except ImportError as error:
        if wanted:
            raise errors.ConfigError(
                f"{COMPILED}=1 asks for compiled loops, but numba cannot be imported ({error}): "
                "pip install 'es-service[fast]'"
            ) from error
        return None
    return machine_code


def all_within(values_B: NDArray[np.floating], least: float, most: float) -> bool:
    """Return whether every one of values_B, at least one, lies between the two; NaN never does."""
    if (code := loops()) is not None:
        word = values_B.dtype.type
        return bool(code.all_within(values_B, word(least), word(most)))
    return bool(least <= values_B.min() and values_B.max() <= most)  # neither holds for NaN

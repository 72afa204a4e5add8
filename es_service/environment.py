"""Environment variables that concern the package as a whole."""

from __future__ import annotations

import os

from es_service import errors

__all__ = ["COMPILED", "compiled_wanted"]

COMPILED = "ES_SERVICE_COMPILED"


def compiled_wanted() -> bool | None:
    """Return whether the hot loops are to run as machine code; None: where numba is installed.

    Raises:
        ConfigError: ES_SERVICE_COMPILED is neither 0 nor 1 nor empty.
    """
    said = os.environ.get(COMPILED, "")
    if said not in ("", "0", "1"):
        raise errors.ConfigError(f"{COMPILED} must be 0 (never), 1 (always) or unset (where numba is), got {said!r}")
    return None if said == "" else said == "1"

"""Adapters for the frameworks that people train in, one module or package each: `es.integrations.ray.save`, and so on.

Nothing is imported before it is used; each module needs its framework, which an extra of the same name installs.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    module = f"{__name__}.{name}"
    if name.startswith("_") or importlib.util.find_spec(module) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(module)

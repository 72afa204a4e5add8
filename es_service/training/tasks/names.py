"""Names of tasks of the user's own: read and looked for without importing anything."""

from __future__ import annotations

import importlib.util
import os
import sys

from es_service import errors

__all__ = ["check_importable", "split_name"]


def split_name(spec: str) -> tuple[str, str]:
    """Return module and function of "package.module:function"; ConfigError where it is not of that form.

    From then on modules in the current directory can be imported, as for `python -m`.
    """
    module, _, function = spec.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise errors.ConfigError(f"task {spec!r} is not of the form module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    return module, function


def check_importable(spec: str) -> None:
    """Raise ConfigError where the package of "package.module:function" is not there."""
    package = split_name(spec)[0].partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise errors.ConfigError(
            f"task {spec!r}: no module {package!r} is installed or in the current directory, {os.getcwd()}"
        )

"""What users and other packages add: functions by `module:function`, and entry points. Nothing is imported unasked."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from es_service import errors

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["check_importable", "load", "package_of", "registered"]


def check_importable(what: str, spec: str) -> None:
    """Raise ConfigError where the package of "package.module:function" is not there; it is not imported.

    Args:
        what: what messages call it, e.g. "task 'my_module:build_task'".
        spec: "package.module:function".
    """
    package = _split(what, spec)[0].partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise errors.ConfigError(f"{what}: {_missing(package)}")


def load(what: str, spec: str) -> Callable[..., Any]:
    """Import a module and return the function that "package.module:function" names.

    Raises:
        ConfigError: it is not of this form, the module cannot be imported, or has no such function.
    """
    module_name, function_name = _split(what, spec)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # another's module may raise anything
        if isinstance(error, ImportError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise errors.ConfigError(f"{what}: {_missing(error.name)}") from error
        why = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise errors.ConfigError(f"{what}: importing {module_name!r} failed: {why}") from error
    found: Any = module
    for part in function_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        where = getattr(module, "__file__", None) or module_name
        raise errors.ConfigError(f"{what}: there is no function {function_name!r} in {where}")
    function: Callable[..., Any] = found
    return function


def registered(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of a group by name: from the metadata of the packages on sys.path."""
    return _registered(group, tuple(sys.path))


@functools.lru_cache(maxsize=4)
def _registered(group: str, path: tuple[str, ...]) -> Mapping[str, tuple[EntryPoint, ...]]:  # noqa: ARG001 - a key
    from importlib.metadata import entry_points

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=group):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def package_of(entry: EntryPoint) -> str:
    """Return name and version of the package that registers an entry point."""
    return "?" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _split(what: str, spec: str) -> tuple[str, str]:
    """Return module and function; from then on modules in the current directory can be imported, as for `python -m`."""
    module, _, function = spec.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *function.split(".")]):
        raise errors.ConfigError(f"{what} is not of the form module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    return module, function


def _missing(package: str) -> str:
    return f"no module {package!r} is installed or in the current directory, {os.getcwd()}"

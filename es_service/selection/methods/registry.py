"""Methods by name: built in, registered by an installed package, or `module:factory` of the user's own.

A method's package is imported once its name is used, and not before. Files and messages carry a name and settings;
`Recorded` stands for a method that a reader of files does not import.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from es_service import errors, plugins
from es_service.selection.methods import METHODS
from es_service.selection.methods.base import Method
from es_service.selection.methods.presets import ALIASES, PRESETS
from es_service.selection.settings import suggest
from es_service.selection.signals import SIGNALS
from es_service.selection.table import FURTHER_COLUMNS

__all__ = [
    "GROUP",
    "Recorded",
    "build",
    "check_class",
    "check_remade",
    "find",
    "make",
    "preset_name",
    "record",
    "reference",
]

GROUP = "es_service.methods"
"""The entry-point group in which a package registers its methods: name -> factory."""
_NAME = re.compile(r"[\w.-]+(:[\w.<>]+)?")
_BUILT_IN = frozenset({*METHODS, *PRESETS, "short_full"})


def find(name: str, known: Iterable[str]) -> Callable[..., Method]:
    """Import and return the factory of a method that is not built in.

    Args:
        name: of an entry point, or module:factory.
        known: names to suggest, besides those that packages register.

    Raises:
        ConfigError: no such method, or its module or factory cannot be used.
    """
    if not isinstance(name, str):
        raise errors.ConfigError(f"method must be a string, got {name!r}")
    if ":" in name:
        return plugins.load(f"method {name!r}", name)
    found = plugins.registered(GROUP)
    if name in _BUILT_IN or name not in found:
        others = [other for other in found if other not in _BUILT_IN]
        raise errors.ConfigError(
            f"unknown method {name!r}; {suggest(name, [*known, *others])} (a method of another package needs that "
            "package wherever a process of the run is; your own method is module:factory)"
        )
    packages = [plugins.package_of(entry) for entry in found[name]]
    spec = "".join(found[name][0].value.partition("[")[0].split())
    if len(packages) > 1:
        raise errors.ConfigError(
            f"method {name!r} is registered by {' and by '.join(packages)}: uninstall one, or name the factory itself, "
            f"e.g. {spec}"
        )
    return plugins.load(f"method {name!r} of package {packages[0]}", spec)


def preset_name(name: str) -> str:
    """Return the preset that a name means, which may have dashes or be the method's own; any other name as it is.

    Raises:
        ConfigError: a package registers the name of a built-in method, which would be ambiguous.

    Example:
        >>> [preset_name(name) for name in ("selective-backprop", "evolved", "my-module:mine")]
        ['selective_backprop', 'es', 'my-module:mine']
    """
    word = name.replace("-", "_")
    known = ALIASES.get(word, word)
    if known not in _BUILT_IN:
        return name
    for entry in plugins.registered(GROUP).get(name, ()):
        raise errors.ConfigError(
            f"method {name!r} is built in, and package {plugins.package_of(entry)} registers the same name: uninstall "
            f"it, or ask its authors for another name (its own method is {entry.value})"
        )
    return known


def build(name: str, factory: Callable[..., Any], /, **settings: Any) -> Method:
    """Return what a factory that is not built in makes of these settings.

    Raises:
        ConfigError: it does not take them, raises, or returns no Method.
    """
    try:
        inspect.signature(factory).bind(**settings)
    except TypeError as error:
        given = ", ".join(settings) or "none"
        raise errors.ConfigError(f"method {name!r} cannot be made with these settings ({given}): {error}") from error
    except ValueError:  # written in C: it has no signature
        pass
    try:
        method = factory(**settings)
    except errors.EsServiceError:
        raise
    except Exception as error:  # another's code may raise anything
        raise errors.ConfigError(f"method {name!r}: its factory raised {type(error).__name__}: {error}") from error
    if not isinstance(method, Method):
        raise errors.ConfigError(
            f"method {name!r}: its factory must return an es.methods.Method, got {type(method).__name__}"
        )
    return method


def make(name: str, settings: Mapping[str, Any]) -> Method:
    """Return the method of a name in METHODS, of an entry point, or of module:factory; ConfigError for others."""
    if isinstance(name, str) and name in METHODS:
        return METHODS[name](**settings)
    return build(name, find(name, METHODS), **settings)


def record(name: Any, settings: Any) -> Recorded:
    """Return a placeholder for a method that is not imported; ConfigError unless this is a name and settings."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(settings, Mapping):
        raise errors.ConfigError(f"not a method's name and settings: {name!r}, {settings!r}")
    return Recorded(recorded_name=name, recorded_settings=json.dumps(dict(settings)))


def reference(method: Method) -> str:
    """Return the name by which `make` finds a method's class again, in whatever process."""
    kind = type(method)
    if isinstance(method, Recorded) or _is_built_in(kind):
        return method.name
    if method.name in plugins.registered(GROUP):
        try:
            if type(build(method.name, find(method.name, ()))) is kind:
                return method.name
        except errors.ConfigError:  # another's of this name
            pass
    return f"{kind.__module__}:{kind.__qualname__}"


def _is_built_in(kind: type[Method]) -> bool:
    return kind.__module__.startswith(f"{__package__}.")


def check_class(method: Method) -> None:
    """Raise ConfigError where a method has no name or another's, or asks for signals or columns that do not exist."""
    name, kind = getattr(method, "name", None), type(method)
    if not isinstance(name, str) or not name:
        raise errors.ConfigError(f"{kind.__module__}:{kind.__qualname__} has no name: give the class name = 'my_name'")
    if name in _BUILT_IN and not _is_built_in(kind):
        raise errors.ConfigError(
            f"{kind.__module__}:{kind.__qualname__} has the name {name!r}, which is built in: give it another one"
        )
    for what, given, known in (("observes", kind.observes, SIGNALS), ("columns", kind.columns, FURTHER_COLUMNS)):
        for one in given:
            if one not in known:
                raise errors.ConfigError(f"method {name!r} has {one!r} among its {what}; {suggest(str(one), known)}")


def check_remade(name: str, method: Method, taken: Iterable[str]) -> None:
    """Raise ConfigError unless other processes can make a method of another package again from name and settings.

    Args:
        name: what messages call it.
        method: to check.
        taken: names that its settings must not have, because `Selection` has settings of these names.
    """
    settings = method.settings()
    if both := set(settings) & set(taken):
        raise errors.ConfigError(
            f"method {name!r} has a setting {min(both)!r}, which is the name of a setting of every selection: give it "
            "another one"
        )
    try:
        again = make(reference(method), json.loads(json.dumps(settings, allow_nan=False)))
    except (errors.ConfigError, TypeError, ValueError) as error:
        raise errors.ConfigError(
            f"method {name!r} cannot be made again from its settings {settings}, which other processes do: {error}"
        ) from error
    if again != method:
        raise errors.ConfigError(
            f"method {name!r} is not the same when it is made again from its settings: {again} instead of {method}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Recorded(Method):
    """A method of another package as a file names it: good for reading about the run, not for training."""

    recorded_name: str
    recorded_settings: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """Return what the file calls it."""
        return self.recorded_name

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Raise ConfigError: its code was not imported."""
        raise errors.ConfigError(f"method {self.name!r} was read from a file and not imported: use Selection.loaded()")

    def settings(self) -> dict[str, Any]:
        """Return the settings as the file has them."""
        settings: dict[str, Any] = json.loads(self.recorded_settings)
        return settings

"""Selections by the short name of a method, as a command line or a file gives it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from es_service import errors
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.methods import registry
from es_service.selection.methods.presets import PRESETS
from es_service.selection.settings import suggest

__all__ = ["PRESETS", "preset"]


def preset(name: str, **settings: Any) -> Selection:
    """Make a Selection from a method's short name; `settings` are the method's own or those of `Selection`.

    Args:
        name: in PRESETS (or what `preset_name` takes for one), of an entry point in the group "es_service.methods", or
            module:factory.
        settings: as far as they differ from the defaults.

    Raises:
        ConfigError: an unknown name or setting (the nearest one is suggested), or one that changes nothing for this
            method.

    Example:
        >>> preset("eswp", beta1=0.1).to_dict()["settings"]
        {'beta1': 0.1, 'beta2': 0.8, 'prune_by': 'w'}
    """
    name = registry.preset_name(name) if isinstance(name, str) else name
    if isinstance(name, str) and name in PRESETS:
        method_name, defaults = PRESETS[name]
        make: Callable[..., methods.Method] = methods.METHODS[method_name]
    else:
        make, defaults = functools.partial(registry.build, name, registry.find(name, PRESETS)), {}
    method_settings = list(make().settings())
    own_settings = [field.name for field in dataclasses.fields(Selection) if field.name != "method"]
    for key in settings:
        if key not in method_settings and key not in own_settings:
            raise errors.ConfigError(
                f"method {name!r} has no setting {key!r}; {suggest(key, method_settings + own_settings)}"
            )
    merged = {**defaults, **settings}
    try:
        method = make(**{key: merged.pop(key) for key in method_settings if key in merged})
        selection = Selection(method, **merged)
    except TypeError as error:  # a word where a number belongs
        raise errors.ConfigError(f"a setting of method {name!r} has the wrong type: {error}") from error
    if name not in PRESETS:
        registry.check_remade(name, method, own_settings)
    usual = {field.name: field.default for field in dataclasses.fields(Selection)} | dict(defaults)
    for key in _inert(method):
        if getattr(selection, key) != usual[key]:
            takes = "a uniform draw" if method.selects else "all of a meta-batch"
            raise errors.ConfigError(
                f"method {name!r} trains on {takes}, so {key}={getattr(selection, key)!r} would change nothing: "
                "leave it out"
            )
    return selection


def _inert(method: methods.Method) -> tuple[str, ...]:
    """Return the settings of `Selection` that a method pays no heed to."""
    if not method.selects:
        return ("ratio", "draw", "reweight", "power", "cap", "score_every", "score_share", "interrupt")
    return () if method.needs_losses else ("draw", "power", "cap", "score_every", "score_share")

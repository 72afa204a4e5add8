"""Methods that an object passes on to one of its parts: an actor has the methods of its class, and no others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

__all__ = ["passed_to"]

P = ParamSpec("P")
R = TypeVar("R")
Whole = TypeVar("Whole")
Part = TypeVar("Part")


def passed_to(
    part_of: Callable[[Whole], Part], method: Callable[Concatenate[Part, P], R]
) -> Callable[Concatenate[Whole, P], R]:
    """Return a method, of the same signature and text, that calls this method of a part."""

    @functools.wraps(method)
    def run(self: Whole, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(part_of(self), *args, **kwargs)

    return cast("Callable[Concatenate[Whole, P], R]", run)

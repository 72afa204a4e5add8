"""Objects that `Tuner.restore` finds again instead of unpickling a copy.

Ray Tune pickles searcher, scheduler and callbacks when a Tuner is made, and `Tuner.restore` unpickles them. Those here
pickle to a name: a restored search asks the objects of the command that resumes it, with its --samples, its progress
bar and its handlers of signals. What they have to remember is in Ray Tune's own state of the experiment.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Live"]

_ALIVE: dict[str, Any] = {}


class Live:
    """A base for such objects: at most one of a class is in use at a time."""

    def enter(self) -> None:
        """Make this the object that its class's name stands for."""
        _ALIVE[type(self).__name__] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (type(self).__name__,)


def _find(name: str) -> Any:
    return _ALIVE[name]

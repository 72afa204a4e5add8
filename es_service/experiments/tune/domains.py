"""The domain of a setting in a search: `uniform(0, 0.5)`, `choice(race, systematic)`, `grid(0.7, 0.8, 0.9)`, …

Names and meanings are Ray Tune's: `randint` leaves its upper end out, those with a step leave nothing out.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from es_service import errors
from es_service.selection.settings import as_plain, suggest

__all__ = ["KINDS", "Domain", "domain_of", "parse_domain"]

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "uniform": "uniform(low, high)",
        "quniform": "quniform(low, high, step)",
        "loguniform": "loguniform(low, high)",
        "randint": "randint(low, high)",
        "qrandint": "qrandint(low, high, step)",
        "lograndint": "lograndint(low, high)",
        "choice": "choice(a, b, …)",
        "grid": "grid(a, b, …)",
    }
)
"""Name -> how it is written."""

_OF_VALUES = ("choice", "grid")
_INTEGERS = ("randint", "qrandint", "lograndint")
_LOG = ("loguniform", "lograndint")
_STEPPED = ("quniform", "qrandint")
_DIGITS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Domain:
    """What a setting may be.

    Args:
        kind: a name in KINDS.
        low, high: the ends; None where `values` lists all there are. Of "randint" and "lograndint" `high` is left out.
        step: of "quniform" and "qrandint": low, low + step, … up to high.
        values: of "choice" and "grid".

    Raises:
        ConfigError: an unknown kind, ends that leave nothing between them, or no values.
    """

    kind: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    values: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # ends of integers stay integers
            object.__setattr__(self, field.name, as_plain(getattr(self, field.name)))
        if self.kind not in KINDS:
            raise errors.ConfigError(f"unknown kind of search space {self.kind!r}; {suggest(self.kind, KINDS)}")
        if self.kind in _OF_VALUES:
            if not self.values:
                raise errors.ConfigError(f"{self.kind}() holds no value: write {KINDS[self.kind]}")
            doubles = [one for k, one in enumerate(self.values) if one in self.values[:k]]
            if doubles:
                raise errors.ConfigError(f"{self} names {doubles[0]!r} twice: leave one out")
            return
        for name in ("low", "high") + (("step",) if self.kind in _STEPPED else ()):
            self._check_number(name, getattr(self, name))
        low, high = self._ends()
        if not low < high:
            raise errors.ConfigError(f"{self} holds nothing: its lower end must be below its upper end")
        if self.kind in _LOG and not low > 0:
            raise errors.ConfigError(f"{self} must begin above 0: it is drawn on a logarithmic scale")
        if self.step is not None and not 0 < self.step <= high - low:
            raise errors.ConfigError(f"{self}: its step must lie in (0, high - low], got {self.step}")

    def _check_number(self, name: str, value: Any) -> None:
        whole = self.kind in _INTEGERS
        good = isinstance(value, int) if whole else isinstance(value, (int, float)) and math.isfinite(value)
        if isinstance(value, bool) or not good:
            kind = "whole number" if whole else "finite number"
            raise errors.ConfigError(f"{KINDS[self.kind]}: {name} must be a {kind}, got {value!r}")

    def _ends(self) -> tuple[float, float]:
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def __str__(self) -> str:
        if self.kind in _OF_VALUES:
            words = ", ".join(map(str, self.values))
            alone = len(self.values) == 1 and isinstance(self.values[0], list)
            return f"{self.kind}([{words}])" if alone else f"{self.kind}({words})"
        return f"{self.kind}({', '.join(str(one) for one in (self.low, self.high, self.step) if one is not None)})"

    @property
    def is_log(self) -> bool:
        """Whether it is drawn on a logarithmic scale."""
        return self.kind in _LOG

    @property
    def is_integer(self) -> bool:
        """Whether its values are whole numbers between two ends."""
        return self.kind in _INTEGERS

    @property
    def is_numeric(self) -> bool:
        """Whether all its values are numbers."""
        return not self.values or all(
            isinstance(one, (int, float)) and not isinstance(one, bool) for one in self.values
        )

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All its values in order, where they are written down; None for a range."""
        return self.values if self.kind in _OF_VALUES else None

    @property
    def last(self) -> float:
        """The largest value that a range can give, as far as it can be named."""
        low, high = self._ends()
        if self.step is not None:
            return self._tidy(low + self._num_steps() * self.step)
        return high - 1 if self.is_integer else high

    def extremes(self) -> tuple[Any, ...]:
        """Return the values that stand for all of them when settings are checked: both ends, or every listed one."""
        return self.values if self.kind in _OF_VALUES else (self._ends()[0], self.last)

    def at(self, share: float) -> Any:
        """Return the value at a share in [0, 1) of the domain: uniform shares give the domain's law.

        Example:
            >>> [parse_domain(text).at(0.5) for text in ("uniform(0, 0.5)", "choice(race, topk)", "randint(1, 5)")]
            [0.25, 'topk', 3]
        """
        if self.kind in _OF_VALUES:
            return self.values[int(share * len(self.values))]
        low, high = self._ends()
        if self.step is not None:
            return self._tidy(low + int(share * (self._num_steps() + 1)) * self.step)
        value = low * (high / low) ** share if self.is_log else low + share * (high - low)
        return self.tidy(value)

    def tidy(self, value: Any) -> Any:
        """Return a drawn value as it is trained with and written down: six digits of a number, inside the ends."""
        if self.kind in _OF_VALUES:
            return value
        low, _ = self._ends()
        return min(max(self._tidy(value), low), self.last)

    def holds(self, value: Any) -> bool:
        """Return whether this value is one that the domain can give."""
        if self.kind in _OF_VALUES:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int if self.is_integer else (int, float)):
            return False
        low, _ = self._ends()
        on_step = self.step is None or abs((value - low) / self.step - round((value - low) / self.step)) < 1e-9
        return low <= value <= self.last and on_step

    @property
    def num_values(self) -> float:
        """How many values it can give, infinity for a range of floats."""
        if self.listed is not None:
            return len(self.listed)
        if self.step is None:
            return self.last - self._ends()[0] + 1 if self.is_integer else math.inf
        return self._num_steps() + 1

    def places(self) -> tuple[Any, Any]:
        """Return the range of its places in a search: the values' numbers where they are listed or stepped."""
        if self.listed is None and self.step is None:
            return self.extremes()[0], self.last
        return 0, int(self.num_values) - 1

    def place(self, value: Any) -> Any:
        """Return the place of a value, between `places`."""
        if self.listed is not None:
            return self.listed.index(value)
        return value if self.step is None else round((value - self._ends()[0]) / self.step)

    def value(self, place: Any) -> Any:
        """Return the value at a place."""
        if self.listed is not None:
            return self.listed[int(place)]
        return self.tidy(place if self.step is None else self._ends()[0] + int(place) * self.step)

    def _num_steps(self) -> int:
        low, high = self._ends()
        return int((high - low) / (self.step or 1) + 1e-9)

    def _tidy(self, value: float) -> float:
        return int(value) if self.is_integer else float(f"{value:.{_DIGITS}g}")


def parse_domain(text: str) -> Domain:
    """Return the domain that a text like "uniform(0, 0.5)" describes; a word needs no quotation marks.

    Raises:
        ConfigError: it is not such a text, or see `Domain`.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.keywords:
            raise ValueError("no call")
        name, words = tree.func.id, [_value(one) for one in tree.args]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise errors.ConfigError(f"{text!r} is not a search space: write one of {', '.join(KINDS.values())}") from error
    return _domain(name, words)


def domain_of(value: Any) -> Domain | None:
    """Return the domain that a value of a file or a program describes, None where it is a plain value.

    A domain is a `Domain`, a text that `parse_domain` reads, or {kind: [its arguments]}.

    Raises:
        ConfigError: it looks like a domain and is none.
    """
    if isinstance(value, Domain):
        return value
    if isinstance(value, str) and "(" in value:
        return parse_domain(value)
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise errors.ConfigError(f"{dict(value)!r} is not a search space: write e.g. {{uniform: [0, 0.5]}}")
        [(name, words)] = value.items()
        return _domain(str(name), words if isinstance(words, (list, tuple)) else [words])
    return None


def _domain(name: str, words: Sequence[Any]) -> Domain:
    kind = "grid" if name == "grid_search" else name  # as Ray Tune calls it
    if kind not in KINDS:
        raise errors.ConfigError(f"unknown kind of search space {name!r}; {suggest(name, KINDS)}")
    if kind in _OF_VALUES:
        # choice([a, b]) is what Ray writes; choice([0, 0], [0.05, 0.05]) has two values that are lists
        values = words[0] if len(words) == 1 and isinstance(words[0], (list, tuple)) else words
        return Domain(kind=kind, values=tuple(_plain(one) for one in values))
    names = ("low", "high", "step") if kind in _STEPPED else ("low", "high")
    if len(words) != len(names):
        raise errors.ConfigError(f"{name} takes {len(names)} numbers, got {len(words)}: write {KINDS[kind]}")
    return Domain(kind=kind, **dict(zip(names, words, strict=True)))


def _value(node: ast.expr) -> Any:
    """Return a literal; a bare word is itself, and so it is inside a list."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(one) for one in node.elts]
    return ast.literal_eval(node)


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value

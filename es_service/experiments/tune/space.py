"""The space of a search: which settings of a method are searched, and where; checked before anything starts."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from es_service import errors
from es_service.experiments.tune.domains import KINDS, Domain, domain_of
from es_service.selection import keys
from es_service.selection.config import Selection
from es_service.selection.methods import registry
from es_service.selection.named import PRESETS, preset
from es_service.selection.settings import as_integer, as_number, make_plain, parse_value

__all__ = ["OF_THE_RUN", "Space", "default_space", "first_points", "parse_flags", "random_points", "read_space"]

OF_THE_RUN = ("batch_size", "learning_rate")
"""Settings that may be searched and are the training's, not the selection's."""
_MOST_CORNERS = 2048
_NOT_SEARCHED: Mapping[str, str] = {
    "seed": "no value of it is better than another: --seeds trains every setting with several",
    "epochs": "all trials have the same, so that they can be compared: give it with --epochs",
    "method": "a search is over the settings of one method: give it with --method",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """Settings of one method, some of them with a domain to search.

    Args:
        method: its name, see `preset`.
        domains: what is searched.
        fixed: what is the same in all trials, where it differs from the preset's.

    Raises:
        ConfigError: nothing to search; a setting that the method does not have (the nearest one is suggested); a value
            outside the setting's domain, or two that exclude each other.
    """

    method: str
    domains: Mapping[str, Domain]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        make_plain(self)
        if self.method not in PRESETS:
            registry.find(self.method, PRESETS)
        if not self.domains:
            raise errors.ConfigError(
                "the search space is empty: name at least one setting and what it may be, "
                'e.g. --search "beta1=uniform(0, 0.5)"'
            )
        for name in (*self.domains, *self.fixed):
            if _NOT_SEARCHED.get(name):
                raise errors.ConfigError(f"{name} cannot be searched: {_NOT_SEARCHED[name]}")
        if both := set(self.domains) & set(self.fixed):
            raise errors.ConfigError(f"{min(both)} is searched and given a value: leave one of the two out")
        for name, domain in self.domains.items():
            for value in domain.extremes():
                self._check({name: value}, f"{name}={domain}")
        for corner in self._corners():
            self._check(corner, ", ".join(f"{name}={value}" for name, value in corner.items()))

    def _check(self, settings: Mapping[str, Any], where: str) -> None:
        try:
            own = self.of_the_run({**self.fixed, **settings})
            if "batch_size" in own:
                as_integer("batch_size", own["batch_size"], least=1)
            if "learning_rate" in own and not 0 < as_number("learning_rate", own["learning_rate"]) < math.inf:
                raise errors.ConfigError(f"learning_rate must be above 0 and finite, got {own['learning_rate']}")
            self.selection(settings, 0)
        except errors.ConfigError as error:
            raise errors.ConfigError(f"search space, {where}: {error}") from error

    def _corners(self) -> Iterator[dict[str, Any]]:
        """Yield the combinations of extreme values: two settings may exclude each other. None where there are many."""
        extremes = [domain.extremes() for domain in self.domains.values()]
        if len(extremes) > 1 and math.prod(map(len, extremes)) <= _MOST_CORNERS:
            for values in itertools.product(*extremes):
                yield dict(zip(self.domains, values, strict=True))

    def selection(self, settings: Mapping[str, Any], seed: int) -> Selection:
        """Return what a trial with these settings and this seed selects, and how."""
        own = {name: value for name, value in {**self.fixed, **settings}.items() if name not in OF_THE_RUN}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # beta1 > beta2 is what a sensitivity study wants to see
            return preset(self.method, **own, seed=seed)

    def of_the_run(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the settings that are the training's."""
        return {name: settings[name] for name in OF_THE_RUN if name in settings}

    @property
    def is_grid(self) -> bool:
        """Whether every setting is a grid, all of whose values are tried."""
        return all(domain.kind == "grid" for domain in self.domains.values())

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination; ConfigError where a setting is a range."""
        for name, domain in self.domains.items():
            if domain.listed is None:
                raise errors.ConfigError(
                    f"a grid tries every value, and {name}={domain} is a range: write {KINDS['grid']}, or take "
                    "--algorithm random or optuna"
                )
        listed = [domain.listed or () for domain in self.domains.values()]
        return [dict(zip(self.domains, values, strict=True)) for values in itertools.product(*listed)]

    def usual(self) -> dict[str, Any] | None:
        """Return the preset's own values of what is searched, None where they lie outside or are the task's."""
        selection = self.selection({}, 0).to_dict()
        known = {**selection, **selection["settings"]}
        values = {name: known.get(name) for name in self.domains}
        inside = all(name in known and domain.holds(values[name]) for name, domain in self.domains.items())
        return values if inside else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, JSON-ready."""
        return {
            "method": self.method,
            "domains": {name: str(domain) for name, domain in self.domains.items()},
            "fixed": dict(self.fixed),
        }


def read_space(method: str, entries: Mapping[str, Any]) -> Space:
    """Return the space that a file or a program describes.

    Args:
        method: its name, see `preset`.
        entries: setting -> a domain, see `domain_of`; a plain value is the same in all trials.

    Raises:
        ConfigError: see `Space` and `Domain`.
    """
    domains: dict[str, Domain] = {}
    values: dict[str, Any] = {}
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise errors.ConfigError(f"a search space holds settings by name, got {name!r}")
        try:
            domain = domain_of(entry)
        except errors.ConfigError as error:
            raise errors.ConfigError(f"search space, {name}: {error}") from error
        if domain is None:
            values[name] = entry
        else:
            domains[name] = domain
    return Space(method=method, domains=domains, fixed=values)


def first_points(space: Space, start: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is tried first: the preset's own settings where they lie in the space, then those of `start`.

    With the preset's, a search can report its gain over them.
    """
    usual = space.usual()
    return [*([] if usual is None else [usual]), *(one for one in start if one != usual)]


def random_points(space: Space, samples: int, seed: int, start: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return settings drawn independently, each from its domain; those of fewer samples are among those of more.

    `first_points` come before them.
    """
    points = first_points(space, start)
    places = np.arange(len(space.domains))
    for counter in range(samples - len(points)):
        shares = keys.uniforms(seed, keys.Purpose.SEARCH, counter, places)
        named = zip(space.domains.items(), shares, strict=True)
        points.append({name: domain.at(float(share)) for (name, domain), share in named})
    return points[:samples]


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """Return the entries of `--search NAME=DOMAIN`; a value that is not a domain is the same in all trials.

    Raises:
        ConfigError: a word that is not NAME=…, or a name that comes twice.
    """
    entries: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip() or not text.strip():
            raise errors.ConfigError(f'--search {word!r}: write NAME=DOMAIN, e.g. "beta1=uniform(0, 0.5)"')
        if name.strip() in entries:
            raise errors.ConfigError(f"--search names {name.strip()!r} twice: leave one out")
        value = parse_value(text.strip())
        entries[name.strip()] = text.strip() if isinstance(value, str) or "(" in text else value
    return entries


def default_space(method: str, *, weighs_cost: bool) -> dict[str, str]:
    """Return the default space of a method: the settings that users ask about first.

    Args:
        method: its name, see `preset`.
        weighs_cost: whether the objective looks at the cost. Where it does not, settings that buy accuracy with passes
            (ratio, prune_ratio) stay what they are: the search would only find that more is better.

    Raises:
        ConfigError: there is none for this method.
    """
    if method not in PRESETS:
        registry.find(method, PRESETS)
    betas = {"beta1": "uniform(0, 0.5)", "beta2": "uniform(0.5, 0.99)"}
    anneal = {"anneal": "choice([0, 0], [0.05, 0.05], [0.05, 0.2])"}
    draw = {"draw": "choice(race, systematic)"}
    ratio = {"ratio": "choice(0.125, 0.25, 0.5)"} if weighs_cost else {}
    pruning = {"prune_ratio": "quniform(0, 0.4, 0.1)"} if weighs_cost else {}
    spaces: dict[str, dict[str, str]] = {
        "es": {**betas, **anneal, **draw, **ratio, **pruning},
        "eswp": {**betas, **anneal, **draw, **ratio, **pruning},
        "ema": {"beta": "uniform(0, 0.99)", **anneal, **draw, **ratio},
        "loss": {"power": "uniform(0.25, 2)", **anneal, **draw, **ratio},
        "infobatch": {"r": "uniform(0.1, 0.9)", "anneal": "choice([0, 0.125], [0, 0.25])"},
        "selective_backprop": {"beta": "uniform(0.5, 4)", **ratio},
    }
    if method not in spaces:
        raise errors.ConfigError(
            f'method {method!r} has no default search space: name one, e.g. --search "ratio=choice(0.25, 0.5)"'
        )
    return spaces[method]

"""The methods of a comparison, as written on the command line, and its runs."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

from es_service import errors
from es_service.experiments.begin import check_known, check_run, costed, task_of
from es_service.experiments.experiment_spec import ExperimentSpec
from es_service.selection.config import Selection
from es_service.selection.methods.registry import preset_name
from es_service.selection.named import PRESETS, preset
from es_service.selection.settings import as_integer, make_plain, parse_value
from es_service.training.settings import TrainSettings
from es_service.training.spec import TrainingSpec

__all__ = [
    "DEFAULT_METHODS",
    "FULL",
    "RANDOM",
    "SHORT_FULL",
    "Candidate",
    "Comparison",
    "begin",
    "method_labels",
    "parse_candidates",
    "short_full",
]

DEFAULT_METHODS = "random,loss,es,eswp,infobatch"
FULL, RANDOM, SHORT_FULL = "full", "random", "short_full"
_OF_THE_JOB = ("epochs", "batch_size", "learning_rate", "scorers", "proxy", "proxy_age")
_MAX_SLUG = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One method with its settings.

    Args:
        label: what the command line and the report call it.
        name: of a method, see `preset`.
        settings: of the method and of `Selection`, as far as they differ from the preset's.
        epochs, batch_size, learning_rate: of its runs, where they differ from the comparison's.
        scorers, proxy, proxy_age: of its runs, see `TrainingSpec`.

    Raises:
        ConfigError: an unknown name or setting (the nearest one is suggested), or a value outside its domain.
    """

    label: str
    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    scorers: int = 0
    proxy: str | None = None
    proxy_age: int | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        if "seed" in self.settings:
            raise errors.ConfigError(
                f"method {self.label!r}: the seeds come from --seeds and --seed-base, the same for every method; "
                "leave seed out"
            )
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None:
                as_integer(f"{name} of method {self.label!r}", getattr(self, name), least=1)
        if self.learning_rate is not None:
            TrainSettings(learning_rate=self.learning_rate)
        self.selection(0)

    def selection(self, seed: int) -> Selection:
        """Return what its run with this seed selects, and how."""
        return preset(self.name, **self.settings, seed=seed)

    def run(self, seed: int) -> str:
        """Return the name of its run with this seed, good for a folder; different labels have different names."""
        slug = re.sub(r"[^A-Za-z0-9._]+", "-", self.label).strip("-.")
        if slug != self.label or len(slug) > _MAX_SLUG:
            slug = f"{slug[:_MAX_SLUG]}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}"
        return f"{slug}-s{seed}"


def short_full(epochs: int) -> Candidate:
    """Return full training for fewer epochs, its schedule fully decayed at their end."""
    return Candidate(label=f"{SHORT_FULL}:epochs={epochs}", name=FULL, epochs=epochs)


def parse_candidates(text: str) -> tuple[Candidate, ...]:
    """Return the methods of `name[:key=value…],…`, with full and random always in front; doubles are left out.

    A value is read by `parse_value`. The keys epochs, batch_size, learning_rate, scorers, proxy and proxy_age are the
    run's, every other one goes to `preset`. `short_full` may be named: it is compared anyway.

    Raises:
        ConfigError: see `Candidate`; or a part that is not key=value.

    Example:
        >>> [one.label for one in parse_candidates("es,es:ratio=0.5,es")]
        ['full', 'random', 'es', 'es:ratio=0.5']
    """
    found = {name: Candidate(label=name, name=name) for name in (FULL, RANDOM)}
    for label in method_labels(text):
        if label != SHORT_FULL and label not in found:
            found[label] = _candidate(label)
    return tuple(found.values())


def method_labels(text: str) -> list[str]:
    """Return the labels that a list of methods names, each once."""
    return list(dict.fromkeys(map(_named, _split(text, ","))))


def _named(label: str) -> str:
    """Return a label with the method's one name, however it was typed."""
    name, colon, settings = label.partition(":")
    return f"{preset_name(name)}{colon}{settings}"


def _candidate(label: str) -> Candidate:
    name, *parts = _split(label, ":")
    if name not in PRESETS and parts and "=" not in parts[0]:
        name = f"{name}:{parts.pop(0)}"  # module:factory
    if not name:
        raise errors.ConfigError(f"--methods holds {label!r}, which names no method: write name or name:key=value")
    if name == SHORT_FULL:
        raise errors.ConfigError(
            f"{label!r}: short_full gets its epochs from the methods it is compared with; a full run of other "
            "length is written full:epochs=5"
        )
    settings: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise errors.ConfigError(f"method {label!r}: {part!r} is not a setting; write key=value, e.g. ratio=0.5")
        settings[key] = parse_value(value)
    own = {key: settings.pop(key) for key in _OF_THE_JOB if key in settings}
    return Candidate(label=label, name=name, settings=settings, **own)


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator, but not inside brackets: anneal=[0.1,0] is one value."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(ExperimentSpec):
    """Methods to compare on one task; methods and seeds may be added to one that is continued.

    Args:
        candidates: the methods, full and random among them.
    """

    candidates: tuple[Candidate, ...]

    def spec(self, candidate: Candidate, seed: int) -> TrainingSpec:
        """Return one run of a method."""
        return self.run(
            candidate.run(seed),
            candidate.label,
            candidate.selection(seed),
            seed,
            epochs=candidate.epochs,
            batch_size=candidate.batch_size,
            learning_rate=candidate.learning_rate,
            scorers=candidate.scorers,
            proxy=candidate.proxy,
            proxy_age=candidate.proxy_age,
        )

    def specs(self, candidates: tuple[Candidate, ...]) -> list[TrainingSpec]:
        """Return the runs of these methods, the first seed of all of them first."""
        return [self.spec(candidate, seed) for seed in self.seeds for candidate in candidates]


def begin(
    *, candidates: tuple[Candidate, ...], seeds: tuple[int, ...], backward_cost: float | None = None, **asked: Any
) -> Comparison:
    """Return the comparison with everything filled in that the task decides, having checked every run of it.

    Args:
        candidates, seeds: what is compared.
        backward_cost: what it was measured to be, where the comparison is continued.
        asked: see `check_known`.

    Raises:
        ConfigError: an unknown task, or a run that could not begin.
        DataError: the task's data are missing or damaged.
    """
    built, filled = task_of(check_known(**asked))
    comparison = Comparison(**filled, candidates=candidates, seeds=seeds)
    for candidate in candidates:
        for seed in seeds:
            what = f"method {candidate.label!r}"
            check_run(built, comparison, comparison.spec(candidate, seed), what=what, warn=seed == seeds[0])
    return costed(built, comparison, comparison.spec(candidates[0], seeds[0]), backward_cost)

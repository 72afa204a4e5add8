"""One search as plain values, and its runs."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from typing import Any

from es_service import errors
from es_service.experiments.compare.comparison import FULL, SHORT_FULL
from es_service.experiments.experiment_spec import ExperimentSpec
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.space import Space
from es_service.experiments.tune.trials import Trial
from es_service.selection.named import preset
from es_service.selection.settings import as_integer, as_number, make_plain, suggest
from es_service.training.spec import EXCHANGES, TrainingSpec

__all__ = ["ALGORITHMS", "Places", "SearchSpec", "check_algorithm"]

ALGORITHMS = ("grid", "random", "optuna", "bohb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where and how trials run.

    Args:
        exchange: "embedded" trains in the trial's own process; any other exchange of `es-service train` makes each
            trial a Ray Train job, with a score server of its own where the exchange has one.
        workers: of a trial.
        cpus: CPUs of a trial, and its threads, where it trains in its own process.
        max_concurrent: trials at a time; None for as many as there is room for.

    Raises:
        ConfigError: an unknown exchange, a count below 1, or workers that the exchange cannot have.
    """

    exchange: str = "embedded"
    workers: int = 1
    cpus: float = 1.0
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise errors.ConfigError(f"unknown exchange {self.exchange!r}; {suggest(self.exchange, EXCHANGES)}")
        as_integer("workers", self.workers, least=1)
        if not as_number("cpus-per-trial", self.cpus) > 0:
            raise errors.ConfigError(f"cpus-per-trial must be above 0, got {self.cpus}")
        if self.max_concurrent is not None:
            as_integer("max-concurrent", self.max_concurrent, least=1)
        make_plain(self)
        if self.exchange == "embedded" and self.workers != 1:
            raise errors.ConfigError(
                f"exchange 'embedded' trains in the trial's process, so workers={self.workers} cannot share its table: "
                "take --exchange leased"
            )

    @property
    def on_ray_train(self) -> bool:
        """Whether a trial is a job of Ray Train."""
        return self.exchange != "embedded"

    def room(self, cpus: float) -> int:
        """Return how many trials may run at a time where there are this many CPUs."""
        if self.max_concurrent is not None:
            return self.max_concurrent
        return max(1, int(cpus // (self.workers if self.on_ray_train else self.cpus)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSpec(ExperimentSpec):
    """A search on one task; samples may be added to one that is continued.

    Args:
        name: recorded in its runs.
        space: what is searched.
        objective: what for.
        algorithm: one of ALGORITHMS.
        samples: settings to try; of "grid", all there are.
        seed: of what the search draws.
        early_stopping: whether trials that fall behind are stopped.
        places: where trials run.
        start: settings to try first.

    Raises:
        ConfigError: see `ExperimentSpec`; a count below 1, or an algorithm that does not fit.
    """

    name: str
    space: Space
    objective: Objective
    algorithm: str
    samples: int
    seed: int
    early_stopping: bool
    places: Places = dataclasses.field(default_factory=Places)
    start: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        as_integer("samples", self.samples, least=1)
        as_integer("seed", self.seed, least=0, end=2**32)  # Optuna takes no larger one
        check_algorithm(self.algorithm, self.space)
        if self.algorithm == "grid" and self.start:
            raise errors.ConfigError("a grid tries every setting: leave out with which to begin")
        if self.algorithm == "bohb":
            self._check_bohb()
        if self.early_stopping and self.objective.name == "front":
            raise errors.ConfigError(
                "a front has no single number by which trials could be stopped early: give --no-early-stopping, or "
                "another --objective"
            )

    def _check_bohb(self) -> None:
        """Raise ConfigError where HyperBand cannot do what is asked for."""
        if self.objective.name == "front":
            raise errors.ConfigError("bohb looks for one number, a front has two: take --algorithm optuna or random")
        if not self.early_stopping:
            raise errors.ConfigError(
                "bohb is early stopping by HyperBand: leave --no-early-stopping out, or take --algorithm optuna"
            )
        if len(self.seeds) > 1:
            raise errors.ConfigError(
                f"bohb compares single trials on their way, and would stop {len(self.seeds)} seeds of a setting one "
                "by one: leave --seeds out, and train what it finds with more of them"
            )

    def identity(self) -> dict[str, Any]:
        """Return what cannot change when a search is continued: all but the samples, and how many run at a time."""
        values = {
            **super().identity(),
            "space": self.space.to_dict(),
            "objective": dataclasses.asdict(self.objective),
            "algorithm": self.algorithm,
            "seeds": list(self.seeds),
            "seed": self.seed,
            "early_stopping": self.early_stopping,
            "exchange": self.places.exchange,
            "workers": self.places.workers,
            "cpus": self.places.cpus,
            **({"start": list(self.start)} if self.start else {}),
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def num_settings(self) -> int:
        """How many settings there are to try."""
        return len(self.space.grid()) if self.algorithm == "grid" else self.samples

    def spec(self, trial: Trial) -> TrainingSpec:
        """Return the run of a trial."""
        return self.run_with(trial.settings, trial.seed, trial.run)

    def run_with(self, settings: Mapping[str, Any], seed: int, run: str) -> TrainingSpec:
        """Return a run with these settings."""
        own = self.space.of_the_run({**self.space.fixed, **settings})
        return self.run(run, self.space.method, self.space.selection(settings, seed), seed, **own, **self._place())

    def reference(self, run: str, epochs: int, seed: int) -> TrainingSpec:
        """Return a run of full training that lasts this many epochs."""
        label = FULL if epochs == self.epochs else SHORT_FULL
        return self.run(run, label, preset(FULL, seed=seed), seed, epochs=epochs, **self._place())

    def _place(self) -> dict[str, Any]:
        return {"exchange": self.places.exchange, "workers": self.places.workers, "search": self.name}


def check_algorithm(algorithm: str, space: Space) -> None:
    """Raise ConfigError where the settings of this space cannot be proposed in this way."""
    if algorithm not in ALGORITHMS:
        raise errors.ConfigError(
            f"unknown algorithm {algorithm!r}; {suggest(algorithm, ALGORITHMS)} (PB2 is not offered: "
            "see docs/how-to/tuning.md)"
        )
    if algorithm == "grid":
        space.grid()
    if algorithm == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise errors.ConfigError(
                f"--algorithm optuna needs Optuna: pip install 'es-service[tune]', or take --algorithm random ({error})"
            ) from error
    if algorithm == "bohb":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import ConfigSpace  # noqa: F401
                import hpbandster.optimizers.config_generators.bohb  # noqa: F401
        except ImportError as error:
            raise errors.ConfigError(
                "--algorithm bohb needs hpbandster and ConfigSpace: pip install 'es-service[bohb]' (a C compiler is "
                f"needed for one of their dependencies), or take --algorithm optuna ({error})"
            ) from error
        if all(one.num_values == 1 for one in space.domains.values()):
            raise errors.ConfigError("every setting has one value: there is nothing for --algorithm bohb to learn")

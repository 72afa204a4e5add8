"""Which settings are tried next: those of a list, or what Optuna makes of the results so far."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from es_service import errors
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.space import Space
from es_service.experiments.tune.trials import FAILED, FINISHED, Trial
from es_service.selection import keys
from es_service.selection.settings import suggest

__all__ = [
    "ALGORITHMS",
    "Listed",
    "OptunaProposals",
    "Proposals",
    "check_algorithm",
    "first_points",
    "proposals_for",
    "random_points",
]

ALGORITHMS = ("grid", "random", "optuna", "bohb")
_STARTUP = 8  # settings that Optuna draws at random before it looks at results


class Proposals(Protocol):
    """Where settings come from. The same calls in the same order give the same settings."""

    def ask(self) -> dict[str, Any] | None:
        """Return the next settings, None where there are no more."""
        ...

    def report(self, setting: int, epoch: int, value: float) -> None:
        """Take the value of a trial under way with the settings that came in `setting`-th place."""
        ...

    def tell(self, setting: int, trials: Sequence[Trial]) -> None:
        """Take the trials of these settings, all of which have ended; again where a failed one was tried again."""
        ...


class Listed:
    """Settings of a list, in its order.

    Args:
        points: the settings.
    """

    def __init__(self, points: Sequence[dict[str, Any]]) -> None:
        self._points = list(points)
        self._next = 0

    def ask(self) -> dict[str, Any] | None:
        """See `Proposals`."""
        if self._next >= len(self._points):
            return None
        self._next += 1
        return dict(self._points[self._next - 1])

    def report(self, setting: int, epoch: int, value: float) -> None:
        """See `Proposals`."""

    def tell(self, setting: int, trials: Sequence[Trial]) -> None:
        """See `Proposals`."""


def first_points(space: Space, start: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is tried first: the preset's own settings where they lie in the space, then those of `start`.

    With the preset's a search can say what it gained over them.
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


class OptunaProposals:
    """Settings by Optuna's tree-structured Parzen estimator, for one objective or a front of two.

    Pruned trials count as such; of several seeds the mean counts.

    Reference: Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NIPS 2011.
    """

    def __init__(
        self, space: Space, objective: Objective, samples: int, seed: int, first: Sequence[dict[str, Any]]
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space, self._objective, self._left = optuna, space, objective, samples
        directions = [optuna.study.StudyDirection[f"{one.upper()}IMIZE"] for one in objective.directions]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
            self._study = optuna.create_study(sampler=sampler, directions=directions)
        self._distributions = {name: self._distribution(domain) for name, domain in space.domains.items()}
        self._asked: list[Any] = []
        for point in first:
            self._study.enqueue_trial(
                {
                    name: value if (listed := space.domains[name].listed) is None else listed.index(value)
                    for name, value in point.items()
                }
            )

    def _distribution(self, domain: Any) -> Any:
        if domain.listed is not None:
            return self._optuna.distributions.CategoricalDistribution(tuple(range(len(domain.listed))))
        if domain.is_integer:
            step = domain.step or 1
            return self._optuna.distributions.IntDistribution(domain.low, domain.last, log=domain.is_log, step=step)
        return self._optuna.distributions.FloatDistribution(
            domain.low, domain.last, log=domain.is_log, step=domain.step
        )

    def ask(self) -> dict[str, Any] | None:
        """See `Proposals`."""
        if self._left == 0:
            return None
        self._left -= 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = self._study.ask(self._distributions)
        self._asked.append(asked)
        return {
            name: domain.tidy(asked.params[name] if domain.listed is None else domain.listed[asked.params[name]])
            for name, domain in self._space.domains.items()
        }

    def report(self, setting: int, epoch: int, value: float) -> None:
        """See `Proposals`."""
        if len(self._objective.directions) == 1 and epoch not in self._study_values(setting):
            self._asked[setting].report(value, epoch)

    def _means(self, trials: Sequence[Trial]) -> list[float]:
        means: list[float] = np.array([self._objective.values(one.epochs) for one in trials]).mean(axis=0).tolist()
        return means

    def _study_values(self, setting: int) -> Any:
        return self._study.trials[self._asked[setting].number].intermediate_values

    def tell(self, setting: int, trials: Sequence[Trial]) -> None:
        """See `Proposals`."""
        states = self._optuna.trial.TrialState
        asked, finished = self._asked[setting], [one for one in trials if one.status == FINISHED]
        known = self._study.trials[asked.number]
        if known.state.is_finished():  # it failed: a study never changes what it was told
            if len(finished) == len(trials):
                self._study.add_trial(
                    self._optuna.trial.create_trial(
                        params=known.params, distributions=known.distributions, values=self._means(trials)
                    )
                )
            return
        if len(finished) == len(trials):
            self._study.tell(asked, self._means(trials))
        elif any(one.status == FAILED for one in trials):
            self._study.tell(asked, state=states.FAIL)
        else:
            self._study.tell(asked, state=states.PRUNED)


def check_algorithm(algorithm: str, space: Space) -> None:
    """Raise ConfigError where the settings of this space cannot be proposed in this way."""
    if algorithm not in ALGORITHMS:
        raise errors.ConfigError(
            f"unknown algorithm {algorithm!r}; {suggest(algorithm, ALGORITHMS)} (PB2 is not offered: "
            "see docs/tuning.md)"
        )
    if algorithm == "grid":
        space.grid()
    if algorithm == "bohb":
        from es_service.experiments.tune.bohb import check_bohb

        check_bohb(space)
    if algorithm == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise errors.ConfigError(
                f"--algorithm optuna needs Optuna: pip install 'es-service[tune]', or take --algorithm random ({error})"
            ) from error


def proposals_for(
    algorithm: str,
    space: Space,
    objective: Objective,
    *,
    samples: int,
    seed: int,
    epochs: int,
    start: Sequence[dict[str, Any]] = (),
) -> Proposals:
    """Return where the settings of a search come from."""
    if algorithm == "grid":
        return Listed(space.grid())
    if algorithm == "random":
        return Listed(random_points(space, samples, seed, start))
    first = first_points(space, start)
    if algorithm == "bohb":
        from es_service.experiments.tune.bohb import BohbProposals

        return BohbProposals(space, objective, samples, seed, first, epochs)
    return OptunaProposals(space, objective, samples, seed, first)

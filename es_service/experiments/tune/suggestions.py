"""Where settings come from: a list, or Ray Tune's OptunaSearch or TuneBOHB over a `Space`.

Both searchers see a listed or stepped setting as the number of its value: Optuna takes no lists as values, and BOHB
knows no steps.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher

from es_service.experiments.tune.early_stopping import rungs_of
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.search_spec import SearchSpec
from es_service.experiments.tune.space import Space, first_points, random_points

__all__ = ["Listed", "proposals", "without_warnings"]

_STARTUP = 8  # settings that Optuna draws at random before it looks at results


class Listed(Searcher):
    """Settings of a list: those of trial "k" are the k-th.

    Args:
        points: the settings.
    """

    def __init__(self, points: Sequence[dict[str, Any]]) -> None:
        super().__init__()
        self._points = points

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the settings."""
        return dict(self._points[int(trial_id)])

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Learn nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: it has no state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


def proposals(search: SearchSpec) -> dict[str, Any]:
    """Return where the settings of a search come from, as `Trials` takes it."""
    space, samples, seed = search.space, search.num_settings, search.seed
    if search.algorithm in ("grid", "random"):
        is_grid = search.algorithm == "grid"
        points = space.grid() if is_grid else random_points(space, samples, seed, search.start)
        # Elsewhere more samples may come, and running trials stay first.
        return {"searcher": Listed(points), "space": None, "samples": samples, "seed_major": is_grid}
    first = first_points(space, search.start)
    found = {"space": space, "samples": samples, "seed_major": False}
    if search.algorithm == "optuna":
        return {**found, "searcher": _optuna(space, search.objective, seed, first)}
    rungs = rungs_of(search.epochs, space.domains)
    return {**found, "searcher": _bohb(space, search.objective, seed, first), "rungs": rungs}


def _optuna(space: Space, objective: Objective, seed: int, first: Sequence[Mapping[str, Any]]) -> Searcher:
    """Return Optuna's tree-structured Parzen estimator, for one objective or a front of two.

    Reference: Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NIPS 2011.
    """
    from optuna import distributions, logging, samplers
    from ray.tune.search.optuna import OptunaSearch

    logging.set_verbosity(logging.ERROR)
    found: dict[str, Any] = {}
    for name, domain in space.domains.items():
        low, high = domain.places()
        if domain.listed is not None:
            found[name] = distributions.CategoricalDistribution(range(high + 1))
        elif domain.num_values < np.inf:
            found[name] = distributions.IntDistribution(low, high, log=domain.is_log)
        else:
            found[name] = distributions.FloatDistribution(low, high, log=domain.is_log)
    several = len(objective.directions) > 1
    with without_warnings():
        return OptunaSearch(
            found,
            metric=["value", "cost"] if several else "value",
            mode=list(objective.directions) if several else objective.directions[0],
            points_to_evaluate=[{name: space.domains[name].place(one[name]) for name in found} for one in first],
            sampler=samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP),
        )


def _bohb(space: Space, objective: Objective, seed: int, first: Sequence[Mapping[str, Any]]) -> Searcher:
    """Return BOHB's model: kernel densities of good and bad settings, a third of all drawn at random.

    The model is of the largest budget with enough results, two more than there are settings in the space.

    Reference: Falkner et al., *BOHB: Robust and Efficient Hyperparameter Optimization at Scale*, ICML 2018.
    """
    with without_warnings():
        import ConfigSpace
        from ray.tune.search.bohb import TuneBOHB

        free = {name: one for name, one in space.domains.items() if one.num_values > 1}
        found = ConfigSpace.ConfigurationSpace()
        for name, domain in free.items():
            low, high = domain.places()
            if domain.listed is not None:
                found.add(ConfigSpace.CategoricalHyperparameter(name, tuple(range(high + 1))))
            elif domain.num_values < np.inf:
                found.add(ConfigSpace.UniformIntegerHyperparameter(name, low, high, log=domain.is_log))
            else:
                found.add(ConfigSpace.UniformFloatHyperparameter(name, low, high, log=domain.is_log))
        logger = logging.getLogger("es_service.hpbandster")
        logger.setLevel(logging.CRITICAL)
        return TuneBOHB(
            found,
            {"logger": logger},
            "value",
            objective.directions[0],
            points_to_evaluate=[{name: space.domains[name].place(one[name]) for name in free} for one in first],
            seed=seed,
        )


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Show no warnings of Optuna, ConfigSpace and hpbandster, e.g. of deprecated names."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield

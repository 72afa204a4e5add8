"""BOHB's proposals: Ray Tune's TuneBOHB, asked and told in the order of the journal.

Who is trained how far is decided by `es_service.experiments.tune.halving`; this says only what is tried next.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from es_service import errors
from es_service.experiments.tune.domains import Domain
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.rungs import rungs_of
from es_service.experiments.tune.space import Space
from es_service.experiments.tune.trials import Trial

__all__ = ["BohbProposals", "check_bohb"]


def check_bohb(space: Space) -> None:
    """Raise ConfigError where BOHB is not installed, or has nothing to learn."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ConfigSpace  # noqa: F401
            import hpbandster.optimizers.config_generators.bohb  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(
            "--algorithm bohb needs hpbandster and ConfigSpace: pip install 'es-service[bohb]' (a C compiler is needed "
            f"for one of their dependencies), or take --algorithm optuna ({error})"
        ) from error
    if all(_num_values(one) == 1 for one in space.domains.values()):
        raise errors.ConfigError("every setting has one value: there is nothing for --algorithm bohb to learn")


class BohbProposals:
    """Settings by BOHB's model: kernel densities of the good and of the bad ones, a third of all drawn at random.

    It is told what every trial has reached at each rung of successive halving, as a result of that budget; the model is
    of the largest budget with results enough, two more than there are settings in the space.

    Args:
        space: what is searched.
        objective: of one number.
        samples: settings in all.
        seed: of what is drawn. hpbandster draws from numpy's global state, which is put back after each call.
        first: settings to try before any other.
        epochs: of a trial that is trained to its end.

    Reference: Falkner et al., *BOHB: Robust and Efficient Hyperparameter Optimization at Scale*, ICML 2018.
    """

    def __init__(
        self,
        space: Space,
        objective: Objective,
        samples: int,
        seed: int,
        first: Sequence[dict[str, Any]],
        epochs: int,
    ) -> None:
        import ConfigSpace
        from ray.tune.search.bohb import TuneBOHB

        self._space, self._left, self._rungs = space, samples, rungs_of(epochs, space.domains)
        self._free = {name: one for name, one in space.domains.items() if _num_values(one) != 1}
        self._state = np.random.RandomState(seed).get_state()
        self._asked = 0
        known = [{name: _place(one, point[name]) for name, one in self._free.items()} for point in first]
        quiet = logging.Logger("hpbandster", level=logging.CRITICAL)
        with self._own_numbers():
            theirs = ConfigSpace.ConfigurationSpace()
            theirs.add(*(_hyperparameter(name, one) for name, one in self._free.items()))
            self._bohb = TuneBOHB(
                theirs, {"logger": quiet}, "value", objective.directions[0], points_to_evaluate=known, seed=seed
            )

    def ask(self) -> dict[str, Any] | None:
        """See `Proposals`."""
        if self._left == 0:
            return None
        self._left -= 1
        with self._own_numbers():
            asked = self._bohb.suggest(str(self._asked))
        assert asked is not None  # it is asked for no limit of trials at a time
        self._asked += 1
        return {
            name: _value(one, asked[name]) if name in self._free else one.at(0.0)
            for name, one in self._space.domains.items()
        }

    def report(self, setting: int, epoch: int, value: float) -> None:
        """See `Proposals`."""
        if epoch + 1 in self._rungs:
            with self._own_numbers():
                result = {"value": value, "hyperband_info": {"budget": epoch + 1}}
                self._bohb.on_trial_result(str(setting), result)

    def tell(self, setting: int, trials: Sequence[Trial]) -> None:  # noqa: ARG002 - the contract's
        """See `Proposals`."""
        if str(setting) in self._bohb.trial_to_params:  # else it failed, and was tried again: that it does not learn
            self._bohb.on_trial_complete(str(setting))

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Let hpbandster draw the numbers of this search, and nobody else's."""
        before = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._state)  # noqa: NPY002
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # of names that ConfigSpace has new ones for
                yield
        finally:
            self._state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(before)  # noqa: NPY002


def _num_values(domain: Domain) -> float:
    """Return how many values a domain can give, infinity for a range of floats."""
    if domain.listed is not None:
        return len(domain.listed)
    low, high = domain.extremes()
    if domain.step is None and not domain.is_integer:
        return float("inf")
    return int((high - low) / (domain.step or 1) + 1e-9) + 1


def _hyperparameter(name: str, domain: Domain) -> Any:
    """Return what ConfigSpace calls a domain: steps and listed values by their place, since it knows no steps."""
    import ConfigSpace

    if domain.listed is not None:
        return ConfigSpace.CategoricalHyperparameter(name, tuple(range(len(domain.listed))))
    if domain.step is not None:
        return ConfigSpace.UniformIntegerHyperparameter(name, 0, int(_num_values(domain)) - 1)
    low, high = domain.extremes()
    kind = ConfigSpace.UniformIntegerHyperparameter if domain.is_integer else ConfigSpace.UniformFloatHyperparameter
    return kind(name, low, high, log=domain.is_log)


def _place(domain: Domain, value: Any) -> Any:
    """Return what stands for a value in ConfigSpace."""
    if domain.listed is not None:
        return domain.listed.index(value)
    return value if domain.step is None else round((value - domain.extremes()[0]) / domain.step)


def _value(domain: Domain, place: Any) -> Any:
    """Return the value that something in ConfigSpace stands for."""
    if domain.listed is not None:
        return domain.listed[int(place)]
    if domain.step is None:
        return domain.tidy(float(place))
    return domain.tidy(domain.extremes()[0] + int(place) * domain.step)

"""Scorers: processes that compute the losses of the meta-batches to come, so that the trainer need not.

    step t of the trainer:  take the answer for t ── draw ── fetch b ── train
    the scorer meanwhile:   score t+1 … t+ahead, in the order of the plan

Which weights a proxy has when it scores a step follows from the order of its calls alone, never from time. So the draws
are the same in every run, unless a scorer dies or exceeds its deadline.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import ray
from numpy.typing import NDArray
from ray import cloudpickle, exceptions

from es_service import errors
from es_service.actors import launch
from es_service.actors.cluster import ensure_ray
from es_service.epoch import Epoch
from es_service.ledger import Ledger
from es_service.run_view import RunView
from es_service.selection.settings import as_flag, as_integer, as_number

__all__ = ["Scorer"]

_START_DEADLINE_S = 120.0
_log = logging.getLogger(__name__)
_Ref: TypeAlias = Any  # a ray.ObjectRef


class Scorer:
    """Proxies on Ray that score the samples of an epoch's plan ahead of one rank's training.

    With `es.SelectiveLoader(..., scorer=scorer)` no scoring pass of the trainer's own is made, and only the b samples
    drawn are fetched. In a loop of your own:

        losses_B = scorer.losses(selector)
        if losses_B is None: draw = selector.select(ids_B, own_losses(ids_B) if selector.wants_scores else None)
        else: draw = selector.select(ids_B, losses_B, by_scorer=True)

    The losses reach the table by the rank's own report, as those of a scoring pass do. Steps t, t+num, t+2·num, … go to
    one proxy, in this order. A scorer that fails, or has not answered by the deadline, is ended and not asked again: a
    warning says so once, and the training scores those steps itself.

    Args:
        make: returns the proxy; called once in each scorer's process, to which it is sent by cloudpickle. A proxy is a
            function (ids int64[B], at) -> losses float[B], or signals by name; `at` is where the training is, in
            epochs: 2.25 is a quarter through epoch 2. It may have `state()` and `load(state)`, see `state`.
        cost: what scoring a sample costs, in forward passes of the model that is trained, with what the proxy learns
            meanwhile. The run's ledger counts it.
        num: scorers.
        ahead: steps that are scored in advance; more of them hide more of a scorer's unevenness, and make weights from
            `load` older.
        learns: the proxy trains on what it scores. It is then also asked for steps that draw without losses, as long
            as steps that need them follow.
        deadline_s: seconds that a step waits for its losses.
        num_gpus: of each scorer.

    Raises:
        ConfigError: a setting outside its domain, or `make` failed.
        ServerUnavailableError: RAY_ADDRESS names a cluster that does not answer, or the scorers did not start.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        cost: float,
        num: int = 1,
        ahead: int = 4,
        learns: bool = False,
        deadline_s: float = 60.0,
        num_gpus: float = 0.0,
    ) -> None:
        if not 0 < as_number("cost", cost) < math.inf:
            raise errors.ConfigError(f"cost must be above 0 and finite, got {cost}: what scoring a sample costs")
        if not 0 < as_number("deadline_s", deadline_s) < math.inf:
            raise errors.ConfigError(f"deadline_s must be above 0 and finite, got {deadline_s}")
        self.cost, self.learns = cost, as_flag("learns", learns)
        self._ahead, self._deadline_s = as_integer("ahead", ahead, least=1), deadline_s
        as_integer("num", num, least=1)
        ensure_ray()
        try:
            pickled = cloudpickle.dumps(make)  # type: ignore[no-untyped-call]
        except Exception as error:  # what objects raise that cannot be pickled
            raise errors.ConfigError(f"make={make!r} cannot be sent to a scorer's process: {error}") from error
        self._actors: list[Any] = launch.start_scorers(num, num_gpus)  # None where one is lost
        self.num_lost = 0
        """How many scorers died, failed, or were too late."""
        self._epoch: Epoch | None = None
        self._plan: list[NDArray[np.int64]] = []
        self._next = 0  # step to be asked for
        self._asked: dict[int, _Ref] = {}  # by step
        self._loading: dict[int, _Ref] = {}  # by scorer
        try:
            ray.get([actor.begin.remote(pickled) for actor in self._actors], timeout=_START_DEADLINE_S)
        except exceptions.RayTaskError as error:
            self.close()
            if isinstance(error.cause, errors.EsServiceError):
                raise error.cause from None
            raise errors.ConfigError(f"a scorer could not make its proxy: {_reason(error)}") from error
        except exceptions.RayError as error:
            self.close()
            raise errors.ServerUnavailableError(f"a scorer did not start: {_reason(error)}") from error

    def losses(self, selector: RunView) -> Any:
        """Return the losses float32[B] of the step at hand, or signals by name; ask for those of the steps to come.

        Called once a step, also where the step needs no losses. The wait is timed as scoring.

        Returns:
            None where the step needs none, or its scorer is lost: where `selector.wants_scores`, score it yourself.

        Raises:
            EpochOrderError: no epoch is open.
            ConfigError: it is a stream: which ids come is not known in advance.
            ShapeError: the proxy did not return a number for each sample.
        """
        here = selector.here
        if here is None or here.is_closed:
            raise errors.EpochOrderError("scorer.losses(selector) is for a step of an open epoch, and none is open")
        if here.streamed:
            raise errors.ConfigError("a scorer needs to know the ids in advance: use selector.epoch, not a stream")
        ledger = selector.ledger
        with ledger.timing("score"):
            if here is not self._epoch:
                self._begin(here, ledger)
            self._ask(here)
            answer = self._taken(here.step, ledger)
        return answer if here.is_scoring(self._plan[here.step].size) else None

    def _begin(self, here: Epoch, ledger: Ledger) -> None:
        for step in list(self._asked):  # of an epoch that was cut short: they count, too
            self._taken(step, ledger)
        self._epoch, self._plan, self._next = here, here.batches(), here.step

    def _ask(self, here: Epoch) -> None:
        """Ask for the steps up to `ahead` from here."""
        needed = self.learns and _selects_later(here)
        end = min(here.step + self._ahead + 1, len(self._plan))
        for step in range(self._next, end):
            actor, ids_B = self._actors[step % len(self._actors)], self._plan[step]
            if actor is not None and (needed or here.is_scoring(ids_B.size, step)):
                self._asked[step] = actor.score.remote(ids_B, here.number + step / len(self._plan))
        self._next = max(self._next, end)

    def _taken(self, step: int, ledger: Ledger) -> Any:
        """Return the answer for a step, counted; None where there is none."""
        reference, index = self._asked.pop(step, None), step % len(self._actors)
        if reference is None or self._actors[index] is None:
            return None
        try:
            loading = self._loading.pop(index, None)
            if loading is not None:
                ray.get(loading, timeout=self._deadline_s)
            found, seconds = ray.get(reference, timeout=self._deadline_s)
        except exceptions.RayError as error:
            self._lose(index, _reason(error, self._deadline_s))
            return None
        num = self._plan[step].size
        ledger.count_scorer(num, num if self.learns else 0, self.cost * num, seconds)
        return _checked(found, num)

    def _lose(self, index: int, reason: str) -> None:
        actor, self._actors[index] = self._actors[index], None
        self.num_lost += 1
        ray.kill(actor)
        _log.warning(
            "scorer %d of %d is lost: %s. The training scores its steps itself from now on, which takes longer; the "
            "draws are no longer those of a run in which nothing fails.",
            index,
            len(self._actors),
            reason,
        )

    def load(self, state: Any) -> None:
        """Hand every proxy new weights, or whatever its `load` takes; steps already asked for are scored without."""
        reference = ray.put(state)
        for index, actor in enumerate(self._actors):
            if actor is not None:
                self._loading[index] = actor.load.remote(reference)

    def state(self) -> list[Any]:
        """Return the state of each proxy, for a checkpoint at the end of an epoch; None for those without one."""
        states: list[Any] = []
        for index, actor in enumerate(self._actors):
            try:
                states.append(None if actor is None else ray.get(actor.state.remote(), timeout=self._deadline_s))
            except exceptions.RayError as error:
                self._lose(index, _reason(error, self._deadline_s))
                states.append(None)
        return states

    def restore(self, states: list[Any]) -> None:
        """Give each proxy its state of a checkpoint; others start from scratch."""
        for index, (actor, state) in enumerate(zip(self._actors, states, strict=False)):
            if actor is not None and state is not None:
                self._loading[index] = actor.load.remote(state)

    def close(self) -> None:
        """End the scorers."""
        for index, actor in enumerate(self._actors):
            if actor is not None:
                ray.kill(actor)
                self._actors[index] = None


def _selects_later(here: Epoch) -> bool:
    """Whether a step of this epoch or a later one needs losses."""
    config = here.config
    return any(
        config.selection.is_scoring(epoch, config.num_epochs) and not config.is_annealing(epoch)
        for epoch in range(here.number, config.num_epochs)
    )


def _checked(found: Any, num: int) -> Any:
    """Return what a proxy answered, as float32[B] each."""
    if isinstance(found, Mapping):
        return {name: _checked(values, num) for name, values in found.items()}
    losses = np.asarray(found, dtype=np.float32)
    if losses.shape != (num,):
        raise errors.ShapeError(f"a scorer's proxy returned losses of shape {losses.shape} for {num} samples")
    return losses


def _reason(error: BaseException, deadline_s: float = _START_DEADLINE_S) -> str:
    if isinstance(error, exceptions.GetTimeoutError):
        return f"no answer within {deadline_s:g} s"
    if isinstance(error, exceptions.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    return str(error).strip().partition("\n")[0]

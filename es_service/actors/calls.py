"""Waiting for an actor's answer: with a deadline, retries, and this package's errors instead of Ray's."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions

from es_service import errors

__all__ = ["DEADLINE_S", "AwayError", "GoneError", "Patience", "ask_until_answered", "call", "call_patiently"]

DEADLINE_S = 60.0
_PAUSE_S = (0.05, 1.0)  # first and longest
_log = logging.getLogger(__name__)


class AwayError(errors.ServerUnavailableError):
    """The actor is restarting; whether a call was done is open. Made again, it is done once."""


class GoneError(errors.ServerUnavailableError):
    """The actor has ended for good; another one may be started under its name."""


def call(reference: ray.ObjectRef[Any], deadline_s: float, doing: str) -> Any:
    """Return the answer of an actor call.

    Args:
        reference: of the call under way.
        deadline_s: seconds to wait for it.
        doing: what the call is for, for the message: "cannot <doing>: …".

    Raises:
        EsServiceError: any error of this package that the actor raised, unchanged.
        AwayError: the actor is restarting.
        GoneError: the actor has ended for good.
        ServerUnavailableError: no answer in time.
    """
    try:
        return ray.get(reference, timeout=deadline_s)
    except exceptions.GetTimeoutError as error:
        raise errors.ServerUnavailableError(
            f"cannot {doing}: no answer from the score server within {deadline_s:g} s; is its node overloaded or gone?"
        ) from error
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, errors.EsServiceError):
            raise error.cause from None
        raise
    except exceptions.ActorDiedError as error:
        raise GoneError(
            f"cannot {doing}: the score server is gone for good ({error}); connect again, it starts from storage"
        ) from error
    except exceptions.RayActorError as error:
        raise AwayError(f"cannot {doing}: the score server is restarting, and did not come back in time") from error


class Patience:
    """Backoff while waiting for the score server: growing pauses of random length, until the deadline.

    Args:
        deadline_s: seconds for all of it.
        for_ever: past the deadline a warning is logged, and the wait continues.
    """

    def __init__(self, deadline_s: float, *, for_ever: bool = False) -> None:
        self.deadline_s, self.for_ever = deadline_s, for_ever
        self._give_up = time.monotonic() + deadline_s
        self._pause_s = _PAUSE_S[0]

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._give_up - time.monotonic())

    def pause(self, error: errors.EsServiceError) -> None:
        """Let a moment go by before the next try; raise the error where the deadline does not leave one."""
        if self.left_s <= self._pause_s:
            self.overrun(error)
        time.sleep(self._pause_s * random.uniform(0.5, 1.0))  # polling: Ray does not notify when an actor is back
        self._pause_s = min(2 * self._pause_s, _PAUSE_S[1])

    def overrun(self, error: errors.EsServiceError) -> None:
        """Raise the error, the deadline being past; or log it and set a new deadline."""
        if not self.for_ever:
            raise error
        _log.warning("%s. Still retrying (on_unavailable='wait').", str(error).removesuffix("."))
        self._give_up = time.monotonic() + self.deadline_s


def call_patiently(ask: Callable[[], ray.ObjectRef[Any]], deadline_s: float, doing: str) -> Any:
    """Do as `ask_until_answered`, for at most `deadline_s`: a server that is restarting is waited for."""
    return ask_until_answered(ask, Patience(deadline_s), doing)


def ask_until_answered(
    ask: Callable[[], ray.ObjectRef[Any]],
    patience: Patience,
    doing: str,
    reconnect: Callable[[], bool] = lambda: False,
    answer: Callable[[ray.ObjectRef[Any], float, str], Any] = call,
) -> Any:
    """Return the answer of an idempotent call; where the actor has ended look for another one.

    Args:
        ask: makes the call.
        patience: how long to wait. One that waits for ever waits for an actor under this name, too.
        doing: as in `call`.
        reconnect: looks for the actor by its name; whether there is another one now, which `ask` calls from now on.
        answer: waits, as `call` does.

    Raises:
        GoneError: the actor has ended for good, and no other has its name.
        AwayError: it was still restarting at the deadline.
        EsServiceError: as `call`.
    """
    reference = ask()
    while True:
        try:
            return answer(reference, patience.left_s, doing)
        except (AwayError, GoneError) as error:
            if isinstance(error, GoneError) and not reconnect() and not patience.for_ever:
                raise
            patience.pause(error)
            reference = ask()
        except errors.ServerUnavailableError as error:
            patience.overrun(error)

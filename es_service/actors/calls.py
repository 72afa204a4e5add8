"""Waiting for an actor's answer: with a deadline, and with this package's errors instead of Ray's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import exceptions

from es_service import errors

__all__ = ["DEADLINE_S", "call", "call_patiently"]

DEADLINE_S = 60.0
_PAUSE_S = 0.1


def call(reference: ray.ObjectRef[Any], deadline_s: float, doing: str) -> Any:
    """Return the answer of an actor call.

    Args:
        reference: of the call under way.
        deadline_s: seconds to wait for it.
        doing: what the call is for, for the message: "cannot <doing>: …".

    Raises:
        EsServiceError: whatever the actor raised of our own, as it was raised there.
        ServerUnavailableError: no answer in time, or the actor is away or gone.
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
        raise errors.ServerUnavailableError(
            f"cannot {doing}: the score server is gone for good ({error}); connect again, it starts from storage"
        ) from error
    except exceptions.RayActorError as error:
        raise errors.ServerRestartedError(
            f"cannot {doing}: the score server is restarting, what came after the last finished epoch is lost; "
            "connect again and continue from the checkpoint of that epoch"
        ) from error


def call_patiently(ask: Callable[[], ray.ObjectRef[Any]], deadline_s: float, doing: str) -> Any:
    """Return the answer of a call that may as well be made again: a server that is restarting is waited for.

    Args:
        ask: makes the call.
        deadline_s: seconds for all of it.
        doing: as in `call`.

    Raises:
        ServerRestartedError: it was still restarting at the deadline.
        EsServiceError: as `call`.
    """
    give_up = time.monotonic() + deadline_s
    while True:
        try:
            return call(ask(), max(0.0, give_up - time.monotonic()), doing)
        except errors.ServerRestartedError:
            if time.monotonic() + _PAUSE_S > give_up:
                raise
        time.sleep(_PAUSE_S)  # polling: Ray says nothing when an actor is back

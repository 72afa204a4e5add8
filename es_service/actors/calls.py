"""Waiting for an actor's answer: with a deadline, and with this package's errors instead of Ray's."""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions

from es_service import errors

__all__ = ["DEADLINE_S", "call"]

DEADLINE_S = 60.0


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

"""Server-sent events of a run: its row whenever it changed, and an event when its server stops answering."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.sse import ServerSentEvent

from es_service import errors
from es_service.api.guard.problems import Problem

__all__ = ["stream"]

_UNCHANGING = ("age_s", "as_of", "updated_at")


async def stream(look: Callable[[], dict[str, Any]], every_s: float) -> AsyncIterator[ServerSentEvent]:
    """Yield events until the run has finished or the reader leaves.

    Args:
        look: returns the run's detail; runs in a thread.
        every_s: seconds between two looks.
    """
    last, was_away = "", False
    while True:
        try:
            detail = await asyncio.to_thread(look)
        except (errors.EsServiceError, Problem) as error:
            if not was_away:
                yield _event("away", {"detail": str(error)})
            was_away = True
        else:
            state = json.dumps(_stripped(detail), sort_keys=True)
            is_done = detail["status"] == "finished"
            if is_done:
                yield _event("finished", detail)
                return
            if state != last or was_away:
                yield _event("run", detail)
                last, was_away = state, False
        await asyncio.sleep(every_s)  # polling: neither files nor servers notify


def _event(name: str, value: dict[str, Any]) -> ServerSentEvent:
    version = (value.get("table") or {}).get("version")
    return ServerSentEvent(
        event=name, id=str(version) if version else None, raw_data=json.dumps(value, allow_nan=False)
    )


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(one) for key, one in value.items() if key not in _UNCHANGING}
    return value

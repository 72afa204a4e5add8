"""Request bodies, read whole before a request takes a slot: a client that sends slowly delays no other."""

from __future__ import annotations

import anyio
from starlette.types import Message, Receive

from es_service.api.guard.problems import Problem

__all__ = ["read_whole", "too_large"]


async def read_whole(receive: Receive, most_bytes: int, within_s: float) -> Receive:
    """Return a `receive` that gives the whole body at once, and then the server's messages.

    Args:
        receive: of the server.
        most_bytes: that the body may have.
        within_s: seconds in which all of it must come, however often some of it does.

    Raises:
        Problem: it is too large, does not come in time, or the client left.
    """
    body, more = bytearray(), True
    with anyio.move_on_after(within_s):
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            body += message.get("body", b"")
            if len(body) > most_bytes:
                raise too_large(most_bytes)
            more = message.get("more_body", False)
    if more:
        raise Problem(
            "request-timeout", f"the request's body did not come whole within {within_s:g} s", "send it at once",
            headers={"Connection": "close"},
        )  # fmt: skip
    whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replayed() -> Message:
        return whole.pop() if whole else await receive()

    return replayed


def too_large(most_bytes: int) -> Problem:
    """Return the problem of a body of more bytes than may be."""
    return Problem("body-too-large", f"a body of more than {most_bytes:,} bytes", "nothing here needs one")

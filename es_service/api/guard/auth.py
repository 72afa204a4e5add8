"""Authentication by a bearer token, or by the session that the login form gave for it."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping

from starlette.requests import cookie_parser

__all__ = ["COOKIE", "SESSION_S", "Auth", "safe_next"]

COOKIE = "es_service_session"
SESSION_S = 12 * 3600


class Auth:
    """Checks what a request shows; nothing is kept, so that several processes with one token agree.

    A session is "<expires>.<HMAC-SHA256 of it>", keyed by what follows from the token: it reveals nothing of the token,
    and another token ends it.

    Args:
        token: that clients must send; None allows all clients.
        clock: seconds since 1970.
    """

    def __init__(self, token: str | None, clock: Callable[[], float] = time.time) -> None:
        self._token = None if token is None else _digest(b"token", token.encode())
        self._key = b"" if token is None else _digest(b"session", token.encode())
        self._clock = clock

    @property
    def needs_token(self) -> bool:
        """Whether a token is set."""
        return self._token is not None

    def accepts_token(self, shown: str) -> bool:
        """Return whether this is the token; takes as long for a wrong one, however much of it is right."""
        return self._token is not None and hmac.compare_digest(_digest(b"token", shown.encode()), self._token)

    def accepts(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request with these headers may read."""
        if self._token is None:
            return True
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.accepts_token(shown.strip()):
            return True
        return any(self._accepts_session(value) for value in _sessions(headers.get("cookie", "")))

    def shows_any(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request shows a token or a session, right or wrong."""
        return "authorization" in headers or any(_sessions(headers.get("cookie", "")))

    def new_session(self) -> str:
        """Return the value of a cookie that is good for 12 hours."""
        expires = str(int(self._clock()) + SESSION_S)
        return f"{expires}.{self._sign(expires)}"

    def _accepts_session(self, value: str) -> bool:
        expires, _, signature = value.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(expires).encode()):
            return False
        return expires.isdecimal() and int(expires) > self._clock()

    def _sign(self, expires: str) -> str:
        return hmac.new(self._key, expires.encode(), hashlib.sha256).hexdigest()


def _sessions(cookies: str) -> list[str]:
    """Return the values of our cookie in a Cookie header: browsers send several of one name if their paths differ."""
    return [value for pair in cookies.split(";") if (value := cookie_parser(pair).get(COOKIE))]


def _digest(purpose: bytes, value: bytes) -> bytes:
    return hmac.new(purpose, value, hashlib.sha256).digest()


def safe_next(path: str | None, root: str = "") -> str:
    """Return where to go after the login: a path of this service, which lies at `root`, its first page for others."""
    first = f"{root}/"
    if path is None or not path.startswith(first) or path.startswith(("//", "/\\")) or len(path) > 2000:
        return first
    return path if path.isprintable() and path.isascii() else first

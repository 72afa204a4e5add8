"""Settings of `es-service serve`, checked before it listens."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import socket
import stat

from es_service import errors
from es_service.selection.settings import as_integer, make_plain
from es_service.storage.given import read_given

__all__ = ["TOKEN_FILE_VARIABLE", "TOKEN_VARIABLE", "Limits", "Settings", "is_loopback", "read_token"]

TOKEN_VARIABLE = "ES_SERVICE_TOKEN"
TOKEN_FILE_VARIABLE = "ES_SERVICE_TOKEN_FILE"
_ROOT = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_OWN_NAMES = frozenset({"-", "login", "logout", "metrics", "openapi.json", "runs", "static", "v1"})
_LEAST_TOKEN = 16  # characters
_MOST_TOKEN = 512


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much may be asked.

    Args:
        per_second: requests of one client, on average.
        burst: requests of one client at once.
        concurrent: requests under way, of all clients together, streams not counted.
        streams: exports and event streams under way.
        logins_per_minute: failed ones, of one client.
        wrong_tokens_per_minute: requests of one client that show a wrong token or session.
        body_bytes: of one request.
        request_s: seconds in which a request's head must have come, and after it its body.
    """

    per_second: float = 500.0
    burst: int = 2000
    concurrent: int = 128
    streams: int = 100
    logins_per_minute: int = 10
    wrong_tokens_per_minute: int = 60
    body_bytes: int = 16_384
    request_s: float = 10.0

    def __post_init__(self) -> None:
        make_plain(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                as_integer(field.name, value, least=1)
            elif not value > 0:
                raise errors.ConfigError(f"{field.name} must be above 0, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the service is.

    Args:
        storage: folder or URI that holds the runs.
        token: that clients must send; None allows all clients.
        hosts: names that a request may be addressed to, without port; "*" allows any.
        ray: look for score servers on Ray, too.
        own_tasks: import the module that a run's own task names, for its previews.
        limits: how much may be asked.
        refresh_s: a live run's table is copied at most this often.
        root_path: of the service on its host, such as /es, where a proxy puts it below one; else "".
        nice: niceness of the service once there is a Ray cluster to read from; 0 leaves it as it is.
    """

    storage: str
    token: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")
    ray: bool = True
    own_tasks: bool = False
    limits: Limits = dataclasses.field(default_factory=Limits)
    refresh_s: float = 2.0
    nice: int = 0
    root_path: str = ""

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "root_path", _check_root(self.root_path))
        if self.token is not None:
            check_token(self.token, "the token")


def _check_root(root: str) -> str:
    """Return a root path without a slash at its end; ConfigError where it is none."""
    path = root.rstrip("/")
    first = path.partition("/")[2].partition("/")[0]
    if path and (not _ROOT.fullmatch(path) or {".", ".."} & set(path.split("/")) or first in _OWN_NAMES):
        raise errors.ConfigError(
            f"root path {root!r} must begin with a slash, be made of letters, digits, '.', '_', '~', '-' and slashes, "
            f"and not begin with a name of the service's own ({', '.join(sorted(_OWN_NAMES))}): use e.g. /es"
        )
    return path


def check_token(token: str, what: str) -> str:
    """Return the token; ConfigError where it could be guessed, or could not stand in a header."""
    if not _LEAST_TOKEN <= len(token) <= _MOST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise errors.ConfigError(
            f"{what} must be {_LEAST_TOKEN} to {_MOST_TOKEN} printable ASCII characters without a space: "
            "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return token


def read_token(path: str | None) -> str | None:
    """Return the token of a file, else of the environment (ES_SERVICE_TOKEN), else None.

    Raises:
        ConfigError: the file cannot be read, other users may read it, or it holds no usable token.
    """
    if path is None:
        token = os.environ.get(TOKEN_VARIABLE)
        return None if not token else check_token(token, TOKEN_VARIABLE)

    def check_mode(found: os.stat_result) -> None:
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise errors.ConfigError(f"token file {path} may be read by others: chmod 600 {path}")

    try:
        token = read_given(path, _MOST_TOKEN + 2, check=check_mode).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"cannot read the token file {path}: {error}") from error
    return check_token(token, f"the token in {path}")


def is_loopback(host: str) -> bool:
    """Return whether an address reaches this machine only: 127.0.0.0/8, ::1, and what else is written for them."""
    plain = host.strip("[]")
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(plain))  # 127.1, which sockets take
        except OSError:
            return plain.lower().rstrip(".") == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback

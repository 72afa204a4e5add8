"""The Ray cluster: a running one, or one started here on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator

import ray
import ray.exceptions

from es_service import errors
from es_service.stopping import rely_on_children

__all__ = ["check_shared", "ensure_ray"]

_KNOCK_DEADLINE_S = 10.0


def ensure_ray() -> None:
    """Stay with the Ray this process is connected to, or connect to RAY_ADDRESS, or start Ray on this machine.

    A Ray started here listens on 127.0.0.1 only: any client that reaches its ports may run code.

    Raises:
        ConfigError: Ray finds no token, or cannot write one to the user's home.
        ServerUnavailableError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    with _own_handler_kept(), _token_errors():
        _init()


def _init() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray binds to every interface
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False)
        rely_on_children()
        return
    try:
        _knock(address)
        ray.init(log_to_driver=False, configure_logging=False)
    except OSError as error:  # a ConnectionError of Ray's is one, too
        raise errors.ServerUnavailableError(
            f"cannot connect to the Ray cluster at RAY_ADDRESS={address}: is it up? One that asks for a token "
            "needs RAY_AUTH_MODE=token here too; without RAY_ADDRESS a cluster is started on this machine"
        ) from error


@contextlib.contextmanager
def _own_handler_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM that this program has set: Ray's exits with status 15, or 1."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(ours) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def check_shared(rank: int, world_size: int) -> None:
    """Raise ConfigError where `ensure_ray` would start a Ray of its own for one of several processes."""
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        raise errors.ConfigError(
            f"rank {rank} of {world_size} would start a Ray of its own, and every rank a score server of its own with "
            "it: start one Ray (`ray start --head`) and name it in RAY_ADDRESS on every rank; or take "
            "exchange='collective', which needs no Ray"
        )


@contextlib.contextmanager
def _token_errors() -> Iterator[None]:
    """Add what to set where Ray's token is the problem: it is kept in the home, and made where it is missing."""
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        raise errors.ConfigError(f"Ray finds no token to authenticate with: {error}") from error
    except (OSError, RuntimeError) as error:
        kept = os.path.expanduser("~/.ray/auth_token")
        place = getattr(error, "filename", None)
        in_home = place is not None and f"{kept}/".startswith(f"{str(place).rstrip('/')}/")
        if not in_home and "home directory" not in str(error):  # RuntimeError: there is no home
            raise
        raise errors.ConfigError(
            f"Ray cannot keep its token in {kept} (HOME={os.environ.get('HOME', '')}): {error}. Let HOME be a folder "
            "that can be written, or set RAY_AUTH_TOKEN to a token, or RAY_AUTH_TOKEN_PATH to a file that holds one "
            "(`python -c 'import secrets; print(secrets.token_hex(32))'` prints one)"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at host:port: Ray itself would retry for minutes."""
    plain = re.fullmatch(r"([^/]+):(\d+)", address)
    if plain:
        socket.create_connection((plain[1].strip("[]"), int(plain[2])), timeout=_KNOCK_DEADLINE_S).close()

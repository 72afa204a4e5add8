"""Output of a command's result: to stdout, or to a named file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
import sys
import warnings
from collections.abc import Iterator
from typing import IO, Any

from es_service import errors

__all__ = ["bytes_to_stdout", "check_streams", "file_at", "print_json", "print_text", "warnings_on_stderr"]


def check_streams() -> None:
    """Raise StorageError where stdout is closed: a result would be lost.

    The numbers of closed streams are taken: the next file that is opened would get what is printed to them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if sys.stdout is None:
        raise errors.StorageError("stdout is closed, and the result goes there: send it to a file, or to /dev/null")


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show warnings that are meant for users, one a line; not what a library deprecates."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"es-service: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, with null for numbers that are not finite, which JSON lacks."""
    print_text(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_text(words: str) -> None:
    """Print a result; StorageError where stdout does not take it."""
    with _to_stdout():
        print(words, flush=True)


@contextlib.contextmanager
def bytes_to_stdout() -> Iterator[IO[bytes]]:
    """Let bytes be written to stdout; StorageError where it does not take them."""
    with _to_stdout():
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _to_stdout() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has ended
        _forget_stdout()
        raise
    except OSError as error:
        _forget_stdout()
        raise errors.StorageError(f"cannot write the result to stdout: {error.strerror or error}") from error


def _forget_stdout() -> None:
    """Let what stdout still holds go nowhere: Python would try again to write it as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def file_at(place: str) -> Iterator[IO[bytes]]:
    """Let a file be written that is there, whole, when the block ends.

    A regular file is written beside its place and renamed, so that a failure leaves the old one; a link is followed to
    where it leads. A file that is not regular (a device, a FIFO) is written to as it is.

    Raises:
        StorageError: it cannot be written, or not all of it.
    """
    try:
        with _beside(os.path.realpath(place)) if _is_regular(place) else open(place, "wb") as file:
            yield file
    except OSError as error:
        reason = error.strerror or error
        raise errors.StorageError(f"cannot write {place}: {reason}; name another place with --out") from error


def _is_regular(place: str) -> bool:
    """Return whether a regular file is there, or nothing is."""
    try:
        return stat.S_ISREG(os.stat(place).st_mode)
    except FileNotFoundError:
        return True


@contextlib.contextmanager
def _beside(place: str) -> Iterator[IO[bytes]]:
    beside = f"{place}.{secrets.token_hex(8)}.partial"
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, place)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # it was stopped right behind the rename
                os.unlink(beside)
            raise

"""Whose a folder of results is: one file says it, another's is refused, and two processes do not share it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.storage import files

__all__ = ["Claim"]

_FORMAT = 1
_LOCAL = fs.LocalFileSystem()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A way to hold a folder.

    Args:
        kind: what it holds, "comparison" say; <kind>.json in it says which.
        command: of es-service, that works in it.
        may_change: what one may do instead of naming another folder, for the message.
    """

    kind: str
    command: str
    may_change: str

    @contextlib.contextmanager
    def held(self, folder: Path, identity: dict[str, Any]) -> Iterator[None]:
        """Make the folder one of this identity, or see that it is; hold it against a second process meanwhile.

        Raises:
            ConfigError: it cannot be written, it holds something else, or somebody is at work in it.
        """
        with contextlib.ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._check_same(folder, identity)
                self._hold(folder, stack.enter_context(_open_lock(folder / "lock")))
                files.write_json(_LOCAL, str(folder / self._name), {"format": _FORMAT, **identity})
            except (OSError, errors.StorageError) as error:
                raise errors.ConfigError(f"--out {folder} cannot be used: {error}") from error
            yield

    def check(self, folder: Path, known: Mapping[str, Any]) -> None:
        """Look whether the folder can be held, as far as its identity is known; nothing is written.

        Raises:
            ConfigError: it is no folder, or holds something else.
        """
        try:
            if folder.exists():
                self._check_same(folder, known)
        except (OSError, errors.StorageError) as error:
            raise errors.ConfigError(f"--out {folder} cannot be used: {error}") from error

    def is_there(self, folder: Path) -> bool:
        """Return whether the folder is somebody's."""
        return (folder / self._name).exists()

    @property
    def _name(self) -> str:
        return f"{self.kind}.json"

    def _hold(self, folder: Path, lock: Any) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.ConfigError(f"--out {folder}: another es-service {self.command} is at work there") from error

    def _check_same(self, folder: Path, identity: Mapping[str, Any]) -> None:
        if not self.is_there(folder):
            if any(entry.name != "lock" for entry in folder.iterdir()):
                raise errors.ConfigError(
                    f"--out {folder} holds files that are no {self.kind}'s: name a new folder, or an empty one"
                )
            return
        before, now = files.read_json(_LOCAL, str(folder / self._name)), {"format": _FORMAT, **identity}
        differing = [
            f"{name} there {before.get(name)!r}, here {now.get(name)!r}"
            for name in now
            if before.get(name) != now.get(name)
        ]
        if differing:
            raise errors.ConfigError(
                f"--out {folder} holds another {self.kind} ({'; '.join(differing)}): {self.may_change} name another "
                "folder"
            )


def _open_lock(path: Path) -> Any:
    """Open the file that is locked, made where it is missing; a link there is not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb", buffering=0)

"""The folder of a comparison or a search: one file describes it, another's is refused, two commands do not share it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pyarrow import fs

from es_service import errors
from es_service.experiments.experiment_spec import ExperimentSpec
from es_service.selection.settings import as_number
from es_service.storage import files

__all__ = ["ExperimentFolder"]

_FORMAT = 1
_LOCAL = fs.LocalFileSystem()
T = TypeVar("T")


class ExperimentFolder:
    """A folder with <kind>.json, which describes it, runs/, and the results.

    Args:
        out: its path; a local folder.

    Raises:
        ConfigError: it is not a local folder.
    """

    kind: ClassVar[str]
    """What it holds, e.g. "comparison"."""
    command: ClassVar[str]
    """Of es-service, that works in it."""
    may_change: ClassVar[str]
    """What one may change without another folder, for the message."""

    def __init__(self, out: str) -> None:
        if "://" in out:
            raise errors.ConfigError(f"--out {out} is not a local folder: reports and pictures are written to one")
        self.path = Path(files.absolute(out))
        self.runs = self.path / "runs"

    @property
    def is_begun(self) -> bool:
        """Whether one of its kind is there."""
        return os.path.exists(self.path / f"{self.kind}.json")  # False where it may not be asked

    def check_identity(self, known: Mapping[str, Any]) -> None:
        """Raise ConfigError where it holds something else, as far as is known before the task is built."""
        with self._usable():
            if self.path.exists():
                self._check_same(known)

    def backward_cost(self) -> float | None:
        """Return what a backward pass counts as in its runs, None where none is there.

        Raises:
            StorageError: it cannot be read.
        """
        found = self.read(f"{self.kind}.json", lambda values: values.get("backward_cost"))
        return None if found is None else as_number("backward_cost", found)

    @contextlib.contextmanager
    def open(self, spec: ExperimentSpec) -> Iterator[None]:
        """Make it this comparison's or search's folder, or see that it is; hold it against others meanwhile.

        Raises:
            ConfigError: it cannot be written, it holds something else, or another command works in it.
        """
        with contextlib.ExitStack() as stack:
            with self._usable():
                self.path.mkdir(parents=True, exist_ok=True)
                self._check_same(spec.identity())
                lock = stack.enter_context(_open_lock(self.path / "lock"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise errors.ConfigError(
                        f"--out {self.path}: another es-service {self.command} is at work there"
                    ) from error
                self.write(f"{self.kind}.json", {"format": _FORMAT, **spec.identity()})
                self.runs.mkdir(exist_ok=True)
            yield

    def read(self, name: str, make: Callable[[dict[str, Any]], T]) -> T | None:
        """Return `make` of a JSON file's content, None where there is no such file.

        Raises:
            StorageError: it cannot be read, holds no JSON object, or not what is expected there.
        """
        path = self.path / name
        if not os.path.lexists(path):
            return None
        try:
            return make(files.read_json(_LOCAL, str(path)))
        except (AttributeError, LookupError, TypeError, ValueError, errors.ConfigError) as error:
            raise errors.StorageError(f"{path} is damaged: {error!r}; remove it, or name another --out") from error

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a file of JSON."""
        files.write_json(_LOCAL, str(self.path / name), value)

    def _check_same(self, identity: Mapping[str, Any]) -> None:
        before = self.read(f"{self.kind}.json", dict)
        if before is None:
            if any(entry.name != "lock" for entry in self.path.iterdir()):
                raise errors.ConfigError(
                    f"--out {self.path} holds files that are not of a {self.kind}: name a new folder, or an empty one"
                )
            return
        now = {"format": _FORMAT, **identity}
        differing = [
            f"{name} there {before.get(name)!r}, here {value!r}"
            for name, value in now.items()
            if (before.get(name) or None) != (value or None)  # empty is as good as left out
        ]
        if differing:
            raise errors.ConfigError(
                f"--out {self.path} holds another {self.kind} ({'; '.join(differing)}): {self.may_change} name another "
                "folder"
            )

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, errors.StorageError) as error:
            raise errors.ConfigError(f"--out {self.path} cannot be used: {error}") from error


def _open_lock(path: Path) -> Any:
    """Open the file that is locked, made where it is missing; a link there is not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb", buffering=0)

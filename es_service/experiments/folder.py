"""The folder that a comparison or a search writes: runs/, results.json, and beside them what each adds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.experiments.claims import Claim
from es_service.experiments.experiment_spec import Subject
from es_service.storage import files

__all__ = ["ReportFolder"]

_LOCAL = fs.LocalFileSystem()


class ReportFolder:
    """A folder with the runs that a report is about, and the report.

    Args:
        out: its path; a local folder.
        claim: what marks it as somebody's.

    Raises:
        ConfigError: it is no local folder.
    """

    def __init__(self, out: str, claim: Claim) -> None:
        if "://" in out:
            raise errors.ConfigError(f"--out {out} is no local folder: reports and pictures are written to one")
        self.path = Path(files.absolute(out))
        self.runs = self.path / "runs"
        self._claim = claim

    @property
    def is_claimed(self) -> bool:
        """Whether one of its kind is there."""
        return self._claim.is_there(self.path)

    def check_identity(self, known: Mapping[str, Any]) -> None:
        """Raise ConfigError where it holds something else, as far as is known before the task is built."""
        self._claim.check(self.path, known)

    @contextlib.contextmanager
    def open(self, subject: Subject) -> Iterator[None]:
        """Make the folder this comparison's or search's, or see that it is; hold it against others meanwhile.

        Raises:
            ConfigError: it cannot be written, it holds something else, or somebody is at work in it.
        """
        with self._claim.held(self.path, subject.identity()):
            self.runs.mkdir(exist_ok=True)
            yield

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what a file of JSON in it says, None where there is no such file."""
        return files.read_json(_LOCAL, str(self.path / name)) if (self.path / name).exists() else None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a file of JSON."""
        files.write_json(_LOCAL, str(self.path / name), value)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json."""
        self.write("results.json", results)

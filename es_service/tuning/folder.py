"""The folder of a search.

<out>/search.json           what is searched; another search is refused
<out>/trials.jsonl          the journal, see `trials.Journal`
<out>/references.json       how long the full runs are that trials are compared with, once that is decided
<out>/references.jsonl      the journal of these
<out>/runs/<run>/           every trial and every full run, as `es-service runs --storage <out>/runs` lists them
<out>/results.json, trials.parquet, history.parquet, best.yaml, report.html, pictures/
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.evidence.claims import Claim
from es_service.storage import files
from es_service.tuning.described import Search
from es_service.tuning.trials import Journal

__all__ = ["Folder"]

_CLAIM = Claim(kind="search", command="tune", may_change="samples may be added to one, for anything else")
_LOCAL = fs.LocalFileSystem()


class Folder:
    """One search on disk.

    Args:
        out: its path; a local folder.
    """

    def __init__(self, out: str) -> None:
        if "://" in out:
            raise errors.ConfigError(f"--out {out} is no local folder: reports and pictures are written to one")
        self.path = Path(files.absolute(out))
        self.runs = self.path / "runs"
        self.journal = Journal(self.path / "trials.jsonl")
        self.references = Journal(self.path / "references.jsonl")

    def check(self, *, resume: bool) -> None:
        """Raise ConfigError where there is nothing to go on with, or where something is that nobody asked to.

        Nothing is made yet: this comes before Ray starts.
        """
        there = _CLAIM.is_there(self.path)
        if resume and not there:
            raise errors.ConfigError(f"--resume: there is no search in {self.path}; leave --resume out to begin one")
        if there and not resume:
            raise errors.ConfigError(
                f"--out {self.path} holds a search already: go on with it by --resume, or name another folder"
            )

    @contextlib.contextmanager
    def open(self, search: Search) -> Iterator[None]:
        """Make the folder this search's, or see that it is; hold it against a second process meanwhile.

        Raises:
            ConfigError: it cannot be written, it holds something else, or somebody is at work in it.
        """
        with _CLAIM.held(self.path, search.identity()):
            self.runs.mkdir(exist_ok=True)
            yield

    def lengths(self) -> list[int] | None:
        """Return how many epochs the full runs have, None while that is not decided."""
        if not (self.path / "references.json").exists():
            return None
        return [int(one) for one in files.read_json(_LOCAL, str(self.path / "references.json"))["epochs"]]

    def write_lengths(self, lengths: list[int]) -> None:
        """Keep them: a search that goes on compares with the same runs."""
        files.write_json(_LOCAL, str(self.path / "references.json"), {"epochs": lengths})

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json."""
        files.write_json(_LOCAL, str(self.path / "results.json"), results)

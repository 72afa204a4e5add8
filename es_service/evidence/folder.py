"""The folder of a comparison.

<out>/comparison.json       what is compared; another comparison is refused
<out>/short_full.json       how long each method's short full run is, once that is decided
<out>/runs/<run>/           one run: spec.json, outcome.json when it has ended, log.txt, and what `train` leaves there
<out>/results.json, results.parquet, history.parquet, report.md, report.html, pictures/
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.evidence.claims import Claim
from es_service.evidence.comparison import Comparison, RunSpec
from es_service.evidence.outcomes import Outcome
from es_service.storage import files

__all__ = ["Folder"]

_LOCAL = fs.LocalFileSystem()


class Folder:
    """One comparison on disk.

    Args:
        out: its path; a local folder.
    """

    def __init__(self, out: str) -> None:
        if "://" in out:
            raise errors.ConfigError(f"--out {out} is no local folder: reports and pictures are written to one")
        self.path = Path(files.absolute(out))
        self.runs = self.path / "runs"

    @contextlib.contextmanager
    def open(self, comparison: Comparison) -> Iterator[None]:
        """Make the folder this comparison's, or see that it is; hold it against a second process meanwhile.

        Raises:
            ConfigError: it cannot be written, it holds something else, or somebody is at work in it.
        """
        claim = Claim(
            kind="comparison", command="compare", may_change="methods and seeds may be added to one, for anything else"
        )
        with claim.held(self.path, comparison.identity()):
            self.runs.mkdir(exist_ok=True)
            yield

    def outcome(self, spec: RunSpec) -> Outcome | None:
        """Return what came of a run, None if it has not ended; ConfigError where its name had other settings then."""
        if not (self.runs / spec.run / "outcome.json").exists():
            return None
        values = self._read(f"runs/{spec.run}/outcome.json")
        if values["spec"] != spec.to_dict():
            raise errors.ConfigError(
                f"run {spec.run} in {self.path} was made with other settings ({values['spec']}), by another version "
                "perhaps: name another folder, or remove the run's"
            )
        return Outcome.from_dict(values)

    def prepare(self, spec: RunSpec) -> Path:
        """Return the run's folder, emptied of what an interrupted run left, with its spec.json."""
        place = self.runs / spec.run
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self._write(f"runs/{spec.run}/spec.json", spec.to_dict())
        return place

    def lengths(self) -> dict[str, dict[str, Any]]:
        """Return {label: {epochs, basis}}: how long the short full run of each method is, as far as decided."""
        return self._read("short_full.json") if (self.path / "short_full.json").exists() else {}

    def write_lengths(self, lengths: dict[str, dict[str, Any]]) -> None:
        """Keep them, so that a continued comparison compares with the same runs."""
        self._write("short_full.json", lengths)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write results.json."""
        self._write("results.json", results)

    def _read(self, name: str) -> dict[str, Any]:
        return files.read_json(_LOCAL, str(self.path / name))

    def _write(self, name: str, value: dict[str, Any]) -> None:
        files.write_json(_LOCAL, str(self.path / name), value)

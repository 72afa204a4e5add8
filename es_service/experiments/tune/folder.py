"""The folder of a search.

<out>/search.json           what is searched; another search is refused
<out>/references.json       how long the full runs are that trials are compared with, once that is decided
<out>/tune/                 what Ray Tune needs to resume the search, see `tuner`
<out>/runs/<run>/           every trial and every full run, as `es-service runs --storage <out>/runs` lists them
<out>/results.json, trials.parquet, history.parquet, best.yaml, report.html, pictures/
"""

from __future__ import annotations

from es_service import errors
from es_service.experiments.claims import Claim
from es_service.experiments.folder import ReportFolder

__all__ = ["Folder"]

_CLAIM = Claim(kind="search", command="tune", may_change="samples may be added to one, for anything else")


class Folder(ReportFolder):
    """One search on disk.

    Args:
        out: its path; a local folder.
    """

    def __init__(self, out: str) -> None:
        super().__init__(out, _CLAIM)
        self.tune = self.path / "tune"

    def check(self, *, resume: bool) -> None:
        """Raise ConfigError where there is nothing to go on with, or where something is that nobody asked to.

        Nothing is made yet: this comes before Ray starts.
        """
        if resume and not self.is_claimed:
            raise errors.ConfigError(f"--resume: there is no search in {self.path}; leave --resume out to begin one")
        if self.is_claimed and not resume:
            raise errors.ConfigError(
                f"--out {self.path} holds a search already: go on with it by --resume, or name another folder"
            )

    def lengths(self) -> list[int] | None:
        """Return how many epochs the full runs have, None while that is not decided."""
        found = self.read("references.json")
        return None if found is None else [int(one) for one in found["epochs"]]

    def write_lengths(self, lengths: list[int]) -> None:
        """Keep them: a search that goes on compares with the same runs."""
        self.write("references.json", {"epochs": lengths})

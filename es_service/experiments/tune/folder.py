"""The folder of a search.

<out>/search.json           what is searched; another search is refused
<out>/references.json       how long the full runs are that trials are compared with, once that is decided
<out>/tune/                 what Ray Tune needs to resume the search, see `tuner`
<out>/runs/<run>/           every trial and every full run, as `es-service runs --storage <out>/runs` lists them
<out>/results.json, trials.parquet, history.parquet, best.yaml, report.html, pictures/
"""

from __future__ import annotations

from es_service import errors
from es_service.experiments.folder import ExperimentFolder

__all__ = ["SearchFolder"]


class SearchFolder(ExperimentFolder):
    """One search on disk; see `ExperimentFolder`."""

    kind, command = "search", "tune"
    may_change = "samples may be added to one, for anything else"

    def __init__(self, out: str) -> None:
        super().__init__(out)
        self.tune = self.path / "tune"

    def check(self, *, resume: bool) -> None:
        """Raise ConfigError where there is nothing to resume, or where there is a search and `resume` is not asked for.

        Nothing is made yet: this comes before Ray starts.
        """
        if resume and not self.is_begun:
            raise errors.ConfigError(f"--resume: there is no search in {self.path}; leave --resume out to begin one")
        if self.is_begun and not resume:
            raise errors.ConfigError(
                f"--out {self.path} holds a search already: continue it with --resume, or name another folder"
            )

    def lengths(self) -> list[int] | None:
        """Return how many epochs the full runs have, None while that is not decided."""
        return self.read("references.json", lambda found: [int(one) for one in found["epochs"]])

    def write_lengths(self, lengths: list[int]) -> None:
        """Keep them: a resumed search compares with the same runs."""
        self.write("references.json", {"epochs": lengths})

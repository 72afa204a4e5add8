"""What a second start under one run name is to do: `es.connect(..., resume=...)`."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from es_service import errors
from es_service.selection.settings import suggest

__all__ = ["Resume", "check_begun", "check_resume"]

Resume: TypeAlias = Literal["auto", "must", "never"]
"""auto: continue the run of this name, else start it; must: it has to exist; never: it must be new."""


def check_resume(resume: str) -> None:
    """Raise ConfigError for a word that is none of them."""
    if resume not in get_args(Resume):
        raise errors.ConfigError(f"unknown resume={resume!r}; {suggest(str(resume), list(get_args(Resume)))}")


def check_begun(resume: Resume, has_begun: bool, run: str, storage: str) -> None:
    """Raise unless the run is there, or is not, as asked for.

    Raises:
        RunNotFoundError: it has to exist, and does not.
        RunExistsError: it must be new, and is not.
    """
    if resume == "must" and not has_begun:
        raise errors.RunNotFoundError(
            f"resume='must', but no run {run!r} was started in {storage}: check the name and the storage, or connect "
            "with resume='auto', which starts it"
        )
    if resume == "never" and has_begun:
        raise errors.RunExistsError(
            f"resume='never', but run {run!r} was started in {storage}: take another run name; or connect with "
            "resume='auto' and continue at selector.next_epoch, or call selector.reset() to start it over"
        )

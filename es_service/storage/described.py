"""The description of a run from its files, for display: each file is read once, its values are fit to be shown."""

from __future__ import annotations

import dataclasses
from typing import Any

from es_service import errors
from es_service.selection.run import RunConfig
from es_service.storage import labels
from es_service.storage.plain import plain, text
from es_service.storage.runs import RunStorage, config_from_dict, config_to_dict

__all__ = ["Description", "describe"]

_OF_ITS_CONTENTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError)


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """A run as its files describe it.

    Attributes:
        config: what the run is.
        training: how it is trained; empty where it was not noted.
        search: name of the search that it is a trial of, None for none.
        result: what came of it, None while it has not ended.
        progress: how far it is, None where it was not noted.
        notes: what is known of its samples.
    """

    config: RunConfig
    training: dict[str, Any]
    search: str | None
    result: dict[str, Any] | None
    progress: dict[str, Any] | None
    notes: labels.SampleNotes


def describe(storage: RunStorage) -> Description:
    """Return a run's description from its files.

    Raises:
        RunNotFoundError: there is no such run.
        StorageError: a file cannot be read, or does not hold what it should, or lies outside the storage.
    """
    try:
        storage.check_contents()
        about = storage.about()
        config, training = config_from_dict(about.get("config", {})), plain(about.get("training"))
        values = config_to_dict(config)
        if plain(values) != values:
            raise errors.StorageError(f"{storage.path}/run.json is damaged: its config holds no usable numbers")
        return Description(
            config,
            training if isinstance(training, dict) else {},
            text(plain(about.get("search"))),
            plain(storage.result()),
            plain(storage.read_note("progress")),
            labels.read_notes(storage),
        )
    except _OF_ITS_CONTENTS as error:  # whatever a stranger's file may hold
        if isinstance(error, errors.EsServiceError):
            raise
        raise errors.StorageError(f"{storage.path} cannot be read as a run: {error}") from error

"""The runs in a storage folder: names, descriptions, results.

<storage>/<run>/run.json       what the run is (its config); written once, when the run begins
<storage>/<run>/result.json    what came of it; written when training ends
<storage>/<run>/progress.json  how far it is, see progress.py
<storage>/<run>/previews/      see previews.py; what is known of samples besides, see labels.py
<storage>/<run>/owners/        which processes write here, see ownership.py
<storage>/<run>/snapshots/     see snapshots.py
<storage>/<run>/spreads/       see spreads.py
<storage>/<run>/journal/<i>-of-<S>/  see segments.py
<storage>/<run>/history/       see history.py
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.past import BEGINNING, Past
from es_service.selection.run import RunConfig, RunState
from es_service.selection.shards import WHOLE, Shard
from es_service.storage import files, listing, ownership, sealed
from es_service.storage.history import History
from es_service.storage.listing import check_run_name, list_runs
from es_service.storage.manifest import Files
from es_service.storage.ownership import Ownership
from es_service.storage.previews import PreviewFiles
from es_service.storage.progress import Progress
from es_service.storage.segments import JournalFolder
from es_service.storage.snapshots import Snapshots
from es_service.storage.spreads import SpreadFiles
from es_service.storage.terms import Term

__all__ = ["DEFAULT_STORAGE", "RunStorage", "by_user", "check_run_name", "list_runs"]

DEFAULT_STORAGE = os.environ.get("ES_SERVICE_STORAGE", "~/es_service_runs")
FORMAT = 2
_READABLE = (1, 2)  # 1: snapshots and journals without stamps, annealing by whole epochs


class RunStorage:
    """One run's folder.

    Args:
        storage: folder or URI that holds the runs.
        run: name of the run.

    Attributes:
        filesystem: what `path` lies on.
        path: of the folder.
        snapshots: of the table, at the ends of epochs.
        spreads: how its columns spread then.
        history: what was observed, epoch by epoch.
        progress: the ledger and what was measured, epoch by epoch.
        previews: of its samples.

    Raises:
        RunNameError, StorageError: the name or the place cannot be used.
    """

    def __init__(self, storage: str, run: str) -> None:
        self.run = check_run_name(run)
        self.storage = storage
        self.filesystem, root = files.open_filesystem(storage)
        self.path = f"{root}/{run}"
        self.snapshots = Snapshots(self.filesystem, self.path)
        self.spreads = SpreadFiles(self.filesystem, self.path)
        self.history = History(self.filesystem, self.path, self.end_of_ids)
        self.progress = Progress(self.filesystem, self.path, lambda: self.config().num_epochs)
        self.previews = PreviewFiles(self.filesystem, self.path)
        self._owner: Ownership | Term | None = None
        self._journals: dict[Shard, JournalFolder] = {}

    @classmethod
    def named(cls, run: str | None, storage: str | None) -> RunStorage:
        """Return the folder of a run as a user names it, None for the usual storage; ConfigError without a name."""
        if run is None:
            raise errors.ConfigError(
                "storage, resume, labels, label_names and preview are of a run that is kept: name it with run='…', or "
                "leave them out"
            )
        return cls(DEFAULT_STORAGE if storage is None else storage, run)

    def exists(self) -> bool:
        """Return whether a run of this name exists."""
        return files.is_file(self.filesystem, f"{self.path}/run.json")

    def begin(self, config: RunConfig, training: dict[str, Any] | None = None, *, search: str | None = None) -> None:
        """Write run.json, making the folder; a run that is there already must have the same config.

        Args:
            config: what the run is.
            training: how it is trained, as plain values; `by_user` of a user's own loop.
            search: name of the search that it is a trial of, where it is one.

        Raises:
            RunMismatchError: it has another one; the message names what differs.
            StorageError: the folder cannot be written.
        """
        if self.exists():
            check_same(self.run, self.config(), config)
            return
        files.make_folder(self.filesystem, self.path)
        description = {"format": FORMAT, "run": self.run, "config": config_to_dict(config), "training": training}
        if search is not None:
            description["search"] = search
        files.write_json(self.filesystem, f"{self.path}/run.json", description)

    def about(self) -> dict[str, Any]:
        """Return run.json; RunNotFoundError where there is none, StorageError where it is another version's."""
        if not self.exists():
            raise errors.RunNotFoundError(
                f"no run {self.run!r} in {self.storage}: `es-service runs --storage {self.storage}` lists them"
            )
        description = files.read_json(self.filesystem, f"{self.path}/run.json")
        sealed.check_format(description.get("format"), f"{self.path}/run.json", _READABLE)
        return description

    def config(self) -> RunConfig:
        """Return the content of run.json; RunNotFoundError where there is none."""
        return config_from_dict(self.about().get("config", {}))

    def end_of_ids(self) -> int:
        """Return what all ids of the run lie below."""
        return self.config().end_of_ids

    def training(self) -> dict[str, Any] | None:
        """Return how the run is trained, as given to `begin`; None where it was not."""
        training = self.about().get("training")
        return training if isinstance(training, dict) else None

    def search(self) -> str | None:
        """Return the name of the search that the run is a trial of; else None."""
        search = self.about().get("search")
        return search if isinstance(search, str) else None

    def check_contents(self) -> None:
        """Raise StorageError where the folder holds what readers must not follow, see listing.py."""
        listing.check_contents(self.filesystem, self.path.rpartition("/")[0], self.path)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        self.write_note("result", result)

    def result(self) -> dict[str, Any] | None:
        """Return result.json, or None while the run has not ended."""
        return self.read_note("result")

    def write_note(self, name: str, values: dict[str, Any]) -> None:
        """Write <name>.json beside run.json."""
        files.write_json(self.filesystem, f"{self.path}/{name}.json", values)

    def read_note(self, name: str) -> dict[str, Any] | None:
        """Return <name>.json, or None where there is none."""
        path = f"{self.path}/{name}.json"
        return files.read_json(self.filesystem, path) if files.is_file(self.filesystem, path) else None

    def claim(self, actor: str) -> Ownership:
        """Take the run over, and hold it until `release`: what is written from here carries this owner's stamp.

        Args:
            actor: names the owner over restarts of its process.

        Raises:
            RunExistsError: another score server writes it.
        """
        owner = Ownership(self.filesystem, self.path, actor)
        owner.claim()
        self._owner = owner
        return owner

    def _stamped(self) -> Ownership | Term:
        """Return who writes here; where no process has taken the run over, this one does."""
        if self._owner is None:
            self._owner = ownership.claim_unwatched(self.filesystem, self.path)
        return self._owner

    def write_snapshot(self, state: RunState) -> None:
        """Write the state at an epoch's end."""
        folder = self.begin_snapshot(state.finished_epochs)
        part = self.snapshots.write_part(folder, state.records, WHOLE)
        self.finish_snapshot(folder, state.epoch_starts, state.records.size, [part], state.past)

    def begin_snapshot(self, finished_epochs: int) -> str:
        """Begin a snapshot that shards write together, with this owner's stamp; return its folder."""
        return self.snapshots.begin(finished_epochs, self._stamped().stamp)

    def finish_snapshot(
        self, folder: str, epoch_starts: Sequence[int], num_samples: int, parts: Sequence[Files], past: Past = BEGINNING
    ) -> None:
        """Write the manifest of a snapshot whose parts are written, see `Snapshots.finish`.

        Raises:
            StorageError: it cannot be written, or another one writes the run.
        """
        entries = {name: entry for part in parts for name, entry in part.items()}
        self.snapshots.finish(folder, epoch_starts, num_samples, entries, past, confirm=self._confirm)

    def _confirm(self) -> None:
        owner = self._stamped()
        try:
            owner.confirm() if isinstance(owner, Ownership) else owner.check()
        except errors.RunExistsError as error:
            raise errors.StorageError(str(error)) from error

    def forget_after(self, finished_epochs: int, records: NDArray[np.void] | None = None) -> None:
        """Drop snapshots, spreads, history and progress of later epochs: the run went back to an earlier one.

        Where records[n] are of another table than ended this epoch here, the history and spreads before it go too.
        """
        self._confirm()
        own = records is None or self.spreads.are_of(finished_epochs, records)
        self.forget_history(finished_epochs if own else 0)
        self.snapshots.drop_after(finished_epochs, self._stamped().stamp)
        self.progress.drop_from(finished_epochs)

    def forget_history(self, finished_epochs: int) -> None:
        """Drop the history and the spreads of later epochs."""
        self.history.drop_from(finished_epochs)
        self.spreads.drop_after(finished_epochs)

    def table(self) -> pa.Table:
        """Return the newest snapshot's table; RunNotFoundError or StorageError where there is none."""
        return self.snapshots.table(self.end_of_ids())

    # -- journals, one a shard -----------------------------------------------------------------------------------------

    def journal(self, shard: Shard) -> JournalFolder:
        """Return the files of a shard's journal."""
        if shard not in self._journals:
            path = f"{self.path}/journal/{shard.index}-of-{shard.count}"
            self._journals[shard] = JournalFolder(self.filesystem, path)
        return self._journals[shard]

    def claim_journal(self, shard: Shard) -> None:
        """Take a shard's journal over, before it is read: a process that wrote it before writes it no more."""
        name = f"{shard.index}-of-{shard.count}"
        self.journal(shard).term = ownership.claim_journal(self.filesystem, self.path, name)

    def begin_journals(self, num_shards: int) -> None:
        """Forget journals that another number of shards left: their rows were cut otherwise."""
        with files.storage_errors("clear the journal of", self.path):
            for info in files.list_folder(self.filesystem, f"{self.path}/journal"):
                if not info.base_name.endswith(f"-of-{num_shards}"):
                    self.filesystem.delete_dir(info.path)


def by_user(config: RunConfig, exchange: str, num_ranks: int) -> dict[str, Any]:
    """Return how a run is trained that a user's own loop trains, for `RunStorage.begin`."""
    return {"task": None, "method": config.selection.method.name, "exchange": exchange, "workers": num_ranks}


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a RunConfig as plain values."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {**values, "selection": config.selection.to_dict()}


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Make a RunConfig from `config_to_dict`'s values; StorageError where they are not that.

    A method of another package is not imported: `RunConfig.loaded` does that, for training.
    """
    try:
        own = dict(values)
        selection = Selection.from_dict(own.pop("selection"), load=False)
        return RunConfig(selection=selection, **own)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # a ConfigError is a ValueError
        raise errors.StorageError(f"the run's description is damaged: {error}") from error


def check_same(run: str, theirs: RunConfig, ours: RunConfig) -> None:
    """Raise RunMismatchError unless both configs are equal; name each setting that differs."""
    have, want = (
        {key.rpartition(".")[2]: value for key, value in flat(config_to_dict(one)).items()} for one in (theirs, ours)
    )
    if have == want:
        return
    differing = [f"{key}: run {have.get(key)!r}, yours {want.get(key)!r}" for key in want if have.get(key) != want[key]]
    differing += [f"{key}: run {have[key]!r}, yours has none" for key in have if key not in want]
    raise errors.RunMismatchError(
        f"run {run!r} exists with other settings ({'; '.join(differing)}): use the same ones, or another run name"
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found

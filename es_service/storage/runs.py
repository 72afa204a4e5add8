"""The runs in a storage folder: names, descriptions, results.

<storage>/<run>/run.json       what the run is (its config); written once, when the run begins
<storage>/<run>/result.json    what came of it; written when training ends
<storage>/<run>/progress.json  how far it is, where there is no score server to ask
<storage>/<run>/owners/        which processes write here, see ownership.py
<storage>/<run>/snapshots/     see snapshots.py
<storage>/<run>/spreads/       see spreads.py
<storage>/<run>/journal/<i>-of-<S>/  see segments.py
<storage>/<run>/history/       see history.py
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig, RunState
from es_service.selection.shards import WHOLE, Shard
from es_service.storage import files, history, listing, ownership, segments, snapshots, spreads
from es_service.storage.journal import Journal
from es_service.storage.listing import check_run_name, list_runs
from es_service.storage.ownership import Ownership
from es_service.storage.terms import Term

__all__ = ["DEFAULT_STORAGE", "RunStorage", "check_run_name", "list_runs"]

DEFAULT_STORAGE = os.environ.get("ES_SERVICE_STORAGE", "~/es_service_runs")
FORMAT = 2
_READABLE = (1, 2)  # 1: snapshots and journals without stamps, annealing by whole epochs


class RunStorage:
    """One run's folder.

    Args:
        storage: folder or URI that holds the runs.
        run: name of the run.

    Raises:
        RunNameError, StorageError: the name or the place cannot be used.
    """

    def __init__(self, storage: str, run: str) -> None:
        self.run = check_run_name(run)
        self.storage = storage
        self._filesystem, root = files.open_filesystem(storage)
        self.path = f"{root}/{run}"
        self._owner: Ownership | Term | None = None
        self._journals: dict[Shard, Term] = {}

    @property
    def filesystem(self) -> fs.FileSystem:
        """What `path` lies on."""
        return self._filesystem

    def exists(self) -> bool:
        """Return whether a run of this name has begun."""
        with files.storage_errors("look into", self.path):
            return bool(self._filesystem.get_file_info(f"{self.path}/run.json").type == fs.FileType.File)

    def begin(self, config: RunConfig, training: dict[str, Any] | None = None, *, search: str | None = None) -> None:
        """Write run.json, making the folder; a run that is there already must have the same config.

        Args:
            config: what the run is.
            training: how it is trained, as plain values, where this package trains it.
            search: name of the search that it is a trial of, where it is one.

        Raises:
            RunMismatchError: it has another one; the message names what differs.
            StorageError: the folder cannot be written.
        """
        if self.exists():
            check_same(self.run, self.config(), config)
            return
        files.make_folder(self._filesystem, self.path)
        description = {"format": FORMAT, "run": self.run, "config": config_to_dict(config), "training": training}
        if search is not None:
            description["search"] = search
        files.write_json(self._filesystem, f"{self.path}/run.json", description)

    def about(self) -> dict[str, Any]:
        """Return run.json; RunNotFoundError where there is none, StorageError where it is another version's."""
        if not self.exists():
            raise errors.RunNotFoundError(
                f"no run {self.run!r} in {self.storage}: `es-service runs --storage {self.storage}` lists them"
            )
        description = files.read_json(self._filesystem, f"{self.path}/run.json")
        if description.get("format") not in _READABLE:
            raise errors.StorageError(
                f"{self.path}/run.json has format {description.get('format')!r}, this version reads {FORMAT}: "
                "upgrade es_service"
            )
        return description

    def config(self) -> RunConfig:
        """Return what the run is, as run.json says; RunNotFoundError where there is none."""
        return config_from_dict(self.about().get("config", {}))

    def training(self) -> dict[str, Any] | None:
        """Return how the run is trained, as `begin` was told; None where it was not."""
        training = self.about().get("training")
        return training if isinstance(training, dict) else None

    def search(self) -> str | None:
        """Return the name of the search that the run is a trial of; None where it is none's."""
        search = self.about().get("search")
        return search if isinstance(search, str) else None

    def check_contents(self) -> None:
        """Raise StorageError where the folder holds what readers must not follow, see listing.py."""
        listing.check_contents(self._filesystem, self.path.rpartition("/")[0], self.path)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        self.write_note("result", result)

    def result(self) -> dict[str, Any] | None:
        """Return result.json, or None while the run has not ended."""
        return self.read_note("result")

    def write_note(self, name: str, values: dict[str, Any]) -> None:
        """Write <name>.json beside run.json."""
        files.write_json(self._filesystem, f"{self.path}/{name}.json", values)

    def read_note(self, name: str) -> dict[str, Any] | None:
        """Return <name>.json, or None where there is none."""
        path = f"{self.path}/{name}.json"
        with files.storage_errors("look into", self.path):
            if self._filesystem.get_file_info(path).type != fs.FileType.File:
                return None
        return files.read_json(self._filesystem, path)

    def claim(self, actor: str) -> Ownership:
        """Take the run over, and hold it until `release`: what is written from here carries this owner's stamp.

        Args:
            actor: names the owner over restarts of its process.

        Raises:
            RunExistsError: another score server writes it.
        """
        owner = Ownership(self._filesystem, self.path, actor)
        owner.claim()
        self._owner = owner
        return owner

    def _stamped(self) -> Ownership | Term:
        """Return who writes here; where nobody has taken the run over, this process does."""
        if self._owner is None:
            self._owner = ownership.claim_unwatched(self._filesystem, self.path)
        return self._owner

    def write_snapshot(self, state: RunState) -> None:
        """Write the state at an epoch's end, see snapshots.py."""
        folder = self.begin_snapshot(state.finished_epochs)
        part = self.write_part(folder, state.records, WHOLE)
        self.finish_snapshot(folder, state.epoch_starts, state.records.size, [part])

    def begin_snapshot(self, finished_epochs: int) -> str:
        """Begin a snapshot that shards write together; return its folder."""
        return snapshots.begin_snapshot(self._filesystem, self.path, finished_epochs, self._stamped().stamp)

    def write_part(
        self, folder: str, records: NDArray[np.void], shard: Shard, note: dict[str, Any] | None = None
    ) -> snapshots.Files:
        """Write a shard's rows into a snapshot under way; return what the manifest is to say of them."""
        return snapshots.write_part(self._filesystem, folder, records, shard, note)

    def finish_snapshot(
        self, folder: str, epoch_starts: Sequence[int], num_samples: int, parts: Sequence[snapshots.Files]
    ) -> None:
        """Write the manifest of a snapshot whose parts are written, see snapshots.py.

        Raises:
            StorageError: it cannot be written, or another one writes the run.
        """
        entries = {name: entry for part in parts for name, entry in part.items()}
        snapshots.finish_snapshot(self._filesystem, folder, epoch_starts, num_samples, entries, confirm=self._confirm)

    def _confirm(self) -> None:
        owner = self._stamped()
        try:
            owner.confirm() if isinstance(owner, Ownership) else owner.check()
        except errors.RunExistsError as error:
            raise errors.StorageError(str(error)) from error

    def snapshot(self, finished_epochs: int, shard: Shard = WHOLE, most_samples: int | None = None) -> RunState:
        """Return the state at this epoch's end, with the rows of one shard, of `most_samples` at most."""
        return snapshots.read_snapshot(self._filesystem, self.path, finished_epochs, shard, most_samples)

    def snapshot_epochs(self) -> list[int]:
        """Return the epochs at whose end there is a snapshot, ascending."""
        return snapshots.list_snapshots(self._filesystem, self.path)

    def note_of(self, finished_epochs: int, shard: Shard) -> dict[str, Any] | None:
        """Return what this very shard noted in a snapshot, None where it wrote none of it."""
        return snapshots.read_note(self._filesystem, self.path, finished_epochs, shard)

    def position(self, finished_epochs: int | None = None) -> tuple[int, tuple[int, ...]]:
        """Return the epochs behind a snapshot, the newest by default, and the run step at which each, and the next one,
        begins; (0, (0,)) where there is none.
        """
        return snapshots.read_position(self._filesystem, self.path, finished_epochs)

    def holds(self, finished_epochs: int, sha256: str) -> bool:
        """Return whether there is a whole snapshot of this epoch with this very table, in one file."""
        if finished_epochs not in snapshots.list_snapshots(self._filesystem, self.path):
            return False
        try:
            if snapshots.table_sha256(self._filesystem, self.path, finished_epochs) != sha256:
                return False
            self.snapshot(finished_epochs)
        except errors.StorageError:  # a damaged one: whoever asks has the table
            return False
        return True

    def forget_after(self, finished_epochs: int, records: NDArray[np.void] | None = None) -> None:
        """Drop the snapshots, the spreads and the history of later epochs: the run went back to an earlier one.

        Where records[n] are of another table than ended this epoch here, the history and spreads before it go too.
        """
        self._confirm()
        own = records is None or spreads.are_of(self._filesystem, self.path, finished_epochs, records)
        self.forget_history(finished_epochs if own else 0)
        snapshots.drop_snapshots_after(self._filesystem, self.path, finished_epochs, self._stamped().stamp)

    def forget_history(self, finished_epochs: int) -> None:
        """Drop the history and the spreads of later epochs."""
        history.drop_history_from(self._filesystem, self.path, finished_epochs)
        spreads.drop_after(self._filesystem, self.path, finished_epochs)

    def spread_epochs(self) -> list[int]:
        """Return the epochs at whose end it is kept how the table's columns spread, ascending."""
        return spreads.list_spreads(self._filesystem, self.path)

    def spreads_at(self, finished_epochs: int) -> dict[str, spreads.Spread]:
        """Return how each column spread at the end of an epoch; StorageError where that is not kept."""
        return spreads.read_spreads(self._filesystem, self.path, finished_epochs)

    def finished_epochs(self) -> int:
        """Return how many epochs the newest snapshot has behind it, 0 where there is none."""
        return max(self.snapshot_epochs(), default=0)

    # -- the journal of a shard, and the history made of it ------------------------------------------------------------

    def _journal_folder(self, shard: Shard) -> str:
        return f"{self.path}/journal/{shard.index}-of-{shard.count}"

    def begin_journals(self, num_shards: int) -> None:
        """Forget journals that another number of shards left: their rows were cut otherwise."""
        with files.storage_errors("clear the journal of", self.path):
            infos = self._filesystem.get_file_info(fs.FileSelector(f"{self.path}/journal", allow_not_found=True))
            for info in infos:
                if not info.base_name.endswith(f"-of-{num_shards}"):
                    self._filesystem.delete_dir(info.path)

    def claim_journal(self, shard: Shard) -> None:
        """Take a shard's journal over, before it is read: a process that wrote it before writes it no more."""
        name = f"{shard.index}-of-{shard.count}"
        self._journals[shard] = ownership.claim_journal(self._filesystem, self.path, name)

    def open_journal(self, shard: Shard, last: int, allowed: Callable[[], None] = lambda: None) -> Journal:
        """Return the writing end of a shard's journal, claimed before, whose records go on behind number `last`."""
        term = self._journals[shard]
        return Journal(self._filesystem, self._journal_folder(shard), last, term=term, allowed=allowed)

    def write_base(self, shard: Shard, finished_epochs: int, number: int) -> None:
        """Note that a shard's journal begins anew behind record `number`, from a snapshot or, for 0, an empty table."""
        stamp = self._journals[shard].stamp
        segments.write_base(self._filesystem, self._journal_folder(shard), stamp, finished_epochs, number)

    def base(self, shard: Shard, finished_epochs: int) -> int | None:
        """Return the number of `write_base`, None where the journal did not begin anew at this snapshot."""
        return segments.read_base(self._filesystem, self._journal_folder(shard), finished_epochs)

    def first_records(self, shard: Shard) -> list[int]:
        """Return the numbers of the first records of the segments that a shard's journal has, ascending."""
        return [one.first for one in segments.list_segments(self._filesystem, self._journal_folder(shard))]

    def records(self, shard: Shard, after: int) -> Iterator[segments.Record]:
        """Yield the records of a shard's journal behind number `after`, see `segments.read_records`."""
        return segments.read_records(self._filesystem, self._journal_folder(shard), after)

    def set_records_aside(self, shard: Shard, after: int) -> list[str]:
        """Rename the segments behind record `after`, which cannot be used; return their names."""
        return segments.set_aside(self._filesystem, self._journal_folder(shard), after)

    def drop_records(self, shard: Shard, upto: int) -> None:
        """Delete segments of a shard's journal that no snapshot needs any more."""
        segments.drop_segments(self._filesystem, self._journal_folder(shard), upto)

    def write_history(self, epoch: int, shard: Shard, rows: pa.Table) -> None:
        """Write what a shard observed in an epoch, see history.py."""
        history.write_epoch(self._filesystem, self.path, epoch, shard, rows)

    def has_history(self, epoch: int, shard: Shard) -> bool:
        """Return whether this shard has written its part of an epoch's history."""
        return history.has_part(self._filesystem, self.path, epoch, shard)

    def history_epochs(self) -> list[int]:
        """Return the epochs of which there is a history, ascending; the oldest go where it would grow too large."""
        return history.list_history(self._filesystem, self.path)

    def history(self, sample_id: int) -> pa.Table:
        """Return when a sample was observed: run_step int32, epoch int32, loss float32, selected bool; in order.

        A loss is NaN where the sample was picked without its loss having been seen.
        """
        return history.read_sample(self._filesystem, self.path, sample_id, self.config().end_of_ids)

    def observations(self, epoch: int) -> pa.Table:
        """Return all that was observed in an epoch, by step, rank and id; for its columns see history.py.

        Raises:
            StorageError: there is no whole history of this epoch.
        """
        return history.read_epoch(self._filesystem, self.path, epoch, self.config().end_of_ids)

    def table(self) -> pa.Table:
        """Return the newest snapshot's table; RunNotFoundError or StorageError where there is none."""
        return snapshots.read_table(self._filesystem, self.path, self.config().end_of_ids)


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a RunConfig as plain values."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {**values, "selection": config.selection.to_dict()}


def config_from_dict(values: dict[str, Any]) -> RunConfig:
    """Make a RunConfig from `config_to_dict`'s values; StorageError where they are not that."""
    try:
        own = dict(values)
        selection = Selection.from_dict(own.pop("selection"))
        return RunConfig(selection=selection, **own)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:  # a ConfigError is a ValueError
        raise errors.StorageError(f"the run's description is damaged: {error}") from error


def check_same(run: str, theirs: RunConfig, ours: RunConfig) -> None:
    """Raise RunMismatchError unless both configs are equal; name each setting that differs."""
    if theirs == ours:
        return
    have, want = (
        {key.rpartition(".")[2]: value for key, value in flat(config_to_dict(one)).items()} for one in (theirs, ours)
    )
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

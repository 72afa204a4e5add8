"""The trials of a search, and the journal that remembers them.

Lifecycle of a trial    waiting → running → finished | pruned | failed, and running again where that is asked for
Invariant               whoever reads the journal from its start knows all trials, in the order in which they came
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.storage import files

__all__ = ["FAILED", "FINISHED", "PRUNED", "RUNNING", "Journal", "Trial"]

_LOCAL, _MOST_BYTES = fs.LocalFileSystem(), 256 << 20
RUNNING, FINISHED, PRUNED, FAILED = "running", "finished", "pruned", "failed"


@dataclasses.dataclass(kw_only=True)
class Trial:
    """One training of a search.

    Args:
        number: its place in the order in which trials began.
        setting: number of its settings: trials of several seeds share it.
        settings: what is searched, with the values tried here.
        seed: of the training and the selection.
        run: name of its run in the search's storage.
        status: RUNNING until it ends; of a stopped search, that is what is left to do.
        epochs: of its run, see `objectives.Epochs`.
        error: why it failed.
        lost: what earlier attempts spent, which failed, in full trainings.
    """

    number: int
    setting: int
    settings: dict[str, Any]
    seed: int
    run: str
    status: str = RUNNING
    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None
    lost: float = 0.0

    @property
    def cost(self) -> float:
        """What it has spent, in full trainings; without earlier attempts."""
        return float(self.epochs[-1]["cost"]) if self.epochs else 0.0

    def begin_again(self) -> None:
        """Forget a failure and what led to it, but for its cost."""
        self.lost += self.cost
        self.status, self.error, self.epochs = RUNNING, None, []


class Journal:
    """A search's events, a line of JSON each, in the order in which they happened.

        {"event": "begun", "number", "setting", "settings", "seed", "run"}
        {"event": "epoch", "number", "epoch", "accuracy", "cost", …}
        {"event": "ended", "number", "status", "error"}
        {"event": "retried", "number"}    a failed one, from its beginning

    Each line ends in "crc32", of the rest of it; those of earlier versions have none.

    Args:
        path: of the file; a last line that was cut short is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the events; StorageError where a line in between is damaged."""
        if not self._path.exists():
            return
        lines = files.read_bytes(_LOCAL, str(self._path), _MOST_BYTES).split(b"\n")
        whole, rest = lines[:-1], lines[-1]
        if rest:  # written when the power went: it never happened
            with self._path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in whole))
        has_checksums = False
        for number, line in enumerate(whole):
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise ValueError(f"it is a JSON {type(event).__name__}, expected an object")
                noted = event.pop("crc32", None)
                has_checksums = has_checksums or noted is not None  # those behind have one, too
                if has_checksums and noted != _crc32(event):
                    raise ValueError("its checksum is not the one noted in it")
            except (ValueError, RecursionError) as error:
                raise errors.StorageError(f"{self._path}, line {number + 1} is damaged: {error}") from error
            yield event

    def write(self, event: str, number: int, **values: Any) -> None:
        """Append an event; it is on the disk when this returns."""
        line = {"event": event, "number": number, **values}
        with self._path.open("ab") as file:
            file.write(json.dumps({**line, "crc32": _crc32(line)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _crc32(event: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(json.loads(json.dumps(event))).encode()):08x}"  # as a reader has it

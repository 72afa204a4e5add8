"""The manifest of a snapshot, `manifest.json`, without which the files beside it are ignored.

format, finished_epochs, epoch_starts, past, num_samples; files: by name bytes, sha256, and the shard's note; sha256
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.selection.past import BEGINNING, Past
from es_service.storage import files, sealed

__all__ = ["Files", "Manifest", "shard_file"]

FORMAT = 2
_READABLE = (1, 2)  # 1: without notes
_END_OF_IDS = 1 << 62
Files = dict[str, dict[str, Any]]
"""Entries of a manifest by the files' names."""


def shard_file(index: int) -> str:
    """Return the name of the file of a shard's rows."""
    return f"shard-{index}.arrow"


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot's.

    Attributes:
        folder: of the snapshot.
        epoch_starts: the run step at which each finished epoch, and the next one, begins.
        num_samples: rows of the whole table.
        files: of shard 0, 1, …
        past: of the run.
    """

    folder: str
    epoch_starts: tuple[int, ...]
    num_samples: int
    files: Files
    past: Past = BEGINNING

    @classmethod
    def read(cls, filesystem: fs.FileSystem, folder: str) -> Manifest:
        """Read the manifest in a folder; StorageError where it is damaged, or of a newer format."""
        path = f"{folder}/manifest.json"
        values = files.read_json(filesystem, path)
        sealed.check_format(values.get("format"), folder, _READABLE)
        sealed.check(values, path)
        try:
            entries = {
                str(name): {"bytes": int(one["bytes"]), "sha256": str(one["sha256"]), "note": one.get("note")}
                for name, one in values["files"].items()
            }
            starts = tuple(int(start) for start in values["epoch_starts"])
            past = Past.from_dict(values["past"]) if "past" in values else BEGINNING
            manifest = cls(folder, starts, int(values["num_samples"]), entries, past)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise errors.StorageError(f"{path} is damaged: {error!r}") from error
        if sorted(entries) != sorted(shard_file(index) for index in range(len(entries))) or not entries:
            raise errors.StorageError(f"{path} does not name {shard_file(0)} …")
        return manifest

    @staticmethod
    def write(
        filesystem: fs.FileSystem,
        folder: str,
        epoch_starts: Sequence[int],
        past: Past,
        num_samples: int,
        entries: Files,
    ) -> None:
        """Write it, with which the snapshot is there."""
        values = {
            "format": FORMAT,
            "finished_epochs": len(epoch_starts) - 1,
            "epoch_starts": list(epoch_starts),
            "past": past.to_dict(),
            "num_samples": num_samples,
            "files": entries,
        }
        files.write_json(filesystem, f"{folder}/manifest.json", sealed.seal(values))

    def check_size(self, most_samples: int | None) -> None:
        """Raise StorageError where there are more samples than the run can have, as far as that is known."""
        most = _END_OF_IDS if most_samples is None else most_samples
        if not 0 <= self.num_samples <= most:
            raise errors.StorageError(f"{self.folder} has {self.num_samples:,} samples, its run has {most:,}")

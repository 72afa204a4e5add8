"""Terms: which of several writers a folder belongs to, decided by the names of files alone.

    <folder>/<term, 8 digits>-<token, 8 hex digits>.json

A writer claims a folder with a file whose term is one above the highest that is there. The highest name wins, for good.
All that a writer writes has its claim, the *stamp*, in its name: a reader that finds files of two writers knows which
of them to leave out.

Nothing is locked, and no write is conditional (pyarrow.fs has no such writes). A writer looks for a higher claim
*behind* each write, before it acknowledges the write. So:

- if it finds none, a later claimant also reads later, and finds what was written;
- if it finds one, or was frozen before it could look, what it wrote was never acknowledged, and its stamp is lower than
  its successor's.

All that is asked of a storage is that a file that was written is listed. Local disks, S3, GCS and Azure see to that.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.storage import files, sealed

__all__ = ["NOBODY", "Term", "list_claims"]

NOBODY = "00000000-00000000"
"""Stamp of a writer that claimed nothing: below all others."""

_NAME = re.compile(r"([0-9]{8}-[0-9a-f]{8})\.json")


def list_claims(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Return the stamps of all that claimed a folder, ascending: the last one's is the highest."""
    infos = files.list_folder(filesystem, folder)
    return sorted(found[1] for info in infos if (found := _NAME.fullmatch(info.base_name)))


class Term:
    """A claim to a folder. It can be lost at any time; `check` then raises.

    Args:
        filesystem: that the folder is on.
        folder: of the claims.
        values: of the file, as plain values.
        above: a stamp that is known of the folder's files, whose claim may be lost.

    Raises:
        RunExistsError: another writer claimed the folder at the same moment.
        StorageError: the claim cannot be written or listed.
    """

    def __init__(self, filesystem: fs.FileSystem, folder: str, values: dict[str, Any], above: str = NOBODY) -> None:
        self._filesystem, self._folder = filesystem, folder
        files.make_folder(filesystem, folder)
        highest = max([NOBODY, above, *list_claims(filesystem, folder)])
        self.stamp = f"{int(highest[:8]) + 1:08d}-{secrets.token_hex(4)}"
        self.write(values)
        self.check()

    def write(self, values: dict[str, Any]) -> None:
        """Write the claim's file, whose name alone decides."""
        files.write_json(self._filesystem, f"{self._folder}/{self.stamp}.json", sealed.seal(values))

    def check(self) -> None:
        """Raise RunExistsError where there is a higher claim, StorageError where this one is gone."""
        claims, run_path = list_claims(self._filesystem, self._folder), self._folder.rpartition("/owners/")[0]
        if claims and claims[-1] > self.stamp:
            raise errors.RunExistsError(f"another process writes {run_path} now: this one was taken over from")
        if self.stamp not in claims:
            raise errors.StorageError(
                f"{run_path} is gone, or files in it are: the folder was deleted while the run was written. Continue "
                "from a checkpoint under another run name"
            )

    def forget_lower(self) -> None:
        """Delete the claims below this one."""
        for stamp in list_claims(self._filesystem, self._folder):
            if stamp < self.stamp:
                with contextlib.suppress(OSError):  # another one does the same
                    self._filesystem.delete_file(f"{self._folder}/{stamp}.json")

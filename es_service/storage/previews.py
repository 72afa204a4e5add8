"""Pictures or texts of a run's samples, for readers that cannot call what made them.

    <storage>/<run>/previews/<number>.arrow   columns `id`, `content`: a PNG file or UTF-8 text, see samples.json

Files are written one after the other, about 4 MiB each, and never changed. All of a run take 64 MiB at most: before one
more is written, the oldest go. The newest preview of a sample counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.storage import arrow_files, files

__all__ = ["FILE_BYTES", "MOST_BYTES", "MOST_CHARACTERS", "MOST_IN_ALL", "MOST_SAMPLES", "PNG", "Index", "PreviewFiles"]

PNG = b"\x89PNG\r\n\x1a\n"
"""What every PNG file begins with."""
MOST_BYTES = 256 << 10
"""Of one preview."""
MOST_CHARACTERS = 4000
"""Of a text; what is longer is cut."""
MOST_IN_ALL, FILE_BYTES = 64 << 20, 4 << 20
MOST_SAMPLES = 100_000
_MOST_FILES = 256
_SCHEMA = pa.schema([("id", pa.int64()), ("content", pa.binary())])
_SLACK = 1 << 20  # bytes of a file beside its contents

Index = dict[tuple[str, int], NDArray[np.int64]]
"""The ids that a file holds, by its path and the time it was written."""


class PreviewFiles:
    """See the module's text.

    Args:
        filesystem: of the storage.
        run_path: of the run's folder.
    """

    def __init__(self, filesystem: fs.FileSystem, run_path: str) -> None:
        self._filesystem, self._path = filesystem, f"{run_path}/previews"

    def _files(self) -> list[fs.FileInfo]:
        found = files.list_folder(self._filesystem, self._path)
        return sorted((one for one in found if one.extension == "arrow"), key=lambda one: str(one.base_name))

    def write(self, previews: Mapping[int, bytes]) -> None:
        """Write a file of previews by sample id; StorageError where it cannot be written."""
        table = pa.table({"id": [*previews], "content": [*previews.values()]}, schema=_SCHEMA)
        data, found = arrow_files.encode(table), self._files()
        while found and (sum(one.size for one in found) + data.size > MOST_IN_ALL or len(found) >= _MOST_FILES):
            with files.storage_errors("delete", found[0].path):
                self._filesystem.delete_file(found.pop(0).path)
        number = 1 + int(found[-1].base_name.partition(".")[0]) if found else 0
        files.make_folder(self._filesystem, self._path)
        files.write_atomically(self._filesystem, f"{self._path}/{number:08d}.arrow", data)

    def clear(self) -> None:
        """Delete all of them: they may be of other data."""
        with files.storage_errors("clear", self._path):
            for one in self._files():
                self._filesystem.delete_file(one.path)

    def index(self, known: Index | None = None) -> Index:
        """Return which ids each file holds, oldest first; of `known` files it is not read again."""
        index: Index = {}
        for one in self._files():
            key = (one.path, one.mtime_ns or 0)
            ids = (known or {}).get(key)
            index[key] = self._read(one.path).column("id").to_numpy() if ids is None else ids
        return index

    def find(self, sample_id: int, index: Index) -> bytes | None:
        """Return a sample's preview, None where there is none; StorageError where its file is damaged."""
        for (path, _), ids in reversed(index.items()):
            places = np.flatnonzero(ids == sample_id)
            if places.size:
                content: bytes = self._read(path).column("content")[int(places[-1])].as_py()
                return content
        return None

    def _read(self, path: str) -> pa.Table:
        def check(schema: pa.Schema) -> None:
            if not schema.equals(_SCHEMA):
                raise errors.StorageError(f"{path} is damaged: it has the columns {schema.names} of {schema.types}")

        data = files.read_bytes(self._filesystem, path, FILE_BYTES + MOST_BYTES + _SLACK)
        table = arrow_files.read_table(data, path, check, most_rows=MOST_SAMPLES, full=True)
        if any(column.null_count for column in table.columns):
            raise errors.StorageError(f"{path} is damaged: it has rows without a value")
        return table

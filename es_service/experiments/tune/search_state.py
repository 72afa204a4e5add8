"""Ray Tune's state of a search in one file, written whole.

Ray Tune copies its four files one by one and not atomically: a killed command would leave them torn, or of different
moments. The file is a second old at most.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zlib
from pathlib import Path

from pyarrow import fs

from es_service import errors
from es_service.storage import files

__all__ = ["SearchState"]

_LOCAL, _MOST_BYTES = fs.LocalFileSystem(), 256 << 20


class SearchState:
    """See the module's text.

    Args:
        path: of the file.
        experiment: Ray Tune's folder.
    """

    def __init__(self, path: Path, experiment: Path) -> None:
        self.path, self._experiment, self._newest = path, experiment, 0

    def unpack(self) -> bool:
        """Put the last state kept into Ray Tune's folder; return whether there was one.

        Raises:
            StorageError: it is damaged.
        """
        if not self.path.exists():
            shutil.rmtree(self._experiment, ignore_errors=True)
            return False
        data = files.read_bytes(_LOCAL, str(self.path), _MOST_BYTES)
        try:
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data)), mode="r:") as archive:
                found = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}  # type: ignore[union-attr]
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise errors.StorageError(f"{self.path} is damaged: {error}; name another --out") from error
        # Where the Ray of the last command still runs, so does its folder, with states that were never kept.
        shutil.rmtree(found.pop("staging").decode(), ignore_errors=True)
        self._experiment.mkdir(exist_ok=True)
        for old in [*self._experiment.glob("*.json"), *self._experiment.glob("*.pkl")]:
            old.unlink()
        for name, content in found.items():
            (self._experiment / name).write_bytes(content)
        return True

    def keep(self, staging: Path) -> bool:
        """Keep what Ray Tune wrote to its folder on this machine; return whether there was anything new."""
        newest = max(staging.glob("experiment_state-*.json"), default=None)
        if newest is None or newest.stat().st_mtime_ns == self._newest:
            return False
        self._newest = newest.stat().st_mtime_ns
        session = newest.stem.partition("-")[2]
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:") as archive:
            contents = {one.name: one.read_bytes() for one in sorted(staging.glob(f"[!.]*-{session}.*"))}
            for name, content in {**contents, "staging": str(staging).encode()}.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        files.write_atomically(_LOCAL, str(self.path), gzip.compress(data.getvalue(), compresslevel=1))
        return True

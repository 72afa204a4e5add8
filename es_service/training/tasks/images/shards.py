"""Shards of webdataset: tar files in which the files of a sample follow each other, with one name and many endings."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from es_service import errors
from es_service.training.tasks.images.source import SUFFIXES, Source

__all__ = ["read"]

_log = logging.getLogger(__name__)
_LABEL, _JSON = "cls", "json"
_USUAL = ("label", "cls", "class")  # keys of the JSON file


class _Member(NamedTuple):
    path: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class _Members:
    """Images in tar files."""

    def __init__(self, members: Sequence[_Member]) -> None:
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def read(self, row: int) -> bytes:
        """Return the content of a member."""
        return self._members[row].read()

    def where(self, row: int) -> str:
        """Return the name of a member, and its file."""
        return f"{self._members[row].name} in {self._members[row].path}"


def read(paths: Sequence[Path], label_column: str | None, *, skip_broken: bool) -> Source:
    """Return the images of some shards; the label of each is in its .cls, or in its .json.

    Args:
        paths: of the tar files.
        label_column: key of the label in a .json, None for a usual one.
        skip_broken: leave out files that are damaged; else they are an error.

    Raises:
        DataError: a file is damaged, or there is no sample in it.
    """
    samples: dict[tuple[Path, str], dict[str, _Member]] = {}
    broken: list[Path] = []
    for path in paths:
        of_path: dict[tuple[Path, str], dict[str, _Member]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    key, _, ending = name.partition(".")
                    if member.isfile() and key:
                        one = _Member(path, member.name, member.offset_data, member.size)
                        of_path.setdefault((path, f"{folder}/{key}"), {})[ending.lower()] = one
        except (OSError, tarfile.TarError) as error:
            problem = f"{path} is damaged, or no tar file: {error}"
            if not skip_broken:
                raise errors.DataError(f"{problem}; mend it, or leave it out with --skip-broken") from error
            _log.warning("%s; it is left out", problem)
            broken.append(path)
        else:
            samples.update(of_path)
    images, labels = [], []
    for (path, key), members in samples.items():
        found = (members[ending] for ending in members if f".{ending}".endswith(SUFFIXES))
        images.append(next(found, _Member(path, f"{key.lstrip('/')}, without an image,", 0, 0)))
        labels.append(_label(members, label_column))
    if not images:
        raise errors.DataError(f"{paths[0]}: there is no sample in it")
    return Source(_Members(images), pa.table({"label": pa.array(labels, pa.string())}), "label", 0, tuple(broken))


def _label(members: dict[str, _Member], asked: str | None) -> str | None:
    """Return the label of a sample as text, None where it has none."""
    if asked is None and _LABEL in members:
        return members[_LABEL].read().decode(errors="replace").strip() or None
    if _JSON not in members:
        return None
    try:
        values: Any = json.loads(members[_JSON].read())
        found = next((values[name] for name in ((asked,) if asked else _USUAL) if name in values), None)
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.DataError(f"{members[_JSON].name} in {members[_JSON].path} is no JSON object: {error}") from None
    return None if found is None else str(found)

"""Which files of a user's hold the samples to train on, and which those to hold out: found by their names."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from es_service import errors

__all__ = ["HELD_OUT_NAMES", "SUFFIXES", "Parts", "beside", "find_parts"]

SUFFIXES = (
    *(".parquet", ".arrow", ".feather"),
    *(name + packed for name in (".jsonl", ".json", ".csv", ".tsv") for packed in ("", ".gz")),
)
"""Endings of the files that hold tables."""
HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test")
"""What held-out samples are called beside `train`, the first that is there."""
_DEFAULT_SHARE = 0.2
_SPLIT = re.compile(rf"(?<![a-z])(train|training|{'|'.join(HELD_OUT_NAMES)})(?![a-z])", re.IGNORECASE)
_NUMBER = re.compile(r"[-_.]?\d+(-of-(?P<count>\d+))?(-[0-9a-f]{16})?$")  # of one file among several of a split
_NOT_DATA = re.compile(r"(dataset_infos?|dataset_dict|state)\.json|cache-.*\.arrow")  # what `datasets` writes beside
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """Where samples are.

    Args:
        train: files to train on.
        held_out: files to hold out, None where a share of the samples is.
        share: of the samples in `train` to hold out, in (0, 1); None where `held_out` is.
    """

    train: tuple[Path, ...]
    held_out: tuple[Path, ...] | None
    share: float | None


def find_parts(data: str, held_out: str | None, suffixes: Sequence[str] = SUFFIXES) -> Parts:
    """Return the files to train on and those to hold out.

    Of a folder with files for `train` these are taken, else all of its files; those in folders below it count too.
    What is held out lies beside them under the same name, but with one of `HELD_OUT_NAMES` for `train`:
    `x_test.parquet` for `x_train.parquet`, `validation-*` for `train-00000-of-00002.parquet`, `val/` for `train/`.

    Args:
        data: a file, or a folder of files.
        held_out: a file or folder, or a share of the samples; None for what lies beside `data`, else 0.2.
        suffixes: of the files that count.

    Raises:
        DataError: no such file or folder, nothing in it, several data sets in it, a file of a set is missing, or the
            held-out files are those to train on.
    """
    train = _files_of(Path(data).expanduser(), ("train", "training"), suffixes)
    if held_out is None:
        found = beside(train[0], suffixes)
        return Parts(train, found or None, None if found else _DEFAULT_SHARE)
    if not os.path.exists(held_out):
        try:
            return Parts(train, None, float(held_out))
        except ValueError:
            pass
    held_out_files = _files_of(Path(held_out).expanduser(), HELD_OUT_NAMES, suffixes)
    for path in held_out_files:
        if any(path.samefile(one) for one in train):
            raise errors.DataError(f"--held-out {held_out}: {path} is also trained on; hold out other files")
    return Parts(train, held_out_files, None)


def beside(path: Path, suffixes: Sequence[str] = SUFFIXES) -> tuple[Path, ...]:
    """Return the held-out files that lie beside a file to train on, or beside its folder; none where nothing does."""
    for named in (path, path.parent):
        key, split, _ = _parse(named.name)
        if split not in ("train", "training"):
            continue
        siblings = [one for one in sorted(named.parent.iterdir()) if _parse(one.name)[0] == key]
        for name in HELD_OUT_NAMES:
            of_split = [one for one in siblings if _parse(one.name)[1] == name]
            if named == path and of_split:
                return _complete([one for one in of_split if one.is_file()])
            if of_split:
                return _files_of(of_split[0], HELD_OUT_NAMES, suffixes)
    return ()


def _files_of(path: Path, names: Sequence[str], suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Return a file, or those of a folder that belong to the first of these splits, or to none."""
    if path.is_file():
        return (path,)
    if not path.is_dir():  # opening a FIFO would wait for ever
        what = "it is neither a file nor a folder" if path.exists() else "there is no such file or folder"
        raise errors.DataError(f"{path}: {what}")
    groups: dict[tuple[str, str | None], list[Path]] = {}
    for one in _walk(path, suffixes):
        key, split = _group(one.relative_to(path))
        groups.setdefault((key, split), []).append(one)
    if not groups:
        raise errors.DataError(f"{path} has no file to read: none ends in {', '.join(suffixes)}")
    for name in (*names, None):
        found = {key: files for (key, split), files in groups.items() if split == name}
        if name is None:
            found = {"": [one for files in found.values() for one in files]} if found else {}
        if len(found) > 1:
            firsts = [str(files[0].relative_to(path)) for files in found.values()]
            raise errors.DataError(f"{path} holds {len(found)} data sets ({_listed(firsts)}): name one of their files")
        for files in found.values():
            return _complete(files)
    firsts = [str(files[0].relative_to(path)) for files in groups.values()]
    raise errors.DataError(f"{path} has no file for {names[0]} ({_listed(firsts)}): name the file")


def _walk(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(names):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".") and not _NOT_DATA.fullmatch(name):
                yield Path(place, name)


def _group(path: Path) -> tuple[str, str | None]:
    """Return the data set and the split that a path below a folder says."""
    for depth, name in enumerate(reversed(path.parts)):
        key, split, _ = _parse(name)
        if split is not None:
            above = path.parts[: len(path.parts) - 1 - depth]
            return "/".join((*above, key)), split
    return str(path), None


def _parse(name: str) -> tuple[str, str | None, int | None]:
    """Return a file's name less split, number and ending; the split; and of how many files it is one, where it says."""
    stem, dot, ending = name.partition(".") if not name.startswith(".") else (name, "", "")
    while dot and "." + ending.lower() not in SUFFIXES and "." in ending:  # dots inside of the name
        more, dot, ending = ending.partition(".")
        stem = f"{stem}.{more}"
    number = _NUMBER.search(stem)
    count = int(number["count"]) if number and number["count"] else None
    stem = stem[: number.start()] if number else stem
    found = list(_SPLIT.finditer(stem))
    if not found:
        return stem + dot + ending, None, count
    last = found[-1]
    return f"{stem[: last.start()]}*{stem[last.end() :]}{dot}{ending}", last[0].lower(), count


def _complete(files: list[Path]) -> tuple[Path, ...]:
    counts = {_parse(one.name)[2] for one in files} - {None}
    for count in counts:
        if count is not None and len(files) != count and len(counts) == 1:
            raise errors.DataError(
                f"{files[0].parent} has {len(files)} of the {count} files that {files[0].name} is one of: "
                "fetch the others"
            )
    return tuple(files)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")

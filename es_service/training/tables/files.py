"""Which files of a user's hold the samples to train on, and which those to hold out: found by their names."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from es_service import errors
from es_service.storage.files import absolute
from es_service.training.tasks.options import TaskOptions

__all__ = ["DEFAULT_SHARE", "HELD_OUT_NAMES", "SUFFIXES", "Parts", "find_parts"]

SUFFIXES = (
    *(".parquet", ".arrow", ".feather"),
    *(name + packed for name in (".jsonl", ".json", ".csv", ".tsv") for packed in ("", ".gz")),
)
"""Endings of the files that hold tables."""
HELD_OUT_NAMES = ("validation", "valid", "val", "dev", "test")
"""What held-out samples are called beside `train`, the first that is there."""
_TRAIN = "train"
DEFAULT_SHARE = 0.2
"""Of the samples, held out where no file is."""
_SPLIT = re.compile(rf"(?<![a-z])(train|training|{'|'.join(HELD_OUT_NAMES)})(?![a-z])", re.IGNORECASE)
_ENDING = re.compile(r"\.\w+(\.gz)?$")
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
    path = Path(absolute(data))
    train, others = _pick(path, (_TRAIN,), suffixes)
    if held_out is None:
        found = next((_complete(others[name]) for name in HELD_OUT_NAMES if name in others), ())
        found = found or _beside(path, suffixes)
        return Parts(train, found or None, None if found else DEFAULT_SHARE)
    share = None if os.path.exists(held_out) else TaskOptions(held_out=held_out).held_out_share
    if share is not None:
        return Parts(train, None, share)
    held_out_files, _ = _pick(Path(absolute(held_out)), HELD_OUT_NAMES, suffixes)
    for path in held_out_files:
        if any(path.samefile(one) for one in train):
            raise errors.DataError(f"--held-out {held_out}: {path} is also trained on; hold out other files")
    return Parts(train, held_out_files, None)


def _beside(path: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Return the held-out files beside a file or a folder to train on, or beside the folder that a file is in."""
    for one in (path, path.parent) if path.is_file() else (path,):
        key, split, _ = _parse(one.name)
        siblings: dict[str | None, list[Path]] = {}
        for other in sorted(one.parent.iterdir()) if split == _TRAIN else ():
            other_key, other_split, _ = _parse(other.name)
            if other_key == key:
                siblings.setdefault(other_split, []).append(other)
        for name in HELD_OUT_NAMES:
            if name in siblings:
                picked = (_pick(other, HELD_OUT_NAMES, suffixes)[0] for other in siblings[name])
                return _complete([file for files in picked for file in files])
    return ()


def _pick(path: Path, names: Sequence[str], suffixes: Sequence[str]) -> tuple[tuple[Path, ...], dict[str, list[Path]]]:
    """Return a file, or those of a folder for the first of these splits, else for none; and their data set by split."""
    if path.is_file():
        return (path,), {}
    if not path.is_dir():  # opening a FIFO would wait for ever
        what = "it is neither a file nor a folder" if path.exists() else "there is no such file or folder"
        raise errors.DataError(f"{path}: {what}")
    sets: dict[str, dict[str, list[Path]]] = {}
    unnamed: list[Path] = []
    for one in _walk(path, suffixes):
        key, split = _set_of(one.relative_to(path))
        (unnamed if split is None else sets.setdefault(key, {}).setdefault(split, [])).append(one)
    for name in names:
        found = [splits for splits in sets.values() if name in splits]
        if len(found) > 1:
            raise errors.DataError(
                f"{path} holds {len(found)} data sets ({_listed([splits[name][0] for splits in found], path)}): give "
                "one file or folder of them"
            )
        if found:
            return _complete(found[0][name]), found[0]
    if unnamed:
        return _complete(unnamed), {}
    if sets:
        firsts = [files[0] for splits in sets.values() for files in splits.values()]
        raise errors.DataError(f"{path} has no file for {names[0]} ({_listed(firsts, path)}): give a file")
    raise errors.DataError(f"{path} has no file to read: none in it ends in {', '.join(suffixes)}")


def _walk(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith(".") and not _NOT_DATA.fullmatch(name):
                yield Path(place, name)


def _set_of(path: Path) -> tuple[str, str | None]:
    """Return the data set and the split that the name of a file says, else that of the nearest folder above it."""
    for one in (path, *path.parents):
        key, split, _ = _parse(one.name)
        if split is not None:
            return str(one.parent / key), split
    return str(path), None


def _parse(name: str) -> tuple[str, str | None, int | None]:
    """Return a name with * for its split and no number; the split; and of how many files it is one, if it says."""
    ending = _ENDING.search(name)
    stem = name[: ending.start()] if ending else name
    number = _NUMBER.search(stem)
    stem = stem[: number.start()] if number else stem
    count = int(number["count"]) if number and number["count"] else None
    found = list(_SPLIT.finditer(stem))
    if not found:
        return name, None, count
    split = found[-1][0].lower()
    key = f"{stem[: found[-1].start()]}*{stem[found[-1].end() :]}{ending[0] if ending else ''}"
    return key, _TRAIN if split == "training" else split, count


def _complete(files: Sequence[Path]) -> tuple[Path, ...]:
    """Return them; DataError where the names say that others belong to them."""
    for (folder, count), num in Counter((one.parent, _parse(one.name)[2]) for one in files).items():
        if count is not None and count != num:
            one = next(one for one in files if one.parent == folder)
            raise errors.DataError(f"{one} is one of {count} files, but {num} of them are there")
    return tuple(files)


def _listed(paths: Sequence[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths]
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")

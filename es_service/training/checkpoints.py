"""The checkpoint of a training run: a folder with all it needs to continue, and the digests of it.

    training.pt        model (without frozen parameters), optimizer and history, and the selector's state but for its
                       table; PyTorch's format
    scores.arrow       the table, an Arrow IPC file
    checkpoint.json    format; bytes and sha256 of the other two, written last

PyTorch's reader checks no checksums. A checkpoint of an earlier version has no checkpoint.json: there only the
selector's state is checked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs

from es_service import errors
from es_service.storage import files, sealed

__all__ = ["read_checkpoint", "write_checkpoint"]

_FORMAT = 1
_TRAINING, _TABLE, _DIGESTS = "training.pt", "scores.arrow", "checkpoint.json"
_LOCAL = fs.LocalFileSystem()
_PIECE = 1 << 20


def write_checkpoint(folder: Path, state: dict[str, Any], others: dict[str, Any]) -> None:
    """Write a checkpoint into a folder, which appears elsewhere once it is whole.

    Args:
        folder: local, and empty.
        state: of the selector.
        others: whatever `torch.save` takes, by name.
    """
    state = dict(state)
    (folder / _TABLE).write_bytes(state.pop("table"))
    torch.save({**others, "selector": state}, folder / _TRAINING)
    entries = {name: _entry(folder / name) for name in (_TRAINING, _TABLE)}
    files.write_json(_LOCAL, str(folder / _DIGESTS), sealed.seal({"format": _FORMAT, "files": entries}))


def read_checkpoint(
    folder: Path, names: tuple[str, ...], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the selector's state and the others of a checkpoint, which has to have these names.

    Raises:
        StorageError: a file is missing or damaged, or of another format.
    """
    try:
        _check(folder)
        table = (folder / _TABLE).read_bytes()
        saved = torch.load(folder / _TRAINING, map_location=device, weights_only=True)
        return {**saved["selector"], "table": table}, {name: saved[name] for name in names}
    except errors.StorageError:
        raise
    except Exception as error:  # PyTorch's reader raises almost anything, some of it a page long
        raise _refused(folder, (str(error) or repr(error)).strip().partition("\n")[0]) from error


def _check(folder: Path) -> None:
    """Raise StorageError where a file is not what was written."""
    if not (folder / _DIGESTS).exists():
        return
    noted = sealed.check(files.read_json(_LOCAL, str(folder / _DIGESTS)), str(folder / _DIGESTS))
    if noted.get("format") != _FORMAT:
        raise errors.StorageError(
            f"{folder} has format {noted.get('format')!r}, this version reads {_FORMAT}: upgrade es_service"
        )
    for name, entry in noted["files"].items():
        if entry != _entry(folder / name):
            raise _refused(folder, f"{name} is not what was written")


def _entry(path: Path) -> dict[str, Any]:
    """Return the size and the digest of a file, read a piece at a time: models are large."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            sha256.update(piece)
            size += len(piece)
    return {"bytes": size, "sha256": sha256.hexdigest()}


def _refused(folder: Path, reason: str) -> errors.StorageError:
    return errors.StorageError(
        f"the checkpoint {folder} is damaged ({reason}): remove that folder, and training resumes from the one before "
        "it, or begins again"
    )

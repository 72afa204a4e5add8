"""The data that `benchmarks.gpu` carries to another machine: one tar of Parquet files, under a limit of size.

Images stay encoded as they are; where they do not fit, a random part of the train set does, always the same.
"""

from __future__ import annotations

import contextlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from es_service import errors
from es_service.training.tasks.splits import shuffled

__all__ = ["IMAGES", "LIMIT_MIB", "MATHS", "num_rows", "opened", "pack"]

IMAGES = ("cifar10_train.parquet", "cifar10_test.parquet")
MATHS = ("gsm8k_train.parquet", "gsm8k_test.parquet")
LIMIT_MIB = 48
_MIB = 1 << 20
_TAR, _PARQUET = 20_480, 0.98  # what they write around the samples: bytes at most, and a share


def pack(data: Path, packed: Path, limit_mib: float = LIMIT_MIB) -> dict[str, int]:
    """Write those files of `IMAGES` and `MATHS` that are in a folder to a tar, and return the rows of each.

    Raises:
        DataError: there is none of them, or what is not to be cut is above the limit by itself.
    """
    found = [data / name for name in (*IMAGES, *MATHS) if (data / name).is_file()]
    if not found:
        raise errors.DataError(f"--data {data}: there is none of {', '.join((*IMAGES, *MATHS))}")
    limit = limit_mib * _MIB - _TAR
    with tempfile.TemporaryDirectory() as folder:
        kept = {path.name: Path(folder) / path.name for path in found}
        sizes = {path.name: _write(pq.read_table(path), kept[path.name]) for path in found}
        room = limit - sum(size for name, size in sizes.items() if name != IMAGES[0])
        if sum(sizes.values()) > limit and IMAGES[0] in sizes and room > 0:
            table = pq.read_table(data / IMAGES[0])
            rows = int(table.num_rows * _PARQUET * room / sizes[IMAGES[0]])
            sizes[IMAGES[0]] = _write(_part(table, rows), kept[IMAGES[0]])
        if sum(sizes.values()) > limit:
            needed = sum(sizes.values()) / _MIB
            raise errors.DataError(f"--data {data} still needs {needed:.1f} MiB: raise --mib, now {limit_mib}")
        with tarfile.open(packed, "w") as tar:
            for name, path in kept.items():
                tar.add(path, name)
        return {name: num_rows(path) for name, path in kept.items()}


def num_rows(path: Path) -> int:
    """Return how many samples a Parquet file has."""
    return int(pq.read_metadata(path).num_rows)


def _part(table: pa.Table, rows: int) -> pa.Table:
    """Return at most so many rows, always the same random ones, in their order."""
    return table.take(np.sort(shuffled(np.arange(table.num_rows))[:rows]))


def _write(table: pa.Table, path: Path) -> int:
    pq.write_table(table, path, compression="zstd")
    return path.stat().st_size


@contextlib.contextmanager
def opened(data: Path | None, most: Mapping[str, int]) -> Iterator[Path | None]:
    """Give a temporary folder with what a folder or a tar of `pack` holds; of some files, at most so many samples."""
    if data is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if data.is_dir():
                for path in [data / one for one in (*IMAGES, *MATHS) if (data / one).is_file()]:
                    shutil.copy(path, folder)
            else:
                with tarfile.open(data) as tar:
                    tar.extractall(folder, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise errors.DataError(f"--data {data} is neither a folder nor a tar of `pack`: {error}") from error
        for path in [folder / one for one in most if (folder / one).is_file()]:
            _write(_part(pq.read_table(path), most[path.name]), path)
        yield folder

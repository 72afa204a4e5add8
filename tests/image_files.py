"""Pictures for tests, of classes that are easily told apart, written as every kind of data set that `images` reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from es_service.storage.png import encode_png

NAMES = ("blue", "green", "red")


def pictures(num: int, *, side: int = 32, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise uint8[num, side, side, 3] that is brighter in one channel, and which one: labels int64[num] below 3."""
    random = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    images = random.integers(0, 160, (num, side, side, 3), dtype=np.uint8)
    images[np.arange(num), :, :, 2 - labels] += 80
    return images, labels


def table(images: NDArray[np.uint8], labels: Any, *, names: tuple[str, ...] | None = NAMES) -> pa.Table:
    """As `datasets` writes it: {bytes, path}, and the names of the labels in the metadata."""
    content = [{"bytes": encode_png(image), "path": None} for image in images]
    made = pa.table(
        {"image": pa.array(content, pa.struct({"bytes": pa.binary(), "path": pa.string()})), "label": labels}
    )
    features = {"label": {"_type": "ClassLabel", "names": names}}
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    )


def write_parquet(folder: Path, part: str, images: NDArray[np.uint8], labels: Any, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    parquet.write_table(table(images, labels, **settings), folder / f"{part}.parquet")
    return folder / f"{part}.parquet"


def write_arrow(folder: Path, part: str, images: NDArray[np.uint8], labels: Any) -> None:
    folder.mkdir(exist_ok=True)
    made = table(images, labels)
    with pa.ipc.new_stream(str(folder / f"{part}.arrow"), made.schema) as writer:
        writer.write_table(made)


def write_folder(folder: Path, part: str, images: NDArray[np.uint8], labels: Any) -> None:
    """One folder for each class; the files of a class in the order of the images."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / part / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:04d}.png").write_bytes(encode_png(image))
    (folder / part / NAMES[0] / "notes.txt").write_text("no image")


def write_paths(folder: Path, part: str, images: NDArray[np.uint8], labels: Any) -> None:
    """A table of paths."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "files" / f"{part}{number}.png").write_bytes(encode_png(image))
        lines.append(json.dumps({"path": f"files/{part}{number}.png", "class": NAMES[label]}))
    (folder / f"{part}.jsonl").write_text("\n".join(lines))


def write_shards(folder: Path, part: str, images: NDArray[np.uint8], labels: Any) -> None:
    """Two shards of webdataset: one with labels in .cls, one in .json."""
    folder.mkdir(exist_ok=True)
    half = len(images) // 2
    for number, rows in enumerate((range(half), range(half, len(images)))):
        with tarfile.open(folder / f"{part}-{number:06d}.tar", "w") as archive:
            for row in rows:
                add(archive, f"some/{row:05d}.png", encode_png(images[row]))
                label = int(labels[row])
                said = ("cls", str(label)) if number == 0 else ("json", json.dumps({"label": label}))
                add(archive, f"some/{row:05d}.{said[0]}", said[1].encode())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def cifar_records(images: NDArray[np.uint8], labels: Any, *, coarse: bool = False) -> bytes:
    """The binary version's: CIFAR-10, or CIFAR-100 with a coarse label before the fine one."""
    heads = np.stack([np.full(len(labels), 19), labels] if coarse else [labels], axis=1).astype(np.uint8)
    return np.concatenate([heads, images.transpose(0, 3, 1, 2).reshape(len(images), -1)], axis=1).tobytes()

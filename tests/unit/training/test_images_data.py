"""Where images come from: every kind of data set gives the same samples; what cannot be used says what to do."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from es_service import errors
from es_service.storage.png import encode_png
from es_service.training.tables.left_out import LeftOut
from es_service.training.tasks import build_task, images
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.images import decoding, loading
from es_service.training.tasks.options import TaskOptions

TRAIN, HELD_OUT = image_files.pictures(24), image_files.pictures(12, seed=1)
CIFAR_10, CIFAR_100 = "cifar-10-batches-bin", "cifar-100-binary"


def build(data: Path, **options: Any) -> images.ImageClassification:
    task = build_task("images", str(data), options=TaskOptions(**options))
    assert isinstance(task, images.ImageClassification)
    return task


def pixels(samples: Any) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = samples.__getitems__(range(len(samples))).inputs.numpy()
    return found


def write_cifar_10(folder: Path, part: str, data: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    place = folder / CIFAR_10
    place.mkdir(parents=True, exist_ok=True)
    names = ["data_batch_1.bin", "data_batch_2.bin"] if part == "train" else ["test_batch.bin"]
    for name, rows in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
        (place / name).write_bytes(image_files.cifar_records(data[rows], labels[rows]))
    (place / "batches.meta.txt").write_text("\n".join(f"kind{number}" for number in range(10)) + "\n\n")


def write_cifar_100(folder: Path, part: str, data: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.bin").write_bytes(image_files.cifar_records(data, labels, coarse=True))


def write_archive(folder: Path, part: str, data: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    """As the archive of CIFAR-10 has it; the second part makes it."""
    write_cifar_10(folder / "unpacked", part, data, labels)
    if part == "test":
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.add(folder / "unpacked" / CIFAR_10, CIFAR_10)
        shutil.rmtree(folder / "unpacked")


KINDS: dict[str, tuple[Callable[..., Any], str]] = {
    "folders of classes": (image_files.write_folder, ""),
    "a folder of a part": (image_files.write_folder, "train"),
    "parquet": (image_files.write_parquet, "train.parquet"),
    "a folder of parquet": (image_files.write_parquet, ""),
    "arrow": (image_files.write_arrow, "train.arrow"),
    "paths": (image_files.write_paths, "train.jsonl"),
    "shards": (image_files.write_shards, ""),
    "cifar-10": (write_cifar_10, ""),
    "cifar-10, its folder": (write_cifar_10, CIFAR_10),
    "cifar-10, archive": (write_archive, "cifar-10-binary.tar.gz"),
    "cifar-100": (write_cifar_100, ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_gives_the_same_samples(kind: str, tmp_path: Path) -> None:
    write, place = KINDS[kind]
    for part, (data, labels) in (("train", TRAIN), ("test", HELD_OUT)):
        write(tmp_path / "set", part, data, labels)
    task = build(tmp_path / "set" / place)
    for samples, (data, labels) in ((task.train_set, TRAIN), (task.held_out, HELD_OUT)):
        order = (
            np.argsort(labels, kind="stable") if "folder of" in kind or "folders" in kind else np.arange(len(labels))
        )
        order = np.arange(len(labels)) if "parquet" in kind else order
        assert np.array_equal(pixels(samples), data[order])
        assert samples.targets_n.tolist() == labels[order].tolist()
    if "cifar-10," in kind or kind == "cifar-10":
        assert task.label_names == tuple(f"kind{number}" for number in range(10))
    elif kind not in ("shards", "cifar-100"):
        assert task.label_names == image_files.NAMES
    assert task.preview is not None
    with Image.open(io.BytesIO(task.preview(5))) as shown:  # type: ignore[arg-type]
        assert np.array_equal(np.array(shown), pixels(task.train_set)[5])


def test_a_share_is_held_out_of_each_class_always_the_same(tmp_path: Path) -> None:
    path = image_files.write_parquet(tmp_path, "all", *image_files.pictures(30))
    task, again = build(path), build(path)
    assert (len(task.train_set), len(task.held_out)) == (24, 6)
    assert np.bincount(task.held_out_labels).tolist() == [2, 2, 2]
    assert np.array_equal(pixels(task.held_out), pixels(again.held_out))
    together = {one.tobytes() for samples in (task.train_set, task.held_out) for one in pixels(samples)}
    assert len(together) == 30
    assert len(build(path, held_out="0.5").held_out) == 15


def test_held_out_images_may_be_named(tmp_path: Path) -> None:
    for name, part in (("a", TRAIN), ("b", HELD_OUT)):
        image_files.write_folder(tmp_path, name, *part)
    task = build(tmp_path / "a", held_out=str(tmp_path / "b"))
    assert (len(task.train_set), len(task.held_out)) == (24, 12)
    with pytest.raises(errors.DataError, match="is also trained on"):
        build(tmp_path / "a", held_out=str(tmp_path / "a"))
    with pytest.raises(errors.DataError, match="no such file"):
        build(tmp_path / "a", held_out=str(tmp_path / "c"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.DataError, match="of the kind that --data"):
        build(tmp_path / "a", held_out=str(tmp_path / "empty"))


# -- decoding -----------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_images_of_any_mode_become_red_green_and_blue(mode: str) -> None:
    picture = Image.fromarray(TRAIN[0][1]).convert(mode)
    found = decoding.decode(encoded(picture))
    assert found.shape == (32, 32, 3)
    assert np.array_equal(found, np.array(picture.convert("RGB")))


def test_an_image_is_turned_as_its_camera_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # 90° clockwise
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, :4] = 255
    found = decoding.decode(encoded(Image.fromarray(wide), exif=exif))
    assert found.shape == (16, 8, 3)
    assert found[:4].min() == 255
    assert found[4:].max() == 0


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_images_are_scaled_and_cut_to_a_square(form: str) -> None:
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, 64:] = 255
    found = decoding.decode(encoded(Image.fromarray(wide), form), 16)
    assert found.shape == (16, 16, 3)
    assert found[:, :6].max() < 16
    assert found[:, 10:].min() > 240


def test_what_does_not_fit_into_memory_is_decoded_when_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = image_files.write_parquet(tmp_path, "all", *image_files.pictures(30))
    write_cifar_10(tmp_path / "cifar", "train", *TRAIN)
    plain, scaled = build(path, image_size=16), build(tmp_path / "cifar", image_size=48)
    monkeypatch.setattr(loading, "_MOST_BYTES", 1000)
    for before, options in ((plain, {"image_size": 16}), (scaled, {"image_size": 48}), (build(path), {})):
        task = build(tmp_path / "cifar" if before is scaled else path, **options)
        assert isinstance(task.train_set.images, loading.OnDemand)  # type: ignore[attr-defined]
        assert np.array_equal(pixels(task.train_set), pixels(before.train_set))
        assert task.train_set.__getitems__([3, 1]).inputs.shape == before.train_set.__getitems__([3, 1]).inputs.shape
        assert task.preview is not None
        assert task.preview(2) == before.preview(2)  # type: ignore[misc]
    assert "they are decoded each time" in caplog.text


# -- what cannot be used ------------------------------------------------------------------------------------------


def with_rows(path: Path, contents: dict[int, bytes | None]) -> Path:
    """The table of 24 images, with other contents in some rows."""
    made = image_files.table(*TRAIN)
    column = made["image"].to_pylist()
    for row, content in contents.items():
        column[row] = {"bytes": content, "path": None}
    values = pa.array(column, made.schema.field("image").type)
    parquet.write_table(made.set_column(0, "image", values), path)
    return path


JPEG = encoded(Image.fromarray(TRAIN[0][3]), "JPEG")
BROKEN = {
    "cut off": JPEG[: len(JPEG) // 2],
    "a text": b"no image at all",
    "empty": b"",
    "missing": None,
    "16 bits": encoded(Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16))),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_broken_image_is_an_error_or_left_out_when_asked(
    content: bytes | None,
    in_memory: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = with_rows(tmp_path / "broken.parquet", {0: content, 7: content})
    if not in_memory:
        monkeypatch.setattr(loading, "_MOST_BYTES", 1000)
    with pytest.raises(errors.DataError, match=r"row 0 .*'image' cannot be read as an image: .*--skip-broken"):
        pixels(build(path).train_set)  # the body of a large set's image is looked at when it is needed
    task = build(path, skip_broken=True)
    assert len(task.train_set) + len(task.held_out) == 22
    assert "2 of 24 images cannot be read and are left out" in caplog.text
    good = np.delete(TRAIN[0], [0, 7], axis=0)
    assert {one.tobytes() for one in pixels(task.train_set)} < {one.tobytes() for one in good}


def test_broken_images_and_missing_labels_are_left_out_together(tmp_path: Path) -> None:
    path = with_rows(tmp_path / "broken.parquet", {0: b"", 7: b""})
    made = parquet.read_table(path)
    labels = made["label"].to_pylist()
    labels[3] = labels[7] = None
    parquet.write_table(made.set_column(1, "label", pa.array(labels)), path)
    with pytest.raises(errors.DataError, match="row 3"):
        build(path)
    task = build(path, skip_broken=True)
    rows = [row for row in range(24) if row not in (0, 3, 7)]
    known = {TRAIN[0][row].tobytes(): TRAIN[1][row] for row in rows}
    for samples in (task.train_set, task.held_out):
        assert [known[one.tobytes()] for one in pixels(samples)] == samples.targets_n.tolist()
    assert len(task.train_set) + len(task.held_out) == 21
    assert task.left_out == LeftOut(rows=3)


@pytest.mark.parametrize("skip_broken", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_images_of_mixed_size_need_one(
    skip_broken: bool, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = encode_png(np.zeros((40, 48, 3), dtype=np.uint8))
    path = with_rows(tmp_path / "mixed.parquet", {5: other})
    if not in_memory:
        monkeypatch.setattr(loading, "_MOST_BYTES", 1000)
    with pytest.raises(errors.ConfigError, match=r"row 5 .*48×40 pixels, row 0 .*32×32.*--image-size 32"):
        build(path, skip_broken=skip_broken)
    assert pixels(build(path, image_size=24).train_set).shape[1:] == (24, 24, 3)


def test_held_out_images_have_the_size_of_those_to_train_on(tmp_path: Path) -> None:
    path = image_files.write_parquet(tmp_path, "train", *TRAIN)
    image_files.write_parquet(tmp_path, "test", *image_files.pictures(6, side=16))
    with pytest.raises(errors.ConfigError, match=r"16×16 pixels, those to train on have 32×32.*--image-size"):
        build(path)


def test_held_out_images_that_are_not_encoded_have_that_size_too(tmp_path: Path) -> None:
    image_files.write_folder(tmp_path, "train", *image_files.pictures(24, side=16))
    write_cifar_10(tmp_path / "cifar", "test", *HELD_OUT)
    (tmp_path / "cifar" / CIFAR_10 / "batches.meta.txt").write_text("\n".join([*image_files.NAMES, *"abcdefg"]))
    with pytest.raises(errors.ConfigError, match=r"32×32 pixels, those to train on have 16×16"):
        build(tmp_path / "train", held_out=str(tmp_path / "cifar"))


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = image_files.write_parquet(tmp_path, "all", *TRAIN)
    with pytest.raises(errors.ConfigError, match=r"--label-column labl: .*did you mean 'label'.*image, label"):
        build(path, label_column="labl")
    with pytest.raises(errors.ConfigError, match=r"--image-column imag: .*did you mean 'image'"):
        build(path, image_column="imag")
    with pytest.raises(errors.DataError, match=r"column 'label' holds int64, and images are bytes"):
        build(path, image_column="label")


def test_labels_that_are_names_are_numbered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [image_files.NAMES[label] for label in TRAIN[1]]
    task = build(image_files.write_parquet(tmp_path, "all", TRAIN[0], names, names=None))
    assert task.label_names == image_files.NAMES
    assert "numbered from 0 in this order: blue, green, red" in caplog.text
    held_out = [*names[:-1], "violet"]
    image_files.write_parquet(tmp_path / "2", "train", TRAIN[0], names, names=None)
    image_files.write_parquet(tmp_path / "2", "test", TRAIN[0], held_out, names=None)
    with pytest.raises(errors.DataError, match="'violet', which no sample to train on has"):
        build(tmp_path / "2")


def test_pickles_are_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py").mkdir(exist_ok=True)
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"\x80\x02}q\x01.")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    folder = tmp_path / "cifar-10-batches-py"
    for place in (folder, folder / "data_batch_1", archive):
        with pytest.raises(errors.DataError, match=r"pickles, which can run code .*cifar-10-binary\.tar\.gz"):
            build(place)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_cifar_10(tmp_path, "train", *TRAIN)
    batch = tmp_path / CIFAR_10 / "data_batch_2.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(errors.DataError, match=r"data_batch_2\.bin has 36,875 bytes, which is no whole number"):
        build(tmp_path)
    batch.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(errors.DataError, match=r"data_batch_2\.bin has a label 10, and there are only 0 \.\. 9"):
        build(tmp_path)
    image_files.write_shards(tmp_path / "shards", "train", *TRAIN)
    shard = tmp_path / "shards" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(errors.DataError, match=r"train-000001\.tar is damaged, or no tar file"):
        build(tmp_path / "shards")
    rest = build(tmp_path / "shards", skip_broken=True, held_out="0.5")
    assert len(rest.train_set) + len(rest.held_out) == 12
    assert rest.left_out == LeftOut(files=1)
    (tmp_path / "x.tar.gz").write_bytes(b"nothing")
    with pytest.raises(errors.DataError, match="is damaged, or no archive"):
        build(tmp_path / "x.tar.gz")
    with tarfile.open(tmp_path / "shards.tar.gz", "w:gz") as packed:
        image_files.add(packed, "1.png", encode_png(TRAIN[0][0]))
    with pytest.raises(errors.DataError, match="unpack"):
        build(tmp_path / "shards.tar.gz")


def test_a_sample_of_a_shard_without_an_image_or_a_label(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for row, (image, label) in enumerate(zip(*TRAIN, strict=True)):
            if row != 4:
                image_files.add(archive, f"{row:03d}.png", encode_png(image))
            if row != 6:
                image_files.add(archive, f"{row:03d}.cls", str(label).encode())
    with pytest.raises(errors.DataError, match="row 6"):
        build(tmp_path / "all.tar")
    task = build(tmp_path / "all.tar", skip_broken=True)
    assert len(task.train_set) + len(task.held_out) == 22


def test_images_outside_of_any_class(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encode_png(TRAIN[0][0]))
    with pytest.raises(errors.DataError, match=r"are in no folder of a class: .*/CLASS/IMAGE\.png"):
        build(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(errors.DataError, match="no file to read"):
        build(tmp_path)


def test_pictures_beside_a_data_set_are_none_of_its_samples(tmp_path: Path) -> None:
    image_files.write_parquet(tmp_path, "all", *image_files.pictures(30))
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "logo.png").write_bytes(encode_png(TRAIN[0][0]))
    assert len(build(tmp_path).train_set) == 24


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    image_files.write_folder(tmp_path, "blue", TRAIN[0], np.zeros(24, dtype=np.int64))
    with pytest.raises(errors.DataError, match="all samples have one label, blue"):
        build(tmp_path)


def test_without_pillow_the_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image_files.write_parquet(tmp_path, "all", *TRAIN)
    write_cifar_10(tmp_path / "cifar", "train", *TRAIN)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'es-service\[images\]'"):
        build(path)
    assert len(build(tmp_path / "cifar").train_set) == 21  # what is not encoded needs none


def test_only_images_that_are_trained_on_are_decoded(tmp_path: Path) -> None:
    """A broken one that a limit leaves out is not looked at; one that it keeps is an error before training."""
    image_files.write_parquet(tmp_path / "whole", "train", *TRAIN)
    image_files.write_parquet(tmp_path / "whole", "test", *HELD_OUT)
    derived = Derived(limit=10, seed=4)

    def few(path: Path) -> Any:
        return build_task("images", str(path), derived, TaskOptions(held_out=str(tmp_path / "whole" / "test.parquet")))

    task = few(tmp_path / "whole" / "train.parquet")
    used, others = task.source_ids, np.setdiff1d(np.arange(24), task.source_ids)
    broken = few(with_rows(tmp_path / "unused.parquet", dict.fromkeys(others.tolist()[1:], b"no image")))
    assert np.array_equal(pixels(broken.train_set), TRAIN[0][used])
    assert np.array_equal(broken.labels, TRAIN[1][used])
    assert broken.preview(3) == task.preview(3)
    with pytest.raises(errors.DataError, match=rf"row {used[2]} .*cannot be read as an image"):
        few(with_rows(tmp_path / "used.parquet", {int(used[2]): b"no image"}))
    with pytest.raises(IndexError, match=f"image {others[0]} was not loaded"):
        broken._task.train_set.__getitems__([others[0]])
    whole = build_task("images", str(tmp_path / "whole"), Derived(), TaskOptions())
    assert isinstance(whole.train_set.images, np.ndarray)  # type: ignore[attr-defined]


def test_what_is_no_file_and_no_data_set_is_described(tmp_path: Path) -> None:
    image_files.write_folder(tmp_path / "set", "train", *TRAIN)
    one = next((tmp_path / "set").rglob("*.png"))
    with pytest.raises(errors.DataError, match=r"is a single image.*CLASS/IMAGE"):
        build(one)
    (tmp_path / "x.npz").write_bytes(b"123")
    with pytest.raises(errors.DataError, match=r"x\.npz is of no format that the task 'images' reads"):
        build(tmp_path / "x.npz")
    one.unlink()
    os.mkfifo(one)
    with pytest.raises(errors.DataError, match="it is no file"):  # and not waited for
        build(tmp_path / "set")
    assert len(build(tmp_path / "set", skip_broken=True).train_set) > 10
    with pytest.raises(errors.ConfigError, match="image_size"):  # one image of it would need 28 GiB
        build(tmp_path / "set", image_size=100_000)

"""Which files are trained on, and which are held out: by their names alone, so most of these files are empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from es_service import errors
from es_service.training.tables.files import Parts, find_parts


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, data: str = "", held_out: str | None = None) -> tuple[list[str], list[str] | float | None]:
    """The files by their names below the folder, and the share where no file is held out."""
    parts = find_parts(str(folder / data), held_out)
    assert (parts.held_out is None) != (parts.share is None)
    names = [[str(path.relative_to(folder)) for path in part or ()] for part in (parts.train, parts.held_out)]
    return names[0], parts.share if parts.held_out is None else names[1]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train.parquet", "validation.parquet"),
        ("train.csv", "valid.csv"),
        ("x_train.jsonl", "x_val.jsonl"),
        ("x-train-v2.1.json.gz", "x-dev-v2.1.json.gz"),
        ("Train.tsv", "Test.tsv"),
        ("imdb-train.arrow", "imdb-test.arrow"),
        ("training.csv", "test.csv"),
        ("train.v3.csv", "test.v3.csv"),
        ("train/0000.parquet", "validation/0000.parquet"),
        ("train.parquet/part-0.snappy.parquet", "test.parquet/part-0.snappy.parquet"),
        ("train.parquet/part-0.snappy.parquet", "test.parquet"),
        ("train-00000-of-00001.parquet", "validation-00000-of-00001-0123456789abcdef.parquet"),
    ],
)
def test_held_out_is_what_lies_beside_under_the_same_name(tmp_path: Path, train: str, held_out: str) -> None:
    others = ("other_train.txt", "trainer_x.txt", "README.md", "held.parquet.txt")
    touched(tmp_path, train, held_out, *others)
    assert found(tmp_path, train) == ([train], [held_out])
    assert found(tmp_path) == ([train], [held_out])
    if "/" in train:
        assert found(tmp_path, train.split("/")[0]) == ([train], [held_out])


def test_the_first_of_several_held_out_parts_is_taken(tmp_path: Path) -> None:
    touched(tmp_path, *(f"{name}.csv" for name in ("train", "test", "dev", "val", "valid", "validation")))
    for name in ("validation", "valid", "val", "dev", "test"):
        assert found(tmp_path, "train.csv")[1] == found(tmp_path)[1] == [f"{name}.csv"]
        (tmp_path / f"{name}.csv").unlink()
    assert found(tmp_path, "train.csv")[1] == found(tmp_path)[1] == 0.2


@pytest.mark.parametrize("names", [("data.csv",), ("trainer.csv", "testing.csv"), ("constrain.jsonl", "latest.jsonl")])
def test_a_file_whose_name_says_no_split_holds_a_share_out(tmp_path: Path, names: tuple[str, ...]) -> None:
    touched(tmp_path, *names)
    assert found(tmp_path, names[0]) == ([names[0]], 0.2)


def test_shards_belong_together_in_order(tmp_path: Path) -> None:
    train = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]
    held_out = [f"data/validation-{number:05d}-of-00002.parquet" for number in range(2)]
    touched(tmp_path, *train, *held_out, "README.md", ".gitattributes", ".cache/train-00000-of-00003.parquet")
    assert found(tmp_path) == found(tmp_path, "data") == (train, held_out)
    assert found(tmp_path, train[1]) == ([train[1]], held_out)  # the file that was named, alone
    (tmp_path / train[1]).unlink()
    with pytest.raises(errors.DataError, match=r"train-00000-of-00003.parquet is one of 3 files, but 2 of them"):
        find_parts(str(tmp_path), None)


def test_a_file_that_is_missing_of_a_part_that_is_not_used_does_not_matter(tmp_path: Path) -> None:
    touched(tmp_path, "train.csv", "val-00000-of-00001.csv", "test-00000-of-00002.csv")
    assert found(tmp_path) == (["train.csv"], ["val-00000-of-00001.csv"])
    (tmp_path / "val-00000-of-00001.csv").unlink()
    for data in ("", "train.csv"):
        with pytest.raises(
            errors.DataError, match=r"test-00000-of-00002.csv is one of 2 files, but 1 of them are there"
        ):
            found(tmp_path, data)


def test_files_of_one_split_with_plain_numbers_belong_together(tmp_path: Path) -> None:
    touched(tmp_path, "train_1.csv", "train_2.csv", "test_1.csv")
    assert found(tmp_path) == (["train_1.csv", "train_2.csv"], ["test_1.csv"])


def test_a_snapshot_of_the_hub_keeps_its_links(tmp_path: Path) -> None:
    touched(tmp_path, "blobs/abc", "blobs/def", "snapshots/1/data/README.md")
    for name, blob in (("train", "abc"), ("test", "def")):
        os.symlink("../../../blobs/" + blob, tmp_path / f"snapshots/1/data/{name}-00000-of-00001.parquet")
    snapshot = tmp_path / "snapshots" / "1"
    assert found(snapshot) == (["data/train-00000-of-00001.parquet"], ["data/test-00000-of-00001.parquet"])


def test_without_a_split_all_files_of_a_folder_are_trained_on(tmp_path: Path) -> None:
    names = ["a.csv", "b/c.csv", "b/d.csv"]
    touched(tmp_path, *names, ".hidden.csv", "notes.txt")
    assert found(tmp_path) == (names, 0.2)


def test_what_datasets_writes_beside_its_files_is_no_data(tmp_path: Path) -> None:
    names = ("state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json", "cache-0123.arrow")
    touched(tmp_path, *names, "data-00000-of-00001.arrow")
    assert found(tmp_path) == (["data-00000-of-00001.arrow"], 0.2)


def test_held_out_as_the_user_names_it(tmp_path: Path) -> None:
    touched(tmp_path, "train.csv", "test.csv", "other/x.csv", "both/train.csv", "both/val.csv", "only/train.csv")
    for path, files in (("other/x.csv", ["other/x.csv"]), ("other", ["other/x.csv"]), ("both", ["both/val.csv"])):
        assert found(tmp_path, "train.csv", str(tmp_path / path)) == (["train.csv"], files)
    assert found(tmp_path, "train.csv", "0.3") == (["train.csv"], 0.3)
    with pytest.raises(errors.DataError, match=r"only has no file for validation \(train.csv\): give a file"):
        find_parts(str(tmp_path / "train.csv"), str(tmp_path / "only"))


def test_a_folder_called_like_a_share_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path, "train.csv", "0.3/x.csv")
    monkeypatch.chdir(tmp_path)
    assert find_parts("train.csv", "0.3") == Parts((tmp_path / "train.csv",), (tmp_path / "0.3/x.csv",), None)


def test_the_folder_that_one_is_in_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path, "train/x.csv", "test/x.csv")
    monkeypatch.chdir(tmp_path / "train")
    assert find_parts(".", None) == Parts((tmp_path / "train/x.csv",), (tmp_path / "test/x.csv",), None)


def test_other_endings_may_be_asked_for(tmp_path: Path) -> None:
    touched(tmp_path, "train-000.tar", "train-001.tar", "val-000.tar", "train.csv")
    parts = find_parts(str(tmp_path), None, (".tar",))
    assert [path.name for path in parts.train] == ["train-000.tar", "train-001.tar"]
    assert parts.held_out == (tmp_path / "val-000.tar",)


def test_several_data_sets_in_a_folder_are_named(tmp_path: Path) -> None:
    touched(tmp_path, "cola/train.csv", "cola/test.csv", "sst2/train.csv")
    with pytest.raises(errors.DataError, match=r"holds 2 data sets \(cola/train.csv, sst2/train.csv\): give one"):
        find_parts(str(tmp_path), None)
    assert found(tmp_path, "cola") == (["cola/train.csv"], ["cola/test.csv"])


def test_held_out_alone_is_not_trained_on(tmp_path: Path) -> None:
    touched(tmp_path, "validation.csv")
    with pytest.raises(errors.DataError, match=r"has no file for train \(validation.csv\): give a file"):
        find_parts(str(tmp_path), None)


def test_what_is_trained_on_is_not_held_out_too(tmp_path: Path) -> None:
    touched(tmp_path, "x.csv", "y.csv")
    os.symlink("x.csv", tmp_path / "z.csv")
    for same in ("x.csv", "z.csv"):
        with pytest.raises(errors.DataError, match=rf"{same} is also trained on; hold out other files"):
            find_parts(str(tmp_path), str(tmp_path / same))


def test_places_with_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match=r"none in it ends in .parquet, .arrow, .feather, .jsonl, .jsonl.gz,"):
        find_parts(str(touched(tmp_path, "notes.txt")), None)
    for data, held_out in (("gone.csv", None), ("notes.txt", "gone.csv")):
        with pytest.raises(errors.DataError, match=r"gone.csv: there is no such file or folder"):
            find_parts(str(tmp_path / data), held_out)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(errors.DataError, match="neither a file nor a folder"):
        find_parts(str(tmp_path / "pipe.csv"), None)


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path, "x.csv", "y.csv")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_parts("~/x.csv", "~/y.csv") == Parts((tmp_path / "x.csv",), (tmp_path / "y.csv",), None)

"""Tables from files of every format, as the usual programs write them, whole and broken."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import feather, ipc
from pyarrow import parquet as pq

from es_service import errors
from es_service.training.tables.files import SUFFIXES, find_parts
from es_service.training.tables.read import read_table

Writer: TypeAlias = Callable[[Path], object]

ROWS = [
    {"text": "fine, really", "label": 1},
    {"text": 'of "two"\nlines', "label": 0},
    {"text": "ünï 🙂", "label": 2},
    {"text": "007", "label": 0},
]
TABLE = pa.Table.from_pylist(ROWS)


def _write_ipc(new: Callable[..., Any]) -> Writer:
    def write(path: Path) -> None:
        with new(str(path), TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=3)

    return write


def _write_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _write_csv(dialect: str) -> Writer:
    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), dialect=dialect)
            writer.writeheader()
            writer.writerows(ROWS)

    return write


def _packed(write: Writer) -> Writer:
    def write_packed(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_packed


_PLAIN: list[tuple[str, str, Writer]] = [
    ("parquet", ".parquet", lambda path: pq.write_table(TABLE, path, row_group_size=3)),
    ("file", ".arrow", _write_ipc(ipc.new_file)),
    ("stream", ".arrow", _write_ipc(ipc.new_stream)),
    ("feather", ".feather", lambda path: feather.write_feather(TABLE, str(path))),
    ("lines", ".jsonl", _write_lines),
    ("lines in .json", ".json", _write_lines),
    ("array", ".json", lambda path: path.write_text(json.dumps(ROWS, indent=1))),
    ("lines of Windows", ".jsonl", lambda path: path.write_bytes(("\ufeff" + _lines("\r\n")).encode())),
    ("no last newline", ".jsonl", lambda path: path.write_text(_lines("\n\n").rstrip())),
    ("csv", ".csv", _write_csv("excel")),
    ("csv of Unix", ".csv", _write_csv("unix")),
    ("csv of Arrow", ".csv", lambda path: arrow_csv.write_csv(TABLE, str(path))),
    ("csv of Windows", ".CSV", lambda path: path.write_bytes(b"\xef\xbb\xbf" + _csv_bytes(path))),
    ("tsv", ".tsv", _write_csv("excel-tab")),
]
WRITERS = [
    *_PLAIN,
    *(
        (f"{name}, packed", f"{ending}.gz", _packed(write))
        for name, ending, write in _PLAIN
        if ending in (".jsonl", ".json", ".csv", ".tsv")
    ),
]


def _lines(end: str) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in ROWS)


def _csv_bytes(path: Path) -> bytes:
    _write_csv("excel")(path)
    return path.read_bytes()


def _stream_bytes(path: Path) -> bytes:
    _write_ipc(ipc.new_stream)(path)
    return path.read_bytes()


def written(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


@pytest.mark.parametrize(("ending", "write"), [one[1:] for one in WRITERS], ids=[one[0] for one in WRITERS])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str, write: Writer) -> None:
    path = tmp_path / f"x{ending}"
    write(path)
    assert find_parts(str(tmp_path), None).train == (path,)
    result = read_table([path])
    assert (result.skipped, result.broken_files) == (0, ())
    rows = result.table.to_pylist()
    if "sv" in ending.lower():
        rows = [{**row, "label": int(row["label"])} for row in rows]
    assert rows == ROWS


def test_every_ending_has_a_writer_here() -> None:
    assert {ending.lower() for _, ending, _ in WRITERS} == set(SUFFIXES)


def test_columns_of_text_files_are_strings_whatever_stands_in_them(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", 'a,b,c,d\n007,1.50,NA,""\n008,2.00,true,\n')
    assert read_table([path]).table.to_pydict() == {
        "a": ["007", "008"],
        "b": ["1.50", "2.00"],
        "c": ["NA", "true"],
        "d": ["", None],
    }
    path = written(tmp_path, "x.jsonl", '{"a": "2024-01-01"}\n{"a": "007", "b": 1}\n')
    assert read_table([path]).table.to_pydict() == {"a": ["2024-01-01", "007"], "b": [None, 1]}


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    long = "word " * 400_000  # 2 MB: Arrow parses 1 MB at once, and Python's csv takes 128 KB
    path = written(tmp_path, "x.csv", f"text,label\n{long},1\na,0\n{long},1\n")
    assert read_table([path]).table["text"].to_pylist() == [long, "a", long]


def test_conversations_and_images_keep_their_shape(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    lines = written(tmp_path, "x.jsonl", json.dumps({"messages": messages}) + "\n")
    assert read_table([lines]).table.to_pylist() == [{"messages": messages}]
    images = [{"bytes": b"\x89PNG", "path": None}, {"bytes": b"", "path": "a.png"}]
    pq.write_table(pa.table({"img": images}), tmp_path / "x.parquet")
    assert read_table([tmp_path / "x.parquet"]).table["img"].to_pylist() == images


def test_arrow_files_are_mapped_and_not_held_in_memory(tmp_path: Path) -> None:
    table = pa.table({"x": range(1_000_000)})
    for number, new in enumerate((ipc.new_file, ipc.new_stream)):
        path = tmp_path / f"{number}.arrow"
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
        before = pa.total_allocated_bytes()
        assert read_table([path]).table["x"][999_999].as_py() == 999_999
        assert pa.total_allocated_bytes() - before < 1_000_000


def test_parts_become_one_table_in_their_order(tmp_path: Path) -> None:
    first = written(tmp_path, "a.csv", "text,label\none,0\n")
    second = written(tmp_path, "b.jsonl", '{"label": "1", "text": "two"}\n')
    assert read_table([second, first]).table.to_pylist() == [
        {"label": "1", "text": "two"},
        {"label": "0", "text": "one"},
    ]


def test_types_of_parts_may_differ_where_one_holds_the_other(tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.parquet" for number in range(3)]
    kinds = (pa.int32(), pa.int64(), pa.null())
    for path, kind in zip(parts, kinds, strict=True):
        pq.write_table(pa.table({"label": pa.array([None], kind)}), path)
    assert read_table(parts).table.schema.field("label").type == pa.int64()
    pq.write_table(pa.table({"label": ["1"]}), parts[1])
    with pytest.raises(errors.DataError, match=r"the values of a column are not all of one kind: .*label"):
        read_table(parts)


def test_columns_must_be_the_same_in_all_parts(tmp_path: Path) -> None:
    first = written(tmp_path, "a.csv", "text,label\none,0\n")
    for header, message in (
        ("text,labels", r"b.csv has no column 'label', which is in the files before it"),
        ("text,label,more", r"b.csv has a column 'more', which the files before it have not"),
        ("text,label,text", r"b.csv has several columns 'text'"),
    ):
        second = written(tmp_path, "b.csv", header + "\n")
        with pytest.raises(errors.DataError, match=message):
            read_table([first, second])


def test_labels_must_mean_the_same_in_all_parts(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    for name, names in (("a", ["no", "yes"]), ("b", ["yes", "no"])):
        features = datasets.Features({"label": datasets.ClassLabel(names=names)})
        datasets.Dataset.from_dict({"label": [0, 1]}, features=features).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(errors.DataError, match=r"b.parquet: the labels in column 'label' do not mean what they do in"):
        read_table([tmp_path / "a.parquet", tmp_path / "b.parquet"])


BROKEN_ROWS = [
    ("x.jsonl", '{"a": 1}\n{"a": 2\n{"a": 3}\n', "line 2 is no row"),
    ("x.jsonl", '{"a": 1}\n\n[2]\n{"a": 3}\n', r"line 3 is no row \(not an object\)"),
    ("x.jsonl", b'{"a": 1}\n{"b": "\xff"}\n{"a": 3}\n', "line 2 is no row"),
    ("x.jsonl", '{"a": 1}\n' + "[" * 100_000 + '\n{"a": 3}', "line 2 is no row"),
    ("x.json", '[{"a": 1}, null, {"a": 3}]', r"element 2 is no row \(not an object\)"),
    ("x.csv", "a\n1\n2,2\n3\n", "Expected 1 columns, got 2"),
    ("x.tsv", "a\tb\n1\t1\n2\n3\t3\n", "Expected 2 columns, got 1"),
    ("x.jsonl", '{"a": 1}\n{"a": 2, "b": "\\ud800"}\n{"a": 3}\n', "line 2 is no row .*surrogates not allowed"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN_ROWS)
def test_a_broken_row_is_an_error_or_skipped_and_counted(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(errors.DataError, match=rf"{name}: .*{message}.*--skip-broken"):
        read_table([path])
    result = read_table([path], skip_broken=True)
    assert [int(value) for value in result.table["a"].to_pylist()] == [1, 3]
    assert (result.skipped, result.broken_files) == (1, ())


def test_a_part_of_broken_rows_alone_takes_nothing_from_the_others(tmp_path: Path) -> None:
    parts = [written(tmp_path, f"{number}.jsonl", line) for number, line in enumerate(("{\n", "{}\n1", '{"a": 1}'))]
    result = read_table(parts, skip_broken=True)
    assert (result.table.to_pylist(), result.skipped, result.broken_files) == ([{"a": 1}], 2, ())


_NOISE = bytes(range(255, 0, -1)) * 9


def _truncated(write: Writer, share: float) -> Writer:
    def write_half(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write_half


_CHECKED = (".parquet", ".arrow", ".feather", ".gz")  # formats that can tell that a part is missing
BROKEN_FILES: list[tuple[str, str, Writer]] = [
    *((f"{name}, half", end, _truncated(write, 0.5)) for name, end, write in WRITERS if end.endswith(_CHECKED)),
    *(
        (f"{name}, near the end", end, _truncated(write, 0.99))
        for name, end, write in WRITERS
        if end.endswith(_CHECKED)
    ),
    ("array, half", ".json", _truncated(lambda path: path.write_text(json.dumps(ROWS)), 0.5)),
    ("stream, cut between batches", ".arrow", lambda path: path.write_bytes(_stream_bytes(path)[:-8])),
    *((f"empty {end}", end, lambda path: path.touch()) for end in SUFFIXES),
    *((f"noise in {end}", end, lambda path: path.write_bytes(_NOISE)) for end in SUFFIXES if ".json" not in end),
    ("not packed", ".csv.gz", _write_csv("excel")),
    ("packed", ".csv", _packed(_write_csv("excel"))),
    ("Latin-1", ".csv", lambda path: path.write_bytes("text,label\nfünf,1\n".encode("latin-1"))),
    ("UTF-16", ".csv", lambda path: path.write_text("text,label\nfive,1\n", encoding="utf-16")),
]


@pytest.mark.parametrize(("ending", "write"), [one[1:] for one in BROKEN_FILES], ids=[one[0] for one in BROKEN_FILES])
def test_a_broken_file_is_an_error_or_skipped_and_named(tmp_path: Path, ending: str, write: Writer) -> None:
    good = written(tmp_path, "good.jsonl", '{"text": "a", "label": "b"}\n')
    path = tmp_path / f"bad{ending}"
    write(path)
    with pytest.raises(errors.DataError, match=rf"bad{ending}: .*leave it out with --skip-broken"):
        read_table([good, path])
    result = read_table([path, good], skip_broken=True)
    assert (result.table.num_rows, result.skipped, result.broken_files) == (1, 0, (path,))
    with pytest.raises(errors.DataError, match=rf"no row can be read from .*bad{ending}$"):
        read_table([path], skip_broken=True)


@pytest.mark.parametrize("position", range(8, 600, 16))
def test_no_flipped_byte_of_an_arrow_file_ends_the_process(tmp_path: Path, position: int) -> None:
    path = tmp_path / "x.arrow"
    _write_ipc(ipc.new_stream)(path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x7F
    path.write_bytes(content)
    with contextlib.suppress(errors.DataError):
        read_table([path]).table.to_pylist()


def test_a_page_of_parquet_that_fails_its_checksum_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"x": range(1000)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.DataError, match=r"x.parquet: it cannot be read .*CRC"):
        read_table([path])


def test_many_lines_of_json_become_one_table(tmp_path: Path) -> None:
    lines = ['{"a": null}'] * 10_000 + ['{"a": [{"role": "user"}], "b": 1}'] * 5 + ['{"b": 1.5, "a": [{"name": "x"}]}']
    table = read_table([written(tmp_path, "x.jsonl", "\n".join(lines))]).table
    assert table.slice(9_999, 2).to_pylist() == [
        {"a": None, "b": None},
        {"a": [{"role": "user", "name": None}], "b": 1.0},
    ]
    assert table.slice(10_005).to_pylist() == [{"a": [{"role": None, "name": "x"}], "b": 1.5}]
    path = written(tmp_path, "y.jsonl", "\n".join([*lines, *lines, "{"]))
    with pytest.raises(errors.DataError, match="line 20013 is no row"):
        read_table([path])
    assert read_table([path], skip_broken=True).table.num_rows == 20_012
    path = written(tmp_path, "z.jsonl", '{"a": 1}\n' * 10_000 + '{"a": "one"}\n')
    with pytest.raises(errors.DataError, match=r"values of a column are not all of one kind: .* a has incompatible"):
        read_table([path])


def test_values_of_different_kinds_are_an_error_that_names_the_column(tmp_path: Path) -> None:
    path = written(tmp_path, "x.jsonl", '{"label": 1}\n{"label": "one"}\n')
    for skip_broken in (False, True):
        with pytest.raises(errors.DataError, match=r"x.jsonl: the values of 'label' are not all of one kind: .*'one'"):
            read_table([path], skip_broken=skip_broken)


def test_values_that_no_column_can_hold(tmp_path: Path) -> None:
    path = written(tmp_path, "x.jsonl", f'{{"a": {2**70}}}\n')
    with pytest.raises(errors.DataError, match=r"x.jsonl: the values of 'a'"):
        read_table([path])


@pytest.mark.parametrize(
    ("name", "content"), [("x.csv", "text,label\n"), ("x.jsonl", "\n \n"), ("x.json", "[]"), ("x.json.gz", None)]
)
def test_files_without_a_row(tmp_path: Path, name: str, content: str | None) -> None:
    path = written(tmp_path, name, gzip.compress(b"") if content is None else content)
    with pytest.raises(errors.DataError, match=rf"no row can be read from .*{name}"):
        read_table([path])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match=r"gone.csv: there is no such file"):
        read_table([tmp_path / "gone.csv"])
    with pytest.raises(errors.DataError, match=r"x.txt is of no known format: its name must end in .parquet, "):
        read_table([written(tmp_path, "x.txt", "a\n1\n")])
    with pytest.raises(errors.DataError, match=r"x.parquet.gz is of no known format"):
        read_table([written(tmp_path, "x.parquet.gz", b"")])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(errors.DataError, match=r"pipe.csv: there is no such file"):
        read_table([tmp_path / "pipe.csv"])


@pytest.mark.parametrize("name", ["cifar10", "sst2", "cola", "rte", "gsm8k", "math"])
def test_real_data(shared_data: Path, name: str) -> None:
    parts = find_parts(str(shared_data / f"{name}_train.parquet"), None)
    assert parts.held_out is not None
    train, held_out = read_table(parts.train).table, read_table(parts.held_out).table
    sizes = {"cifar10": (50_000, 10_000), "sst2": (60_614, 6_735), "cola": (7_250, 1_301), "rte": (2_490, 277)}
    assert (train.num_rows, held_out.num_rows) == {**sizes, "gsm8k": (7_473, 1_319), "math": (7_474, 500)}[name]

"""The task text with the models that need nothing else: files in, a trained model out, or a clear error before that."""

from __future__ import annotations

import csv
import itertools
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import es_service as es
from es_service import errors
from es_service.cli import main, text
from es_service.selection.named import preset
from es_service.storage import labels
from es_service.storage.runs import RunStorage
from es_service.training import batches, proxies
from es_service.training.driver import train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task, own
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.options import TaskOptions
from es_service.training.tasks.text import TextClassification, build
from es_service.training.tasks.text.words import hashed

GOOD, BAD = ("fine", "lovely", "bright", "warm"), ("poor", "dull", "cold", "grim")
THINGS = ("film", "plot", "cast", "song", "scene")


def sentences(num: int) -> list[dict[str, Any]]:
    """Rows with a text of 3 to 6 words, and whether it is praise."""
    rows = []
    for i in range(num):
        words = ["the", THINGS[i % 5], "is", *(["very"] * (i % 3)), (BAD, GOOD)[i % 2][i // 2 % 4]]
        rows.append({"sentence": " ".join(words), "label": i % 2})
    return rows


def pairs(num: int) -> list[dict[str, Any]]:
    """Rows with two texts, and whether they speak of the same thing."""
    two = list(itertools.product(THINGS, THINGS))
    return [
        {"premise": f"the {a} is here", "hypothesis": f"a {b}", "label": ("other", "same")[a == b]}
        for a, b in itertools.islice(itertools.cycle(two), num)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows in the format that the file's name says."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def built(data: str, **options: Any) -> TextClassification:
    return build(data, TaskOptions(**options))


@pytest.mark.parametrize("name", ["x_train.parquet", "x_train.jsonl", "x_train.csv", "x_train.tsv"])
def test_every_format_gives_the_same_task(tmp_path: Path, name: str) -> None:
    data = write(tmp_path / name, sentences(40))
    write(tmp_path / name.replace("train", "validation"), sentences(10))
    task = built(data, model="bow")
    assert own.check(task, "text") is task
    assert (len(task.train_set), len(task.held_out)) == (40, 10)
    assert task.preview is not None
    assert task.preview(3) == "the song is poor" or task.preview(3) == "the song is lovely"
    assert task.labels.tolist() == [0, 1] * 20
    expected = hashed(["the", "film", "is", "poor"])
    assert task.train_set.__getitems__([0]).inputs["input_ids"].tolist() == [expected]


def test_columns_are_found_by_their_usual_names_or_named(tmp_path: Path) -> None:
    both = write(tmp_path / "pairs.jsonl", pairs(50))
    task = built(both, model="tiny")
    assert task.label_names == ("other", "same")
    assert task.preview is not None
    assert task.preview(0).startswith("premise: the film is here\nhypothesis: a ")  # type: ignore[arg-type]
    batch = task.train_set.__getitems__([0, 1])
    assert batch.inputs["token_type_ids"][0].tolist() == [0] * 6 + [1] * 3  # start, 4 words, end; 2 words, end
    one = built(both, model="tiny", text_column="hypothesis", label_column="premise")
    assert "token_type_ids" not in one.train_set.__getitems__([0]).inputs
    named = write(tmp_path / "named.jsonl", [{"Text": "a b", "x": "c", "Class": i % 2} for i in range(20)])
    assert built(named).preview(0) == "a b"  # type: ignore[misc]
    assert built(named, text_column="x,Text").preview(0) == "x: c\nText: a b"  # type: ignore[misc]


def test_batches_are_padded_to_their_longest_and_a_part_of_one_to_its_own(tmp_path: Path) -> None:
    task = built(write(tmp_path / "a.jsonl", sentences(40)), model="tiny")
    by_length = np.argsort(task.tokens, kind="stable")
    short, long = int(by_length[0]), int(by_length[-1])
    batch = task.train_set.__getitems__([short, long])
    assert batch.inputs["input_ids"].shape == (2, task.tokens[long])
    assert task.tokens[short] == 4 + 2  # with start and end
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [task.tokens[short], task.tokens[long]]
    [first, _] = batches.split(batch, 1)
    assert task.inputs(first)["input_ids"].shape == (1, task.tokens[short])
    assert "lengths" not in task.inputs(first)
    model = task.build_model().eval()
    with torch.no_grad():  # neither padding nor the other samples of a batch change what a sample gives
        alone, beside = model(task.inputs(first)), model(task.inputs(batch))[:1]
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-5)
    for ids in ([-1], [len(task.train_set)]):
        with pytest.raises(IndexError):
            task.train_set.__getitems__(ids)
    assert task.train_set.__getitems__([]).inputs["input_ids"].shape[0] == 0


def test_held_out_samples_come_by_length_with_their_own_labels(tmp_path: Path) -> None:
    rows = sentences(30)
    data = write(tmp_path / "train.jsonl", sentences(40))
    task = built(data, model="bow", held_out=write(tmp_path / "other.jsonl", rows))
    ids = range(len(task.held_out))
    found = {(tuple(batch.inputs["input_ids"][0].tolist()), int(batch.targets)) for i in ids
             for batch in [task.held_out.__getitems__([i])]}  # fmt: skip
    assert found == {(tuple(hashed(row["sentence"].split())), row["label"]) for row in rows}
    lengths = [task.held_out.__getitems__([i]).inputs["input_ids"].shape[1] for i in ids]
    assert lengths == sorted(lengths)
    assert task.held_out_labels.tolist() == [int(task.held_out.__getitems__([i]).targets) for i in ids]


def test_what_is_too_long_is_truncated_counted_and_warned_of_once(tmp_path: Path) -> None:
    rows = [{"text1": "a " * (30 if i < 3 else 2), "text2": "b c d", "label": i % 2} for i in range(20)]
    data = write(tmp_path / "train.jsonl", rows)
    held_out = write(tmp_path / "validation.jsonl", rows[:5])
    for model, kept in (("tiny", [1, *hashed(["a"] * 4, 3), 2, *hashed(["b", "c", "d"], 3), 2]), ("bow", None)):
        with pytest.warns(es.DataWarning, match="6 of 25 samples were truncated to 10 tokens") as caught:
            task = built(data, model=model, max_length=10, held_out=held_out)
        assert len(caught) == 1
        assert task.tokens[:4].tolist() == [10, 10, 10, 8 if model == "tiny" else 5]
        if kept is not None:  # of the longer text of a pair, its end
            assert task.train_set.__getitems__([0]).inputs["input_ids"].tolist() == [kept]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(data, model="tiny")


GOOD_ROWS = sentences(12)


WORDS = [{"text": "a b", "label": "xy"[i % 2]} for i in range(9)]


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [{**one, **values} if i == row else one for i, one in enumerate(GOOD_ROWS)]


@pytest.mark.parametrize(
    ("rows", "options", "kind", "message"),
    [
        (changed(3, sentence=None), {}, errors.DataError, r"row 3 .* of column 'sentence' has no text \(null\)"),
        (changed(4, sentence=" \n"), {}, errors.DataError, "row 4 .* has an empty text, as have 1 of 12 .*--skip-br"),
        (changed(5, label=None), {}, errors.DataError, "row 5 .* of column 'label'"),
        (GOOD_ROWS, {"text_column": "label"}, errors.DataError, "column 'label' holds int64, not texts.*--text-column"),
        ([{"text": str(i), "label": i % 2} for i in range(9)], {}, errors.DataError, "'text' holds numbers, not texts"),
        ([{"text": "a", "label": 7} for i in range(9)], {}, errors.DataError, "all samples have the label 7"),
        (GOOD_ROWS, {"text_column": "sentense"}, errors.ConfigError, "no such column; did you mean 'sentence'"),
        (GOOD_ROWS, {"label_column": "lable"}, errors.ConfigError, "no such column; did you mean 'label'"),
        ([{"x": "a", "label": i % 2} for i in range(9)], {}, errors.ConfigError, "name one with --text-column"),
        ([{"text": "a", "y": i % 2} for i in range(9)], {}, errors.ConfigError, "name one with --label-column"),
        (GOOD_ROWS, {"text_column": "a,b,c"}, errors.ConfigError, "--text-column a,b,c: name one column, or the two"),
        (GOOD_ROWS, {"text_column": "sentence,sentence"}, errors.ConfigError, "name one column, or the two of a pair"),
        (WORDS, {"text_column": "label"}, errors.ConfigError, "are both the column 'label'"),
        ([*WORDS, {"text": "a", "label": " "}], {}, errors.DataError, "row 9 .* has ' ' for a label"),
        (GOOD_ROWS, {"metric": "mathews"}, errors.ConfigError, "--metric 'mathews': did you mean 'matthews'"),
        (GOOD_ROWS, {"model": "tyni"}, errors.ConfigError, "--model tyni: there is no such folder.*--download"),
        (GOOD_ROWS, {"max_length": 3}, errors.ConfigError, "--max-length 3: it must be at least 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_before_any_training(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    data = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(kind, match=message):
        built(data, **options)
    spec = TrainingSpec(
        run="r", storage=str(tmp_path / "runs"), task="text", method="es", selection=es.Selection(es.methods.evolved()),
        data=data, options=TaskOptions(**options), exchange="embedded",
    )  # fmt: skip
    with pytest.raises(kind, match=message):
        train(spec, lambda progress: None)
    assert not os.path.exists(tmp_path / "runs" / "r")


def test_numbers_in_a_text_column_of_a_csv_are_found_too(tmp_path: Path) -> None:
    data = write(tmp_path / "train.csv", GOOD_ROWS)
    with pytest.raises(errors.DataError, match="column 'label' holds numbers, not texts"):
        built(data, text_column="label", label_column="sentence")


def test_rows_without_text_or_label_are_left_out_where_asked_and_counted(tmp_path: Path) -> None:
    rows = sentences(40)
    rows[1]["sentence"], rows[5]["sentence"], rows[9]["label"] = None, "", None
    data = write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "validation.jsonl", [*sentences(10), {"sentence": "", "label": 0}])
    with pytest.warns(es.DataWarning, match="3 rows were left out, which have no text"):
        task = built(data, model="bow", skip_broken=True)
    assert (len(task.train_set), len(task.held_out)) == (37, 10)
    kept = [row for i, row in enumerate(rows) if i not in (1, 5, 9)]
    assert [task.preview(i) for i in range(37)] == [row["sentence"] for row in kept]  # type: ignore[misc]
    assert task.labels.tolist() == [row["label"] for row in kept]


def test_held_out_labels_and_columns_must_be_those_of_the_train_set(tmp_path: Path) -> None:
    data = write(tmp_path / "train.jsonl", pairs(50))
    third = write(tmp_path / "third.jsonl", [{"premise": "a", "hypothesis": "b", "label": "third"}] * 3)
    with pytest.raises(errors.DataError, match="'third', which no sample to train on has"):
        built(data, held_out=third)
    with pytest.raises(errors.ConfigError, match=r"other\.jsonl, column hypothesis: there is no such column"):
        built(data, held_out=write(tmp_path / "other.jsonl", [{"premise": "a", "label": "same"}]))


def test_the_transformer_learns(tmp_path: Path) -> None:
    task = built(write(tmp_path / "train.jsonl", sentences(60)), model="tiny")
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = task.train_set.__getitems__(range(len(task.train_set)))
    for _ in range(20):
        optimizer.zero_grad()
        task.losses(model(task.inputs(batch)), batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    held_out = task.held_out.__getitems__(range(len(task.held_out)))
    assert task.metric(model.eval()(task.inputs(held_out)), held_out).float().mean() > 0.95


def run(folder: Path, data: str, *, watch: Any = None, **changes: Any) -> dict[str, Any]:
    spec = {
        "run": "r", "storage": str(folder), "task": "text", "data": data, "method": "es", "exchange": "embedded",
        "selection": preset("es"), "epochs": 3, "batch_size": 16, "learning_rate": 0.002, **changes,
    }  # fmt: skip
    return train(TrainingSpec(**spec), watch or (lambda progress: None))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    data, options = write(tmp_path / "train.jsonl", sentences(60)), TaskOptions(model="tiny", metric="matthews")

    class StoppedHere(Exception):
        pass

    def stop(progress: dict[str, Any]) -> None:
        if progress["progress"]["epoch"] == 1:
            raise StoppedHere

    whole = run(tmp_path / "whole", data, options=options)
    with pytest.raises(StoppedHere):
        run(tmp_path / "stopped", data, options=options, watch=stop)
    resumed = run(tmp_path / "stopped", data, options=options, resume=True)
    for name in ("accuracy", "held_out_loss", "train_loss", "trained"):
        assert [one[name] for one in resumed["history"]] == [one[name] for one in whole["history"]]
    states = [
        torch.load(tmp_path / part / "r/checkpoints/epoch-00002/training.pt", weights_only=True)["model"]
        for part in ("whole", "stopped")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    tables = [RunStorage(str(tmp_path / part), "r").table() for part in ("whole", "stopped")]
    assert tables[0].equals(tables[1])


def test_a_bag_of_words_trains_on_noisy_labels(tmp_path: Path) -> None:
    data = write(tmp_path / "train.parquet", sentences(100))
    noise, options = Derived(label_noise=0.25), TaskOptions(model="bow")
    result = run(tmp_path / "es", data, derived=noise, options=options)
    assert result["corrupted"]["share_of_set"] == 0.25
    assert result["samples"]["full"] == 3 * 80
    assert labels.read_notes(RunStorage(str(tmp_path / "es"), "r")) == labels.SampleNotes(None, True, "text/plain")


def test_the_result_counts_what_was_left_out_and_truncated(tmp_path: Path) -> None:
    rows = sentences(40)
    rows[1]["sentence"], rows[5]["sentence"], rows[9]["label"], rows[11]["sentence"] = None, "", None, "word " * 30
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "a.jsonl", rows)
    with (tmp_path / "train" / "a.jsonl").open("a") as file:
        file.write('{"sentence": "cut off')
    (tmp_path / "train" / "b.jsonl").touch()
    write(tmp_path / "held_out.jsonl", [*sentences(10), {"sentence": "", "label": 0}])
    options = TaskOptions(model="bow", skip_broken=True, max_length=20, held_out=str(tmp_path / "held_out.jsonl"))
    with pytest.warns(es.DataWarning):
        result = run(tmp_path / "runs", str(tmp_path / "train"), options=options, derived=Derived(limit=30))
    assert result["left_out"] == {"rows": 5, "files": 1, "truncated": 1}
    assert RunStorage(str(tmp_path / "runs"), "r").result()["left_out"] == result["left_out"]  # type: ignore[index]
    assert "data  " in text.summary(result)


@pytest.mark.filterwarnings("default::es_service.errors.DataWarning")
def test_the_command_prints_what_was_truncated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "train.jsonl", sentences(60))
    words = [
        "--data",
        data,
        "--model",
        "bow",
        "--max-length",
        "5",
        "--exchange",
        "embedded",
        "--storage",
        str(tmp_path),
    ]
    assert main(["train", "--task", "text", *words, "--batch-size", "8", "--epochs", "2", "--json"]) == 0
    printed = capsys.readouterr()
    [warning] = [line for line in printed.err.splitlines() if "truncated" in line]
    assert warning == "es-service: warning: 20 of 60 samples were truncated to 5 tokens (--max-length)"
    assert json.loads(printed.out)["task"] == "text"


def test_a_folder_needs_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    data = write(tmp_path / "train.jsonl", GOOD_ROWS)
    with pytest.raises(errors.ConfigError, match=r"pip install 'es-service\[transformers\]'"):
        build_task("text", data, options=TaskOptions(model=str(tmp_path)))


def test_a_small_model_of_a_task_from_files_scores_for_a_larger_one(tmp_path: Path) -> None:
    data = write(tmp_path / "x_train.csv", sentences(40))
    write(tmp_path / "x_validation.csv", sentences(10))
    what: dict[str, Any] = {"run": "r", "storage": str(tmp_path), "task": "text", "method": "es", "data": data}
    spec = TrainingSpec(
        **what, selection=preset("es"), options=TaskOptions(model="tiny", max_length=12), scorers=1, proxy="bow"
    )
    task = build_task(spec.task, spec.data, spec.derived, spec.options)
    proxy = proxies.proxy_of(spec, task)
    sizes = [sum(one.numel() for one in each.build_model().parameters()) for each in (proxy, task)]
    assert sizes[0] < sizes[1]
    learner = proxies.TaskProxy.of(spec.filled(task.defaults).to_dict(), 3)
    assert learner(np.arange(8), 0.5).shape == (8,)
    assert proxies.settings_of(spec, proxy).learning_rate == proxy.defaults.learning_rate

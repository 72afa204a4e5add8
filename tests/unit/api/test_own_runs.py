"""A run of a user's own loop on the dashboard: what its pages hold is what those of `es-service train` hold."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

import es_service as es
from es_service import kept_samples
from es_service.storage import files, previews
from es_service.storage.labels import read_labels
from es_service.storage.png import encode_png
from es_service.storage.previews import PreviewFiles
from es_service.storage.runs import RunStorage
from es_service.training import losses, scoring
from es_service.training.driver import train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task
from es_service.training.tasks.derived import Derived

SELECTION = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0.34, 0), seed=1)
SHAPE: dict[str, Any] = {"num_samples": 96, "num_epochs": 3, "batch_size": 16}
RUNS = ("of-train", "own")
PAGES = ("", "/ledger", "/samples?limit=96", "/samples/5", "/samples/5/history", "/distribution?column=w", "/coverage")


def own_loop(task: Any, storage: str) -> None:
    """What a user writes: nothing of it is ours but the Selector and its loader."""
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    selector = es.Selector(
        SELECTION, **SHAPE, run="own", storage=storage, labels=task.labels, label_names=task.label_names,
        preview=lambda sample_id: task.train_set.images_n[sample_id],
    )  # fmt: skip

    def score(batch: Any) -> Any:
        return scoring.score(model, batch, inputs=lambda one: one[0], losses=lambda out, one: task.losses(out, one))

    loader = es.SelectiveLoader(task.train_set, selector, score, collate_fn=lambda one: one, reuse_losses=True)
    for epoch in range(SHAPE["num_epochs"]):
        for batch, scale in loader.epoch(epoch):
            optimizer.zero_grad()
            found = losses.cross_entropy(model(batch[0]), batch[1])
            (found * scale).mean().backward()
            optimizer.step()
            loader.observe(found)
        selector.log(accuracy=0.5, balanced_accuracy=0.5, loss=1.0, train_loss=1.0)
    selector.close()


@pytest.fixture(scope="module", autouse=True)
def _unhurried() -> Iterator[None]:
    """Time for all previews, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_samples, "_LEAST_S", 60.0)
        patch.setattr(kept_samples, "_MOST_S", 60.0)
        yield


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, make_client: Callable[..., TestClient]) -> TestClient:
    storage, derived = str(tmp_path_factory.mktemp("own")), Derived(limit=SHAPE["num_samples"])
    spec = TrainingSpec(
        run="of-train", storage=storage, task="fashion", method="es", selection=SELECTION, derived=derived,
        exchange="embedded", epochs=SHAPE["num_epochs"], batch_size=SHAPE["batch_size"],
    )  # fmt: skip
    train(spec, lambda progress: None)
    task = build_task("fashion", None, derived)
    task.train_set.images_n = build_task("fashion").train_set.images_n[task.source_ids]  # type: ignore[attr-defined]
    own_loop(task, storage)
    return make_client(Path(storage))


def filled(value: Any, path: str = "") -> set[str]:
    """The fields of an answer that hold something; entries of a list count as one."""
    if isinstance(value, dict):
        return {found for key, one in value.items() for found in filled(one, f"{path}.{key}")}
    if isinstance(value, list) and value:
        return {found for one in value for found in filled(one, f"{path}[]")}
    return set() if value is None else {path}


# What a loop of one's own does not have: a task, and the description of a model and an optimiser that are not ours;
# the seconds of the whole command, and losses of training that belong to it alone.
ONLY_OF_TRAIN = {".task", ".seconds.wall"}


@pytest.mark.parametrize("page", PAGES)
def test_the_same_fields_are_filled_in(page: str, client: TestClient) -> None:
    answers = [client.get(f"/v1/runs/{run}{page}") for run in RUNS]
    assert {one.status_code for one in answers} == {200}
    of_train, own = ({one for one in filled(answer.json()) if ".training" not in one} for answer in answers)
    assert of_train - ONLY_OF_TRAIN == own


def test_both_are_rows_of_the_list(client: TestClient) -> None:
    rows = {row["run"]: row for row in client.get("/v1/runs").json()["runs"]}
    of_train, own = (rows[run] for run in RUNS)
    assert filled(of_train) - {".task"} == filled(own)
    for row in (of_train, own):
        assert (row["status"], row["epoch"], row["done"], row["workers"], row["exchange"]) == (
            "finished", 3, 1.0, 1, "embedded",
        )  # fmt: skip
    assert (own["method"], own["accuracy"]) == ("evolved", 0.5)
    assert own["saving"]["samples"] == of_train["saving"]["samples"] > 0


def test_both_show_their_samples(client: TestClient) -> None:
    for sample_id in (0, 5, 95):
        shown = [client.get(f"/v1/runs/{run}/samples/{sample_id}/preview") for run in RUNS]
        assert {one.headers["content-type"] for one in shown} == {"image/png"}
        assert shown[0].content == shown[1].content


# -- what is kept of samples ---------------------------------------------------------------------------------------


def selector(storage: Path, **options: Any) -> es.Selector:
    return es.Selector(SELECTION, **SHAPE, run="r", storage=str(storage), **options)


def make_epoch(one: es.Selector, epoch: int) -> None:
    for ids in one.epoch(epoch):
        one.select(ids, np.ones(ids.size, dtype=np.float32))


def shown(storage: Path, sample_id: int) -> bytes | None:
    kept = RunStorage(str(storage), "r").previews
    return kept.find(sample_id, kept.index())


def picture(side: int = 4, value: int = 7) -> Any:
    return np.full((side, side), value, dtype=np.uint8)


class Rows:
    """As much of a Hugging Face data set as a preview needs."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}


def pil(side: int) -> Any:
    from PIL import Image

    return Image.new("RGBA", (side, side // 2), (255, 0, 0, 255))


@pytest.mark.parametrize(
    ("preview", "kind"),
    [
        (lambda sample_id: encode_png(picture(value=sample_id)), "image/png"),
        (lambda sample_id: picture(value=sample_id), "image/png"),
        (lambda sample_id: np.zeros((700, 300, 3), dtype=np.uint8), "image/png"),
        (lambda sample_id: pil(900), "image/png"),
        (lambda sample_id: f"text {sample_id}" + "x" * 5000, "text/plain"),
        ((Rows(image=[pil(8)] * 96), "image"), "image/png"),
        ((Rows(text=["a text"] * 96), "text"), "text/plain"),
        ((Rows(label=list(range(96))), "label"), "text/plain"),
    ],
)
def test_a_preview_may_be_made_in_many_ways(preview: Any, kind: str, tmp_path: Path) -> None:
    from PIL import Image

    one = selector(tmp_path, preview=preview)
    assert RunStorage(str(tmp_path), "r").read_note("samples") == {
        "label_names": None, "has_labels": False, "preview": kind,
    }  # fmt: skip
    make_epoch(one, 0)
    content = shown(tmp_path, 95)
    assert content is not None
    if kind == "text/plain":
        assert len(content) <= 4000
        assert content.decode() in ("a text", "95") or content.startswith(b"text 95x")
        return
    with Image.open(io.BytesIO(content)) as image:
        assert max(image.size) <= 256


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": np.zeros(96)}, es.ShapeError, r"one integer for each of the 96 samples, got float64\[96\]"),
        ({"labels": np.zeros(95, dtype=int)}, es.ShapeError, r"got int64\[95\]"),
        ({"labels": np.full(96, -1)}, es.ConfigError, "number the classes from 0"),
        ({"labels": [[0], [0, 1]] * 48}, es.ShapeError, r"one integer for each of the 96 samples, got object\[0\]"),
        ({"labels": torch.zeros(96, requires_grad=True)}, es.ShapeError, r"got float32\[96\]"),
        ({"labels": [0] * 96, "label_names": 3}, es.ConfigError, "label_names must be the names of labels"),
        ({"label_names": ["a"]}, es.ConfigError, "beside labels="),
        ({"labels": np.arange(96) % 3, "label_names": ["a", "b"]}, es.ConfigError, "2 label_names for 3 labels"),
        ({"labels": np.arange(96) % 3, "label_names": "abc"}, es.ConfigError, "got 'abc'"),
        ({"preview": 3}, es.ConfigError, "a function of an id, or a data set"),
        ({"preview": lambda sample_id: sample_id}, es.ConfigError, r"preview\(0\) gave int"),
        ({"preview": lambda sample_id: b"GIF89a"}, es.ConfigError, r"preview\(0\) gave 6 bytes"),
        ({"preview": lambda sample_id: previews.PNG + bytes(300_000)}, es.ConfigError, "at most 256 KiB"),
        ({"preview": lambda sample_id: np.zeros((2, 2))}, es.ConfigError, "a picture is uint8"),
        ({"preview": lambda sample_id: {}["no"]}, es.ConfigError, r"preview\(0\) failed: KeyError\('no'\)"),
        ({"preview": (Rows(text=["a"]), "txt")}, es.ConfigError, r"preview\(0\) failed: KeyError\('txt'\)"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_the_start(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        selector(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []  # no run of these settings has begun


def test_a_preview_that_fails_later_ends_the_previews_and_not_the_training(tmp_path: Path) -> None:
    one = selector(tmp_path, preview=lambda sample_id: str(100 // (95 - sample_id)), labels=np.arange(96) % 4)
    with pytest.warns(UserWarning, match=r"no more previews are kept: preview\(95\) failed: ZeroDivisionError"):
        make_epoch(one, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_epoch(one, 1)
    assert read_labels(RunStorage(str(tmp_path), "r")).tolist() == [one % 4 for one in range(96)]


def test_where_not_all_fit_those_that_are_listed_first_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_samples, "MOST_SAMPLES", 90)
    monkeypatch.setattr(kept_samples, "_LISTED", [("w", 10, False)])
    made: list[int] = []

    def preview(sample_id: int) -> str:
        made.append(sample_id)
        return str(sample_id)

    one = selector(tmp_path, preview=preview)
    make_epoch(one, 0)
    assert sorted(made[1:]) == sorted(one.top(10).column("id").to_pylist())
    make_epoch(one, 1)
    assert len(made) == len(set(made[1:])) + 1  # none is made twice; the first showed what they are
    assert all(shown(tmp_path, sample_id) == str(sample_id).encode() for sample_id in made[1:])


def test_what_gave_way_is_made_again_where_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_samples, "MOST_SAMPLES", 90)
    monkeypatch.setattr(previews, "_MOST_FILES", 1)
    one = selector(tmp_path, preview=str)
    for epoch in range(2):
        make_epoch(one, epoch)
        RunStorage(str(tmp_path), "r").previews.write({1000: b"all others give way"})
    make_epoch(one, 2)
    assert shown(tmp_path, int(one.top(1).column("id")[0].as_py())) is not None


def test_a_stream_shows_its_samples_once_their_ids_are_known(tmp_path: Path) -> None:
    one = es.Selector(
        SELECTION, num_samples=None, num_epochs=3, batch_size=4, run="r", storage=str(tmp_path), preview=str
    )
    for batch in one.stream(0, [{"id": np.arange(4) + 4 * step} for step in range(3)]):
        one.select(batch["id"], np.ones(4, dtype=np.float32))
    note = RunStorage(str(tmp_path), "r").read_note("samples")
    assert note is not None
    assert note["preview"] == "text/plain"
    assert shown(tmp_path, 11) == b"11"


def test_a_run_that_continues_keeps_its_previews_and_one_that_begins_does_not(tmp_path: Path) -> None:
    make_epoch(selector(tmp_path, preview=str), 0)
    make_epoch(selector(tmp_path, preview=lambda sample_id: "new"), 1)
    assert shown(tmp_path, 3) == b"3"
    again = selector(tmp_path)
    again.reset()
    selector(tmp_path, preview=lambda sample_id: "new")
    assert shown(tmp_path, 3) is None


@pytest.fixture
def small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreviewFiles:
    monkeypatch.setattr(previews, "MOST_IN_ALL", 40_000)
    return RunStorage(str(tmp_path), "r").previews


def test_the_oldest_previews_give_way_to_the_newest(small_files: PreviewFiles) -> None:
    for number in range(8):
        small_files.write({number: bytes(10_000)})
    found = [sample_id for sample_id in range(8) if small_files.find(sample_id, small_files.index()) is not None]
    assert found == [5, 6, 7]
    small_files.write({7: b"newer"})
    assert small_files.find(7, small_files.index()) == b"newer"


def test_damaged_previews_are_said_and_links_are_not_followed(
    tmp_path: Path, make_client: Callable[..., TestClient]
) -> None:
    one = selector(tmp_path / "runs", preview=str)
    make_epoch(one, 0)
    client = make_client(tmp_path / "runs")
    path = "/v1/runs/r/samples/3/preview"
    assert client.get(path).text == "3"
    [file] = (tmp_path / "runs" / "r" / "previews").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:100])
    answer = client.get(path)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "unavailable")
    (tmp_path / "elsewhere").write_bytes(data)
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert "link that leads out of the storage" in client.get(path).text
    file.unlink()
    assert client.get(path).status_code == 404
    with pytest.raises(es.StorageError, match="bytes, where at most"):
        files.read_bytes(*_large(tmp_path))


def _large(tmp_path: Path) -> Any:
    kept = RunStorage(str(tmp_path), "large")
    (tmp_path / "large").write_bytes(bytes(10))
    return kept.filesystem, str(tmp_path / "large"), 9

"""The training loop on one worker: what it returns, and that an interrupted training ends as an undisturbed one."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import es_service as es
from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.ledger import Ledger
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage
from es_service.training.loop import TrainSettings, fit
from es_service.training.optimizers import learning_rate_at
from es_service.training.tasks.base import TaskDefaults
from es_service.training.workers.local import LocalWorkers

NUM, HELD_OUT, SIZE, EPOCHS = 240, 80, 40, 5


pytestmark = pytest.mark.usefixtures("one_thread")


class InterruptedHere(Exception):
    """What ends a training in the middle of an epoch."""


class Points:
    """Points of the plane, in two classes."""

    def __init__(self, num: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(num, 2, generator=generator)
        self.y = (self.x[:, 0] + 0.5 * self.x[:, 1] > 0).long()
        self.num_asked = 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, ids: Sequence[int]) -> dict[str, torch.Tensor]:
        self.num_asked += 1
        index = torch.as_tensor(ids)
        return {"x": self.x[index], "y": self.y[index]}


class PointsTask:
    """A problem that a small network solves; it fails in a chosen epoch where told to."""

    name = "points"
    defaults = TaskDefaults(epochs=EPOCHS, batch_size=SIZE, learning_rate=0.2)
    label_names = None

    def __init__(self, fail_in_epoch: int | None = None) -> None:
        self.train_set = Points(NUM, 1)
        self.held_out = Points(HELD_OUT, 2)
        self.fail_in_epoch = fail_in_epoch
        self.loss_sizes: list[int] = []
        self.calls_in_epoch = 0
        self.is_training_while_evaluated: list[bool] = []

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.train_set.y.numpy()

    @property
    def held_out_labels(self) -> NDArray[np.int64]:
        return self.held_out.y.numpy()

    def build_model(self) -> nn.Module:
        self.model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        return self.model

    def inputs(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["x"]

    def losses(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self.model.training:  # evaluation
            return F.cross_entropy(outputs, batch["y"], reduction="none")
        self.loss_sizes.append(len(batch["y"]))
        if self.held_out.num_asked == self.fail_in_epoch:  # held-out samples are asked for once an epoch
            self.calls_in_epoch += 1
            if self.calls_in_epoch == 4:
                raise InterruptedHere
        return F.cross_entropy(outputs, batch["y"], reduction="none")

    def signals(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {}

    def metric(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.is_training_while_evaluated.append(self.model.training)
        return outputs.argmax(dim=1) == batch["y"]


def select(name: str = "evolved", epochs: int = EPOCHS, **settings: Any) -> es.Selector:
    settings = {"ratio": 0.25, "anneal": (0.1, 0.2), "seed": 3, **settings}
    selection = es.Selection(getattr(es.methods, name)(), **settings)
    return es.Selector(selection, num_samples=NUM, num_epochs=epochs, batch_size=SIZE)


SETTINGS = TrainSettings(learning_rate=0.2, seed=4)


def run(folder: Path, selector: es.Selector, task: PointsTask | None = None) -> dict[str, Any]:
    return fit(task or PointsTask(), selector, SETTINGS, LocalWorkers(folder))


def saved(folder: Path) -> dict[str, Any]:
    """The one checkpoint in a folder."""
    (place,) = folder.glob("epoch-*")
    found: dict[str, Any] = torch.load(place / "training.pt", map_location="cpu", weights_only=True)
    return {**found, "place": place.name, "scores": (place / "scores.arrow").read_bytes()}


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History less what the clock says."""
    return [{**one, "seconds": None, "saving": {**one["saving"], "seconds": None}} for one in history]


def counts(ledger: dict[str, Any]) -> list[Any]:
    """Return what does not depend on how often a training was taken up: each time, some steps warm up."""
    return [ledger[name] for name in ("scored", "trained", "full", "skipped", "steps", "full_steps")]


def table_bytes(selector: es.Selector) -> dict[str, bytes]:
    table = selector.table()
    return {name: table[name].to_numpy().tobytes() for name in table.column_names}


# -- one training -------------------------------------------------------------------------------------------------


def test_a_training_returns_its_accuracy_history_and_ledger(tmp_path: Path) -> None:
    selector, task = select(), PointsTask()
    metrics = run(tmp_path, selector, task)
    assert metrics["epoch"] == EPOCHS - 1
    assert metrics["world_size"] == 1
    assert [one["epoch"] for one in metrics["history"]] == list(range(EPOCHS))
    assert metrics["accuracy"] == metrics["history"][-1]["accuracy"]
    assert metrics["accuracy"] > 0.85  # chance is 0.5
    ledger = Ledger.from_dict(metrics["ledger"])
    assert ledger.full == EPOCHS * NUM
    assert ledger.scored == 3 * NUM  # epochs 1 to 3
    assert ledger.trained == 2 * NUM + 3 * NUM // 4
    assert ledger.steps == EPOCHS * NUM // SIZE
    assert metrics["history"][-1]["saving"] == ledger.saving()
    assert sum(selector.table()["selected"].to_pylist()) == ledger.trained
    assert selector.table()["visits"].to_pylist() == [EPOCHS] * NUM


def test_a_part_of_each_meta_batch_is_scored_and_what_is_drawn_of_the_rest_is_observed(tmp_path: Path) -> None:
    selector, task = select(score_share=0.5), PointsTask()
    ledger = Ledger.from_dict(run(tmp_path, selector, task)["ledger"])
    assert ledger.scored == 3 * NUM // 2
    assert ledger.trained == 2 * NUM + 3 * NUM // 4
    assert set(task.loss_sizes) == {SIZE, SIZE // 2, SIZE // 4}
    assert sum(selector.table()["selected"].to_pylist()) == ledger.trained
    assert 2 * NUM + ledger.scored < sum(selector.table()["visits"].to_pylist()) < ledger.trained + ledger.scored


def test_the_accuracy_is_that_of_the_final_weights_in_evaluation_mode(tmp_path: Path) -> None:
    task = PointsTask()
    metrics = run(tmp_path, select(), task)
    assert task.is_training_while_evaluated == [False] * EPOCHS
    task.model.load_state_dict(saved(tmp_path)["model"])
    task.model.cpu().eval()
    right = (task.model(task.held_out.x).argmax(dim=1) == task.held_out.y).double().mean()
    assert metrics["accuracy"] == pytest.approx(float(right), abs=1e-9)


def test_the_same_seed_trains_the_same_weights_and_another_others(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        fit(PointsTask(), select(), dataclasses.replace(SETTINGS, seed=seed), LocalWorkers(tmp_path / name))
        weights.append({key: value.numpy().tobytes() for key, value in saved(tmp_path / name)["model"].items()})
    assert weights[0] == weights[1] != weights[2]


def test_no_pass_is_larger_than_a_micro_batch(tmp_path: Path) -> None:
    task = PointsTask()
    settings = dataclasses.replace(SETTINGS, micro_batch_size=8, scoring_batch_size=8)
    fit(task, select(), settings, LocalWorkers(tmp_path))
    assert max(task.loss_sizes) == 8
    assert sum(task.loss_sizes) == 3 * NUM + 2 * NUM + 3 * NUM // 4  # scored and trained


# -- the learning rate --------------------------------------------------------------------------------------------


def test_the_learning_rate_starts_low_peaks_once_and_ends_at_nothing() -> None:
    rates = [learning_rate_at(step / 1000, 0.5) for step in range(1001)]
    peak = max(range(1001), key=rates.__getitem__)
    assert 0 < rates[0] < 0.05
    assert rates[peak] == pytest.approx(0.5)
    assert 50 < peak < 500
    assert all(one < other for one, other in itertools.pairwise(rates[: peak + 1]))
    assert all(one > other for one, other in itertools.pairwise(rates[peak:]))
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert min(rates) >= 0.0
    assert max(abs(one - other) for one, other in itertools.pairwise(rates)) < 0.01  # no jump


@pytest.mark.parametrize("prune_ratio", [0.0, 0.5])
def test_the_schedule_ends_with_the_training_whatever_was_pruned(tmp_path: Path, prune_ratio: float) -> None:
    selector = select(anneal=(0.1, 0.0), prune_ratio=prune_ratio)
    run(tmp_path, selector)
    (group,) = saved(tmp_path)["optimizer"]["param_groups"]
    steps = 3 if prune_ratio else 6  # of the last epoch
    assert group["lr"] == pytest.approx(learning_rate_at((EPOCHS - 1 / steps) / EPOCHS, 0.2), rel=1e-9)
    assert group["lr"] < 0.2 * 0.05
    assert group["nesterov"]


# -- signals ------------------------------------------------------------------------------------------------------


def test_a_method_that_goes_by_a_signal_the_task_lacks_is_refused_at_once(tmp_path: Path) -> None:
    task = PointsTask()
    with pytest.raises(errors.ConfigError, match=r"'correct' of each sample.*'points' does not have; it has loss"):
        run(tmp_path, select("kakurenbo"), task)
    assert task.loss_sizes == []


class SureTask(PointsTask):
    """Always right and certain, so that KAKURENBO hides all it may."""

    def signals(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"correct": torch.ones(len(outputs)), "confidence": torch.ones(len(outputs))}


def test_the_learning_rate_rises_with_what_is_hidden(tmp_path: Path) -> None:
    selector = select("kakurenbo", anneal=(0.0, 0.0))
    metrics = run(tmp_path, selector, SureTask())
    hidden = math.floor(0.3 * 0.4 * NUM)  # from 80 % of the epochs on
    steps = math.ceil((NUM - hidden) / SIZE)
    (group,) = saved(tmp_path)["optimizer"]["param_groups"]
    expected = learning_rate_at((EPOCHS - 1 / steps) / EPOCHS, 0.2) * NUM / (NUM - hidden)
    assert group["lr"] == pytest.approx(expected, rel=1e-9)
    assert metrics["ledger"]["scored"] > 0  # the hidden of all epochs but the last


# -- interrupted and continued ------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_selector", [False, True])
@pytest.mark.parametrize("fail_in_epoch", [0, 1, 3, 4])
@pytest.mark.parametrize(
    "method, settings", [("evolved", {"prune_ratio": 0.3}), ("random", {}), ("evolved", {"score_share": 0.5})]
)
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    tmp_path: Path, method: str, settings: dict[str, float], fail_in_epoch: int, same_selector: bool
) -> None:
    quiet = select(method, **settings)
    expected = run(tmp_path / "quiet", quiet)

    selector = select(method, **settings)
    with pytest.raises(InterruptedHere):
        run(tmp_path / "cut", selector, PointsTask(fail_in_epoch))
    assert len(list((tmp_path / "cut").glob("epoch-*"))) == min(fail_in_epoch, 1)
    if not same_selector:
        selector = select(method, **settings)
    task = PointsTask()
    metrics = run(tmp_path / "cut", selector, task)

    assert task.held_out.num_asked == EPOCHS - fail_in_epoch  # what was done stays done
    assert metrics["accuracy"] == expected["accuracy"]
    assert without_seconds(metrics["history"]) == without_seconds(expected["history"])
    assert counts(metrics["ledger"]) == counts(expected["ledger"])
    assert table_bytes(selector) == table_bytes(quiet)
    one, other = saved(tmp_path / "quiet"), saved(tmp_path / "cut")
    assert one["place"] == other["place"]
    assert one["scores"] == other["scores"]
    assert list(one["model"]) == list(other["model"])
    for name, value in one["model"].items():  # running statistics of BatchNorm too
        assert value.numpy().tobytes() == other["model"][name].numpy().tobytes(), name
    for key, value in one["optimizer"]["state"].items():
        assert torch.equal(value["momentum_buffer"], other["optimizer"]["state"][key]["momentum_buffer"])


def test_a_finished_training_fits_again_without_training(tmp_path: Path) -> None:
    first = run(tmp_path, select())
    before = saved(tmp_path)["scores"]
    task, selector = PointsTask(), select()
    again = run(tmp_path, selector, task)
    assert task.loss_sizes == []
    assert task.train_set.num_asked == task.held_out.num_asked == 0
    assert {**again, "memory": None} == {**first, "memory": None}
    assert saved(tmp_path)["scores"] == before
    assert sum(selector.table()["selected"].to_pylist()) == first["ledger"]["trained"]


def test_a_training_without_a_checkpoint_begins_with_an_empty_table(tmp_path: Path) -> None:
    quiet, used = select(), select()
    run(tmp_path / "quiet", quiet)
    run(tmp_path / "first", used)
    shutil.rmtree(tmp_path / "first")
    run(tmp_path / "again", used)
    assert table_bytes(used) == table_bytes(quiet)
    assert saved(tmp_path / "quiet")["scores"] == saved(tmp_path / "again")["scores"]


def test_a_checkpoint_of_another_selection_is_refused(tmp_path: Path) -> None:
    run(tmp_path, select())
    with pytest.raises(errors.RunMismatchError, match="ratio"):
        run(tmp_path, select(ratio=0.5))


@pytest.mark.parametrize("name", ["training.pt", "scores.arrow", "checkpoint.json"])
def test_a_flipped_bit_in_a_checkpoint_is_noticed(name: str, tmp_path: Path) -> None:
    run(tmp_path, select())
    (place,) = tmp_path.glob("epoch-*")
    whole = (place / name).read_bytes()
    for at in (0.02, 0.3, 0.5, 0.7, 0.93):
        data = bytearray(whole)
        data[int(at * len(data))] ^= 4
        (place / name).write_bytes(data)
        selector = select()
        before = table_bytes(selector)
        with pytest.raises(errors.StorageError, match=r"damaged|format|JSON"):
            run(tmp_path, selector)
        assert table_bytes(selector) == before
    for damage in (b"", whole[: len(whole) // 2]):
        (place / name).write_bytes(damage)
        with pytest.raises(errors.StorageError):
            run(tmp_path, select())
    (place / name).write_bytes(whole)
    run(tmp_path, select())


@pytest.mark.parametrize("value", [[1, 2], {"selector": [1]}, {"model": {}}, torch.zeros(3)])
def test_a_checkpoint_that_holds_something_else_is_refused_in_words(value: Any, tmp_path: Path) -> None:
    run(tmp_path, select())
    (place,) = tmp_path.glob("epoch-*")
    torch.save(value, place / "training.pt")
    (place / "checkpoint.json").unlink()
    with pytest.raises(errors.StorageError, match="damaged"):
        run(tmp_path, select())


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    used = select()
    run(tmp_path, used)
    (place,) = tmp_path.glob("epoch-*")
    (place / "checkpoint.json").unlink()
    older = torch.load(place / "training.pt", weights_only=True)
    older["selector"]["format"] = 2
    del older["selector"]["sha256"]
    torch.save(older, place / "training.pt")
    again = select()
    run(tmp_path, again)
    assert table_bytes(again) == table_bytes(used)


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"learning_rate": "fast"},
        {"learning_rate": True},
        {"micro_batch_size": 0},
        {"micro_batch_size": 2.5},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": "x"},
    ],
)
def test_settings_outside_their_domain_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=next(iter(changes))):
        TrainSettings(**{"learning_rate": 0.1, **changes})


@pytest.mark.parametrize(
    "changes", [{"learning_rate": math.inf}, {"momentum": -0.1}, {"momentum": math.nan}, {"weight_decay": -1.0}]
)
def test_settings_that_torch_would_trip_over_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match=next(iter(changes))):
        TrainSettings(**{"learning_rate": 0.1, **changes})


# -- LocalWorkers -------------------------------------------------------------------------------------------------


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    workers = LocalWorkers(tmp_path / "deep" / "folder")
    with workers.checkpoint() as found:
        assert found is None
    for epoch in (0, 1, 9, 10, 10, 100):
        workers.report({"epoch": epoch}, lambda folder, epoch=epoch: (folder / "mark").write_text(str(epoch)))  # type: ignore[misc]
        with workers.checkpoint() as found:
            assert found is not None
            assert (found / "mark").read_text() == str(epoch)
        assert len(list((tmp_path / "deep" / "folder").iterdir())) == 1


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    workers = LocalWorkers(tmp_path)
    workers.report({"epoch": 0}, lambda folder: (folder / "mark").write_text("0"))

    def fail(folder: Path) -> None:
        (folder / "mark").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(errors.StorageError, match=r"epoch-00001.*No space left"):
        workers.report({"epoch": 1}, fail)
    with workers.checkpoint() as found:
        assert found is not None
        assert (found / "mark").read_text() == "0"
    workers.report({"epoch": 1}, lambda folder: (folder / "other").write_text("1"))
    with workers.checkpoint() as found:
        assert found is not None
        assert [path.name for path in found.iterdir()] == ["other"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_fills_up_while_torch_saves_is_a_storage_error(tmp_path: Path) -> None:
    def save(folder: Path) -> None:
        (folder / "training.pt").symlink_to("/dev/full")
        torch.save({"weights": torch.zeros(100_000)}, folder / "training.pt")

    with pytest.raises(errors.StorageError, match="epoch-00000"):
        LocalWorkers(tmp_path).report({"epoch": 0}, save)


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    with pytest.raises(errors.StorageError, match="file"):
        run(place / "checkpoints", select(epochs=1))


# -- bad losses ---------------------------------------------------------------------------------------------------


class BrokenTask(PointsTask):
    """One sample's loss is not a number, and neither is the gradient it would leave behind."""

    def losses(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        broken = (batch["x"] == self.train_set.x[7].to(batch["x"].device)).all(dim=1)
        return super().losses(outputs, batch) * torch.where(broken, torch.nan, 1.0)


@pytest.mark.parametrize("method", ["evolved", "infobatch", "random", "full"])
def test_a_bad_loss_that_is_skipped_leaves_the_model_alone(method: str, tmp_path: Path) -> None:
    """Also in steps that score nothing of their own: it is known before anything is trained on."""
    selector = select(method, on_bad_loss="skip")
    metrics = run(tmp_path, selector, BrokenTask())
    assert metrics["accuracy"] > 0.8
    assert all(torch.isfinite(value).all() for value in saved(tmp_path)["model"].values())
    assert metrics["ledger"]["skipped"] >= 1
    assert selector.table()["visits"].to_pylist()[7] == selector.table()["selected"].to_pylist()[7] == 0
    with pytest.raises(errors.LossError, match="not finite"):
        run(tmp_path / "raise", select(method), BrokenTask())


def test_watchers_are_told_where_the_seconds_go(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0))
    config = RunConfig(selection=selection, num_samples=NUM, num_epochs=2, batch_size=SIZE)
    storage = RunStorage(str(tmp_path), "watched")
    storage.begin(config)
    exchange = Embedded(LocalRun(config), Position(0, 1), storage, told.append)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=2, batch_size=SIZE, exchange=exchange)
    metrics = fit(PointsTask(), selector, TrainSettings(learning_rate=0.2), LocalWorkers(tmp_path))
    ledger = Ledger.from_dict(metrics["ledger"])
    assert told[-1]["seconds"] == {"total": ledger.total_s, **ledger.seconds}
    assert all(set(one["seconds"]) == {"total", "score", "train", "exchange", "data"} for one in told)
    assert told[-1]["seconds"]["train"] > told[0]["seconds"]["train"]


# -- last batches -------------------------------------------------------------------------------------------------


def sized(num: int, method: str, task: PointsTask | None = None, **settings: Any) -> tuple[es.Selector, PointsTask]:
    """A task of `num` samples and its selector, B = 64."""
    task = task or PointsTask()
    task.train_set = Points(num, 1)
    selection = es.Selection(getattr(es.methods, method)(), ratio=0.25, anneal=(0, 0), seed=3, **settings)
    return es.Selector(selection, num_samples=num, num_epochs=3, batch_size=64), task


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num", [65, 68, 129])
@pytest.mark.parametrize("method", ["full", "random", "evolved", "infobatch"])
def test_batch_norm_trains_whatever_the_last_batch_would_be(
    method: str, num: int, drop_last: bool, tmp_path: Path
) -> None:
    """65 samples leave one over; a quarter of the 4 that 68 leave is one."""
    selector, task = sized(num, method, drop_last=drop_last)
    metrics = run(tmp_path, selector, task)
    assert metrics["epoch"] == 2
    assert min(task.loss_sizes) >= 2
    if drop_last and method != "infobatch":
        assert set(task.loss_sizes) <= {64, 16}


class OneSure(PointsTask):
    """Right and certain of sample 7 alone, which has the lowest loss: KAKURENBO hides that one."""

    def is_sure(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (batch["x"] == self.train_set.x[7].to(batch["x"].device)).all(dim=1).float()

    def losses(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().losses(outputs, batch) * (1 - 0.99999 * self.is_sure(batch))

    def signals(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"correct": self.is_sure(batch), "confidence": self.is_sure(batch)}


def test_a_single_hidden_sample_is_scored_beside_another(tmp_path: Path) -> None:
    selector, task = sized(130, "kakurenbo", OneSure())
    metrics = run(tmp_path, selector, task)
    assert metrics["ledger"]["scored"] == 1  # of epoch 1; the last hides nothing that anybody looks at again
    assert selector.table()["visits"].to_pylist()[7] == 2
    assert selector.table()["selected"].to_pylist()[7] == 1

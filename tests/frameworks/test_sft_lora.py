"""LoRA in the task `sft`: adapters are trained, and kept in checkpoints; all else comes from the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_language_model as tiny
import torch

import es_service as es
from es_service import errors
from es_service.selection.named import preset
from es_service.training.driver import train
from es_service.training.loop import fit
from es_service.training.settings import TrainSettings
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task
from es_service.training.tasks.options import TaskOptions
from es_service.training.workers.local import LocalWorkers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make_folder(tmp_path / "model", weights=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tiny.write_jsonl(tmp_path / "test.jsonl", tiny.sums(8))
    return tiny.write_jsonl(tmp_path / "train.jsonl", tiny.sums(32))


def _spec(data: Path, folder: Path, run: str, *, epochs: int = 2, resume: bool = False, rank: int = 4) -> TrainingSpec:
    return TrainingSpec(
        run=run,
        storage="runs",
        method="es",
        task="sft",
        data=str(data),
        selection=preset("es", seed=0, ratio=0.5, anneal=(0.0, 0.0)),
        options=TaskOptions(model=str(folder), lora=rank),
        exchange="embedded",
        epochs=epochs,
        batch_size=8,
        micro_batch_size=4,
        learning_rate=0.5,
        resume=resume,
    )


def _saved(run: str, epoch: int) -> dict[str, Any]:
    path = f"runs/{run}/checkpoints/epoch-{epoch:05d}/training.pt"
    found: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return found


def _model(data: Path, folder: Path, seed: int = 0) -> Any:
    task = build_task("sft", str(data), None, TaskOptions(model=str(folder), lora=4, lora_targets="q_proj,v_proj"))
    torch.manual_seed(seed)
    return task, task.build_model()


def test_adapters_alone_are_trained_and_follow_the_seed(data: Path, folder: Path) -> None:
    _, model = _model(data, folder)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) == 2 * 2 * 2  # layers, targets, and A and B of each
    assert all(".lora_" in name for name in trained)
    again, other = _model(data, folder)[1].state_dict(), _model(data, folder, seed=1)[1].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    assert not all(torch.equal(value, other[name]) for name, value in trained.items())


def test_the_adapted_model_starts_as_the_model_was(data: Path, folder: Path) -> None:
    task, adapted = _model(data, folder)
    plain = build_task("sft", str(data), None, TaskOptions(model=str(folder))).build_model()
    batch = task.train_set.__getitems__(range(6))
    torch.testing.assert_close(adapted(batch).losses, plain(batch).losses)


def test_a_checkpoint_holds_adapters_only_and_a_run_continues_from_it(data: Path, folder: Path) -> None:
    whole = train(_spec(data, folder, "whole"), lambda _: None)
    saved = _saved("whole", 1)
    assert all(".lora_" in name for name in saved)
    assert len(saved) == 2 * 7 * 2
    assert any(bool(value.any()) for name, value in saved.items() if ".lora_B." in name)  # zero at first

    class StoppedError(Exception):
        pass

    def stop(progress: dict[str, Any]) -> None:
        if progress["progress"]["epoch"] == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(_spec(data, folder, "cut"), stop)
    resumed = train(_spec(data, folder, "cut", resume=True), lambda _: None)
    found = _saved("cut", 1)
    assert found.keys() == saved.keys()
    assert all(torch.equal(value, found[name]) for name, value in saved.items())
    assert resumed["held_out_loss"] == whole["held_out_loss"]


def test_a_checkpoint_of_other_adapters_is_refused(data: Path, folder: Path) -> None:
    def trained(num_epochs: int, options: TaskOptions) -> Any:
        task = build_task("sft", str(data), None, options)
        selector = es.Selector(preset("full"), num_samples=len(task.train_set), num_epochs=num_epochs, batch_size=8)
        return fit(task, selector, TrainSettings(learning_rate=0.1), LocalWorkers(Path("kept")))

    trained(1, TaskOptions(model=str(folder), lora=4))
    for options in (TaskOptions(model=str(folder), lora=2), TaskOptions(model=str(folder))):
        with pytest.raises(errors.RunMismatchError, match="the checkpoint is of another model"):
            trained(1, options)

"""A training function of one's own on Ray Train: it ends as if no worker had died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import data

import es_service as es
from es_service.actors import launch
from es_service.selector import Selector

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, about itself

NUM, SIZE, EPOCHS = 120, 10, 3
DEADLINE_S, LATE_S = 8.0, 10.0


def selector_of(run: str, config: dict[str, Any]) -> Selector:
    selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0), seed=3)
    shape: dict[str, Any] = {"num_samples": NUM, "num_epochs": EPOCHS, "batch_size": SIZE}
    return es.connect(
        run,
        selection,
        **shape,
        exchange=config["exchange"],
        storage=config["storage"],
        deadline_s=config["deadline_s"],
    )


def losses_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train_all(run: str, config: dict[str, Any], *, is_disturbed: bool) -> dict[str, Any]:
    """The loop of a user; where it is disturbed, rank 1 dies in the middle of epoch 2, once."""
    from ray import train
    from ray.train import torch as ray_torch

    from es_service.integrations.ray import resume_or_reset, save
    from es_service.training import scoring

    rank, died = train.get_context().get_world_rank(), Path(config["folder"]) / "died"
    torch.manual_seed(5)
    inputs = torch.randn(NUM, 6)
    train_set = data.TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
    model = ray_torch.prepare_model(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    selector = selector_of(run, config)

    def score(batch: Any) -> Any:
        return scoring.score(model, batch, forward=losses_of, losses=lambda losses, _: losses)

    loader = es.SelectiveLoader(train_set, selector, score)
    with pytest.raises(AttributeError):  # it is for other loaders
        ray_torch.prepare_data_loader(loader)
    checkpoint = train.get_checkpoint() if is_disturbed else None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = torch.load(f"{folder}/model.pt", weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    first = resume_or_reset(selector, checkpoint)
    for epoch in range(first, EPOCHS):
        for step, (batch, scale) in enumerate(loader.epoch(epoch)):
            if (epoch, step, is_disturbed) == (0, 0, False):
                with pytest.raises(es.EpochOrderError) if rank == 0 else contextlib.nullcontext():
                    save(selector, config["folder"])
            if is_disturbed and (rank, epoch, step) == (1, 2, 3) and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.zero_grad()
            (losses_of(model, batch) * scale).mean().backward()
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            save(selector, folder)
            if is_disturbed:
                if rank == 0:
                    torch.save(
                        {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/model.pt"
                    )
                train.report({}, checkpoint=train.Checkpoint.from_directory(folder) if rank == 0 else None)
    weights = {name: value.double().tolist() for name, value in model.module.state_dict().items()}
    found = {"weights": weights, "table": selector.table().to_pydict(), "first": first}
    selector.close()
    return found


def worker(config: dict[str, Any]) -> None:
    from ray import train

    found = {
        "disturbed": train_all(config["run"], config, is_disturbed=True),
        "whole": train_all(f"{config['run']}-whole", config, is_disturbed=False),
    }
    Path(config["folder"], f"{train.get_context().get_world_rank()}.json").write_text(json.dumps(found))


def fit(function: Callable[..., None], folder: Path, config: dict[str, Any], **settings: Any) -> list[Any]:
    """Run it on two workers; return what each wrote."""
    from ray import train
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        function,
        train_loop_config={"folder": str(folder), "storage": str(folder / "runs"), **config},
        scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=train.RunConfig(storage_path=str(folder / "train"), **settings),
    ).fit()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("exchange", ["leased", pytest.param("collective", marks=pytest.mark.thorough)])
def test_a_run_whose_worker_is_killed_ends_as_the_undisturbed_one(run: str, tmp_path: Path, exchange: str) -> None:
    from ray import train

    config = {"run": run, "exchange": exchange, "deadline_s": 60.0}
    try:
        ranks = fit(worker, tmp_path, config, failure_config=train.FailureConfig(max_failures=1))
    finally:
        with contextlib.suppress(es.RunNotFoundError):
            launch.stop(f"{run}-whole")
    assert (tmp_path / "died").exists()
    for found in ranks:
        assert found["disturbed"].pop("first") in (1, 2)  # Ray Train takes note of a report some time after it
        assert found["whole"].pop("first") == 0
        assert found["disturbed"] == found["whole"]


def late_worker(config: dict[str, Any]) -> None:
    """Rank 1 is late at one place, by more than the deadline of the selectors."""
    from ray import train

    from es_service.integrations.ray import resume_or_reset, save

    rank = train.get_context().get_world_rank()
    selector = selector_of(config["run"], config)
    if (rank, config["place"]) == (1, "start"):
        time.sleep(LATE_S)
    resume_or_reset(selector, None)
    for step, ids_B in enumerate(selector.epoch(0)):
        if (rank, step, config["place"]) == (1, 5, "epoch"):
            time.sleep(LATE_S)
        selector.select(ids_B, ids_B.astype("f4"))
    save(selector, config["folder"])
    selector.close()
    Path(config["folder"], f"{rank}.json").write_text("1")


@pytest.mark.thorough
@pytest.mark.parametrize("exchange, place", [("collective", "start"), ("leased", "epoch")])
def test_ranks_wait_for_a_late_one_longer_than_the_deadline(
    run: str, tmp_path: Path, exchange: str, place: str
) -> None:
    config = {"run": run, "exchange": exchange, "place": place, "deadline_s": DEADLINE_S}
    assert fit(late_worker, tmp_path, config) == [1, 1]
    assert (tmp_path / "es_service" / "checkpoint.json").exists()


def alone(function: Callable[[dict[str, Any]], None]) -> None:
    """Run it as the one worker of Ray Train's local mode, in this process."""
    from ray import train
    from ray.train.torch import TorchTrainer

    TorchTrainer(function, train_loop_config={}, scaling_config=train.ScalingConfig(num_workers=0)).fit()


def own_selector(**settings: Any) -> Selector:
    selection = es.Selection(es.methods.evolved(), **{"ratio": 0.5, "anneal": (0, 0), "seed": 3, **settings})
    return es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)


def test_checkpoints_that_cannot_be_used_are_refused_before_the_first_step(tmp_path: Path) -> None:
    from ray import train

    from es_service.integrations.ray import resume_or_reset, save

    def loop(config: dict[str, Any]) -> None:
        selector = own_selector()
        with pytest.raises(es.ConfigError, match=r"what train\.get_checkpoint\(\) returns"):
            resume_or_reset(selector, str(tmp_path))  # type: ignore[arg-type]
        checkpoint = train.Checkpoint(str(tmp_path))
        with pytest.raises(es.StorageError, match=r"has no state.*integrations\.ray\.save"):
            resume_or_reset(selector, checkpoint)
        save(selector, tmp_path)
        assert resume_or_reset(selector, checkpoint) == 0
        with pytest.raises(es.RunMismatchError, match="seed"):
            resume_or_reset(own_selector(seed=4), checkpoint)
        (tmp_path / "file").touch()
        with pytest.raises(es.StorageError, match="check the free space"):
            save(selector, tmp_path / "file")
        scores = tmp_path / "es_service" / "scores.arrow"
        scores.write_bytes(scores.read_bytes()[:-1])
        with pytest.raises(es.StorageError, match=r"scores\.arrow is not what was written"):
            resume_or_reset(selector, checkpoint)

    alone(loop)


def test_one_worker_continues_inside_an_epoch_and_at_the_end(tmp_path: Path) -> None:
    from ray import train

    from es_service.integrations.ray import resume_or_reset, save

    def loop(config: dict[str, Any]) -> None:
        selector, restored = own_selector(), own_selector()
        for epoch in range(resume_or_reset(selector, None), EPOCHS):
            for step, ids_B in enumerate(selector.epoch(epoch)):
                selector.select(ids_B, ids_B.astype("f4"))
                if (epoch, step) == (1, 4):
                    save(selector, tmp_path / "inside")
        save(selector, tmp_path / "over")
        assert resume_or_reset(restored, train.Checkpoint(str(tmp_path / "over"))) == EPOCHS
        assert resume_or_reset(restored, train.Checkpoint(str(tmp_path / "inside"))) == 1
        for epoch, expected in ((1, 7), (2, 12)):
            batches = [restored.select(ids_B, ids_B.astype("f4")) for ids_B in restored.epoch(epoch)]
            assert len(batches) == expected
        assert restored.table().equals(selector.table())

    alone(loop)


def test_outside_of_ray_train_it_says_what_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution import train_fn_utils

    from es_service.integrations.ray import resume_or_reset, save

    monkeypatch.setattr(train_fn_utils, "_train_fn_utils", None)  # which a local mode before leaves behind

    selector = es.Selector(es.Selection(es.methods.evolved()), num_samples=NUM, num_epochs=4, batch_size=SIZE)
    with pytest.raises(es.ConfigError, match=r"training functions of Ray Train.*selector\.state_dict"):
        resume_or_reset(selector, None)
    with pytest.raises(es.ConfigError, match=r"training functions of Ray Train.*selector\.state_dict"):
        save(selector, tmp_path)

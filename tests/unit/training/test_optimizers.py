"""The optimizer's settings: what they make of a model's parameters, and who checks and keeps them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import es_service as es
from es_service import errors
from es_service.cli import main
from es_service.experiments.begin import check_known, task_of
from es_service.experiments.compare.comparison import Comparison, parse_candidates
from es_service.experiments.compare.folder import CompareFolder
from es_service.training.driver import train
from es_service.training.optimizers import build_optimizer, learning_rate_at
from es_service.training.settings import TrainSettings
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.derived import Derived

DEFAULTS = TaskDefaults(epochs=2, batch_size=32, learning_rate=0.1)


def spec(**changes: Any) -> TrainingSpec:
    what: dict[str, Any] = {"run": "r", "storage": "s", "task": "fashion", "method": "es"}
    return TrainingSpec(**{**what, "selection": es.Selection(es.methods.evolved()), **changes})


def test_the_schedules_rise_alike_and_then_differ() -> None:
    for schedule, half_down, at_the_end in (("cosine", 0.25, 0.0), ("linear", 0.25, 0.0), ("constant", 0.5, 0.5)):

        def rate(progress: float, warm_up: float = 0.2, schedule: str = schedule) -> float:
            return learning_rate_at(progress, 0.5, warm_up=warm_up, schedule=schedule)

        assert rate(0.1) == learning_rate_at(0.1, 0.5)
        assert rate(0.2) == pytest.approx(0.5)
        assert rate(0.6) == pytest.approx(half_down)
        assert rate(1.0) == pytest.approx(at_the_end, abs=1e-12)
        assert rate(0.0, warm_up=0.0) == 0.5
    assert learning_rate_at(0.4, 1.0, schedule="cosine") == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert learning_rate_at(0.4, 1.0, schedule="linear") == pytest.approx(0.75)


def test_adamw_decays_weights_and_neither_biases_nor_norms_nor_frozen_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    settings = TrainSettings(learning_rate=0.1, optimizer="adamw", weight_decay=0.3, momentum=0.5)
    optimizer = build_optimizer(model, settings)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert {name: decays.get(id(one)) for name, one in model.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": None, "2.bias": 0.0,
    }  # fmt: skip


def test_what_is_not_given_is_the_tasks_and_run_json_keeps_it() -> None:
    own = TaskDefaults(
        epochs=2,
        batch_size=32,
        learning_rate=1e-3,
        optimizer="adamw",
        weight_decay=0.01,
        warm_up=0.1,
        schedule="linear",
    )
    filled = spec(warm_up=0.0, weight_decay=0.0).filled(own)
    expected = {"learning_rate": 1e-3, "optimizer": "adamw", "weight_decay": 0.0, "warm_up": 0.0, "schedule": "linear"}
    assert {name: filled.description()[name] for name in expected} == expected
    settings = spec(warm_up=0.0, weight_decay=0.0).settings(own)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert spec().settings(DEFAULTS) == TrainSettings(learning_rate=0.1)  # one cycle of SGD, as ever


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"schedule": "cos"}, "unknown schedule 'cos'"),
        ({"warm_up": 1.0}, r"warm_up is a share of the training in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite, got -0.1"),
        ({"scoring_dtype": "float16"}, "unknown scoring_dtype 'float16'; did you mean"),
        ({"scoring_batch_size": 0}, "scoring_batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_a_value_outside_its_domain_is_refused_wherever_it_is_given(change: dict[str, Any], message: str) -> None:
    for make in (spec, lambda **given: check_known("fashion", training=given)):
        with pytest.raises(errors.ConfigError, match=message):
            make(**change)


def test_another_optimizer_needs_a_learning_rate_of_its_own() -> None:
    assert spec(optimizer="sgd").filled(DEFAULTS).learning_rate == 0.1
    assert spec(optimizer="adamw", learning_rate=1e-3).filled(DEFAULTS).optimizer == "adamw"
    message = r"the task's learning rate 0.1 is one for sgd: with --optimizer adamw give --learning-rate too"
    with pytest.raises(errors.ConfigError, match=message):
        spec(optimizer="adamw").filled(DEFAULTS)
    with pytest.raises(errors.ConfigError, match=message):
        task_of(check_known("fashion", derived={"limit": 50}, training={"optimizer": "adamw"}))


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
def test_a_run_of_adamw_is_continued_with_its_settings_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(**changes: Any) -> TrainingSpec:
        what = {"storage": str(tmp_path), "derived": Derived(limit=64), "exchange": "embedded", "batch_size": 32}
        return spec(
            **{**what, "epochs": 1, "learning_rate": 1e-3, "optimizer": "adamw", "schedule": "linear", **changes}
        )

    train(job(), lambda progress: None)
    (place,) = (tmp_path / "r" / "checkpoints").glob("epoch-*")
    groups = torch.load(place / "training.pt", weights_only=True)["optimizer"]["param_groups"]
    assert [(group["betas"], group["weight_decay"]) for group in groups] == [((0.9, 0.999), 5e-4), ((0.9, 0.999), 0.0)]
    assert train(job(resume=True), lambda progress: None)["epochs"] == 1
    resume = ["train", "--resume", "--run", "r", "--storage", str(tmp_path)]
    assert main(resume) == 0
    assert main([*resume, "--schedule", "constant"]) == 1
    assert "schedule: was 'linear', now 'constant'" in capsys.readouterr().err
    for change, message in (
        ({"optimizer": "sgd"}, "optimizer: was 'adamw', now 'sgd'"),
        ({"schedule": "cosine"}, "schedule: was 'linear', now 'cosine'"),
        ({"weight_decay": 0.1}, "weight_decay: was 0.0005, now 0.1"),
        ({"warm_up": 0.0}, "warm_up: was 0.2, now 0.0"),
        ({"scoring_batch_size": 8}, "scoring_batch_size: was None, now 8"),
        ({"compile": True}, "compile: was False, now True"),
    ):
        with pytest.raises(errors.RunMismatchError, match=message):
            job(resume=True, **change).check_place()


def test_every_run_of_a_comparison_has_them_and_its_folder_is_of_no_other(tmp_path: Path) -> None:
    given = {"optimizer": "adamw", "micro_batch_size": 8}
    usual: dict[str, Any] = {
        "task": "fashion", "data": None, "derived": {}, "num_samples": 100, "epochs": 2, "batch_size": 10,
        "learning_rate": 0.1, "seeds": (0,), "candidates": parse_candidates("es"),
    }  # fmt: skip
    plain, asked = Comparison(**usual), Comparison(**usual, training=given)
    for one in asked.specs(asked.candidates):
        assert (one.optimizer, one.micro_batch_size, one.schedule) == ("adamw", 8, None)
    folder = CompareFolder(str(tmp_path / "out"))
    with folder.open(plain):
        pass
    before = json.loads((folder.path / "comparison.json").read_text())
    del before["training"], before["options"]  # as an earlier version wrote it
    folder.write("comparison.json", before)
    folder.check_identity(plain.identity())
    with pytest.raises(errors.ConfigError, match=r"\(training there None, here {.*'adamw'.*}\)"):
        folder.check_identity(asked.identity())
    folder.write("comparison.json", {**before, "training": given})
    folder.check_identity(asked.identity())
    with pytest.raises(errors.ConfigError, match=r"\(training there {.*'adamw'.*}, here {}\)"):
        folder.check_identity(plain.identity())

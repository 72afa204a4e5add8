"""The last lines of `train`: what the time saved cost in accuracy, as far as is known, and the command that tells."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from es_service.cli import build_parser
from es_service.cli.closing import closing, compare_command
from es_service.cli.comparing import subject_of
from es_service.experiments.begin import check_known
from es_service.experiments.compare.comparison import parse_candidates
from es_service.selection.named import preset
from es_service.storage.runs import RunStorage
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.derived import Derived

SAVING = {"samples": 0.5, "cost": 0.25, "seconds": 0.167}


def spec_of(storage: Path, run: str, method: str = "es", **changes: Any) -> TrainingSpec:
    settings = changes.pop("settings", {})
    values = {"task": "fashion", "epochs": 4, "batch_size": 32, **changes}
    selection = preset(method, **settings, seed=values.get("seed", 0))
    return TrainingSpec(run=run, storage=str(storage), method=method, selection=selection, **values)


def begun(storage: Path, run: str, method: str = "es", **changes: Any) -> TrainingSpec:
    spec = spec_of(storage, run, method, **changes)
    RunStorage(str(storage), run).begin(spec.config(1000), spec.description())
    return spec


def ended(spec: TrainingSpec, accuracy: float, seconds: float = 10.0) -> dict[str, Any]:
    result = {"metric": "accuracy", "metrics": {"accuracy": accuracy}, "saving": SAVING, "seconds": {"total": seconds}}
    RunStorage(spec.storage, spec.run).write_result(result)
    return result


def test_without_a_full_run_the_cost_in_accuracy_is_unknown(tmp_path: Path) -> None:
    spec = begun(tmp_path, "mine", settings={"ratio": 0.5})
    first, second, command = closing(spec, ended(spec, 0.88)).splitlines()
    assert first == ("16.7 % less time than full training; accuracy cost unknown: no full run beside it yet")
    assert second == "this command answers it:"
    assert command == ("  es-service compare --epochs 4 --batch-size 32 --methods es:ratio=0.5 --out mine-comparison")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-0.013, "1.3 % slower than full training; "),
        (0.0, "0.0 % less time than full training; "),
        (None, "50.0 % fewer backward passes than full training, time unknown; "),
    ],
)
def test_what_was_gained(seconds: float | None, words: str, tmp_path: Path) -> None:
    spec = begun(tmp_path, "mine")
    result = {**ended(spec, 0.88), "saving": {**SAVING, "seconds": seconds}}
    assert closing(spec, result).startswith(words)


def test_a_run_that_selected_nothing_has_nothing_to_weigh(tmp_path: Path) -> None:
    spec = begun(tmp_path, "full", "full")
    assert closing(spec, {**ended(spec, 0.9), "saving": {"samples": 0.0, "cost": 0.0, "seconds": 0.0}}) == ""


def test_a_full_run_beside_it_says_what_it_cost(tmp_path: Path) -> None:
    spec = begun(tmp_path, "mine", seed=3)
    result = ended(spec, 0.88)
    for run, changes in (("longer", {"epochs": 5}), ("noisy", {"derived": Derived(label_noise=0.2)})):
        ended(begun(tmp_path, run, "full", **changes), 0.99)
    ended(begun(tmp_path, "other-method", "random", seed=3), 0.99)
    begun(tmp_path, "not-ended", "full", seed=3)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    assert "no full run beside it yet" in closing(spec, result)
    ended(begun(tmp_path, "other-seed", "full", seed=1), 0.87)
    assert "accuracy 1.00 points higher than the full run other-seed (87.00 %)" in closing(spec, result)
    ended(begun(tmp_path, "same-seed", "full", seed=3, workers=2, batch_size=16, exchange="sync"), 0.9085, 12.0)
    first, second, _ = closing(spec, result).splitlines()
    assert (
        first == "16.7 % less time than full training; accuracy 2.85 points lower than the full run same-seed (90.85 %)"
    )
    assert second == (
        "its steps took 12.0 s, those of this run 10.0 s; one run of each is no verdict, this command gives one:"
    )


def test_a_metric_that_is_no_share_is_not_in_percent(tmp_path: Path) -> None:
    spec = begun(tmp_path, "mine")
    result = {**ended(spec, 0.88), "metric": "r2", "metrics": {"r2": 0.5}}
    full = begun(tmp_path, "full", "full")
    RunStorage(full.storage, full.run).write_result({"metric": "r2", "metrics": {"r2": 0.625}})
    assert "r2 0.1250 lower than the full run full (0.6250)" in closing(spec, result)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("es", {}),
        ("es", {"settings": {"beta1": 0.4, "anneal": (0.0, 0.1), "draw": "systematic"}, "epochs": None}),
        (
            "selective_backprop",
            {"derived": Derived(label_noise=0.2, limit=500), "optimizer": "adamw", "learning_rate": 0.01},
        ),
        ("random", {"settings": {"ratio": 0.5}, "channels_last": True, "micro_batch_size": 8}),
    ],
)
def test_the_command_compares_the_same_training(method: str, changes: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "mine", method, **changes)
    words = shlex.split(shlex.join(compare_command(spec)))
    options = build_parser().parse_args(words[1:])
    known = check_known(**subject_of(options))
    assert (known["task"], known.get("epochs"), known["batch_size"]) == ("fashion", spec.epochs, spec.batch_size)
    assert Derived(**known["derived"]) == spec.derived
    assert known.get("learning_rate") == spec.learning_rate
    assert known["training"] == {
        name: getattr(spec, name) for name in ("optimizer", "channels_last", "micro_batch_size") if getattr(spec, name)
    }
    assert parse_candidates(options.methods)[-1].selection(spec.selection.seed) == spec.selection


def test_one_worker_of_a_comparison_takes_the_batches_of_all(tmp_path: Path) -> None:
    spec = begun(tmp_path, "mine", workers=2, batch_size=64)
    command = compare_command(dataclasses.replace(spec, batch_size=None))  # not typed: the task's own
    assert command[command.index("--batch-size") + 1] == "128"

"""What is wrong with a command is found before torch and Ray are imported: that takes seconds, many on a busy one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import es_service as es
from es_service.cli import main
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage

SCRIPT = """
import contextlib, io, json, sys
from es_service.cli import main
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as exit_:
            status = exit_.code
    loaded = [name for name in ("torch", "ray") if name in sys.modules]
    print(json.dumps([status, out.getvalue(), err.getvalue(), loaded]))
"""

CASES: dict[str, tuple[str, int, str]] = {
    "train: a run that exists": ("train --run there --storage S", 1, "run 'there' exists in"),
    "train: nothing to resume": ("train --run absent --resume --storage S", 1, "no run 'absent'"),
    "train: resumed otherwise": ("train --run there --resume --epochs 9 --storage S", 1, "epochs: was 4, now 9"),
    "train: an unknown task": ("train --task fashon", 2, "did you mean 'fashion'"),
    "train: no module": ("train --task no_such_module:build", 2, "no module 'no_such_module'"),
    "train: no module's name": ("train --task ..:x", 2, "'..:x' is not of the form module:function"),
    "train: no function's name": ("train --task os:", 2, "'os:' is not of the form module:function"),
    "train: no data": ("train --data S/nowhere", 1, "S/nowhere"),
    "train: no epochs": ("train --epochs 0", 2, "epochs must be an integer of at least 1, got 0"),
    "train: an empty batch": ("train --batch-size 0", 2, "batch_size must be an integer of at least 1, got 0"),
    "train: an empty micro-batch": ("train --micro-batch-size 0", 2, "micro_batch_size must be an integer"),
    "train: no learning rate": ("train --learning-rate 0", 2, "learning_rate must be above 0"),
    "train: an endless learning rate": ("train --learning-rate nan", 2, "learning_rate must be above 0"),
    "train: an unknown optimizer": ("train --optimizer adam", 2, "did you mean 'adamw'"),
    "train: only a warm-up": ("train --warm-up 1", 2, "warm_up is a share of the training in [0, 1), got 1.0"),
    "train: no workers": ("train --workers 0", 2, "workers must be an integer of at least 1"),
    "train: no shards": ("train --shards 0", 2, "shards must be an integer of at least 1"),
    "train: a seed below 0": ("train --seed -1", 2, "seed must be an integer in"),
    "train: a bad name": ("train --run a/b", 2, "no slash"),
    "train: an unknown exchange": ("train --exchange lease", 2, "did you mean 'leased'"),
    "train: an unknown method": ("train --method evolve", 2, "eswp"),
    "train: an unknown setting": ("train --set beta11=0.1", 2, "did you mean 'beta1'"),
    "train: noise above 1": ("train --label-noise 2", 2, "label_noise is a share"),
    "train: no such losses": ("train --method rho --irreducible S/nowhere.arrow", 1, "S/nowhere.arrow"),
    "train: no such config": ("train --config S/nowhere.yaml", 2, "cannot read --config"),
    "compare: an unknown task": ("compare --out S/c --task fashon", 2, "did you mean 'fashion'"),
    "compare: no data": ("compare --out S/c --data S/nowhere", 1, "S/nowhere"),
    "compare: no epochs": ("compare --out S/c --epochs 0", 2, "epochs must be an integer of at least 1, got 0"),
    "compare: an empty batch": ("compare --out S/c --batch-size 0", 2, "batch_size must be an integer of at least 1"),
    "compare: no learning rate": ("compare --out S/c --learning-rate 0", 2, "learning_rate must be above 0"),
    "compare: an unknown schedule": ("compare --out S/c --schedule cosin", 2, "did you mean 'cosine'"),
    "compare: a method's rate": ("compare --out S/c --methods es:learning_rate=0", 2, "learning_rate must be above 0"),
    "compare: a method's epochs": ("compare --out S/c --methods es:epochs=0", 2, "must be an integer of at least 1"),
    "compare: an unknown method": ("compare --out S/c --methods esw", 2, "did you mean 'eswp'"),
    "compare: no module": ("compare --out S/c --methods no_such_module:mine:at=1", 2, "no module 'no_such_module'"),
    "compare: no seeds": ("compare --out S/c --seeds 0", 2, "seeds must be an integer of at least 1"),
    "compare: no jobs": ("compare --out S/c --jobs 0", 2, "jobs must be an integer of at least 1"),
    "compare: noise above 1": ("compare --out S/c --label-noise 2", 2, "label_noise is a share"),
    "compare: a folder of others": ("compare --out S", 2, "holds files that are not of a comparison"),
    "compare: another's folder": ("compare --out C --epochs 5", 2, "epochs there 4, here 5"),
    "compare: a file": ("compare --out S/there/run.json", 2, "run.json cannot be used"),
    "tune: an unknown task": ("tune --out S/t --task fashon", 2, "did you mean 'fashion'"),
    "tune: an unknown method": ("tune --out S/t --method esw", 2, "did you mean 'eswp'"),
    "tune: no module": ("tune --out S/t --method no_such_module:mine", 2, "no module 'no_such_module'"),
    "tune: no epochs": ("tune --out S/t --epochs 0", 2, "epochs must be an integer of at least 1, got 0"),
    "tune: an empty batch": ("tune --out S/t --batch-size 0", 2, "batch_size must be an integer of at least 1"),
    "tune: no learning rate": ("tune --out S/t --learning-rate 0", 2, "learning_rate must be above 0"),
    "tune: a decay below 0": ("tune --out S/t --weight-decay -1", 2, "weight_decay must be at least 0"),
    "tune: no samples": ("tune --out S/t --samples 0", 2, "samples must be an integer of at least 1"),
    "tune: no seeds": ("tune --out S/t --seeds 0", 2, "seeds must be an integer of at least 1"),
    "tune: an unknown exchange": ("tune --out S/t --exchange lease", 2, "did you mean 'leased'"),
    "tune: an unknown algorithm": ("tune --out S/t --algorithm pb2", 2, "PB2 is not offered"),
    "tune: no target": ("tune --out S/t --objective cost", 2, "--target"),
    "tune: a front stopped early": ("tune --out S/t --objective front --early-stopping", 2, "--no-early-stopping"),
    "tune: nothing to resume": ("tune --out S/t --resume", 2, "there is no search in"),
    "tune: a folder of others": ("tune --out S", 2, "holds files that are not of a search"),
    "tune: no such space": ("tune --out S/t --space S/nowhere.yaml", 2, "cannot read --space"),
    "tune: a run that is not there": ("tune --out S/t --from absent --storage S", 1, "no run 'absent'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: with a run in the storage S, and a comparison in C."""
    folder = tmp_path_factory.mktemp("early")
    config = RunConfig(selection=es.Selection(es.methods.full()), num_samples=30, num_epochs=4, batch_size=10)
    training = {"task": "fashion", "method": "full", "selection": config.selection.to_dict(), "exchange": "embedded"}
    RunStorage(str(folder / "S"), "there").begin(config, {**training, "epochs": 4, "batch_size": 10})
    (folder / "C").mkdir()
    (folder / "C" / "comparison.json").write_text(json.dumps({"format": 1, "task": "fashion", "epochs": 4}))
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    """Status, stdout, stderr and what was imported of each case, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([words.split() for words, _, _ in CASES.values()]),
        env={**os.environ, "ES_SERVICE_STORAGE": "S"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(CASES, lines, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_known_is_said_without_torch_and_ray(case: str, answers: dict[str, Any]) -> None:
    _, expected, message = CASES[case]
    status, out, err, loaded = answers[case]
    assert (status, out, loaded) == (expected, "", []), err
    assert message in err
    assert len(err.splitlines()) == 1


def test_nothing_was_begun(folder: Path, answers: dict[str, Any]) -> None:
    assert answers
    assert sorted(path.name for path in folder.iterdir()) == ["C", "S"]
    assert [path.name for path in (folder / "S").iterdir()] == ["there"]


DAMAGE: list[tuple[str, Any, str]] = [
    ("task", 5, "task must be a string, got 5"),
    ("method", 5, "method must be a string, got 5"),
    ("exchange", None, "unknown exchange None"),
    ("derived", 5, "a derived task must be settings by name, got 5"),
    ("epochs", "four", "epochs must be an integer, got 'four'"),
    ("selection", 5, "not the settings of a selection"),
    ("epoch", 4, "a training run has no setting 'epoch'; did you mean 'epochs'?"),
]


@pytest.mark.parametrize(("name", "value", "message"), DAMAGE)
def test_a_damaged_description_is_not_resumed(
    name: str, value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(selection=es.Selection(es.methods.full()), num_samples=30, num_epochs=4, batch_size=10)
    training = {"task": "fashion", "method": "full", "selection": config.selection.to_dict(), "exchange": "embedded"}
    RunStorage(str(tmp_path), "there").begin(config, {**training, "epochs": 4, name: value})
    assert main(["train", "--run", "there", "--resume", "--storage", str(tmp_path)]) == 2
    assert f"run 'there' cannot be resumed from its run.json: {message}" in capsys.readouterr().err

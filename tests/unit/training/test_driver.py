"""What a training is told: settings that do not belong together are refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import es_service as es
from es_service.selection.run import RunConfig
from es_service.storage import labels
from es_service.storage.runs import RunStorage
from es_service.training.driver import note_samples, train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.fashion import CLASSES

WHAT: dict[str, Any] = {
    "run": "r",
    "storage": "s",
    "task": "fashion",
    "method": "es",
    "selection": es.Selection(es.methods.evolved()),
}


def test_every_belongs_to_collective() -> None:
    assert TrainingSpec(**WHAT, exchange="collective", every=5, workers=2).every == 5
    for changes in ({"exchange": "leased", "every": 5}, {"exchange": "collective", "every": 0}):
        with pytest.raises(es.ConfigError, match="every"):
            TrainingSpec(**WHAT, **changes)


def test_a_spec_crosses_to_another_process_as_plain_values() -> None:
    spec = TrainingSpec(**WHAT, derived=Derived(limit=9), exchange="sync", workers=2, epochs=3, seed=5, search="s")
    values = json.loads(json.dumps(spec.to_dict()))
    assert TrainingSpec.from_dict(values) == spec
    own = {"run": "r", "storage": "s", "resume": False, "search": "s", "proxy_costs": None}
    assert {**spec.description(), **own} == spec.to_dict()
    for change, message in (
        ({"batchsize": 3}, "no setting 'batchsize'; did you mean 'batch_size'"),
        ({"derived": {"limits": 3}}, "no setting 'limits'; did you mean 'limit'"),
        ({"selection": {"ratio": 0.5}}, "not the settings of a selection"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(es.ConfigError, match=message):
            TrainingSpec.from_dict({**values, **change})
    for name in ("run", "selection"):
        with pytest.raises(es.ConfigError, match=f"needs '{name}'"):
            TrainingSpec.from_dict({key: value for key, value in values.items() if key != name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": 5}, "run must be a string, got 5"),
        ({"storage": 5}, "storage must be a string, got 5"),
        ({"task": 5}, "task must be a string, got 5"),
        ({"task": None}, "task must be a string, got None"),
        ({"method": []}, r"method must be a string, got \[\]"),
        ({"data": 5}, "data must be a string, got 5"),
        ({"search": {}}, "search must be a string, got {}"),
        ({"irreducible": 5}, "irreducible must be a string, got 5"),
        ({"exchange": 5}, "unknown exchange 5; known: leased"),
        ({"exchange": None}, "unknown exchange None; known: leased"),
        ({"selection": 5}, "not the settings of a selection"),
        ({"selection": "es"}, "not the settings of a selection"),
        ({"selection": None}, "not the settings of a selection"),
        ({"selection": {"method": []}}, r"method must be a string, got \[\]"),
        ({"derived": 5}, "a derived task must be settings by name, got 5"),
        ({"derived": None}, "a derived task must be settings by name, got None"),
        ({"derived": {5: 1}}, "a derived task has no setting 5"),
        ({5: 1}, "a training run has no setting 5"),
    ],
)
def test_what_is_no_spec_is_refused(change: dict[Any, Any], message: str) -> None:
    values = TrainingSpec(**WHAT).to_dict()
    with pytest.raises(es.ConfigError, match=message):
        TrainingSpec.from_dict({**values, **change})


@pytest.mark.parametrize("values", [None, 5, "run", [("run", "r")]])
def test_only_settings_by_name_are_a_spec(values: Any) -> None:
    with pytest.raises(es.ConfigError, match="a training run must be settings by name, got"):
        TrainingSpec.from_dict(values)


def test_a_training_notes_the_labels_of_its_samples_and_how_they_are_shown(tmp_path: Path) -> None:
    derived = Derived(limit=64, label_noise=0.25)
    job = TrainingSpec(
        **{**WHAT, "storage": str(tmp_path)}, derived=derived, exchange="embedded", epochs=1, batch_size=32
    )
    with pytest.warns(es.NothingSelectedWarning, match="never selects") as caught:  # 2 steps: the first and the last
        result = train(job, lambda progress: None)
    assert len(caught) == 1, "said twice"
    run = RunStorage(str(tmp_path), "r")
    notes = labels.read_notes(run)
    task = build_task("fashion", None, derived)
    assert notes == labels.SampleNotes(CLASSES, True, "image/png")
    assert labels.read_labels(run).tolist() == task.labels.tolist()  # those that were trained on, wrong ones too
    assert labels.read_labels(run).itemsize == 1
    assert result["label_names"] == list(CLASSES)


def test_a_run_without_notes_has_none(tmp_path: Path) -> None:
    run = RunStorage(str(tmp_path), "r")
    run.begin(RunConfig(selection=WHAT["selection"], num_samples=9, num_epochs=1, batch_size=3))
    assert labels.read_notes(run) == labels.SampleNotes()
    labels.write_notes(run, None, None, None)
    assert labels.read_notes(run) == labels.SampleNotes()
    with pytest.raises(es.StorageError, match=r"labels\.arrow"):
        labels.read_labels(run)
    (tmp_path / "r" / "labels.arrow").write_bytes(b"no arrow")
    with pytest.raises(es.StorageError, match="damaged"):
        labels.read_labels(run)


class Unshowable:
    """A task whose preview is neither a picture nor a text."""

    name = "unshowable"
    labels = None
    label_names = None

    def preview(self, sample_id: int) -> int:
        return sample_id


def test_a_preview_that_is_neither_picture_nor_text_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(es.ConfigError, match="must return a PNG file as bytes, or a str, got int"):
        note_samples(RunStorage(str(tmp_path), "r"), Unshowable())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
def test_a_run_of_an_older_version_is_resumed_though_it_has_fewer_settings(tmp_path: Path) -> None:
    def job(**changes: Any) -> TrainingSpec:
        derived = Derived(limit=64)
        what = {**WHAT, "storage": str(tmp_path), "derived": derived, "exchange": "embedded", "batch_size": 32}
        return TrainingSpec(**{**what, "epochs": 1, **changes})

    train(job(), lambda progress: None)
    place = tmp_path / "r" / "run.json"
    description = json.loads(place.read_text())
    del description["config"]["selection"]["drop_last"]
    del description["training"]["selection"]["drop_last"]
    place.write_text(json.dumps(description))
    assert train(job(resume=True), lambda progress: None)["epochs"] == 1
    with pytest.raises(es.RunMismatchError, match="drop_last"):
        train(job(resume=True, selection=es.Selection(es.methods.evolved(), drop_last=True)), lambda progress: None)

"""The folder of a comparison: whose it is, and what it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service import errors
from es_service.experiments.compare.folder import CompareFolder
from es_service.storage.sealed import seal

Make = Callable[..., Any]


def test_methods_and_seeds_may_be_added_and_nothing_else_changed(make_comparison: Make, tmp_path: Path) -> None:
    folder = CompareFolder(str(tmp_path / "new" / "out"))
    with folder.open(make_comparison("es", seeds=1)):
        pass
    with folder.open(make_comparison("es,eswp", seeds=3)):
        pass
    changes: list[tuple[str, Any]] = [
        *(("task", "reviews"), ("data", "/data"), ("derived", {"label_noise": 0.2}), ("epochs", 9)),
        *(("num_samples", 999), ("batch_size", 51), ("learning_rate", 0.2)),
    ]
    for name, value in changes:
        with (
            pytest.raises(errors.ConfigError, match=rf"holds another comparison \({name} there .*, here"),
            folder.open(make_comparison(**{name: value})),
        ):
            pass


def test_a_folder_of_something_else_a_file_or_a_uri_is_refused(make_comparison: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with (
        pytest.raises(errors.ConfigError, match="not of a comparison"),
        CompareFolder(str(tmp_path)).open(make_comparison()),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with (
        pytest.raises(errors.ConfigError, match="cannot be used"),
        CompareFolder(str(tmp_path / "thesis.tex")).open(make_comparison()),
    ):
        pass
    with pytest.raises(errors.ConfigError, match="not a local folder"):
        CompareFolder("s3://bucket/out")


def test_two_at_a_time_are_refused(make_comparison: Make, tmp_path: Path) -> None:
    with (
        CompareFolder(str(tmp_path)).open(make_comparison()),
        pytest.raises(errors.ConfigError, match="at work"),
        CompareFolder(str(tmp_path)).open(make_comparison()),
    ):
        pass
    with CompareFolder(str(tmp_path)).open(make_comparison()):
        pass


def test_outcomes_belong_to_their_settings(make_comparison: Make, tmp_path: Path) -> None:
    comparison = make_comparison("es")
    spec = comparison.spec(comparison.candidates[2], 0)
    folder = CompareFolder(str(tmp_path))
    with folder.open(comparison):
        place = folder.prepare(spec)
        assert folder.outcome(spec) is None
        values = {"spec": spec.to_dict(), "result": None, "error": "loss nan", "wall_s": 1.0, "waited_share": 0.0}
        (place / "outcome.json").write_text(json.dumps({**values, "exclusive": True, "machine": ""}))
        outcome = folder.outcome(spec)
        assert outcome is not None
        assert outcome.error == "loss nan"
        other = make_comparison("es", learning_rate=0.2).spec(comparison.candidates[2], 0)
        with pytest.raises(errors.ConfigError, match="made with other settings"):
            folder.outcome(other)
        folder.prepare(spec)  # starting over leaves nothing of before
        assert folder.outcome(spec) is None


def test_an_outcome_that_was_changed_or_is_something_else_is_refused(make_comparison: Make, tmp_path: Path) -> None:
    comparison = make_comparison("es")
    spec = comparison.spec(comparison.candidates[2], 0)
    folder = CompareFolder(str(tmp_path))
    with folder.open(comparison):
        place = folder.prepare(spec) / "outcome.json"
        values = {"spec": spec.to_dict(), "result": None, "error": "loss nan", "wall_s": 1.0, "waited_share": 0.0}
        whole = json.dumps(seal({**values, "exclusive": True, "machine": ""}))
        place.write_text(whole)
        assert folder.outcome(spec) is not None
        place.write_text(whole.replace('"wall_s": 1.0', '"wall_s": 7.0'))
        with pytest.raises(errors.StorageError, match="sha256"):
            folder.outcome(spec)
        for result in ([1], "abc", {"accuracy": 1}, {"samples": []}):
            place.write_text(json.dumps({**values, "exclusive": True, "machine": "", "result": result}))
            with pytest.raises(errors.StorageError, match="damaged"):
                folder.outcome(spec)
        place.write_text(json.dumps({"spec": spec.to_dict()}))
        with pytest.raises(errors.StorageError, match="damaged"):
            folder.outcome(spec)


def test_lengths_once_decided_stay(make_comparison: Make, tmp_path: Path) -> None:
    folder = CompareFolder(str(tmp_path))
    with folder.open(make_comparison()):
        assert folder.lengths() == {}
        folder.write_lengths({"es": {"epochs": 5, "basis": "seconds"}})
    assert folder.lengths() == {"es": {"epochs": 5, "basis": "seconds"}}


def test_a_place_that_may_not_be_asked_holds_nothing_and_cannot_be_used(make_comparison: Make, tmp_path: Path) -> None:
    folder = CompareFolder(str(tmp_path / ("x" * 300)))  # an error of the system, like that of a folder of others
    assert not folder.is_begun
    with pytest.raises(errors.ConfigError, match="cannot be used"), folder.open(make_comparison()):
        pass

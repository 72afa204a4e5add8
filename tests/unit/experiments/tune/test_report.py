"""What a search leaves: rows, the best setting, tables, pictures, report and best.yaml, from trials made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyarrow import parquet

from es_service import errors
from es_service.cli.training import _read_config
from es_service.experiments.tune import report
from es_service.experiments.tune.folder import SearchFolder
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.pictures import PICTURES
from es_service.experiments.tune.progress import Progress
from es_service.experiments.tune.results import omega_squared, results

Hand = dict[str, Callable[..., Any]]
GRID = {"beta1": "grid(0.0, 0.2, 0.4)", "ratio": "grid(0.25, 0.5)"}


def write(
    by_hand: Hand, tmp_path: Path, *args: Any, full: bool = True, **changes: Any
) -> tuple[SearchFolder, Any, Any]:
    search = by_hand["search"](*args, **changes)
    folder = SearchFolder(str(tmp_path / "found"))
    with folder.open(search):
        trials = by_hand["play"](search, folder.path)
        lines = by_hand["references"](search) if full else []
        found = results(search, trials, lines)
        report.write(folder, search, found, trials, lines)
    return folder, search, json.loads(json.dumps(found))


def test_the_report_of_a_grid(by_hand: Hand, tmp_path: Path) -> None:
    folder, _, found = write(by_hand, tmp_path, GRID, algorithm="grid")
    assert found == json.loads((folder.path / "results.json").read_text())
    assert {path.stem for path in (folder.path / "pictures").glob("*.png")} == {"heat_map", "front", "parallel"}
    page = (folder.path / "report.html").read_text()
    assert page.count("data:image/png;base64") == 3
    assert "http" not in page.replace("data:image/png", "")
    assert "loss nan" in page
    assert found["best"]["settings"] == {"beta1": 0.2, "ratio": 0.25}  # (0.2, 0.5) had a seed that was stopped early
    assert found["best"]["accuracy"] == pytest.approx(0.9055)
    assert found["usual"]["setting"] == found["best"]["setting"]
    assert "found none that are better" in page
    rows = parquet.read_table(folder.path / "trials.parquet").to_pylist()
    assert [row["status"] for row in rows] == [one["status"] for one in found["trials"]]
    assert {row["config/beta1"] for row in rows} == {0.0, 0.2, 0.4}
    assert json.loads(rows[0]["settings"]) == {"beta1": 0.0, "ratio": 0.25}
    assert parquet.read_table(folder.path / "history.parquet").num_rows > 40


def test_another_metric_takes_the_place_of_accuracy(by_hand: Hand, tmp_path: Path) -> None:
    """Here the lowest accuracy is the best: the metric of the task is its complement."""
    objective = Objective(name="metric", metric="misses")
    folder, _, found = write(by_hand, tmp_path, GRID, algorithm="grid", objective=objective)
    done = [row for row in found["rows"] if row["misses"] is not None]
    assert found["best"]["misses"] == pytest.approx(max(row["misses"]["mean"] for row in done))
    assert found["best"]["accuracy"] == pytest.approx(1 - found["best"]["misses"])
    page = (folder.path / "report.html").read_text()
    assert "Best for misses" in page
    assert "Misses (times 100), mean" in page
    assert parquet.read_table(folder.path / "history.parquet").column("misses").null_count == 0
    assert f"misses {found['best']['misses']:.4f}" in (folder.path / "best.yaml").read_text()


def test_best_yaml_is_what_train_takes(by_hand: Hand, tmp_path: Path) -> None:
    entries = {"beta1": "grid(0.0, 0.2)", "anneal": "grid([[0, 0]])", "learning_rate": "grid(0.05)", "power": 0.5}
    given = {"options": {"max_length": 9, "skip_broken": True}, "training": {"schedule": "linear", "warm_up": 0.1}}
    changes = {"algorithm": "grid", "objective": Objective(name="accuracy"), "task": "text", **given}
    folder, _, _ = write(by_hand, tmp_path, entries, **changes)
    values = _read_config(str(folder.path / "best.yaml"))
    assert values == {
        "task": "text", "limit": 100, **given["options"], "method": "es", "epochs": 4, "batch_size": 10,
        "learning_rate": 0.05, **given["training"],
        "exchange": "embedded", "workers": 1, "seed": 0, "set": {"power": 0.5, "beta1": 0.2, "anneal": [0, 0]},
    }  # fmt: skip
    text = (folder.path / "best.yaml").read_text()
    assert text.startswith("# Found by es-service tune for accuracy: accuracy 0.9")
    assert yaml.safe_load(text) == values


def test_a_front_takes_what_lies_farthest_above_the_full_runs(by_hand: Hand, tmp_path: Path) -> None:
    changes = {"objective": Objective(name="front"), "early_stopping": False, "seeds": (0,), "samples": 9}
    _, _, found = write(by_hand, tmp_path, **changes)
    rows = {row["setting"]: row for row in found["rows"] if row["status"] == "finished"}
    front = [rows[setting] for setting in found["front"]]
    for row in rows.values():
        beaten = [
            one for one in rows.values()
            if one["cost"] <= row["cost"] and one["accuracy"]["mean"] > row["accuracy"]["mean"]
        ]  # fmt: skip
        assert bool(beaten) == (row not in front) or row["cost"] in [one["cost"] for one in front]
    best = rows[found["best"]["setting"]]
    assert best["above_full"] == max(row["above_full"] for row in front)
    # at cost 0.583 the line from (0.5, 0.88) to (1, 0.92) stands at 0.8867
    at = next(row for row in rows.values() if row["settings"]["ratio"] == 0.25)
    assert at["above_full"] == pytest.approx(at["accuracy"]["mean"] - (0.88 + 0.04 * (at["cost"] - 0.5) / 0.5))


def test_a_target_that_is_reached_beats_one_that_is_not(by_hand: Hand, tmp_path: Path) -> None:
    objective = Objective(name="cost", target=0.89)
    _, _, found = write(by_hand, tmp_path, GRID, algorithm="grid", objective=objective)
    reached = [row for row in found["rows"] if row["reached"]]
    assert reached
    assert found["best"]["reached"] is True
    assert found["best"]["value"] == min(row["value"] for row in reached)
    folder, _, found = write(
        by_hand, tmp_path / "far", GRID, algorithm="grid", objective=Objective(name="time", target=0.99)
    )
    assert found["best"]["reached"] is False
    assert "the target was not reached" in (folder.path / "report.html").read_text()


def test_what_the_search_cost(by_hand: Hand, tmp_path: Path) -> None:
    _, _, found = write(by_hand, tmp_path, GRID, algorithm="grid")
    assert found["search_cost"] == pytest.approx(sum(one["cost"] for one in found["trials"]))
    assert found["reference_cost"] == pytest.approx(2 * (1 + 0.5))
    words = found["cost_in_words"]
    assert f"{found['search_cost']:.2f} full training runs: 12 trials (2 stopped early, 1 failed)" in words
    assert "after 18 such training runs the search has paid for itself" in words
    none = write(by_hand, tmp_path / "none", GRID, algorithm="grid", full=False)[2]
    assert "compared with" not in none["cost_in_words"]
    assert all(row["above_full"] is None for row in none["rows"])


def test_what_a_trial_spent_before_it_was_tried_again_counts_too(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](GRID, algorithm="grid")
    trials = by_hand["play"](search, tmp_path)
    before = results(search, trials, [])["search_cost"]
    trials[0].lost = 0.5
    assert results(search, trials, [])["search_cost"] == pytest.approx(before + 0.5)


def test_no_setting_that_finished_is_no_best_one(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"]({"beta1": "grid(0.1)"}, algorithm="grid", seeds=(0,))
    trials = by_hand["loop"](search, tmp_path).run(lambda _: {"failed": "loss nan"}).trials
    found = results(search, trials, [])
    assert found["trials"][0]["error"] == "loss nan"
    assert found["best"] is None
    assert report.best_config(search, found) is None
    assert all(picture.draw(found) is None for picture in PICTURES.values())


def test_importance_finds_what_matters() -> None:
    groups = np.repeat([0, 1, 2], 10)
    noise = np.random.default_rng(0).normal(size=30)
    matters = omega_squared(groups + 0.1 * noise, groups)
    assert matters is not None
    assert matters > 0.95
    chance = omega_squared(noise, groups)
    assert chance is not None
    assert chance < 0.15
    assert omega_squared(noise[:3], np.arange(3)) is None
    assert omega_squared(np.ones(30), groups) == 0.0


def test_a_folder_is_one_searchs(by_hand: Hand, tmp_path: Path) -> None:
    folder = SearchFolder(str(tmp_path / "out"))
    with pytest.raises(errors.ConfigError, match="there is no search"):
        folder.check(resume=True)
    folder.check(resume=False)
    with folder.open(by_hand["search"]()):
        pass
    with pytest.raises(errors.ConfigError, match="continue it with --resume"):
        folder.check(resume=False)
    folder.check(resume=True)
    with folder.open(by_hand["search"](samples=99)):
        pass
    for changes in (
        {"seed": 1},
        {"epochs": 3},
        {"algorithm": "optuna"},
        {"objective": Objective(name="balanced_accuracy")},
    ):
        with (
            pytest.raises(errors.ConfigError, match=f"holds another search \\({next(iter(changes))} there"),
            folder.open(by_hand["search"](**changes)),
        ):
            pass
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    with (
        pytest.raises(errors.ConfigError, match="not of a search"),
        SearchFolder(str(tmp_path / "thesis")).open(by_hand["search"]()),
    ):
        pass
    with pytest.raises(errors.ConfigError, match="not a local folder"):
        SearchFolder("s3://bucket/out")


class Told:
    def __init__(self, terminal: bool = False) -> None:
        self.text = ""
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_is_a_line_for_each_trial(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](samples=6)
    trials = by_hand["play"](search, tmp_path)
    told = Told()
    progress = Progress(told)
    progress.expect(12, search.objective, ended=3)
    for trial in trials[3:]:
        progress.show(trial)
    progress.close()
    lines = told.text.splitlines()
    assert lines[0] == "3 trials ended before"
    assert lines[2].startswith("5/12 trial-0004 (beta1=")
    assert lines[2].endswith("stopped after epoch 2")
    assert lines[-2].endswith("failed: loss nan")
    assert len(lines) == 10


def test_a_trial_at_work_is_shown_without_a_terminal(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](samples=3)
    told = Told()
    progress = Progress(told)
    progress.expect(6, search.objective)
    [running] = by_hand["loop"](search, tmp_path).run(steps=1).trials
    progress.show(running)
    progress.show(running)
    [line] = told.text.splitlines()
    assert line.startswith("trial-0000 (beta1=")
    assert line.endswith(") begins")


def test_progress_is_a_bar_on_a_terminal(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](samples=3)
    trials = by_hand["play"](search, tmp_path)
    told = Told(terminal=True)
    progress = Progress(told)
    progress.expect(6, search.objective)
    [running] = by_hand["loop"](search, tmp_path).run(steps=1).trials
    progress.show(running)
    assert "0/6 trials" in told.text
    assert "trial-0000, epoch 1" in told.text
    for trial in trials:
        progress.show(trial)
    progress.close()
    best = max((one for one in trials if one.status == "finished"), key=lambda one: one.epochs[-1]["accuracy"])
    assert f"best {100 * best.epochs[-1]['accuracy']:.2f} % by {best.run}" in told.text
    assert "6/6 trials" in told.text


def test_links_planted_in_a_folder_are_not_followed(by_hand: Hand, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = write(by_hand, tmp_path, GRID, algorithm="grid")[0].path
    names = ("report.html", "best.yaml", "trials.parquet", "history.parquet")
    for name in names:
        (folder / name).unlink()
        (folder / name).symlink_to(victim)
        (folder / f"{name}.partial").symlink_to(victim)
    write(by_hand, tmp_path, GRID, algorithm="grid")
    assert victim.read_text() == "precious"
    assert not any((folder / name).is_symlink() for name in names)
    (folder / "lock").unlink()
    (folder / "lock").symlink_to(victim)
    with pytest.raises(errors.ConfigError, match="cannot be used"):
        write(by_hand, tmp_path, GRID, algorithm="grid")
    assert victim.read_text() == "precious"

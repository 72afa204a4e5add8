"""Which trial comes next and what searchers learn: the same calls give the same search, however often it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service import errors
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.search import begin
from es_service.experiments.tune.space import random_points, read_space
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, RUNNING

Hand = dict[str, Callable[..., Any]]


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_a_search_that_stops_after_every_event_becomes_what_an_undisturbed_one_is(
    algorithm: str, by_hand: Hand, tmp_path: Path
) -> None:
    search = by_hand["search"](algorithm=algorithm, samples=14)
    undisturbed = by_hand["play"](search, tmp_path)
    assert {one.status for one in undisturbed} == {FINISHED, PRUNED, FAILED}
    for steps in range(0, 90, 7):
        kept = by_hand["loop"](search, tmp_path).run(steps=steps).save()
        assert by_hand["loop"](search, tmp_path).restore(kept).run().trials == undisturbed


def test_another_seed_gives_other_settings_and_fewer_samples_are_among_more(by_hand: Hand) -> None:
    space = by_hand["search"]().space
    points = random_points(space, 10, 0)
    assert points[0] == {"beta1": 0.2, "ratio": 0.25}  # the method's own come first
    assert random_points(space, 4, 0) == points[:4]
    other = random_points(space, 10, 1)
    assert other[0] == points[0]
    assert not [one for one in other[1:] if one in points]
    outside = read_space("es", {"beta1": "uniform(0.3, 0.5)"})
    assert outside.usual() is None
    assert len(random_points(outside, 3, 0)) == 3


def test_optuna_learns(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"]({"beta1": "uniform(0, 1)"}, algorithm="optuna", samples=40, seeds=(0,))
    trials = by_hand["play"](search, tmp_path)
    off = [abs(one.settings["beta1"] - 0.2) for one in trials]
    assert sum(off[-15:]) / 15 < sum(off[1:9]) / 8
    assert all(0 <= one.settings["beta1"] <= 1 for one in trials)


def test_optuna_learns_the_mean_over_the_seeds_and_who_was_stopped_or_failed(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](algorithm="optuna", samples=8)
    loop = by_hand["loop"](search, tmp_path).run()
    study = loop.searcher.searcher._ot_study
    for setting, known in enumerate(study.trials):
        own = [one for one in loop.trials if one.setting == setting]
        states = {one.status for one in own}
        assert known.state.name == ("FAIL" if FAILED in states else "PRUNED" if PRUNED in states else "COMPLETE")
        if states == {FINISHED}:
            assert known.value == pytest.approx(sum(one.epochs[-1]["accuracy"] for one in own) / 2)


def test_optuna_takes_every_kind_of_domain_and_a_front(by_hand: Hand, tmp_path: Path) -> None:
    entries = {
        "beta1": "quniform(0, 0.4, 0.1)", "power": "loguniform(0.1, 2)", "anneal": "choice([0, 0], [0.05, 0.05])",
        "batch_size": "lograndint(8, 64)", "score_every": "randint(1, 4)", "max_age": "qrandint(1, 9, 2)",
        "draw": "grid(race, systematic)",
    }  # fmt: skip
    front = Objective(name="front")
    search = by_hand["search"](entries, algorithm="optuna", samples=12, objective=front, early_stopping=False)
    for trial in by_hand["play"](search, tmp_path):
        for name, domain in search.space.domains.items():
            assert domain.holds(trial.settings[name]), (name, trial.settings[name])
        search.space.selection(trial.settings, 0)


def test_a_restored_trial_reports_from_its_beginning_and_what_is_known_changes_nothing(
    by_hand: Hand, tmp_path: Path
) -> None:
    search = by_hand["search"](samples=3, seeds=(0,))
    loop = by_hand["loop"](search, tmp_path).run(steps=2)
    again = by_hand["loop"](search, tmp_path).restore(loop.save())
    [trial] = again.trials
    assert (trial.number, trial.status, len(trial.epochs)) == (0, RUNNING, 2)
    before = list(trial.epochs)
    again.searcher.on_trial_result(again.theirs[0].trial_id, {**before[0], "accuracy": 0.1})
    assert trial.epochs == before
    assert again.searcher.suggest("another") is None  # there is room for one, and it is there
    assert [one.status for one in again.run().trials] == [FINISHED] * 3


def test_a_search_that_is_asked_to_stop_begins_nothing_new(by_hand: Hand, tmp_path: Path) -> None:
    from ray.tune.search import Searcher

    loop = by_hand["loop"](by_hand["search"](), tmp_path)
    loop.searcher.is_stopped = True
    assert loop.searcher.suggest("one") == Searcher.FINISHED
    assert loop.trials == []


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_more_samples_may_be_asked_for_later(algorithm: str, by_hand: Hand, tmp_path: Path) -> None:
    few = by_hand["loop"](by_hand["search"](algorithm=algorithm, samples=6), tmp_path).run()
    more = by_hand["loop"](by_hand["search"](algorithm=algorithm, samples=9), tmp_path).restore(few.save()).run()
    assert more.trials[: len(few.trials)] == few.trials
    assert more.trials == by_hand["play"](by_hand["search"](algorithm=algorithm, samples=9), tmp_path)


def test_all_settings_come_with_the_first_seed_before_any_with_the_second(by_hand: Hand, tmp_path: Path) -> None:
    trials = by_hand["play"](by_hand["search"]({"beta1": "grid(0.0, 0.5)"}, algorithm="grid"), tmp_path)
    assert [(one.seed, one.settings["beta1"]) for one in trials] == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]


@pytest.mark.parametrize("algorithm", ["random", "optuna", "bohb"])
def test_failed_trials_are_trained_again_where_that_is_asked_for(algorithm: str, by_hand: Hand, tmp_path: Path) -> None:
    if algorithm == "bohb":
        pytest.importorskip("hpbandster")
    usual = {"algorithm": algorithm, "seeds": (0,) if algorithm == "bohb" else (0, 1)}
    search = by_hand["search"](**usual, samples=12)
    first = by_hand["loop"](search, tmp_path).run()
    failed = [one.number for one in first.trials if one.status == FAILED]
    (tmp_path / first.trials[failed[0]].run).mkdir()
    kept = by_hand["loop"](search, tmp_path, retry_failed=True).restore(first.save()).save()  # it was killed at once
    more = by_hand["search"](**usual, samples=14)
    again = by_hand["loop"](more, tmp_path, retry_failed=True).restore(kept)
    assert again.searcher.num_to_retry == len(failed)
    again.run(steps=1)
    trial = again.trials[failed[0]]
    assert (trial.status, len(trial.epochs), trial.error, trial.retries) == (RUNNING, 1, None, 1)
    assert trial.lost > 0
    assert not (tmp_path / trial.run).exists()  # what the failed attempt left
    again = by_hand["loop"](more, tmp_path).restore(again.save()).run()
    assert {again.trials[number].status for number in failed} <= {FINISHED, PRUNED}
    assert len(again.trials) == 14 * len(usual["seeds"])  # and what is new comes after them
    assert [one for one in again.trials[: len(first.trials)] if not one.retries] == [
        one for one in first.trials if one.status != FAILED
    ]
    if algorithm == "optuna":
        told = again.searcher.searcher._ot_study.trials
        assert [one.value for one in told if one.number == 12] != [None]  # the study learns it as one more trial


def damaged(data: bytes) -> list[bytes]:
    flipped = [data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :] for k in range(30, len(data), 97)]
    return [data[: len(data) // 2], b"", b"{}", *flipped]


def test_what_is_kept_of_a_search_is_whole_or_refused(tmp_path: Path) -> None:
    from es_service.experiments.tune.search_state import SearchState

    staging, path = tmp_path / "staging", tmp_path / "search.tar.gz"
    staging.mkdir()
    for name in (
        "experiment_state-2.json",
        "search_gen_state-2.json",
        "searcher-state-2.pkl",
        "experiment_state-1.json",
    ):
        (staging / name).write_text(json.dumps({"number": [name] * 50}))
    state = SearchState(path, tmp_path / "search")
    assert not state.unpack()
    assert state.keep(staging)
    assert not state.keep(staging)  # nothing new
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "experiment_state-9.json").write_text("torn")
    assert state.unpack()
    names = {one.name for one in (tmp_path / "search").iterdir()}
    assert names == {"experiment_state-2.json", "search_gen_state-2.json", "searcher-state-2.pkl"}
    assert not staging.exists()  # with states that were never kept
    for data in damaged(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(errors.StorageError, match=r"search\.tar\.gz is damaged"):
            state.unpack()


@pytest.mark.parametrize(
    "objective, values",
    [
        (Objective(name="accuracy"), (0.9,)),
        (Objective(name="balanced_accuracy"), (0.89,)),
        (Objective(name="cost", target=0.7), (0.3,)),
        (Objective(name="time", target=0.7), (0.6,)),
        (Objective(name="cost", target=0.95), (0.5 * 2.05,)),
        (Objective(name="front"), (0.9, 0.5)),
        (Objective(name="metric", metric="metric").of("accuracy"), (0.9,)),
        (Objective(name="metric", metric="metric").of("held_out_loss"), (0.1,)),
        (Objective(name="cost", metric="metric", target=-3.0).of("held_out_loss"), (0.1,)),
        (Objective(name="accuracy", metric="metric").of("held_out_loss"), (0.9,)),
    ],
)
def test_what_counts_of_a_trial(objective: Objective, values: tuple[float, ...], by_hand: Hand) -> None:
    epochs = [by_hand["entry"](k, accuracy, cost) for k, (accuracy, cost) in enumerate([(0.5, 0.1), (0.8, 0.3)])]
    epochs.append(by_hand["entry"](2, 0.9, 0.5))
    assert objective.values(epochs) == pytest.approx(values)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"name": "speed"}, "unknown objective"),
        ({"name": "cost"}, "--target"),
        ({"name": "accuracy", "target": 0.5}, "has no target"),
        ({"name": "time", "target": 1.5}, r"in \(0, 1\)"),
        ({"name": "time", "target": float("nan"), "metric": "r2"}, "must be finite"),
    ],
)
def test_bad_objectives_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        Objective(**values)


def test_the_objective_is_the_metric_of_the_task() -> None:
    space = read_space("es", {"beta1": "grid(0.1, 0.2)"})

    def asked(task: str, name: str | None = None, **settings: Any) -> tuple[str, str, str]:
        named = {} if name is None else {"objective": name}
        found = begin(task, space, epochs=2, early_stopping=False, **named, **settings).objective
        return found.name, found.metric, found.describe()

    assert asked("matthews_task:build_task") == ("metric", "matthews", "matthews")
    assert asked("matthews_task:build_task", "accuracy") == ("accuracy", "accuracy", "accuracy")
    assert asked("matthews_task:build_task", "front") == ("front", "matthews", "matthews against cost")
    assert asked("matthews_task:build_task", "cost", target=-0.5) == ("cost", "matthews", "cost until matthews -0.5")
    few: dict[str, Any] = {"derived": {"limit": 64}, "batch_size": 16}
    assert asked("fashion", **few) == ("accuracy", "accuracy", "accuracy")
    tail: dict[str, Any] = {"derived": {"limit": 200, "long_tail": 0.5}, "batch_size": 16}
    assert asked("fashion", **tail) == ("accuracy", "accuracy", "accuracy")
    assert asked("fashion", "cost", target=0.5, **tail)[1] == "balanced_accuracy"
    with pytest.raises(errors.ConfigError, match=r"in \(0, 1\)"):
        asked("fashion", "cost", target=1.5, **few)

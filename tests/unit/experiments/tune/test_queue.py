"""The queue, its journal, and where settings come from: the same calls give the same search, however often it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service import errors
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.proposals import random_points
from es_service.experiments.tune.space import read_space
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, RUNNING

Hand = dict[str, Callable[..., Any]]


def nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_a_search_that_stops_after_every_event_becomes_what_an_undisturbed_one_is(
    algorithm: str, by_hand: Hand, tmp_path: Path
) -> None:
    search = by_hand["search"](algorithm=algorithm, samples=14)
    undisturbed = by_hand["play"](search, tmp_path / "one.jsonl")
    lines = (tmp_path / "one.jsonl").read_bytes().splitlines(keepends=True)
    assert {one.status for one in undisturbed} == {FINISHED, PRUNED, FAILED}
    for stop in range(0, len(lines), 7):
        path = tmp_path / f"{stop}.jsonl"
        path.write_bytes(b"".join(lines[:stop]) + b'{"event": "en')  # the last line was being written
        queue = by_hand["queue"](search, path)
        queue.restore(nothing)
        while (trial := queue.next()) is not None:
            by_hand["train"](queue, trial)
        assert queue.trials == undisturbed
        assert path.read_bytes() == b"".join(lines)


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
    trials = by_hand["play"](search, tmp_path / "trials.jsonl")
    off = [abs(one.settings["beta1"] - 0.2) for one in trials]
    assert sum(off[-15:]) / 15 < sum(off[1:9]) / 8
    assert all(0 <= one.settings["beta1"] <= 1 for one in trials)


def test_optuna_takes_every_kind_of_domain_and_a_front(by_hand: Hand, tmp_path: Path) -> None:
    entries = {
        "beta1": "quniform(0, 0.4, 0.1)", "power": "loguniform(0.1, 2)", "anneal": "choice([0, 0], [0.05, 0.05])",
        "batch_size": "lograndint(8, 64)", "score_every": "randint(1, 4)", "max_age": "qrandint(1, 9, 2)",
        "draw": "grid(race, systematic)",
    }  # fmt: skip
    front = Objective(name="front")
    search = by_hand["search"](entries, algorithm="optuna", samples=12, objective=front, early_stopping=False)
    for trial in by_hand["play"](search, tmp_path / "trials.jsonl"):
        for name, domain in search.space.domains.items():
            assert domain.holds(trial.settings[name]), (name, trial.settings[name])
        search.space.selection(trial.settings, 0)


def test_a_trial_under_way_is_gone_on_with_before_any_other(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](samples=3, seeds=(0,))
    queue = by_hand["queue"](search, tmp_path / "trials.jsonl")
    first, second = queue.next(), queue.next()
    queue.epoch(first.number, by_hand["entry"](0, 0.5, 0.1))
    queue.epoch(second.number, by_hand["entry"](0, 0.5, 0.1))
    queue.end(second.number, FINISHED)
    later = by_hand["queue"](search, tmp_path / "trials.jsonl")
    later.restore(nothing)
    again = later.next()
    assert (again.number, again.status, len(again.epochs)) == (0, RUNNING, 1)
    later.epoch(0, by_hand["entry"](0, 0.5, 0.1))  # it reports from its beginning: what was told changes nothing
    assert len(again.epochs) == 1
    assert later.next().number == 2
    assert later.next() is None


@pytest.mark.parametrize("algorithm", ["random", "optuna"])
def test_more_samples_may_be_asked_for_later(algorithm: str, by_hand: Hand, tmp_path: Path) -> None:
    few = by_hand["play"](by_hand["search"](algorithm=algorithm, samples=6), tmp_path / "one.jsonl")
    queue = by_hand["queue"](by_hand["search"](algorithm=algorithm, samples=9), tmp_path / "one.jsonl")
    queue.restore(nothing)
    while (trial := queue.next()) is not None:
        by_hand["train"](queue, trial)
    assert queue.trials[: len(few)] == few
    at_once = by_hand["play"](by_hand["search"](algorithm=algorithm, samples=9), tmp_path / "two.jsonl")
    assert queue.trials == at_once


def test_a_journal_of_another_search_or_a_damaged_one_is_refused(by_hand: Hand, tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    by_hand["play"](by_hand["search"](seed=1), path)
    with pytest.raises(errors.StorageError, match="name another --out"):
        by_hand["queue"](by_hand["search"](seed=2), path).restore(nothing)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{", *lines[3:]]) + "\n")
    with pytest.raises(errors.StorageError, match="line 4 is damaged"):
        by_hand["queue"](by_hand["search"](seed=1), path).restore(nothing)


def test_a_flipped_bit_in_a_journal_of_trials_is_noticed(by_hand: Hand, tmp_path: Path) -> None:
    """A digit of an accuracy, say, after which another setting would come next and another would be the best."""
    path = tmp_path / "trials.jsonl"
    search = by_hand["search"](samples=3, seeds=(0,))
    by_hand["play"](search, path)
    whole = path.read_bytes()
    for place in range(whole.index(b"\n") + 1, len(whole) - 1, 7):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(errors.StorageError):
            by_hand["queue"](search, path).restore(nothing)
    older = [
        {name: value for name, value in json.loads(line).items() if name != "crc32"} for line in whole.splitlines()
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in older))
    by_hand["queue"](search, path).restore(nothing)  # lines of an earlier version had no checksum
    for event in ([1], "begun", {}, {"event": "epoch", "number": 99}, {"event": "ended", "number": "x"}, {"event": 1}):
        path.write_text(json.dumps(event) + "\n")
        with pytest.raises(errors.StorageError, match="damaged"):
            by_hand["queue"](search, path).restore(nothing)


def test_all_settings_come_with_the_first_seed_before_any_with_the_second(by_hand: Hand, tmp_path: Path) -> None:
    trials = by_hand["play"](by_hand["search"]({"beta1": "grid(0.0, 0.5)"}, algorithm="grid"), tmp_path / "t.jsonl")
    assert [(one.seed, one.settings["beta1"]) for one in trials] == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.5)]
    assert [json.loads(line)["event"] for line in (tmp_path / "t.jsonl").read_text().splitlines()][:3] == [
        "begun", "epoch", "epoch",
    ]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["random", "optuna", "bohb"])
def test_failed_trials_are_trained_again_where_that_is_asked_for(algorithm: str, by_hand: Hand, tmp_path: Path) -> None:
    if algorithm == "bohb":
        pytest.importorskip("hpbandster")
    seeds = (0,) if algorithm == "bohb" else (0, 1)
    search = by_hand["search"](algorithm=algorithm, samples=12, seeds=seeds)
    path = tmp_path / "trials.jsonl"
    failed = [one.number for one in by_hand["play"](search, path) if one.status == FAILED]
    queue = by_hand["queue"](search, path)
    queue.restore(nothing)
    for number in failed:
        queue.retry(number)
    more = by_hand["queue"](by_hand["search"](algorithm=algorithm, samples=14, seeds=seeds), path)
    more.restore(nothing)  # a command that was stopped before any of them
    for number in failed:
        trial = more.next()
        assert (trial.number, trial.status, trial.epochs, trial.error) == (number, RUNNING, [], None)
        assert trial.lost > 0
        for epoch in range(search.epochs):
            more.epoch(number, by_hand["entry"](epoch, 0.9, 0.1 * (epoch + 1)))
        more.end(number, FINISHED)
    assert more.next().number == 12 * len(seeds)  # and what is new comes after them
    again = by_hand["queue"](by_hand["search"](algorithm=algorithm, samples=14, seeds=seeds), path)
    again.restore(nothing)
    assert again.trials == more.trials


@pytest.mark.parametrize(
    "objective, values",
    [
        (Objective(name="accuracy"), (0.9,)),
        (Objective(name="balanced_accuracy"), (0.89,)),
        (Objective(name="cost", target=0.7), (0.3,)),
        (Objective(name="time", target=0.7), (0.6,)),
        (Objective(name="cost", target=0.95), (0.5 * 2.05,)),
        (Objective(name="front"), (0.9, 0.5)),
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
    ],
)
def test_bad_objectives_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        Objective(**values)

"""Early stopping: who waits for whom, what BOHB learns, and that a search that stopped goes on as if it had not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from es_service import errors
from es_service.experiments.tune.early_stopping import rungs_of
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.search_spec import check_algorithm
from es_service.experiments.tune.space import read_space
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, Trial

Hand = dict[str, Callable[..., Any]]
SPACE = {"beta1": "uniform(0, 0.5)", "beta2": "uniform(0, 0.99)"}


@pytest.mark.parametrize("epochs", range(1, 100))
def test_rungs_are_whole_epochs_and_the_last_is_the_last(epochs: int) -> None:
    for searched in (["beta1"], ["beta1", "ratio"], ["least"], ["progress"], ["guard"]):
        rungs = rungs_of(epochs, searched)
        assert rungs[-1] == epochs
        assert rungs[0] >= 1
        assert list(rungs) == sorted(set(rungs))
        assert len(rungs) <= (4 if searched == ["beta1"] else 2)


@pytest.fixture
def bohb(by_hand: Hand) -> Any:
    pytest.importorskip("hpbandster")
    usual = {"algorithm": "bohb", "seeds": (0,), "epochs": 9}
    return lambda **changes: by_hand["search"](SPACE, **{**usual, **changes})


def told(search: Any, by_hand: Hand, folder: Path, accuracies: dict[int, float]) -> list[int]:
    """How many epochs each trial was trained, where a trial's accuracy goes by its number; below 0 it fails at once."""

    def result(trial: Trial) -> dict[str, Any]:
        if accuracies.get(trial.number, 0.0) < 0:
            return {"failed": "loss nan"}
        epoch = len(trial.epochs)
        entry: dict[str, Any] = by_hand["entry"](epoch, accuracies.get(trial.number, 0.0), (epoch + 1) / search.epochs)
        return entry

    return [len(one.epochs) for one in by_hand["loop"](search, folder, early_stopping=True).run(result).trials]


def test_the_best_third_of_a_bracket_goes_on_and_rounds_repeat(bohb: Any, by_hand: Hand, tmp_path: Path) -> None:
    accuracies = {0: 0.5, 1: 0.7, 2: 0.6, 5: 0.9, 7: 0.8}
    # Three are compared after one epoch, two are trained to the end, and it begins anew.
    assert told(bohb(samples=10, epochs=4), by_hand, tmp_path, accuracies) == [1, 4, 1, 4, 4, 4, 1, 1, 4, 4]


def test_nine_epochs_have_three_brackets(bohb: Any, by_hand: Hand, tmp_path: Path) -> None:
    accuracies = {4: 0.7, 6: 0.8, 8: 0.9, 10: 0.5, 11: 0.6}
    epochs = told(bohb(samples=17), by_hand, tmp_path, accuracies)
    assert epochs == [1, 1, 1, 1, 3, 1, 3, 1, 9, 3, 9, 9, 3, 3, 9, 9, 9]


def test_the_place_of_a_failed_trial_is_taken_by_the_next(bohb: Any, by_hand: Hand, tmp_path: Path) -> None:
    accuracies = {0: -1, 1: 0.5, 2: 0.4, 3: 0.3}
    assert told(bohb(samples=6, epochs=4), by_hand, tmp_path, accuracies) == [0, 4, 1, 1, 4, 4]
    everyone = {0: -1, 1: -1, 2: -1, 3: 0.5, 4: 0.4, 5: 0.3}
    assert told(bohb(samples=6, epochs=4), by_hand, tmp_path, everyone) == [0, 0, 0, 4, 1, 1]


def test_those_that_wait_for_trials_that_never_come_are_settled(bohb: Any, by_hand: Hand, tmp_path: Path) -> None:
    assert told(bohb(samples=2, epochs=4), by_hand, tmp_path, {0: 0.5, 1: 0.7}) == [1, 4]


def test_asha_stops_those_below_the_best_third(by_hand: Hand, tmp_path: Path) -> None:
    search = by_hand["search"](SPACE, seeds=(0,), samples=5)
    accuracies = {0: 0.5, 1: 0.7, 2: 0.6, 3: 0.8, 4: 0.1}
    assert told(search, by_hand, tmp_path, accuracies) == [4, 4, 1, 4, 1]
    cheap = by_hand["search"]({"ratio": "uniform(0.1, 0.5)"}, seeds=(0,), samples=5)
    assert told(cheap, by_hand, tmp_path, accuracies) == [4, 4, 2, 4, 2]  # cheap epochs look bad at first


@pytest.mark.parametrize("decision", ["STOP", "PAUSE"])
def test_a_ray_train_job_is_asked_to_end_before_it_is_stopped(decision: str, by_hand: Hand) -> None:
    from ray.tune.experiment import Trial as Theirs

    from es_service.experiments.tune.early_stopping import Asha, Brackets

    asked: list[str] = []
    config = {"number": 0, "retry": False, "spec": {"run": "trial-0000"}}
    kinds = {"STOP": lambda: Asha(4, "accuracy", [], asked.append),
             "PAUSE": lambda: Brackets(4, "accuracy", [], 1, asked.append)}  # fmt: skip
    scheduler = kinds[decision]()
    theirs = [Theirs("stub", trial_id=str(k), stub=True, config=config) for k in range(2)]
    loop = type("Loop", (), {"search_alg": None, "searcher": None, "on_pause": staticmethod(lambda _: None)})()
    loop.search_alg = loop.searcher = loop
    for trial, accuracy in zip(theirs, (0.9, 0.1), strict=True):
        scheduler.on_trial_add(loop, trial)
        trial.status = "RUNNING"
        result = {**by_hand["entry"](0, accuracy, 0.1), "epochs": 1}
        assert scheduler.on_trial_result(loop, trial, result) == "CONTINUE"
    late = {**by_hand["entry"](1, 0.1, 0.2), "epochs": 2}
    assert scheduler.on_trial_result(loop, theirs[1], late) == "CONTINUE"  # it has not heard of it yet
    assert late["late"]
    assert set(asked) == {"trial-0000"}
    assert scheduler.on_trial_result(loop, theirs[1], {"stopped": True}) == decision
    assert scheduler.on_trial_result(loop, theirs[1], {"stopped": True}) == "CONTINUE"  # the whole search is to stop


def result(trial: Trial) -> dict[str, Any]:
    epoch = len(trial.epochs)
    if trial.number % 7 == 3 and epoch == 1 and not trial.retries:
        return {"failed": "loss nan"}
    accuracy = 0.8 - trial.settings["beta1"] ** 2 - (trial.settings["beta2"] - 0.9) ** 2 + epoch / 100
    return {
        "epoch": epoch, "accuracy": accuracy, "balanced_accuracy": accuracy, "held_out_loss": 1.0, "train_loss": 1.0,
        "scored": 1, "trained": 1, "cost": (epoch + 1) / 9, "seconds": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("algorithm", ["bohb", "optuna"])
def test_a_search_that_stops_anywhere_becomes_what_an_undisturbed_one_is(
    algorithm: str, bohb: Any, by_hand: Hand, tmp_path: Path
) -> None:
    search = bohb(samples=19, algorithm=algorithm)

    def loop(**more: Any) -> Any:
        return by_hand["loop"](search, tmp_path, early_stopping=True, **more)

    whole = loop().run(result)
    assert {one.status for one in whole.trials} == {FINISHED, PRUNED, FAILED}
    assert len(whole.trials) == 19
    for steps in range(1, 60, 4):
        kept = loop().run(result, steps=steps).save()
        again = loop().restore(kept).run(result, steps=3)
        assert loop().restore(again.save()).run(result).trials == whole.trials
    failed = [one.number for one in whole.trials if one.status == FAILED]
    kept = loop(retry_failed=True).restore(whole.save()).run(result, steps=3).save()
    retried = loop(retry_failed=True).restore(kept).run(result).trials
    if algorithm == "bohb":  # their brackets have gone on without them
        assert {(retried[number].status, len(retried[number].epochs)) for number in failed} == {(FINISHED, 9)}
    for number in set(range(19)) - set(failed):
        assert retried[number] == whole.trials[number]
    another = by_hand["loop"](bohb(samples=19, algorithm=algorithm, seed=1), tmp_path, early_stopping=True).run(result)
    assert [one.settings for one in another.trials[1:]] != [one.settings for one in whole.trials[1:]]


def test_bohb_learns_and_draws_no_numbers_of_others(bohb: Any, by_hand: Hand, tmp_path: Path) -> None:
    np.random.seed(5)  # noqa: NPY002, TID251 - somebody's own, which hpbandster would draw from
    expected = np.random.RandomState(5).random()
    trials = by_hand["loop"](bohb(samples=45), tmp_path, early_stopping=True).run(result).trials
    assert np.random.random() == expected  # noqa: NPY002
    reached = [one.epochs[0]["accuracy"] for one in trials if one.epochs]
    assert sum(reached[-20:]) / 20 > sum(reached[:15]) / 15 + 0.05


def test_bohb_takes_every_kind_of_domain(by_hand: Hand, tmp_path: Path) -> None:
    pytest.importorskip("hpbandster")
    entries = {
        "beta1": "quniform(0, 0.4, 0.1)", "power": "loguniform(0.1, 2)", "anneal": "choice([0, 0], [0.05, 0.05])",
        "batch_size": "lograndint(8, 64)", "score_every": "randint(1, 4)", "max_age": "qrandint(1, 9, 2)",
        "draw": "grid(race)",
    }  # fmt: skip
    search = by_hand["search"](entries, algorithm="bohb", samples=25, seeds=(0,))

    def by_power(trial: Trial) -> dict[str, Any] | None:
        return by_hand["entry"](0, trial.settings["power"] / 2, 0.1) if not trial.epochs else None

    trials = by_hand["loop"](search, tmp_path).run(by_power).trials
    for trial in trials:
        for name, domain in search.space.domains.items():
            assert domain.holds(trial.settings[name]), (name, trial.settings[name])
    assert len({str(one.settings) for one in trials}) == 25


def test_without_its_packages_it_says_which_extra_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hpbandster.optimizers.config_generators.bohb", "ConfigSpace"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, name, None)  # as if it were not installed
            with pytest.raises(errors.ConfigError, match=r"pip install 'es-service\[bohb\]'"):
                check_algorithm("bohb", read_space("es", SPACE))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seeds": (0, 1)}, "leave --seeds out"),
        ({"early_stopping": False}, "leave --no-early-stopping out"),
        ({"objective": Objective(name="front"), "early_stopping": False}, "a front has two"),
        ({"space": read_space("es", {"beta1": "grid(0.2)"})}, "nothing for --algorithm bohb to learn"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, Any], words: str, bohb: Any) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        bohb(**changes)

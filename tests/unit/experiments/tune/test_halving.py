"""BOHB: who waits for whom, what is proposed, and that a search that stopped goes on as if it had not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from es_service import errors
from es_service.experiments.tune.early_stopping import DROP, GO_ON, WAIT
from es_service.experiments.tune.halving import HyperBand
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.proposals import check_algorithm
from es_service.experiments.tune.rungs import rungs_of
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune.space import read_space
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, Trial

Hand = dict[str, Callable[..., Any]]
SPACE = {"beta1": "uniform(0, 0.5)", "beta2": "uniform(0, 0.99)"}


def after(hyperband: HyperBand, number: int, epochs: int, accuracy: float) -> str:
    """What is to become of a trial once it has come so far."""
    hyperband.epoch(number, {"epoch": epochs - 1, "accuracy": accuracy})
    return hyperband.verdict(number)


def begun(epochs: int, number: int) -> HyperBand:
    hyperband = HyperBand(epochs, "accuracy", ["beta1"])
    for one in range(number):
        hyperband.begin(one)
    return hyperband


@pytest.mark.parametrize("epochs", range(1, 100))
def test_rungs_are_whole_epochs_and_the_last_is_the_last(epochs: int) -> None:
    for searched in (["beta1"], ["beta1", "ratio"]):
        rungs = rungs_of(epochs, searched)
        assert rungs[-1] == epochs
        assert rungs[0] >= 1
        assert list(rungs) == sorted(set(rungs))
        assert len(rungs) <= (2 if "ratio" in searched else 4)


def test_the_best_third_of_a_bracket_goes_on_and_nobody_is_compared_before_it_is_full() -> None:
    hyperband = begun(4, 3)  # three are compared after one epoch
    assert [after(hyperband, 0, 1, 0.5), after(hyperband, 1, 1, 0.7)] == [WAIT, WAIT]
    assert after(hyperband, 2, 1, 0.6) == DROP
    assert [hyperband.verdict(k) for k in (0, 1)] == [DROP, GO_ON]
    assert [after(hyperband, 1, epochs, 0.7) for epochs in (2, 3)] == [GO_ON, GO_ON]


def test_rounds_repeat() -> None:
    hyperband = HyperBand(4, "accuracy", ["beta1"])
    said = []
    for number in range(10):
        hyperband.begin(number)
        said.append(after(hyperband, number, 1, 0.5 + number / 100))
        for epochs in (2, 3, 4) if said[-1] == GO_ON else ():
            after(hyperband, number, epochs, 0.9)
    assert said == [WAIT, WAIT, GO_ON, GO_ON, GO_ON] * 2


def test_nine_epochs_have_three_brackets() -> None:
    hyperband = begun(9, 9)
    assert [after(hyperband, number, 1, number / 10) for number in range(9)] == [WAIT] * 8 + [GO_ON]
    assert [number for number in range(9) if hyperband.verdict(number) == GO_ON] == [6, 7, 8]
    assert [after(hyperband, number, 3, 0.5 - number / 100) for number in (6, 7, 8)] == [WAIT, WAIT, DROP]
    assert [hyperband.verdict(number) for number in (6, 7)] == [GO_ON, DROP]
    for number in range(9, 14):
        hyperband.begin(number)
        assert after(hyperband, number, 1, 0.1) == GO_ON
    assert [after(hyperband, number, 3, 0.1) for number in range(9, 14)][:4] == [WAIT] * 4


def test_a_failed_trial_fills_its_place_with_the_worst_of_results() -> None:
    hyperband = begun(4, 3)
    hyperband.fail(0)
    assert after(hyperband, 1, 1, 0.5) == WAIT  # no bracket of two
    assert after(hyperband, 2, 1, 0.4) == DROP
    assert hyperband.verdict(1) == GO_ON


def test_where_all_failed_the_next_bracket_is_filled() -> None:
    hyperband = begun(4, 3)
    for number in range(3):
        hyperband.fail(number)
    for number in (3, 4):
        hyperband.begin(number)
        assert after(hyperband, number, 1, 0.5) == GO_ON


def test_those_that_wait_for_trials_that_never_come_are_settled() -> None:
    hyperband = begun(4, 2)
    assert [after(hyperband, 0, 1, 0.5), after(hyperband, 1, 1, 0.7)] == [WAIT, WAIT]
    hyperband.settle()
    assert [hyperband.verdict(number) for number in (0, 1)] == [DROP, GO_ON]


def conducted(
    by_hand: Hand, search: Any, path: Path, stop_after: int | None = None, *, retry: bool = False
) -> list[Trial]:
    """Train a search's trials one after the other, as Ray Tune would; leave after so many epochs."""
    from es_service.experiments.tune.conductor import Conductor

    queue = by_hand["queue"](search, path)
    hyperband = HyperBand(search.epochs, "accuracy", search.space.domains)
    conductor = Conductor(queue, search.spec, hyperband, lambda _: None, path.parent, Places())
    conductor.go_through_journal()
    if retry:
        conductor.retry_failed()
    left = 10**6 if stop_after is None else stop_after
    while (trial := conductor.next()) is not None:
        theirs: Any = type("Theirs", (), {"config": {"number": trial.number}})
        conductor.on_trial_add(None, theirs)
        decision = "CONTINUE"
        while decision == "CONTINUE":
            if left == 0:
                return queue.trials
            left -= 1
            decision = conductor.on_trial_result(None, theirs, result(by_hand, search, trial))
    return queue.trials


def result(by_hand: Hand, search: Any, trial: Trial) -> Mapping[str, Any]:
    epoch = len(trial.epochs)
    if trial.number % 7 == 3 and epoch == 1 and not trial.lost:
        return {"failed": "loss nan"}
    accuracy = 0.8 - trial.settings["beta1"] ** 2 - (trial.settings["beta2"] - 0.9) ** 2 + epoch / 100
    entry: dict[str, Any] = by_hand["entry"](epoch, accuracy, (epoch + 1) / search.epochs)
    return {**entry, "last": epoch == search.epochs - 1}


@pytest.fixture
def bohb(by_hand: Hand) -> Any:
    pytest.importorskip("hpbandster")
    usual = {"algorithm": "bohb", "seeds": (0,), "epochs": 9}
    return lambda **changes: by_hand["search"](SPACE, **{**usual, **changes})


def test_a_search_that_stops_anywhere_becomes_what_an_undisturbed_one_is(
    bohb: Any, by_hand: Hand, tmp_path: Path
) -> None:
    search = bohb(samples=19)
    undisturbed = conducted(by_hand, search, tmp_path / "one.jsonl")
    whole = (tmp_path / "one.jsonl").read_bytes()
    assert {one.status for one in undisturbed} == {FINISHED, PRUNED, FAILED}
    assert len(undisturbed) == 19
    lines = whole.splitlines(keepends=True)
    for stop in (len(lines) // 4, len(lines) // 2, len(lines) - 9):
        path = tmp_path / f"{stop}.jsonl"
        path.write_bytes(b"".join(lines[:stop]))
        conducted(by_hand, search, path, stop_after=3)
        assert conducted(by_hand, search, path) == undisturbed
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    failed = [one.number for one in undisturbed if one.status == FAILED]
    retried = conducted(by_hand, search, tmp_path / "one.jsonl", stop_after=3, retry=True)
    retried = conducted(by_hand, search, tmp_path / "one.jsonl")
    assert {(retried[number].status, len(retried[number].epochs)) for number in failed} == {(FINISHED, 9)}
    for number in set(range(19)) - set(failed):
        assert retried[number] == undisturbed[number]
    another = conducted(by_hand, bohb(samples=19, seed=1), tmp_path / "another.jsonl")
    assert [one.settings for one in another[1:]] != [one.settings for one in undisturbed[1:]]


def test_it_learns_and_draws_no_numbers_of_others(bohb: Any, by_hand: Hand, tmp_path: Path) -> None:
    np.random.seed(5)  # noqa: NPY002, TID251 - somebody's own, which hpbandster would draw from
    expected = np.random.RandomState(5).random()
    trials = conducted(by_hand, bohb(samples=45), tmp_path / "trials.jsonl")
    assert np.random.random() == expected  # noqa: NPY002
    reached = [one.epochs[0]["accuracy"] for one in trials if one.epochs]
    assert sum(reached[-20:]) / 20 > sum(reached[:15]) / 15 + 0.05


def test_it_takes_every_kind_of_domain(by_hand: Hand, tmp_path: Path) -> None:
    pytest.importorskip("hpbandster")
    entries = {
        "beta1": "quniform(0, 0.4, 0.1)", "power": "loguniform(0.1, 2)", "anneal": "choice([0, 0], [0.05, 0.05])",
        "batch_size": "lograndint(8, 64)", "score_every": "randint(1, 4)", "max_age": "qrandint(1, 9, 2)",
        "draw": "grid(race)",
    }  # fmt: skip
    search = by_hand["search"](entries, algorithm="bohb", samples=25, seeds=(0,))
    queue = by_hand["queue"](search, tmp_path / "trials.jsonl")
    while (trial := queue.next()) is not None:
        for name, domain in search.space.domains.items():
            assert domain.holds(trial.settings[name]), (name, trial.settings[name])
        queue.epoch(trial.number, by_hand["entry"](0, trial.settings["power"] / 2, 0.1))
        queue.end(trial.number, PRUNED)
    assert len({str(one.settings) for one in queue.trials}) == 25


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

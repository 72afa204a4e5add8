"""Searches without Ray: its searchers and schedulers in a loop like its own, trials whose results are a formula."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.search_spec import SearchSpec
from es_service.experiments.tune.space import read_space
from es_service.experiments.tune.trials import FINISHED, Trial

EPOCHS = 4
Result = Callable[[Trial], dict[str, Any] | None]


def make_search(entries: dict[str, Any] | None = None, **changes: Any) -> SearchSpec:
    values: dict[str, Any] = {
        "name": "found",
        "task": "fashion",
        "data": None,
        "derived": {"limit": 100},
        "num_samples": 100,
        "epochs": EPOCHS,
        "batch_size": 10,
        "learning_rate": 0.1,
        "space": read_space("es", entries or {"beta1": "uniform(0, 0.5)", "ratio": "choice(0.25, 0.5)"}),
        "objective": Objective(name="accuracy"),
        "algorithm": "random",
        "samples": 12,
        "seeds": (0, 1),
        "seed": 0,
        "early_stopping": True,
        **changes,
    }
    return SearchSpec(**values)


def entry(epoch: int, accuracy: float, cost: float) -> dict[str, Any]:
    return {
        "epoch": epoch, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.01, "held_out_loss": 1 - accuracy,
        "train_loss": 1.0, "scored": 10, "trained": 10, "cost": cost, "seconds": 2 * cost,
        "misses": 1 - accuracy,
    }  # fmt: skip


def by_formula(trial: Trial) -> dict[str, Any] | None:
    """Best where beta1 is 0.2; every fifth is stopped early, every eleventh fails, if it is not tried again."""
    epoch = len(trial.epochs)
    beta1, ratio = trial.settings.get("beta1", 0.2), trial.settings.get("ratio", 0.25)
    highest = 0.9 - (beta1 - 0.2) ** 2 + 0.02 * ratio + 0.001 * trial.seed
    if trial.number % 5 == 4 and epoch == 2:
        return None
    if trial.number % 11 == 10 and epoch == 1 and not trial.retries:
        return {"failed": "loss nan"}
    share = (epoch + 1) / EPOCHS
    return entry(epoch, highest * (0.5 + 0.5 * share), share * (1 + 3 * ratio) / 3)


class Loop:
    """What Ray Tune's TuneController does with a searcher and a scheduler, a trial at a time and without processes."""

    def __init__(
        self, search: SearchSpec, folder: Path, *, retry_failed: bool = False, early_stopping: bool = False
    ) -> None:
        from es_service.experiments.tune.early_stopping import NoStopping, scheduler_for
        from es_service.experiments.tune.searcher import Trials
        from es_service.experiments.tune.suggestions import proposals

        self.scheduler = scheduler_for(search, 1, None) if early_stopping else NoStopping()
        self.searcher = Trials(
            seeds=search.seeds, objective=search.objective, storage=folder, room=1, seed=search.seed,
            spec=search.spec, retry_failed=retry_failed, **proposals(search),
        )  # fmt: skip
        self.search_alg, self._epochs, self._folder = self, search.epochs, folder
        self.theirs: list[Any] = []
        self._unnoted: set[str] = set()  # trials that were stopped while they waited: Ray Tune's state says they wait

    @property
    def trials(self) -> list[Trial]:
        return self.searcher.trials

    def get_trials(self) -> list[Any]:
        return self.theirs

    def run(self, result: Result = by_formula, steps: int | None = None) -> Loop:
        """Go on to the end, or for so many epochs."""
        left = 10**6 if steps is None else steps
        while left and (trial := self._next()) is not None:
            trial.status = "RUNNING"
            while left and trial.status == "RUNNING":
                left -= 1
                self._step(trial, result)
        return self

    def _next(self) -> Any:
        from ray.tune.experiment import Trial as Theirs
        from ray.tune.search import Searcher

        trial = Theirs("stub", trial_id=f"{len(self.theirs):08d}", stub=True)
        config = self.searcher.suggest(trial.trial_id)
        if config not in (None, Searcher.FINISHED):
            trial.config = config
            self.scheduler.on_trial_add(self, trial)
            self.theirs.append(trial)
        return self.scheduler.choose_trial_to_run(self)

    def _step(self, trial: Any, result: Result) -> None:
        ours = self.trials[trial.config["number"]]
        told = result(ours)
        if told is None:
            self.stop_trial(trial)
            return
        last = told.get("epoch") == self._epochs - 1
        told = {**told, "last": last, "done": last or "failed" in told}
        if "epoch" in told:
            told["epochs"] = told["epoch"] + 1
        decision = "STOP" if told["done"] else self.scheduler.on_trial_result(self, trial, told)
        if decision != "STOP":
            self.searcher.on_trial_result(trial.trial_id, told)
        if decision == "PAUSE":
            trial.status = "PAUSED"
        elif decision == "STOP":
            self.stop_trial(trial, told)

    def stop_trial(self, trial: Any, result: dict[str, Any] | None = None) -> None:
        if trial.status == "PAUSED":
            self._unnoted.add(trial.trial_id)
            self.scheduler.on_trial_remove(self, trial)
        else:
            self.scheduler.on_trial_complete(self, trial, result or {})
        trial.status = "TERMINATED"
        self.searcher.on_trial_complete(trial.trial_id, result)

    def save(self) -> bytes:
        """What Ray Tune keeps of all this."""
        self.searcher.searcher.save(str(self._folder / "searcher"))
        theirs = [
            (one.trial_id, "PAUSED" if one.trial_id in self._unnoted else one.status, one.config) for one in self.theirs
        ]
        inner = (self._folder / "searcher").read_bytes()
        return pickle.dumps((self.searcher.get_state(), inner, self.scheduler.get_state(), theirs))

    def restore(self, data: bytes) -> Loop:
        from ray.tune.experiment import Trial as Theirs

        state, inner, scheduler, theirs = pickle.loads(data)
        (self._folder / "searcher").write_bytes(inner)
        self.searcher.searcher.restore(str(self._folder / "searcher"))
        self.searcher.set_state(state)
        self.scheduler.set_state(scheduler)
        for trial_id, status, config in theirs:
            trial = Theirs("stub", trial_id=trial_id, stub=True, config=config)
            trial.status = "TERMINATED" if status == "TERMINATED" else "PENDING"  # also those that were paused
            self.scheduler.on_trial_add(self, trial)
            self.theirs.append(trial)
        return self


def play(search: SearchSpec, folder: Path) -> list[Trial]:
    folder.mkdir(exist_ok=True, parents=True)
    return Loop(search, folder).run().trials


def references(search: SearchSpec) -> list[Trial]:
    found = []
    for epochs, accuracy in ((4, 0.92), (2, 0.88)):
        for seed in search.seeds:
            trial = Trial(
                number=len(found), setting=epochs, settings={"epochs": epochs}, seed=seed, run=f"full-{epochs}-s{seed}"
            )
            trial.epochs = [entry(k, accuracy, (k + 1) / EPOCHS) for k in range(epochs)]
            trial.status = FINISHED
            found.append(trial)
    return found


@pytest.fixture
def by_hand() -> dict[str, Callable[..., Any]]:
    """The functions above."""
    return {
        "search": make_search, "loop": Loop, "play": play, "references": references, "entry": entry,
        "formula": by_formula,
    }  # fmt: skip

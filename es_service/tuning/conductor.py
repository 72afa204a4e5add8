"""What decides about trials while Ray Tune runs them: which comes next, which is stopped, and how all of them are.

Tuner ── next? ──► Source ──► queue          a trial at a time, so that what is asked sees what was told
      ── epoch ──► Conductor ──► queue, ASHA ──► go on, or stop
      ── all? ───► Stop
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from es_service.evidence.comparison import RunSpec
from es_service.tuning.described import Places
from es_service.tuning.queue import Queue
from es_service.tuning.trainable import ENTRY, drop_checkpoints
from es_service.tuning.trials import FAILED, FINISHED, PRUNED, RUNNING, Trial

__all__ = ["Conductor", "Source", "Stop", "Tell", "early_stopping"]

Tell = Callable[[Trial], None]
_REDUCTION = 3
_CHEAPENING = {"anneal", "ratio", "prune_ratio", "r", "score_every", "interrupt"}
_PATIENCE_S = 30.0  # for trials to end in order once somebody asked to stop


def early_stopping(epochs: int, searched: Iterable[str]) -> Any:
    """Return asynchronous successive halving over epochs; None where there are too few to stop anything early.

    A trial may be stopped after a quarter of its epochs, and then after three times as many: where it is below the best
    third of those that came so far. All of them are then at the same place of the learning rate's schedule. Where a
    setting is searched that makes epochs cheaper, it is after half of them: cheap epochs look bad at first.

    Reference: Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020.
    """
    if epochs < 2:
        return None
    return ASHAScheduler(
        time_attr="done",
        metric="value",
        mode="max",
        max_t=epochs,
        grace_period=max(1, round(epochs / (2 if set(searched) & _CHEAPENING else 4))),
        reduction_factor=_REDUCTION,
    )


class Stop(Stopper):
    """Ends all trials once somebody asked for it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.in_order: Callable[[], bool] = lambda: True
        self._give_up: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - the contract's arguments
        """Return False: the conductor decides about each trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether all trials are to end now: somebody asked, and those of Ray Train have ended in order."""
        if self.signal is None:
            return False
        if self._give_up is None:
            self._give_up = time.monotonic() + _PATIENCE_S
        return self.in_order() or time.monotonic() > self._give_up


class Source(Searcher):
    """Hands out the queue's trials."""

    def __init__(self, queue: Queue, spec: Callable[[Trial], RunSpec], stop: Stop) -> None:
        super().__init__()
        self._queue, self._spec, self._stop = queue, spec, stop

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - the contract's argument
        """Return what the next trial trains, an `Assignment` as a dictionary."""
        trial = None if self._stop.signal is not None else self._queue.next()
        if trial is None:
            return Searcher.FINISHED
        spec = self._spec(trial).to_dict()
        return {"number": trial.number, "spec": spec, "known": len(trial.epochs)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the conductor tells the queue."""

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: the journal holds all there is to keep."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: Ray Tune's own state is never restored."""
        raise NotImplementedError  # the journal is gone through instead


class Conductor(FIFOScheduler):
    """Tells the queue what trials report, and stops those that are done or fall behind."""

    def __init__(
        self,
        queue: Queue,
        spec: Callable[[Trial], RunSpec],
        asha: Any,
        epochs: int,
        metric: str,
        tell: Tell,
        storage: Path,
        places: Places,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._queue, self._asha, self._epochs, self._compared, self._tell = queue, asha, epochs, metric, tell
        self._spec, self._storage, self._places = spec, str(storage), places
        self._behind: set[int] = set()
        self._live: dict[int, bool] = {}  # trials that Ray Tune knows and that have not ended -> was it asked to stop?
        self._ended: list[Trial] = []

    def tidy_up(self) -> None:
        """Drop the checkpoints of trials that have ended."""
        for trial in [one for one in self._ended if one.number not in self._live]:
            drop_checkpoints(self._storage, trial.run)
            self._ended.remove(trial)

    def go_through_journal(self) -> None:
        """Tell queue and ASHA what happened before this command."""
        self._queue.restore(self._replay)
        for trial in self._queue.trials:  # what was decided and not written down before the last command ended
            decided = FINISHED if len(trial.epochs) == self._spec(trial).epochs else PRUNED
            if trial.status == RUNNING and (decided == FINISHED or trial.number in self._behind):
                self._queue.end(trial.number, decided)
                self._ended.append(trial)

    def _replay(self, kind: str, trial: Trial, event: Mapping[str, Any]) -> None:
        if kind == "begun":
            self._expect(trial)
        elif kind == "epoch" and self._is_behind(trial, event):
            self._behind.add(trial.number)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """Take note of a trial that will run."""
        ours = self._queue.trials[trial.config["number"]]
        self._live[ours.number] = False
        if not ours.epochs:
            self._expect(ours)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Take what a trial reports; return whether it goes on."""
        number = trial.config["number"]
        ours = self._queue.trials[number]
        if ours.status != RUNNING or "stopped" in result:
            return self._when_ended(number, result)
        if "failed" in result:
            return self._end(ours, FAILED, result["failed"])
        if "epoch" not in result or (result.get("done") and not result["last"]):
            return self._end(ours, FAILED, "its training returned before the last epoch")
        entry = {name: result[name] for name in ENTRY}
        self._queue.epoch(number, entry)
        if result["last"]:
            return self._end(ours, FINISHED)
        self._tell(ours)
        if self._is_behind(ours, entry):
            decision = self._end(ours, PRUNED)
            return self._ask_to_stop(ours) if self._places.on_ray_train else decision
        return str(TrialScheduler.CONTINUE)

    def _when_ended(self, number: int, result: dict[str, Any]) -> str:
        """Return what to do with a trial that has ended for us, and reports once more.

        One in its own process has nothing left to do: Ray Tune repeats the last report when it returns. One that trains
        with Ray Train is let come to its end, which it reports.
        """
        if (
            self._places.on_ray_train
            and not any(name in result for name in ("stopped", "failed"))
            and (not result.get("last") and not result.get("done"))
        ):
            return str(TrialScheduler.CONTINUE)
        self._live.pop(number, None)
        return str(TrialScheduler.STOP)

    def _ask_to_stop(self, trial: Trial) -> str:
        """Have a trial's Ray Train job end in order, and go on hearing of it until it has."""
        from es_service.training.ray_train import ask_to_stop

        self._live[trial.number] = True
        ask_to_stop(self._storage, trial.run)
        return str(TrialScheduler.CONTINUE)

    def ask_all_to_stop(self) -> bool:
        """Ask all Ray Train jobs to end; return whether none is left."""
        for number, asked in list(self._live.items()) if self._places.on_ray_train else []:
            trial = self._queue.trials[number]
            if not (Path(self._storage) / trial.run / "run.json").exists():
                continue  # it has not begun; Ray Tune ends its process
            if not asked:
                self._ask_to_stop(trial)
        begun = [self._queue.trials[number].run for number in self._live]
        return not self._places.on_ray_train or not any(
            (Path(self._storage) / run / "run.json").exists() for run in begun
        )

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """Take note of a trial whose process ended."""
        ours = self._queue.trials[trial.config["number"]]
        self._live.pop(ours.number, None)
        error = trial.get_error()
        lines = [line for line in str(error or "").strip().splitlines() if line.strip()]
        self._end(ours, FAILED, f"its process ended: {lines[0] if lines else 'no message'}")

    def _end(self, trial: Trial, status: str, error: str | None = None) -> str:
        if trial.status == RUNNING:
            self._queue.end(trial.number, status, error)
            self._live.pop(trial.number, None)
            self.tidy_up()  # of those before: this one's process may be at its last checkpoint still
            self._ended.append(trial)
            self._tell(trial)
        return str(TrialScheduler.STOP)

    def _expect(self, trial: Trial) -> None:
        if self._asha is not None:
            self._asha.on_trial_add(None, _named(trial))

    def _is_behind(self, trial: Trial, entry: Mapping[str, Any]) -> bool:
        """Return whether ASHA would stop it after this epoch; asking is what makes ASHA remember it."""
        if self._asha is None or entry["epoch"] + 1 >= self._epochs:
            return False
        result = {"done": entry["epoch"] + 1, "value": entry[self._compared]}
        return bool(self._asha.on_trial_result(None, _named(trial), result) == TrialScheduler.STOP)


def _named(trial: Trial) -> Any:
    """Return what ASHA needs to know of a trial."""
    return types.SimpleNamespace(trial_id=str(trial.number))

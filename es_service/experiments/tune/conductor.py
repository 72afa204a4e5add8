"""What decides about trials while Ray Tune runs them: which comes next, which is stopped, and how all of them are.

Tuner ── next? ──► Source ──► Conductor, queue   a trial at a time, so that what is asked sees what was told
      ── epoch ──► Conductor ──► queue, early ──► go on, stop, or wait for others and be begun again
      ── all? ───► Stop
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from es_service.experiments.experiment_spec import RunSpec
from es_service.experiments.tune.early_stopping import DROP, GO_ON, WAIT, Early
from es_service.experiments.tune.queue import Queue
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune.trainable import ENTRY, drop_checkpoints
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, RUNNING, Trial

__all__ = ["Conductor", "Source", "Stop", "Tell"]

Tell = Callable[[Trial], None]
_PATIENCE_S = 30.0  # for trials to end in order once somebody asked to stop


class Stop(Stopper):
    """Ends all trials once somebody asked for it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.in_order: Callable[[], bool] = lambda: True
        self._give_up: float | None = None

    def ask(self, number: int) -> None:
        """Take the signal that asks for it."""
        self.signal = number

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
    """Hands out the conductor's trials."""

    def __init__(self, conductor: Conductor, spec: Callable[[Trial], RunSpec], stop: Stop) -> None:
        super().__init__()
        self._conductor, self._spec, self._stop = conductor, spec, stop

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - the contract's argument
        """Return what the next trial trains, an `Assignment` as a dictionary; None for nothing yet."""
        trial = None if self._stop.signal is not None else self._conductor.next()
        if trial is None:
            return None if self._stop.signal is None and self._conductor.waits else Searcher.FINISHED
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
        early: Early,
        tell: Tell,
        storage: Path,
        places: Places,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._queue, self._early, self._tell = queue, early, tell
        self._spec, self._storage, self._places = spec, str(storage), places
        self._waiting: set[int] = set()  # trials that wait for others
        self._live: dict[int, bool] = {}  # trials that Ray Tune knows and that have not ended -> was it asked to stop?
        self._ended: list[Trial] = []

    def tidy_up(self) -> None:
        """Drop the checkpoints of trials that have ended."""
        for trial in [one for one in self._ended if one.number not in self._live]:
            drop_checkpoints(self._storage, trial.run)
            self._ended.remove(trial)

    @property
    def waits(self) -> bool:
        """Whether some trial waits for others."""
        return bool(self._waiting)

    def next(self) -> Trial | None:
        """Return the trial to train now, None where there is none, or none before others have come further."""
        trial = self._queue.next()
        if trial is None and self._waiting and not self._live:
            self._early.settle()
            self._follow()
            trial = self._queue.next()
        return trial

    def go_through_journal(self) -> None:
        """Tell queue and early stopping what happened before this command."""
        self._queue.restore(self._replay)
        for trial in self._queue.trials:  # what was decided and not written down before the last command ended
            if trial.status != RUNNING:
                continue
            verdict = self._early.verdict(trial.number)
            finished = len(trial.epochs) == self._spec(trial).epochs
            if finished or verdict == DROP:
                self._queue.end(trial.number, FINISHED if finished else PRUNED)
                self._ended.append(trial)
            elif verdict == WAIT:
                self._queue.set_aside(trial.number)
                self._waiting.add(trial.number)

    def retry_failed(self) -> None:
        """Have all trials that failed be trained from their beginnings."""
        for trial in self._queue.trials:
            if trial.status == FAILED:
                shutil.rmtree(Path(self._storage) / trial.run, ignore_errors=True)
                self._queue.retry(trial.number)
                self._early.retry(trial.number)

    def _replay(self, kind: str, trial: Trial, event: Mapping[str, Any]) -> None:
        if kind == "begun":
            self._early.begin(trial.number)
        elif kind == "epoch":
            self._early.epoch(trial.number, event)
        elif kind == "retried":
            self._early.retry(trial.number)
        elif trial.status == FAILED:
            self._early.fail(trial.number)
        elif trial.status == PRUNED and self._early.verdict(trial.number) == WAIT:
            self._early.settle()

    def _follow(self) -> None:
        """Do to those that wait what has been decided about them."""
        for number in sorted(self._waiting - set(self._live)):
            verdict = self._early.verdict(number)
            if verdict != WAIT:
                self._waiting.remove(number)
            if verdict == DROP:
                self._end(self._queue.trials[number], PRUNED)
            elif verdict == GO_ON:
                self._queue.take_up(number)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """Take note of a trial that will run."""
        ours = self._queue.trials[trial.config["number"]]
        self._live[ours.number] = False
        if not ours.epochs:
            self._early.begin(ours.number)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Take what a trial reports; return whether it goes on."""
        decision = self._take(trial.config["number"], result)
        self._follow()
        return decision

    def _take(self, number: int, result: dict[str, Any]) -> str:
        ours = self._queue.trials[number]
        if ours.status != RUNNING or number in self._waiting or "stopped" in result:
            return self._when_ended(number, result)
        if "failed" in result:
            return self._end(ours, FAILED, result["failed"])
        if "epoch" not in result or (result.get("done") and not result["last"]):
            return self._end(ours, FAILED, "its training returned before the last epoch")
        entry = {name: result[name] for name in ENTRY}
        if len(ours.epochs) <= entry["epoch"]:  # else it was told before
            self._queue.epoch(number, entry)
            self._early.epoch(number, entry)
        verdict = self._early.verdict(number)
        if result["last"]:
            return self._end(ours, FINISHED)
        if verdict == DROP:
            self._end(ours, PRUNED)
        else:
            self._tell(ours)
        if verdict == GO_ON:
            return str(TrialScheduler.CONTINUE)
        if verdict == WAIT:
            self._waiting.add(number)
            self._live.pop(number)
        return self._ask_to_stop(ours) if self._places.on_ray_train else str(TrialScheduler.STOP)

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
        if ours.number not in self._waiting:
            self._end(ours, FAILED, f"its process ended: {lines[0] if lines else 'no message'}")
        self._follow()

    def _end(self, trial: Trial, status: str, error: str | None = None) -> str:
        if trial.status == RUNNING:
            self._queue.end(trial.number, status, error)
            if status == FAILED:
                self._early.fail(trial.number)
            self._live.pop(trial.number, None)
            self.tidy_up()  # of those before: this one's process may be at its last checkpoint still
            self._ended.append(trial)
            self._tell(trial)
        return str(TrialScheduler.STOP)

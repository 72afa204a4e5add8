"""A trial, in the process that Ray Tune gives it: one real training run, an epoch a step.

Ray Tune ── setup, step, save, cleanup ──► TrialTrainable ── in a thread ──► training.driver.train ──► a run's folder
    ▲                                            │
    └─────────────── an epoch each ──────────────┘  the last one only once the training has written its result
"""

from __future__ import annotations

import dataclasses
import logging
import math
import queue
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from es_service import errors
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune.trials import ENTRY
from es_service.storage.runs import RunStorage
from es_service.training.spec import TrainingSpec

__all__ = ["Job", "Training", "drop_checkpoints", "trainable"]

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_END_DEADLINE_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all trials of a search have in common.

    Args:
        storage: folder of the search's runs.
        whole: passes of a full training.
        backward_cost: forward passes that a backward pass counts as.
        metric: what trials are compared by.
        places: where trials train.
        stop: a file that is there once the search is to stop.
    """

    storage: str
    whole: float
    backward_cost: float
    metric: str
    places: Places
    stop: Path


def trainable(job: Job) -> type[tune.Trainable]:
    """Return the class that Ray Tune makes a trial of, with the resources of one."""

    class TrialTrainable(tune.Trainable):
        """One trial after the other, where Ray Tune uses its process again."""

        def setup(self, config: dict[str, Any]) -> None:
            """Take a trial; it begins at its first step."""
            self._training = Training(job, TrainingSpec.from_dict(config["spec"]))

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Take the next trial."""
            self._training.end()
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            """Train an epoch."""
            return self._training.step()

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:  # noqa: ARG002 - the contract's argument
            """Return the trial's progress; the run's folder holds its checkpoint."""
            return {"epochs": self._training.reported}

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Restore its progress."""
            self._training.reported = checkpoint["epochs"]

        def cleanup(self) -> None:
            """End a training that is under way; one in this process ends with it."""
            self._training.end(wait=job.places.on_ray_train)

    return TrialTrainable


class Training:
    """A training run that waits after each epoch until the next one is requested.

    Args:
        job: of the search.
        spec: what to train. A run that is there is continued from its last checkpoint; one that has ended is reported.
    """

    def __init__(self, job: Job, spec: TrainingSpec) -> None:
        self.reported = 0  # epochs
        self._job, self._spec, self._kept = job, spec, RunStorage(job.storage, spec.run)
        self._epochs = spec.epochs or 0
        self._results: queue.Queue[dict[str, Any]] = queue.Queue()
        self._go_on = threading.Semaphore(0)
        self._is_ending = False
        self._thread: threading.Thread | None = None

    def step(self) -> dict[str, Any]:
        """Return the next epoch: ENTRY, "epochs", and "last" and "done" with the last one.

        Or {"failed": why, "done": True}: a result, so that its message stays whole and the process can be reused. Or
        {"stopped": True}, where the run, or the whole search, was asked to stop.

        Raises:
            TrainingError: it has ended; what it ended with was returned before.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="es-service-trial", daemon=True)
            self._thread.start()
        self._go_on.release()
        while True:
            has_ended = not self._thread.is_alive()  # asked first: it puts its last result before it ends
            try:
                return self._results.get(block=not has_ended, timeout=_LOOK_EVERY_S)
            except queue.Empty:
                if has_ended:
                    raise errors.TrainingError(
                        f"run {self._spec.run!r} has ended, with its last epoch or a failure: there is no further one"
                    ) from None
                if self._job.stop.exists():
                    self.end(wait=self._job.places.on_ray_train)
                    return {"stopped": True}

    def end(self, *, wait: bool = True) -> None:
        """End the training; that of Ray Train in order, with its workers, their placement group and its server."""
        if self._thread is None:
            return
        self._is_ending = True
        self._go_on.release()
        for _ in range(round(_END_DEADLINE_S / _LOOK_EVERY_S) if wait else 0):
            if self._job.places.on_ray_train and self._kept.exists():
                from es_service.training.workers.ray import ask_to_stop

                ask_to_stop(self._job.storage, self._spec.run)
            self._thread.join(_LOOK_EVERY_S)
            if not self._thread.is_alive():
                break

    def _run(self) -> None:
        self._go_on.acquire()
        try:
            self._train()
        except errors.StoppedError:
            self._results.put({"stopped": True})
        except Exception as error:  # a user's own task may raise anything, and the search continues
            _LOG.exception("run %s failed", self._spec.run)
            own = isinstance(error, errors.EsServiceError)
            self._results.put({"failed": str(error) if own else f"{type(error).__name__}: {error}", "done": True})

    def _train(self) -> None:
        import torch

        from es_service.training.driver import train

        spec, places = self._spec, self._job.places
        if not self._is_ours():
            shutil.rmtree(self._kept.path, ignore_errors=True)
        result = self._kept.result() if self._kept.exists() else None
        if result is None:
            if not places.on_ray_train:
                torch.set_num_threads(max(1, math.floor(places.cpus)))
            elif self._kept.exists():
                from es_service.training.workers.ray import ask_to_stop

                ask_to_stop(self._job.storage, spec.run, asked=False)  # an earlier command was
            spec = dataclasses.replace(spec, storage=self._job.storage, resume=self._kept.exists())
            result = train(spec, self._watch)
        self._report(result["history"], last=self._epochs)
        if self.reported < self._epochs:
            raise errors.TrainingError("its training returned before the last epoch")

    def _is_ours(self) -> bool:
        """Return whether the run's folder is of these settings: a killed search may have used the name for others."""
        begun = (self._kept.training() or {}) if self._kept.exists() else {}
        names = ("selection", "seed", "epochs", "batch_size", "learning_rate")
        now = self._spec.description()
        return all(begun.get(name) == now[name] for name in names)

    def _watch(self, stats: Mapping[str, Any]) -> None:
        """Report the known epochs but the last, which waits for the result."""
        if stats["progress"]:
            history = stats["progress"]["history"]
            evaluated = [one for one in history if None not in (one["accuracy"], self._value(one))]
            self._report(evaluated, last=self._epochs - 1)

    def _report(self, history: list[dict[str, Any]], last: int) -> None:
        """Report the epochs below `last` that are new, and wait after each."""
        for entry in history[self.reported : last]:
            self.reported += 1
            is_last = self.reported == self._epochs
            self._results.put({**self._entry(entry), "epochs": self.reported, "last": is_last, "done": is_last})
            self._go_on.acquire()
            if self._is_ending:
                raise errors.StoppedError(f"run {self._spec.run!r} was asked to stop")

    def _value(self, entry: Mapping[str, Any]) -> float | None:
        """Return what trials are compared by, as it was at an epoch's end."""
        found: float | None = {**entry, **entry["metrics"]}.get(self._job.metric)
        return found

    def _entry(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        prepared = self._kept.read_note("prepared") or {}
        scored, trained = (entry[name] + prepared.get(name, 0) for name in ("scored", "trained"))
        return {
            **{name: entry[name] for name in ENTRY[:5]},
            self._job.metric: self._value(entry),
            "scored": scored,
            "trained": trained,
            "cost": (scored + (1 + self._job.backward_cost) * trained) / self._job.whole,
            "seconds": entry["seconds"] + prepared.get("seconds", 0.0),
        }


def drop_checkpoints(storage: Path, run: str) -> None:
    """Remove the checkpoints of a run that has ended: its table and its result stay."""
    for name in ("checkpoints", "train"):
        shutil.rmtree(storage / run / name, ignore_errors=True)

"""A group of Ray Train workers: what each does, and how the loop calls the group."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train import torch as ray_torch

from es_service import errors
from es_service.connect import connect
from es_service.storage import files
from es_service.storage.runs import RunStorage
from es_service.training import proxies
from es_service.training.irreducible import read_losses
from es_service.training.loop import fit
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task, quietly

__all__ = ["RayWorkers", "ask_to_stop", "work"]

_STOP = "stop"  # note in the run's folder


def ask_to_stop(storage: str, run: str, *, asked: bool = True) -> None:
    """Ask a stoppable training to stop, or take that back.

    Its workers, their placement group and its score server then end in order, which they do not where the process that
    started it is killed: Ray Train keeps the placement group until its own watcher sees that, for
    which it needs Ray's dashboard.
    """
    RunStorage(storage, run).write_note(_STOP, {"asked": asked})


class RayWorkers:
    """The group of Ray Train workers; see `Workers`.

    Args:
        run: folder of a run that may be asked to stop, see `ask_to_stop`; None where it will not be.
    """

    def __init__(self, run: RunStorage | None = None) -> None:
        self._run = run
        context = train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray_torch.get_device()

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """See `Workers.prepare`."""
        prepared: torch.nn.Module = ray_torch.prepare_model(model)
        return prepared

    def share_buffers(self, model: torch.nn.Module) -> None:
        """See `Workers.share_buffers`."""
        if self.world_size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def gather(self, value: Any) -> list[Any]:
        """See `Workers.gather`."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """See `Workers.report`."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save(Path(folder))
                checkpoint = train.Checkpoint.from_directory(folder)
            with files.storage_errors("write", "the checkpoint to the folder of the run"):  # Ray copies it there
                train.report(metrics, checkpoint=checkpoint)

    def raise_if_stopped(self) -> None:
        """See `Workers.raise_if_stopped`; the group then ends, of which this is a failed worker."""
        if self._run is not None and (self._run.read_note(_STOP) or {}).get("asked"):
            raise errors.StoppedError(f"run {self._run.run!r} was asked to stop: continue it with --resume")

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """See `Workers.checkpoint`."""
        found = train.get_checkpoint()
        if found is None:
            yield None
            return
        with found.as_directory() as folder:
            yield Path(folder)


def work(values: dict[str, Any]) -> None:
    """Run the loop on one worker.

    Args:
        values: `TrainingSpec.to_dict()` of a filled spec.
    """
    spec = TrainingSpec.from_dict(values)
    with quietly():
        task = build_task(spec.task, spec.data, spec.derived, spec.options)
    config = spec.config(len(task.train_set))
    selector = connect(
        spec.run,
        spec.selection,
        num_samples=config.num_samples,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        irreducible_losses=None if spec.irreducible is None else read_losses(spec.irreducible, config.num_samples),
        tokens=getattr(task, "tokens", None),
        exchange=spec.exchange,  # type: ignore[arg-type]  # "embedded" has no workers
        every=spec.every,
        storage=spec.storage,
    )
    try:
        run = RunStorage(spec.storage, spec.run) if spec.search is not None else None  # a search may end its trials
        with proxies.started(spec, config.num_epochs) as scorer:
            settings = spec.settings(task.defaults)
            fit(task, selector, settings, RayWorkers(run), scorer, weights_every=spec.weights_every)
    finally:
        selector.close()

"""Reviews and flights from the real packages: `make data` fetches them; where they are not, these tests are skipped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import es_service as es
from es_service import errors
from es_service.training.loop import TrainSettings, fit
from es_service.training.tasks import build_task
from es_service.training.tasks.base import Task
from es_service.training.workers.local import LocalWorkers

DATA = Path(__file__).parents[2] / "data"
TASKS = {"reviews": (8_455, 2_113, 0.75), "flights": (40_000, 10_000, 0.81)}


def real(name: str) -> Task:
    """The task from data/ where it exists, else from the installed package, else a skipped test."""
    if DATA.exists():
        return build_task(name, str(DATA))
    try:
        return build_task(name)
    except errors.DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TASKS)
def test_the_real_data_are_read_whole(name: str) -> None:
    task = real(name)
    assert (len(task.train_set), len(task.held_out)) == TASKS[name][:2]
    if task.labels is not None and task.held_out_labels is not None:
        assert np.bincount(task.labels).tolist() == [4_261, 4_194]
        assert np.bincount(task.held_out_labels).tolist() == [1_065, 1_048]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("reviews", "69e07b600cef76b8702f0761b7ba80d628b8ca4ff5a5311e3f50d29496828052"),
        ("flights", "45c32a544921c2956bf231f5466136d6827c8dbfeeca6e31f9c85409df35b640"),
    ],
)
def test_the_ids_never_change(name: str, expected: str) -> None:
    """Scores, checkpoints and published figures speak of these ids; of scaled numbers the last bit may change."""
    task, digest = real(name), hashlib.sha256()
    for samples in (task.train_set, task.held_out):
        batch = samples.__getitems__(range(len(samples)))
        whole = batch if name == "reviews" else [batch.inputs[:, 4:]]  # the rest of a flight are scaled numbers
        for part in whole:
            digest.update(part.numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == expected


@pytest.mark.parametrize("name", TASKS)
def test_full_training_with_the_defaults_gets_there(name: str, tmp_path: Path) -> None:
    task, threads = real(name), torch.get_num_threads()
    defaults = task.defaults
    selector = es.Selector(
        es.Selection(es.methods.full()),
        num_samples=len(task.train_set),
        num_epochs=defaults.epochs,
        batch_size=2 * defaults.batch_size,  # they are those of one of two workers
    )
    torch.set_num_threads(1)
    try:
        metrics = fit(task, selector, TrainSettings(learning_rate=defaults.learning_rate), LocalWorkers(tmp_path))
    finally:
        torch.set_num_threads(threads)
    assert metrics["accuracy"] > TASKS[name][2]

"""A second start under one run name, and scripts that several processes run: what each is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.actors import launch
from es_service.storage.runs import RunStorage

SELECTION = es.Selection(es.methods.evolved(), anneal=(0, 0), seed=3)
SHAPE: dict[str, Any] = {"num_samples": 60, "num_epochs": 3, "batch_size": 10}


def connect(run: str, storage: str, **changes: Any) -> es.Selector:
    return es.connect(run, SELECTION, **SHAPE, **{"exchange": "sync", "storage": storage, **changes})


def train(selector: es.Selector, epochs: range) -> list[list[int]]:
    return [selector.select(ids, 1 + ids % 7).ids.tolist() for epoch in epochs for ids in selector.epoch(epoch)]


@pytest.mark.parametrize("server", ["stays", "stops"])
def test_a_second_start_goes_on_where_the_first_ended(server: str, run: str, storage: str) -> None:
    """As a notebook cell that is run again (its server is up), and a script that is (only the storage is left)."""
    alone = es.Selector(SELECTION, **SHAPE)
    expected = train(alone, range(3))
    first = connect(run, storage, resume="never")
    assert first.next_epoch == 0
    drawn = train(first, range(1))
    half = first.epoch(1)  # the cell was interrupted inside an epoch
    first.select(next(half), np.ones(10))
    if server == "stops":
        launch.stop(run)

    second = connect(run, storage)
    with pytest.raises(es.EpochOrderError, match=r"stands before epoch 1: .*begin at selector\.next_epoch"):
        next(second.epoch(0))
    second = connect(run, storage, resume="must")
    assert second.next_epoch == 1
    drawn += train(second, range(second.next_epoch, 3))
    assert drawn == expected
    assert second.next_epoch == 3

    with pytest.raises(es.RunExistsError, match=rf"resume='never', but run '{run}' was started in .*another run name"):
        connect(run, storage, resume="never")
    third = connect(run, storage)
    with pytest.warns(UserWarning, match="the run is finished: all its 3 epochs are made"):
        assert third.next_epoch == 3
    with pytest.raises(es.EpochOrderError, match=r"the run is finished: .*selector\.reset\(\)"):
        next(third.epoch(0))
    third.reset()
    assert connect(run, storage, resume="never").next_epoch == 0  # it is new again
    third.reset()
    assert train(third, range(3)) == expected


def test_a_run_that_has_to_exist_is_not_begun_by_looking_for_it(run: str, storage: str) -> None:
    with pytest.raises(es.RunNotFoundError, match=f"resume='must', but no run '{run}' was started in"):
        connect(run, storage, resume="must")
    assert not RunStorage(storage, run).exists()
    assert not launch.is_up(run)
    connect(run, storage)  # a server, and nothing that has begun
    with pytest.raises(es.RunNotFoundError):
        connect(run, storage, resume="must")


def test_a_late_rank_does_not_take_its_own_group_for_an_earlier_run(run: str, storage: str) -> None:
    ranks = [connect(run, storage, resume="never", rank=0, world_size=2, generation="one")]
    ids = next(ranks[0].epoch(0))  # the first has begun before the second looks
    ranks.append(connect(run, storage, resume="never", rank=1, world_size=2, generation="one"))
    assert not set(ids.tolist()) & set(next(ranks[1].epoch(0)).tolist())
    with pytest.raises(es.RunExistsError):
        connect(run, storage, resume="never", rank=0, world_size=2, generation="two")


def connect_replicas(storage: str, resume: str, epochs: int) -> Any:
    selector = es.connect("run", SELECTION, **SHAPE, exchange="collective", storage=storage, resume=resume)
    for epoch in range(epochs):
        for ids in selector.epoch(epoch):
            selector.select(ids, np.ones(ids.size))
    return selector.next_epoch


def test_replicas_are_told_on_every_rank(ranks: Any, storage: str) -> None:
    missing = ranks.run(connect_replicas, storage, "must", 0, world_size=2)
    assert [type(one) for one in missing] == [es.RunNotFoundError] * 2
    assert not RunStorage(storage, "run").exists()
    assert ranks.run(connect_replicas, storage, "never", 1, world_size=2) == [1, 1]
    taken = ranks.run(connect_replicas, storage, "never", 0, world_size=2)
    assert [type(one) for one in taken] == [es.RunExistsError] * 2
    assert ranks.run(connect_replicas, storage, "must", 0, world_size=2) == [1, 1]


TORCHRUN = """
import json, os, sys
import torch
import es_service as es

selection = es.Selection(es.methods.evolved())
shape = {"num_samples": 60, "num_epochs": 1, "batch_size": 10}
told = {}

def generation(name, call):
    try:
        call()
        told[name] = ""
    except es.EsServiceError as error:
        told[name] = f"{type(error).__name__}: {error}"

generation("early", lambda: es.connect("run", selection, **shape, storage=sys.argv[1]))
torch.distributed.init_process_group("gloo")
generation("own", lambda: es.Selector(selection, **shape))
generation("ray", lambda: es.connect("run", selection, **shape, storage=sys.argv[1]))
generation("collective", lambda: es.connect("run", selection, **shape, storage=sys.argv[1], exchange="collective"))
torch.distributed.barrier()
open(f"{sys.argv[2]}/{os.environ['RANK']}.json", "w").write(json.dumps(told))
torch.distributed.destroy_process_group()
"""


def test_ranks_of_torchrun_are_told_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
            *(str(script), str(tmp_path / "runs"), str(tmp_path)),
        ],
        env={**environment, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["early"].startswith(f"ConfigError: this process was started as rank {rank} of 2")
        assert "init_process_group() before es.connect" in told["early"]
        assert told["own"].startswith(f"ConfigError: this process is rank {rank} of 2")
        assert told["ray"].startswith(f"ConfigError: rank {rank} of 2 would start a Ray of its own")
        assert told["collective"] == ""


@pytest.mark.filterwarnings("ignore")  # of Ray, about itself
def test_a_selector_of_its_own_is_refused_in_a_group_of_ray_train(ray_cluster: Any, tmp_path: Path) -> None:
    from ray import train
    from ray.train.torch import TorchTrainer

    def worker() -> None:
        import es_service as es

        selection = es.Selection(es.methods.evolved())
        shape: dict[str, Any] = {"num_samples": 60, "num_epochs": 1, "batch_size": 10}
        told = ""
        try:
            es.Selector(selection, **shape)
        except es.ConfigError as error:
            told = str(error)
        es.Selector(selection, **shape, world_size=1)
        (tmp_path / f"{train.get_context().get_world_rank()}.txt").write_text(told)

    trainer = TorchTrainer(
        worker,
        scaling_config=train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.1}),
        run_config=train.RunConfig(storage_path=str(tmp_path)),
    )
    trainer.fit()
    for rank in range(2):
        told = (tmp_path / f"{rank}.txt").read_text()
        assert told.startswith(f"this process is rank {rank} of 2")
        assert "es.connect" in told

"""es.wrap on two ranks of torch.distributed, with a DistributedSampler and a worker process each; and its states."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wrapped_rank
from torch.utils import data

import es_service as es
from es_service import errors

SCRIPT = Path(wrapped_rank.__file__)


def start(folder: Path, epochs: int, state: str = "") -> list[subprocess.CompletedProcess[str]]:
    words = [str(folder), str(epochs), state]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), "2", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    return [
        subprocess.CompletedProcess(rank.args, rank.returncode, out) for rank, out in zip(ranks, outputs, strict=True)
    ]


def alone(batch_size: int = wrapped_rank.SIZE) -> es.SelectiveLoader:
    """The same run in one process."""
    selection = es.Selection(es.methods.evolved(), ratio=0.3, anneal=(0.33, 0), anneal_by="epochs")
    x = torch.zeros(wrapped_rank.NUM, 4)
    dataset = data.TensorDataset(x, x[:, 0].long(), torch.arange(wrapped_rank.NUM))
    return es.wrap(
        data.DataLoader(dataset, batch_size),
        selection,
        epochs=3,
        model=torch.nn.Linear(4, 2),
        losses=wrapped_rank.losses,
    )


def test_ranks_share_a_table_and_divide_every_epoch(tmp_path: Path) -> None:
    for done in start(tmp_path, 2):
        assert done.returncode == 0, done.stdout
    kept: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    annealing, selecting = ([set(one["seen"][epoch]) for one in kept] for epoch in range(2))
    assert annealing[0] | annealing[1] == set(range(wrapped_rank.NUM))
    assert not annealing[0] & annealing[1]
    assert [len(ids) for ids in selecting] == [18, 18]
    assert not selecting[0] & selecting[1]
    assert kept[0]["state"]["table"] == kept[1]["state"]["table"]
    assert torch.equal(kept[0]["weights"]["weight"], kept[1]["weights"]["weight"])

    # Between epochs, one process continues from what two had, if its meta-batch is as large; the table is the same.
    loader = alone()
    assert loader.load_state_dict(kept[0]["state"]) == 2
    assert loader.state_dict()["table"] == kept[0]["state"]["table"]
    with pytest.raises(errors.RunMismatchError, match="batch_size"):
        alone(2 * wrapped_rank.SIZE).load_state_dict(kept[0]["state"])

    # A state from the middle of an epoch is of one process.
    loader = alone()
    for batch, _ in loader:
        loader.mean(torch.ones(len(batch[2])))
        break
    torch.save(loader.state_dict(), tmp_path / "inside.pt")
    for done in start(tmp_path, 1, str(tmp_path / "inside.pt")):
        assert done.returncode != 0
        assert "ConfigError: this state was saved inside an epoch, by a selector of its own process" in done.stdout

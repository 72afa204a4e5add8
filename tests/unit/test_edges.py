"""Settings at the ends of what is allowed, and many ranks: every epoch ends, every sample of it is seen by one rank."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection.local_run import LocalRun
from es_service.selection.named import PRESETS, preset
from es_service.selection.run import RunConfig

SIZES = [  # num_samples, batch_size, ratio, prune_ratio
    (1, 1, 1.0, 0.0),
    (2, 1, 0.5, 0.0),
    (2, 2, 0.01, 0.0),
    (7, 2, 0.01, 0.85),
    (10, 3, 1.0, 0.0),
    (10, 9, 0.5, 0.1),
    (100, 1, 0.5, 0.99),
]
LENGTHS: list[dict[str, Any]] = [
    {"num_epochs": 1, "anneal": (0.0, 0.0)},
    {"num_epochs": 1, "anneal": (1.0, 0.0)},
    {"num_epochs": 3, "anneal": (0.0, 0.99)},
    {"num_epochs": 3, "anneal": (0.34, 0.34)},
]


def epochs_of(selection: es.Selection, world_size: int, sizes: dict[str, int]) -> list[list[np.ndarray[Any, Any]]]:
    """Train nothing for all epochs, one rank after the other; return each rank's ids of each epoch."""
    keeper = LocalRun(RunConfig(selection=selection, **sizes))
    ranks = [
        es.Selector(selection, **sizes, exchange=Embedded(keeper, Position(rank, world_size)))
        for rank in range(world_size)
    ]
    found: list[list[np.ndarray[Any, Any]]] = []
    for epoch in range(sizes["num_epochs"]):
        found.append([])
        for selector in ranks:
            seen = [np.empty(0, dtype=np.int64)]
            for ids in selector.epoch(epoch):
                losses = (1 + ids % 5).astype(np.float32)
                draw = selector.select(ids, losses if selector.wants_scores else None)
                assert 1 <= draw.positions.size <= ids.size
                assert np.isfinite(draw.scale).all()
                selector.observe(losses[draw.positions])
                seen.append(ids)
            found[-1].append(np.concatenate(seen))
    return found


@pytest.mark.filterwarnings("ignore::es_service.errors.NothingSelectedWarning")
@pytest.mark.parametrize(("sizes", "length"), list(itertools.product(SIZES, LENGTHS)))
def test_a_run_at_the_edge_of_what_is_allowed_ends(sizes: tuple[Any, ...], length: dict[str, Any]) -> None:
    num, batch_size, ratio, prune_ratio = sizes
    chosen: dict[str, Any] = {"ratio": ratio, "prune_ratio": prune_ratio, "anneal": length["anneal"]}
    selection = es.Selection(es.methods.evolved(), **chosen)
    run = {"num_samples": num, "batch_size": batch_size, "num_epochs": length["num_epochs"]}
    for [ids] in epochs_of(selection, 1, run):
        assert np.unique(ids).size == ids.size > 0


@pytest.mark.parametrize("name", sorted({"es", "eswp", "infobatch", "random"} & set(PRESETS)))
def test_64_ranks_share_out_every_epoch(name: str) -> None:
    selection = preset(name)
    for ids in epochs_of(selection, 64, {"num_samples": 1000, "batch_size": 4, "num_epochs": 3}):
        whole = np.concatenate(ids)
        assert np.unique(whole).size == whole.size
        assert len({part.size for part in ids}) == 1  # as many steps on every rank
        assert whole.size > 1000 - 64 or selection.prune_ratio > 0 or name == "infobatch"

"""Scorers on a real Ray: the trainer draws as if it had scored itself, counts what they cost, and goes without them.

Proxies are made inside the tests: what is pickled by value needs no module of the tests in the scorer's process.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.selector import Selector
from es_service.storage.runs import RunStorage
from es_service.storage.table_files import encode_table
from es_service.training.driver import train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.derived import Derived

pytestmark = pytest.mark.usefixtures("ray_cluster")
SHAPE: dict[str, Any] = {"num_samples": 400, "num_epochs": 4, "batch_size": 32}
SELECTION = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0.25, 0), anneal_by="epochs", interrupt=9, seed=3)


def losses_at(ids: Any, epoch: int) -> Any:
    return np.abs(np.sin(ids * (epoch + 1))).astype(np.float32)


def known() -> Callable[..., Any]:
    """Make a proxy whose losses follow from the sample and the epoch."""

    def make() -> Any:
        import numpy as np

        return lambda ids, at: np.abs(np.sin(ids * (int(at) + 1))).astype(np.float32)

    return make


def loop(selector: Selector, scorer: es.Scorer | None) -> list[list[int]]:
    drawn = []
    for epoch in range(SHAPE["num_epochs"]):
        for ids_B in selector.epoch(epoch):
            losses_B = None if scorer is None else scorer.losses(selector)
            if losses_B is not None:
                draw = selector.select(ids_B, losses_B, by_scorer=True)
            else:
                draw = selector.select(ids_B, losses_at(ids_B, epoch) if selector.wants_scores else None)
                selector.observe(losses_at(draw.ids, epoch))
            drawn.append(draw.ids.tolist())
    return drawn


@pytest.mark.parametrize(
    "exchange", ["leased", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("sync", "prefetch"))]
)
def test_draws_and_table_are_those_of_a_trainer_that_scores_itself(exchange: Any, run: str, storage: str) -> None:
    alone = es.Selector(SELECTION, **SHAPE)
    expected = loop(alone, None)
    helped = es.Selector(SELECTION, **SHAPE)
    served = es.connect(run, SELECTION, **SHAPE, storage=storage, exchange=exchange)
    scorer = es.Scorer(known(), cost=0.25, num=2, ahead=3)
    for selector in (helped, served):  # one scorer after the other: it follows whichever epoch is open
        assert loop(selector, scorer) == expected
        assert encode_table(selector.table()) == encode_table(alone.table())
    scorer.close()
    served.close()
    ledger = helped.ledger
    assert (ledger.scored, ledger.scorer_scored, ledger.scorer_trained) == (0, alone.ledger.scored, 0)
    assert ledger.trained == alone.ledger.trained
    assert ledger.scorer_passes == 0.25 * alone.ledger.scored
    assert ledger.scorer_s > 0
    for name, share in alone.ledger.saving().items():
        if name == "cost":
            assert share is not None
            assert ledger.saving()[name] == pytest.approx(share + 0.75 * alone.ledger.scored / (3 * ledger.full))
        elif name == "samples":
            assert ledger.saving()[name] == share


def test_what_a_proxy_does_wrong_is_an_error_that_says_so() -> None:
    def broken() -> Any:
        raise LookupError("no such model")

    with pytest.raises(es.ConfigError, match="could not make its proxy: LookupError: no such model"):
        es.Scorer(broken, cost=1.0)
    with pytest.raises(es.ConfigError, match=r"cannot be sent to a scorer's process: .*lock"):
        es.Scorer(functools.partial(known, threading.Lock()), cost=1.0)
    for setting in ({"cost": 0.0}, {"cost": 1.0, "ahead": 0}, {"cost": 1.0, "num": 0}, {"cost": 1.0, "deadline_s": 0}):
        with pytest.raises(es.ConfigError, match=next(reversed(setting))):
            es.Scorer(known(), **setting)  # type: ignore[arg-type]

    scorer = es.Scorer(lambda: lambda ids, at: np.ones(3), cost=1.0)
    selector = es.Selector(dataclasses.replace(SELECTION, anneal=(0, 0)), **SHAPE)
    with pytest.raises(es.EpochOrderError, match="none is open"):
        scorer.losses(selector)
    for _ in selector.epoch(0):
        with pytest.raises(es.ShapeError, match=r"losses of shape \(3,\) for 32 samples"):
            scorer.losses(selector)
        break
    streaming = es.Selector(SELECTION, **SHAPE)
    for _ in streaming.stream(0, iter([{"id": [1, 2, 3]}])):
        with pytest.raises(es.ConfigError, match="not a stream"):
            scorer.losses(streaming)
        break
    scorer.close()


class EndedHere(Exception):
    """What ends a training in the middle."""


def spec(storage: Path, **changes: Any) -> TrainingSpec:
    values: dict[str, Any] = {
        "run": "scored",
        "storage": str(storage),
        "task": "fashion",
        "derived": Derived(limit=256),
        "method": "es",
        "selection": es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0.3, 0), anneal_by="epochs"),
        "exchange": "embedded",
        "epochs": 3,
        "batch_size": 32,
        "scorers": 1,
        "proxy": "small",
    }
    return TrainingSpec(**{**values, **changes})


def left(storage: Path, result: dict[str, Any]) -> Any:
    """What follows from the seed alone."""
    names = ("accuracy", "held_out_loss", "train_loss", "scored", "trained")
    history = [{name: one[name] for name in names} for one in result["history"]]
    return encode_table(RunStorage(str(storage), result["run"]).table()), history


@pytest.mark.thorough
@pytest.mark.parametrize("proxy", ["small", "self"])
def test_a_run_with_scorers_is_continued_where_it_ended(proxy: str, tmp_path: Path) -> None:
    whole = train(spec(tmp_path / "whole", proxy=proxy), lambda _: None)
    scored = 256 * (3 if proxy == "small" else 2)  # what learns is shown the annealing epoch too
    assert (whole["samples"]["scored"], whole["scorers"]["scored"]) == (0, scored)
    assert whole["scorers"]["trained"] == (scored if proxy == "small" else 0)
    assert (whole["scorers"]["lost"], whole["proxy"]) == (0, proxy)
    passes, samples = whole["scorers"]["passes"], whole["samples"]
    assert whole["saving"]["cost"] == pytest.approx(1 - (3 * samples["trained"] + passes) / (3 * samples["full"]))
    seen = []

    def end(stats: dict[str, Any]) -> None:
        if stats["progress"] and len(stats["progress"]["history"]) == 2 and not seen:  # behind a checkpoint
            seen.append(stats["progress"]["saving"]["cost"])
            raise EndedHere

    part = spec(tmp_path / "part", proxy=proxy)
    with pytest.raises(EndedHere):
        train(part, end)
    again = train(dataclasses.replace(part, resume=True), lambda _: None)
    assert left(tmp_path / "part", again) == left(tmp_path / "whole", whole)
    assert again["scorers"]["scored"] == scored


@pytest.mark.thorough
def test_learnability_goes_by_the_proxys_own_reference(tmp_path: Path) -> None:
    selection = es.Selection(es.methods.rho(), ratio=0.25, anneal=(0, 0), draw="topk")
    result = train(spec(tmp_path, method="rho", selection=selection), lambda _: None)
    assert result["scorers"]["scored"] == 3 * 256
    assert result["prepared"]["scored"] == 0
    assert 0 < result["prepared"]["trained"] < 2 * 256  # two models on half the samples for two epochs, but small ones
    assert result["prepared"]["seconds"] > 0


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of Ray, about itself
@pytest.mark.parametrize("exchange", ["leased", "collective"])
def test_each_worker_has_scorers_of_its_own(exchange: Any, tmp_path: Path) -> None:
    results = [
        train(spec(tmp_path / name, exchange=exchange, workers=2, scorers=2, batch_size=16), lambda _: None)
        for name in ("one", "other")
    ]
    assert left(tmp_path / "one", results[0]) == left(tmp_path / "other", results[1])
    assert results[0]["samples"]["scored"] == 0
    assert results[0]["scorers"]["scored"] == 3 * 256

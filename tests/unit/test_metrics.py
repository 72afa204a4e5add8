"""`selector.metrics()`: each number against one computed by hand, and what it may cost."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.measures import effective_ratio
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import RunConfig

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

SIZES = {"num_samples": 60, "num_epochs": 4, "batch_size": 20}
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def make(method: es.methods.Method | None = None, *, sizes: dict[str, Any] = SIZES, **settings: Any) -> es.Selector:
    settings = {"ratio": 0.25, "anneal": (0.0, 0.0), "seed": 3, **settings}
    return es.Selector(
        es.Selection(method or es.methods.evolved(), **settings), clock=itertools.count().__next__, **sizes
    )


def losses_of(ids: I64) -> F32:
    return (1.0 + ids % 7).astype(np.float32)


def step(selector: es.Selector, ids: I64) -> es.Draw:
    """Select by the losses where they are needed, else hand those of the draw over."""
    if selector.wants_scores:
        return selector.select(ids, losses_of(ids))
    draw = selector.select(ids)
    selector.observe(losses_of(draw.ids))
    return draw


def metrics(selector: es.Selector) -> dict[str, float]:
    found = selector.metrics()
    assert all(name.startswith("selection/") for name in found)
    assert all(type(value) is float and math.isfinite(value) for value in found.values()), found
    return {name.removeprefix("selection/"): value for name, value in found.items()}


def close(*values: Any) -> Any:
    return pytest.approx(values[0] if len(values) == 1 else values, rel=1e-5)


def test_nothing_is_known_before_the_first_epoch() -> None:
    assert metrics(make()) == {"num_skipped": 0}


def test_a_scored_step_by_hand() -> None:
    selector, all_B, drawn_b = make(), [], []
    for number, ids in enumerate(selector.epoch(0)):
        draw = step(selector, ids)
        all_B.append(losses_of(ids))
        drawn_b.append(losses_of(draw.ids))
        found = metrics(selector)
        assert (found["epoch"], found["step"]) == (0, number)
        assert (found["num_candidates"], found["num_selected"], found["selected_ratio"]) == (20, 5, 0.25)
        assert (found["loss_all"], found["loss_selected"]) == close(all_B[-1].mean(), drawn_b[-1].mean())
        assert (found["loss_all_epoch"], found["loss_selected_epoch"]) == close(np.mean(all_B), np.mean(drawn_b))
        weights = selector.table()["w"].to_numpy()[ids].astype(float)
        assert found["effective_sample_ratio"] == close(weights.sum() ** 2 / (20 * (weights**2).sum()))
        assert found["effective_sample_ratio"] < 0.95
        assert found["effective_scale_ratio"] == 1
        assert found["staleness_epochs"] == 0
        # Of the run: the step at hand counts on both sides.
        assert (found["selected_ratio_run"], found["saved_ratio_samples"]) == (0.25, 0.75)
        assert found["saved_ratio_cost"] == close(1 - (1 + 3 * 0.25) / 3)
        assert found["seen_ratio"] == found["seen_ratio_epoch"] == found["seen_ratio_plan"] == close((number + 1) / 3)
        assert found["seconds_exchange"] > 0
        assert not {"seconds_train", "seconds_data", "saved_ratio_seconds"} & set(found)
    assert found["loss_selected_epoch"] > found["loss_all_epoch"]
    assert metrics(selector)["seconds_total"] == selector.ledger.total_s


def test_what_is_known_stays_when_the_epoch_is_closed_and_begins_anew_with_the_next() -> None:
    selector = make()
    for ids in selector.epoch(0):
        step(selector, ids)
    ended = metrics(selector)
    assert (ended["step"], ended["seen_ratio"], ended["selected_ratio_run"]) == (2, 1, 0.25)
    batches = selector.epoch(1)
    ids = next(batches)
    opened = metrics(selector)
    assert not {"step", "loss_all", "loss_all_epoch", "num_selected"} & set(opened)
    assert (opened["epoch"], opened["seen_ratio_epoch"], opened["seen_ratio"]) == (1, 0, 1)
    step(selector, ids)
    assert metrics(selector)["step"] == 3
    assert metrics(selector)["loss_all_epoch"] == close(losses_of(ids).mean())
    next(batches)
    assert metrics(selector)["step"] == 3  # the next step has not drawn yet


def test_a_weighted_loss_has_a_smaller_effective_sample() -> None:
    selector = make(reweight="unbiased")
    draw = step(selector, next(selector.epoch(0)))
    scale = draw.scale.astype(float)
    assert scale.std() > 0
    assert metrics(selector)["effective_scale_ratio"] == close(scale.sum() ** 2 / (5 * (scale**2).sum()))


def test_steps_that_train_on_everything_or_at_random_measure_all_by_what_was_observed() -> None:
    for selector in (make(anneal=(0.25, 0.0)), make(es.methods.random())):
        draw = step(selector, next(selector.epoch(0)))
        found = metrics(selector)
        assert found["loss_all"] == found["loss_selected"] == close(losses_of(draw.ids).mean())
        assert found["effective_sample_ratio"] == 1
        assert found["seen_ratio"] == close(draw.ids.size / 60)
        assert "staleness_epochs" not in found


def test_a_draw_whose_losses_are_still_to_come_has_none() -> None:
    selector = make(es.methods.random())
    selector.select(next(selector.epoch(0)))
    found = metrics(selector)
    assert found["num_selected"] == 5
    assert not {"loss_all", "loss_selected", "selected_ratio_run"} & set(found)


def test_losses_that_are_re_used_are_old_and_say_nothing_of_all() -> None:
    selector = make(score_every=3)
    for epoch in range(3):
        for ids in selector.epoch(epoch):
            draw = step(selector, ids)
        assert metrics(selector)["staleness_epochs"] == epoch
    found = metrics(selector)
    assert not {"loss_all", "loss_all_epoch"} & set(found)
    assert found["loss_selected"] == close(losses_of(draw.ids).mean())


def test_losses_that_are_skipped_count_nowhere() -> None:
    selector = make(on_bad_loss="skip")
    ids = next(selector.epoch(0))
    losses = losses_of(ids)
    losses[[1, 4]] = np.nan
    draw = selector.select(ids, losses)
    found = metrics(selector)
    assert (found["num_skipped"], found["num_candidates"]) == (2, 20)
    assert found["loss_all"] == close(np.nanmean(losses))
    assert found["loss_selected"] == close(losses[draw.positions].mean())
    assert found["seen_ratio"] == close(18 / 60)


def test_a_stream_counts_distinct_samples_and_no_coverage() -> None:
    selector = make(sizes={**SIZES, "num_samples": None})
    batch = np.array([5, 1, 5, 5, 2, 3, 4, 6])
    losses = np.array([2, 3, 4, 6, 9, 1, 1, 1], dtype=np.float32)  # of id 5: mean 4
    for _ in selector.stream(0, [batch], ids=lambda one: one):
        draw = selector.select(batch, losses)
    found = metrics(selector)
    by_id = {5: 4.0, 1: 3.0, 2: 9.0, 3: 1.0, 4: 1.0, 6: 1.0}
    assert found["loss_all"] == close(np.mean(list(by_id.values())))
    assert found["loss_selected"] == close(np.mean([by_id[one] for one in set(draw.ids.tolist())]))
    assert (found["num_candidates"], found["num_selected"]) == (8, 2)
    assert not {"seen_ratio", "seen_ratio_epoch", "seen_ratio_plan"} & set(found)


def test_pruned_epochs_see_their_plan_and_forget_nothing() -> None:
    selector = make(prune_ratio=0.5, anneal=(0.25, 0.0))
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            step(selector, ids)
    found = metrics(selector)
    assert (found["seen_ratio"], found["seen_ratio_epoch"], found["seen_ratio_plan"]) == (1, 0.5, 1)
    assert found["selected_ratio_run"] == close((60 + 5 + 3) / 120)  # of 20 and 10 that were planned


def test_hidden_samples_are_seen_when_they_are_refreshed() -> None:
    selector = es.Selector(preset("kakurenbo", anneal=(0, 0), seed=3), **SIZES)  # type: ignore[arg-type]

    def signals(ids: I64) -> dict[str, F32]:
        return {
            "loss": losses_of(ids),
            "correct": np.ones(ids.size, dtype=np.float32),
            "confidence": np.full(ids.size, 0.95, dtype=np.float32),
        }

    for epoch in range(2):
        for ids in selector.epoch(epoch):
            draw = selector.select(ids)
            selector.observe(signals(draw.ids))
    trained = metrics(selector)
    assert 0 < trained["seen_ratio_epoch"] < 1
    assert trained["seen_ratio_plan"] == trained["seen_ratio_epoch"]
    for ids in selector.hidden_batches():
        assert metrics(selector)["selected_ratio_run"] == trained["selected_ratio_run"]
        selector.refresh(ids, signals(ids))
    assert (metrics(selector)["seen_ratio_epoch"], metrics(selector)["seen_ratio_plan"]) == (1, 1)


def test_ranks_count_for_each_other() -> None:
    config = RunConfig.of(es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=3), 60, 4, 10)
    keeper, sizes = LocalRun(config), {**SIZES, "batch_size": 10}
    ranks = [
        es.Selector(config.selection, **sizes, exchange=Embedded(keeper, Position(rank, 2)))  # type: ignore[arg-type]
        for rank in range(2)
    ]
    for ids in zip(*(selector.epoch(0) for selector in ranks), strict=True):
        for selector, ids_B in zip(ranks, ids, strict=True):
            step(selector, ids_B)
    assert [metrics(selector)["seen_ratio"] for selector in ranks] == [1, 1]
    assert [metrics(selector)["step"] for selector in ranks] == [2, 2]


def test_seconds_are_those_of_the_steps_that_are_over() -> None:
    selector = make(anneal=(0.25, 0.0), sizes={**SIZES, "num_samples": 200})
    for ids in selector.epoch(0):
        step(selector, ids)
    batches = selector.epoch(1)
    step(selector, next(batches))
    ids = next(batches)
    before = metrics(selector)
    step(selector, ids)
    found = metrics(selector)  # what the step at hand trains on is still to take its time
    assert found["seconds_total"] == before["seconds_total"] == selector.ledger.total_s
    assert found["saved_ratio_seconds"] == selector.ledger.saving()["seconds"]
    assert found["saved_ratio_samples"] == close(1 - (200 + 10) / 240)


def test_a_restart_measures_from_where_it_begins() -> None:
    selector = make()
    for ids in itertools.islice(selector.epoch(0), 2):
        step(selector, ids)
    restarted = make()
    restarted.load_state_dict(selector.state_dict())
    kept = ("num_skipped", "selected_ratio_run", "saved_ratio_samples", "saved_ratio_cost")
    found = metrics(restarted)
    assert {name for name in found if not name.startswith("seconds_")} == set(kept)
    assert [found[name] for name in kept] == [metrics(selector)[name] for name in kept]
    ids = next(restarted.epoch(0))
    step(restarted, ids)
    assert metrics(restarted)["step"] == 2
    assert metrics(restarted)["seen_ratio"] == close(20 / 60)
    restarted.reset()
    assert metrics(restarted) == {"num_skipped": 0}


def test_shares_do_not_exceed_1_by_rounding() -> None:
    weights = [np.random.default_rng(seed).random(1) * np.ones(13) for seed in range(200)]
    assert max(effective_ratio(one) or 0.0 for one in weights) == 1


def test_no_table_and_no_server_is_asked() -> None:
    class Silent:
        position = Position(0, 1)

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"metrics() asked the exchange for its {name}")

    selector = make()
    step(selector, next(selector.epoch(0)))
    before = metrics(selector)
    selector.exchange = Silent()
    assert metrics(selector) == before


def test_every_name_is_documented_and_every_documented_name_is_there() -> None:
    documented = set(re.findall(r"^\| `(selection/\w+)` \|", REFERENCE.read_text(), flags=re.MULTILINE))
    selector = make(anneal=(0.25, 0.0), sizes={**SIZES, "num_samples": 200, "tokens": np.arange(200)})
    for epoch in range(2):
        for ids in selector.epoch(epoch):
            with selector.ledger.timing("score"), selector.ledger.timing("data"), selector.ledger.timing("train"):
                step(selector, ids)
    decides = make(es.methods.auto(), guard=False)
    for epoch in range(3):
        for ids in decides.epoch(epoch):
            step(decides, ids)
    assert set(selector.metrics()) < documented
    assert set(selector.metrics()) | set(decides.metrics()) == documented

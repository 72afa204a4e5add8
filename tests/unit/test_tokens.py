"""Tokens beside samples: what was scored, trained on and left out, by hand; kept with states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import es_service as es
from es_service import errors
from es_service.api.runs.ledgers import ledger as shown
from es_service.ledger import Ledger
from es_service.storage.runs import RunStorage

NUM, SIZE, EPOCHS = 90, 20, 4
TOKENS = np.random.default_rng(3).integers(0, 50, NUM)


def make(tokens: Any = TOKENS, method: Any = None, **changes: Any) -> es.Selector:
    more = {name: changes.pop(name) for name in ("run", "storage") if name in changes}
    settings = {"ratio": 0.25, "prune_ratio": 0.3, "anneal": (0.25, 0), "seed": 3, **changes}
    selection = es.Selection(es.methods.evolved() if method is None else method, **settings)
    return es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE, tokens=tokens, **more)


def losses_of(ids: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    losses = (1 + ids % 7).astype(np.float32)
    return {"loss": losses, "confidence": 1 - losses / 10, "correct": np.ones(ids.size, dtype=np.float32)}


class Counts:
    """Tokens as they come by."""

    def __init__(self) -> None:
        self.scored = self.trained = self.planned = 0

    def epoch(self, selector: es.Selector, epoch: int, steps: int | None = None) -> None:
        for step, ids in enumerate(selector.epoch(epoch)):
            self.planned += int(TOKENS[ids].sum())
            if selector.wants_scores:
                draw = selector.select(ids, losses_of(ids))
                self.scored += int(TOKENS[ids].sum())
            else:
                draw = selector.select(ids)
                selector.observe(losses_of(draw.ids))
            self.trained += int(TOKENS[draw.ids].sum())
            if step + 1 == steps:
                return
        for ids in selector.hidden_batches():
            selector.refresh(ids, losses_of(ids))
            self.scored += int(TOKENS[ids].sum())


def test_a_pruned_run_by_hand() -> None:
    selector, counts = make(), Counts()
    for epoch in range(EPOCHS):
        counts.epoch(selector, epoch)
    ledger = selector.ledger
    assert (ledger.scored_tokens, ledger.trained_tokens) == (counts.scored, counts.trained)
    assert ledger.full_tokens == EPOCHS * TOKENS.sum() > counts.planned  # what was pruned is in a full run
    assert ledger.saving()["tokens"] == pytest.approx(1 - counts.trained / (EPOCHS * TOKENS.sum()))
    assert ledger.saving()["tokens"] != pytest.approx(ledger.saving()["samples"])
    metrics = selector.metrics()
    assert metrics["selection/saved_ratio_tokens"] == ledger.saving()["tokens"]
    assert [metrics[f"selection/num_tokens_{what}"] for what in ("scored", "trained", "full")] == [
        counts.scored, counts.trained, ledger.full_tokens,
    ]  # fmt: skip
    assert ledger.full == EPOCHS * NUM


def test_samples_that_are_seen_again_are_scored() -> None:
    selector, counts = make(method=es.methods.kakurenbo(), ratio=1.0, prune_ratio=0.0, anneal=(0, 0)), Counts()
    for epoch in range(EPOCHS):
        counts.epoch(selector, epoch)
    assert counts.scored > 0
    assert (selector.ledger.scored_tokens, selector.ledger.trained_tokens) == (counts.scored, counts.trained)
    assert selector.ledger.full_tokens == EPOCHS * TOKENS.sum()


def test_a_state_keeps_what_was_counted_and_counts_on() -> None:
    whole, first, second = make(), make(), make()
    counts = Counts()
    for epoch in range(EPOCHS):
        counts.epoch(whole, epoch)
    half = Counts()
    half.epoch(first, 0)
    half.epoch(first, 1, steps=2)
    state = first.state_dict()
    assert "tokens" not in state["ledger"]
    assert second.load_state_dict(state) == 1
    for epoch in range(1, EPOCHS):
        half.epoch(second, epoch)
    for name in ("scored_tokens", "trained_tokens", "full_tokens"):
        assert getattr(second.ledger, name) == getattr(whole.ledger, name)
    second.ledger.backward_cost = 3.5
    second.reset()
    assert (second.ledger.full_tokens, second.ledger.backward_cost) == (0, 3.5)
    Counts().epoch(second, 0)
    assert second.ledger.full_tokens == TOKENS.sum()


def test_a_blind_draw_without_its_losses_is_made_again() -> None:
    selector = make(method=es.methods.random(), prune_ratio=0.0, anneal=(0, 0))
    ids = next(selector.epoch(0))
    draw = selector.select(ids)
    assert selector.ledger.trained_tokens == TOKENS[draw.ids].sum() > 0
    assert selector.state_dict()["ledger"]["trained_tokens"] == 0


def test_a_run_that_is_kept_shows_them(tmp_path: Path) -> None:
    counts = Counts()
    for epochs in (range(2), range(2, EPOCHS)):  # the second takes over what the first has spent
        selector = make(run="kept", storage=str(tmp_path))
        for epoch in epochs:
            counts.epoch(selector, epoch)
    found = shown(None, RunStorage(str(tmp_path), "kept").read_note("progress"))
    assert found["tokens"] == {"scored": counts.scored, "trained": counts.trained, "full": EPOCHS * TOKENS.sum()}
    assert found["saving"]["tokens"] == selector.ledger.saving()["tokens"]
    assert found["backward_cost"] == 2.0
    old = shown({"samples": {"scored": 1, "trained": 2, "full": 3}, "saving": {"samples": 0.5}}, None)
    assert old["tokens"] is old["backward_cost"] is old["saving"]["tokens"] is None


def test_without_tokens_nothing_is_said_of_them() -> None:
    selector = make(tokens=None)
    Counts().epoch(selector, 0)
    assert selector.ledger.token_counts() is None
    assert set(selector.ledger.saving()) == {"samples", "cost", "seconds"}
    assert not [name for name in selector.metrics() if "token" in name]


def test_ledgers_of_before_have_none_and_count_a_backward_pass_as_two() -> None:
    values = Ledger(scored=4, trained=2, full=8).to_dict()
    for name in ("scored_tokens", "trained_tokens", "full_tokens", "backward_cost"):
        del values[name]
    old = Ledger.from_dict(values)
    assert old == Ledger(scored=4, trained=2, full=8)
    assert old.saving()["cost"] == pytest.approx(1 - (4 + 3 * 2) / (3 * 8))


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf"), "2"])
def test_a_damaged_ledger_is_refused(cost: Any) -> None:
    with pytest.raises(ValueError, match="the ledger"):
        Ledger.from_dict({**Ledger().to_dict(), "backward_cost": cost})


def test_ranks_add_up_and_share() -> None:
    parts = [
        Ledger(scored_tokens=k, trained_tokens=2 * k, full_tokens=5 * k, backward_cost=2.6, full=k) for k in (3, 4)
    ]
    merged = Ledger.merge(parts)
    assert merged.token_counts() == {"scored": 7, "trained": 14, "full": 35}
    assert merged.backward_cost == 2.6
    assert Ledger.merge([merged.share(rank, 3) for rank in range(3)]).to_dict() == merged.to_dict()
    assert merged.saving()["tokens"] == pytest.approx(1 - 14 / 35)


def test_the_cost_is_that_of_the_backward_pass() -> None:
    ledger = Ledger(scored=100, trained=50, full=100, backward_cost=3.0)
    assert ledger.saving()["cost"] == pytest.approx(1 - (100 + 4 * 50) / (4 * 100))
    ledger.backward_cost = 2.0
    assert ledger.saving()["cost"] == pytest.approx(1 - (100 + 3 * 50) / (3 * 100))


@pytest.mark.parametrize("tokens", [[1, 2], np.ones(NUM), -np.ones(NUM, dtype=int), np.ones((NUM, 1), dtype=int)])
def test_tokens_that_are_none_are_refused(tokens: Any) -> None:
    with pytest.raises(errors.ShapeError, match=f"one whole number of at least 0 for each of {NUM} samples"):
        make(tokens=tokens)


def test_a_stream_of_unknown_length_has_none() -> None:
    with pytest.raises(errors.ConfigError, match="tokens need num_samples"):
        es.Selector(es.Selection(es.methods.loss()), num_samples=None, num_epochs=1, batch_size=4, tokens=[1, 2])

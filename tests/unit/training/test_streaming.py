"""es.stream: selection in batches as they come."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils import data

import es_service as es
from es_service import errors
from es_service.training import losses as per_sample_losses
from es_service.training import scoring

NUM, SIZE, EPOCHS = 46, 10, 4
SELECTION = es.Selection(es.methods.evolved(), ratio=0.3, anneal=(0.25, 0), seed=5)


pytestmark = pytest.mark.usefixtures("one_thread")


class Records(data.IterableDataset[dict[str, Any]]):
    """Samples that carry their number, in another order each time."""

    def __init__(self) -> None:
        self.x = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(1))
        self.times = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.times += 1
        order = torch.randperm(NUM, generator=torch.Generator().manual_seed(self.times))
        for index in order.tolist():
            yield {"id": index, "x": self.x[index], "y": int(self.x[index].sum() > 0)}


def loader_of(records: Records | None = None) -> data.DataLoader[Any]:
    return data.DataLoader(records or Records(), SIZE)


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2))


def losses_of(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return per_sample_losses.cross_entropy(model(batch["x"]), batch["y"])


def stream(batches: Any = None, selection: es.Selection = SELECTION, **settings: Any) -> Any:
    settings = {"epochs": EPOCHS, "model": make_model(), "losses": losses_of, **settings}
    return es.stream(loader_of() if batches is None else batches, selection, **settings)


def train(batches: Any, selection: es.Selection = SELECTION, epochs: int = EPOCHS, **settings: Any) -> Any:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = stream(batches, selection, model=model, epochs=epochs, **settings)
    for _ in range(epochs):
        for batch, _ in found:
            optimizer.zero_grad()
            found.mean(losses_of(model, batch)).backward()
            optimizer.step()
            assert batch["id"].tolist() == found.draw.ids.tolist()
    return (
        [value.tolist() for value in model.state_dict().values()],
        repr(found.selector.table().slice(0, NUM).to_pydict()),
        found,
    )


def by_hand(selection: es.Selection, num_samples: int | None = None) -> Any:
    model, loader = make_model(), loader_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selector = es.Selector(selection, num_samples=num_samples, num_epochs=EPOCHS, batch_size=SIZE)
    for epoch in range(EPOCHS):
        for batch in selector.stream(epoch, loader):
            scored = None
            if selector.wants_scores:
                scored = scoring.score(model, batch, forward=losses_of, losses=lambda out, _: out)
            draw = selector.select(batch["id"], scored)
            optimizer.zero_grad()
            losses = losses_of(model, {name: column[draw.positions] for name, column in batch.items()})
            selector.observe(losses)
            (losses * torch.from_numpy(draw.scale)).mean().backward()
            optimizer.step()
    return [value.tolist() for value in model.state_dict().values()], repr(selector.table().slice(0, NUM).to_pydict())


@pytest.mark.parametrize(
    "selection",
    [
        SELECTION,
        es.Selection(es.methods.loss(), ratio=0.3, anneal=(0.25, 0), reweight="unbiased"),
        es.Selection(es.methods.random(), ratio=0.3),
    ],
)
def test_it_trains_exactly_as_a_loop_written_by_hand(selection: es.Selection) -> None:
    weights, table, found = train(loader_of(), selection)
    assert (weights, table) == by_hand(selection)
    assert 0 < found.selector.ledger.trained < found.selector.ledger.full == EPOCHS * NUM


def test_the_batches_of_an_epoch_may_come_from_a_function_of_it() -> None:
    records, asked = Records(), []

    def batches(epoch: int) -> list[Any]:
        asked.append(epoch)
        return list(loader_of(records))

    weights, table, found = train(batches, batch_size=SIZE)
    assert (weights, table) == by_hand(SELECTION)
    assert asked == list(range(EPOCHS))
    assert found.state_dict()["finished_epochs"] == EPOCHS


def test_ids_may_be_computed_and_their_number_known() -> None:
    weights, table, _ = train(loader_of(), id=lambda batch: batch["id"].tolist(), num_samples=NUM)
    assert (weights, table) == by_hand(SELECTION, NUM)


def test_a_sampler_of_one_s_own_is_honoured() -> None:
    """It draws with replacement, so that a batch may hold a sample twice."""
    samples = list(Records())
    torch.manual_seed(4)
    sampler = data.WeightedRandomSampler([1.0, 9.0] * (NUM // 2), NUM)
    batches = list(data.DataLoader(samples, SIZE, sampler=sampler))  # type: ignore[arg-type]
    found = train(batches, es.Selection(es.methods.loss(), ratio=0.3, anneal=(0, 0)), epochs=2, batch_size=SIZE)[2]
    ids = torch.cat([batch["id"] for batch in batches]).tolist()
    assert len(set(ids)) < len(ids)
    assert found.selector.ledger.scored == 2 * len(ids)
    visited = {index for index, visits in enumerate(found.selector.table()["visits"].to_pylist()) if visits}
    assert visited == set(ids)


def test_an_iterator_serves_one_epoch() -> None:
    found = train(iter(list(loader_of())), es.Selection(es.methods.loss(), anneal=(0, 0)), epochs=1, batch_size=SIZE)[2]
    assert found.selector.ledger.steps == 5


def test_its_state_is_continued_between_epochs() -> None:
    found, records = stream(), Records()
    for batch, _ in found:
        found.mean(losses_of(make_model(), batch))
    state = copy.deepcopy(found.state_dict())
    again = stream(loader_of(records))
    assert again.load_state_dict(state) == 1
    next(iter(again))
    with pytest.raises(errors.EpochOrderError, match="is a stream, which cannot be continued in its middle"):
        again.state_dict()
    again.finish_epoch()
    assert again.state_dict()["finished_epochs"] == 2


@pytest.mark.parametrize(
    "batches, settings, message",
    [
        (lambda: iter([]), {"batch_size": SIZE}, r"list_iterator, can be gone through only once, and epochs=4"),
        (lambda: 3, {"batch_size": SIZE}, "must be iterable, or a function of the epoch .*, got int"),
        (list, {}, "cannot be seen from a list: give batch_size="),
        (loader_of, {"losses": None}, "losses must be a function"),
        (loader_of, {"model": None}, "model must be a torch.nn.Module"),
        (loader_of, {"selection": es.Selection(es.methods.evolved(), prune_ratio=0.2)}, "plans which ids"),
        (
            loader_of,
            {"selection": es.Selection(es.methods.evolved(), prune_ratio=0.2), "num_samples": NUM},
            "plans which ids",
        ),
        (loader_of, {"selection": es.Selection(es.methods.evolved(), drop_last=True)}, "drop_last=True"),
        (loader_of, {"exchange": "prefetch"}, "pass run="),
    ],
)
def test_what_cannot_be_streamed_is_refused(batches: Callable[[], Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        stream(batches(), **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"id": "number"}, "a batch of the stream has no 'number', it has the keys id, x, y"),
        ({"id": lambda batch: batch["id"][:5]}, r"has 10 rows in a batch of 5 samples"),
        ({"losses": lambda model, batch: losses_of(model, batch).mean()}, "one number for 10 samples"),
    ],
)
def test_batches_that_do_not_fit_are_refused_before_the_first_step(settings: dict[str, Any], message: str) -> None:
    found = stream(selection=es.Selection(es.methods.loss(), anneal=(0, 0)), **settings)
    with pytest.raises(errors.ShapeError, match=message):
        next(iter(found))


def test_an_epoch_without_batches_is_an_error() -> None:
    records = list(loader_of())
    once = iter(records)
    found = stream(lambda epoch: once, es.Selection(es.methods.loss(), anneal=(0, 0)), batch_size=SIZE)
    assert len(list(found)) == 5
    with pytest.raises(errors.DataError, match="epoch 1 of the stream has no batch"):
        list(found)


def test_more_epochs_than_planned_are_refused() -> None:
    found = stream(epochs=1, selection=es.Selection(es.methods.random()))
    for batch, _ in found:
        found.observe(losses_of(make_model(), batch))
    with pytest.raises(errors.ConfigError, match="all epochs=1 of this run are made"):
        next(iter(found))

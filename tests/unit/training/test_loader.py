"""The selective loader: what it fetches, what it scores, what it yields, and what the table says afterwards."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils import data

import es_service as es
from es_service import errors
from es_service.training.loader import SelectiveLoader

NUM, SIZE, EPOCHS = 46, 10, 4  # the last meta-batch of an epoch has 6


pytestmark = pytest.mark.usefixtures("one_thread")


class DictSet(data.Dataset[dict[str, Any]]):
    """Samples as dicts, one at a time; remembers which were fetched."""

    def __init__(self, num: int = NUM) -> None:
        self.num = num
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.fetched.append(index)
        return {"id": index, "x": torch.tensor([index, index * index], dtype=torch.float32), "name": f"s{index}"}


class WholeSet:
    """Batches at once, through `__getitems__`, already collated."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return NUM

    def __getitems__(self, ids: list[int]) -> torch.Tensor:
        self.asked.append(ids)
        return torch.tensor(ids)


def tuples() -> data.TensorDataset:
    ids = torch.arange(NUM)
    return data.TensorDataset(ids, ids.float() * 3)


def select(method: es.methods.Method | None = None, **settings: Any) -> es.Selector:
    settings = {"ratio": 0.3, "anneal": (0.0, 0.0), "seed": 5, "reweight": "unbiased", **settings}
    selection = es.Selection(method or es.methods.evolved(), **settings)
    return es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)


def ids_of(batch: Any) -> list[int]:
    if isinstance(batch, dict):
        batch = batch["id"]
    elif isinstance(batch, (list, tuple)):
        batch = batch[0]
    found: list[int] = batch.tolist()
    return found


def loss_of(ids: list[int]) -> NDArray[np.float32]:
    return np.array([0.5 + (index * 37 % 101) / 50 for index in ids], dtype=np.float32)


class Scorer:
    """Losses by id; remembers the batches it was asked about."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, batch: Any) -> NDArray[np.float32]:
        self.asked.append(ids_of(batch))
        return loss_of(self.asked[-1])


def as_is(batch: Any) -> Any:
    return batch


def column(selector: es.Selector, name: str) -> list[int]:
    found: list[int] = selector.table()[name].to_pylist()
    return found


# -- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [es.methods.evolved(), es.methods.random(), es.methods.full()])
@pytest.mark.parametrize("reuse_losses", [False, True])
def test_a_batch_holds_the_samples_that_were_drawn(method: es.methods.Method, reuse_losses: bool) -> None:
    loader = SelectiveLoader(DictSet(), select(method, anneal=(0.0, 0.25)), Scorer(), reuse_losses=reuse_losses)
    steps = 0
    for epoch in range(EPOCHS):
        for batch, scale in loader.epoch(epoch):
            assert loader.draw is not None
            ids = loader.draw.ids.tolist()
            assert ids_of(batch) == ids
            assert batch["x"].tolist() == [[index, index * index] for index in ids]
            assert batch["name"] == [f"s{index}" for index in ids]
            assert scale.dtype == torch.float32
            assert scale.tolist() == loader.draw.scale.tolist()
            if reuse_losses:
                loader.observe(loss_of(ids))
            steps += 1
    assert steps == EPOCHS * 5


def test_scales_are_not_all_alike_where_the_method_reweights() -> None:
    loader = SelectiveLoader(DictSet(), select(), Scorer())
    assert len({float(value) for _, scale in loader.epoch(0) for value in scale}) > 5


def test_samples_may_be_tuples() -> None:
    loader = SelectiveLoader(tuples(), select(), Scorer())
    num = 0
    for batch, _ in loader.epoch(0):
        assert loader.draw is not None
        assert batch[0].tolist() == loader.draw.ids.tolist()
        assert batch[1].tolist() == [3.0 * index for index in loader.draw.ids.tolist()]
        num += len(batch[0])
    assert num == 4 * 3 + 2


def test_a_data_set_may_hand_out_whole_batches() -> None:
    dataset, scorer = WholeSet(), Scorer()
    loader = SelectiveLoader(dataset, select(), scorer, collate_fn=as_is)
    for batch, _ in loader.epoch(0):
        assert loader.draw is not None
        assert batch.tolist() == loader.draw.ids.tolist()
    tried, *asked = dataset.asked
    assert tried == asked[0][:2]  # to see that a batch has a row per sample, whatever their number
    assert asked == scorer.asked
    assert sorted(itertools.chain(*asked)) == list(range(NUM))


def test_a_data_set_of_another_length_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match=r"\b45\b.*num_samples=46"):
        SelectiveLoader(DictSet(45), select(), Scorer())


# -- what is scored -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse_losses", [False, True])
def test_selecting_epochs_score_every_meta_batch(reuse_losses: bool) -> None:
    selector, scorer = select(), Scorer()
    loader = SelectiveLoader(DictSet(), selector, scorer, reuse_losses=reuse_losses)
    steps = sum(1 for _ in loader.epoch(0))
    assert [len(ids) for ids in scorer.asked] == [10, 10, 10, 10, 6]
    assert sorted(itertools.chain(*scorer.asked)) == list(range(NUM))
    assert steps == 5
    assert selector.ledger.scored == NUM
    assert selector.ledger.trained == 4 * 3 + 2


@pytest.mark.parametrize(
    "method, anneal",
    [(es.methods.evolved(), (0.25, 0.0)), (es.methods.random(), (0.0, 0.0)), (es.methods.full(), (0, 0))],
)
def test_with_reuse_steps_that_need_no_losses_score_nothing(
    method: es.methods.Method, anneal: tuple[float, float]
) -> None:
    selector, scorer = select(method, anneal=anneal), Scorer()
    loader = SelectiveLoader(DictSet(), selector, scorer, reuse_losses=True)
    for batch, _ in loader.epoch(0):
        loader.observe(loss_of(ids_of(batch)))
    assert scorer.asked == []
    assert selector.ledger.scored == 0
    if method.needs_losses:  # and past the annealing it scores again
        next(iter(loader.epoch(1)))
        assert len(scorer.asked) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("reuse_losses", [False, True])
def test_only_the_part_of_a_meta_batch_that_is_to_be_scored_is(reuse_losses: bool, num_workers: int) -> None:
    selector, scorer = select(score_share=0.4), Scorer()
    loader = SelectiveLoader(DictSet(), selector, scorer, reuse_losses=reuse_losses, num_workers=num_workers)
    by_hand = select(score_share=0.4)
    for epoch in range(1 + (not num_workers)):
        scorer.asked.clear()
        for (batch, scale), ids_B in zip(loader.epoch(epoch), by_hand.epoch(epoch), strict=True):
            asked = by_hand.to_score(ids_B)
            assert scorer.asked[-1] == ids_B[asked].tolist()
            draw = by_hand.select(ids_B, loss_of(ids_B[asked].tolist()), scored=asked)
            by_hand.observe(loss_of(draw.ids.tolist()) if reuse_losses else None)
            assert ids_of(batch) == draw.ids.tolist()
            assert scale.tolist() == draw.scale.tolist()
            if reuse_losses:
                assert loader.awaits_losses == bool(set(draw.ids.tolist()) - set(scorer.asked[-1]))
                loader.observe(loss_of(ids_of(batch)))
            assert not loader.awaits_losses
        assert [len(ids) for ids in scorer.asked] == ([4, 4, 4, 4, 3] if epoch else [10, 10, 10, 10, 6])
    assert selector.ledger.scored == by_hand.ledger.scored
    assert repr(selector.table().to_pydict()) == repr(by_hand.table().to_pydict())


def test_without_reuse_an_epoch_scored_in_part_is_closed_behind_its_last_step() -> None:
    selector = select(score_share=0.4)
    loader = SelectiveLoader(DictSet(), selector, Scorer())
    for epoch in range(EPOCHS):
        for _ in itertools.islice(loader.epoch(epoch), 5):
            pass
        assert selector.ledger.full == (epoch + 1) * NUM
        assert selector.state_dict()["finished_epochs"] == epoch + 1


def test_losses_that_a_partly_scored_draw_waits_for_are_not_forgotten() -> None:
    loader = SelectiveLoader(
        DictSet(), select(score_share=0.2, draw="topk", reweight="none"), Scorer(), reuse_losses=True
    )
    assert sum(1 for _ in loader.epoch(0)) == 5  # all were scored
    with pytest.raises(errors.ShapeError, match=r"needs loader.observe\(losses\)"):
        list(loader.epoch(1))


def test_without_reuse_an_annealing_epoch_is_scored() -> None:
    scorer = Scorer()
    loader = SelectiveLoader(DictSet(), select(anneal=(0.25, 0.0)), scorer)
    assert sum(len(scale) for _, scale in loader.epoch(0)) == NUM
    assert sorted(itertools.chain(*scorer.asked)) == list(range(NUM))


# -- observe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("method", [es.methods.random(), es.methods.full()])
def test_a_promised_observe_that_does_not_come_is_an_error(method: es.methods.Method, at: int) -> None:
    loader = SelectiveLoader(DictSet(), select(method), Scorer(), reuse_losses=True)
    steps = 0

    def run() -> None:
        nonlocal steps
        for step, (batch, _) in enumerate(loader.epoch(0)):
            steps += 1
            if step != at:
                loader.observe(loss_of(ids_of(batch)))

    with pytest.raises(errors.ShapeError, match="observe"):
        run()
    assert steps == at + 1  # at the very next step, or at the end of the epoch


@pytest.mark.parametrize("reuse_losses", [False, True])
def test_observe_after_a_scored_step_is_ignored(reuse_losses: bool) -> None:
    tables = []
    for observes in (False, True):
        selector = select()
        loader = SelectiveLoader(DictSet(), selector, Scorer(), reuse_losses=reuse_losses)
        for batch, _ in loader.epoch(0):
            if observes:
                loader.observe(np.full(len(ids_of(batch)), 1e6, dtype=np.float32))
        tables.append(selector.table())
    assert tables[0].equals(tables[1])
    assert max(tables[0]["last_loss"].to_pylist()) < 10


def test_training_losses_may_come_as_a_tensor() -> None:
    selector = select(es.methods.full())
    loader = SelectiveLoader(DictSet(), selector, Scorer(), reuse_losses=True)
    for batch, _ in loader.epoch(0):
        loader.observe(torch.from_numpy(loss_of(ids_of(batch))))
    assert column(selector, "last_loss") == loss_of(list(range(NUM))).tolist()


# -- what is fetched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse_losses, per_step", [(True, [3, 3, 3, 3, 2]), (False, [10, 10, 10, 10, 6])])
def test_random_fetches_no_more_than_it_draws(reuse_losses: bool, per_step: list[int]) -> None:
    dataset = DictSet()
    loader = SelectiveLoader(dataset, select(es.methods.random()), Scorer(), reuse_losses=reuse_losses)
    counts = []
    for batch, _ in loader.epoch(0):
        counts.append(len(dataset.fetched))
        dataset.fetched.clear()
        loader.observe(loss_of(ids_of(batch)))
    assert counts == [2 + per_step[0], *per_step[1:]]  # two to see what has a row per sample


def trace(make_set: Callable[[], Any], method: es.methods.Method, num_workers: int) -> list[Any]:
    selector = select(method, anneal=(0.0, 0.25))
    loader = SelectiveLoader(make_set(), selector, Scorer(), reuse_losses=True, num_workers=num_workers)
    seen: list[Any] = []
    for epoch in (0, 1):
        for batch, scale in loader.epoch(epoch):
            leaves = list(batch.values()) if isinstance(batch, dict) else list(batch)
            plain = [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            seen.append((plain, scale.tolist()))
            loader.observe(loss_of(ids_of(batch)))
    table = selector.table()
    return [*seen, *(table[name].to_numpy().tobytes() for name in table.column_names)]


@pytest.mark.parametrize(
    "make_set, method",
    [(DictSet, es.methods.evolved()), (DictSet, es.methods.random()), (tuples, es.methods.evolved())],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_that_fetch_ahead_change_nothing(make_set: Callable[[], Any], method: es.methods.Method) -> None:
    here, ahead = trace(make_set, method, 0), trace(make_set, method, 2)
    assert len(here) > 10
    assert here == ahead


# -- rows of samples ----------------------------------------------------------------------------------------------


def patches(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Three patches of each sample below each other, one id."""
    return {
        "pixels": torch.cat([sample["x"].expand(3, 2) for sample in samples]),
        "id": torch.tensor([sample["id"] for sample in samples]),
    }


def with_positions(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """As many positions of a sequence as there are samples in a meta-batch."""
    batch = data.default_collate(samples)
    return {"id": batch["id"], "x": batch["x"], "position_ids": torch.arange(SIZE)}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "collate, message",
    [
        (patches, r"fetched 2 samples.* leaf 'pixels' .* has 6 rows in a batch of 2 samples, 3 for each: rows taken"),
        (with_positions, r"leaf 'position_ids' .* has 10 rows in a batch of 2 samples.*per_sample=\['id', 'x'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_rows_of_other_samples_are_never_trained_on(collate: Any, message: str, num_workers: int) -> None:
    scorer = Scorer()
    loader = SelectiveLoader(DictSet(), select(), scorer, collate_fn=collate, num_workers=num_workers)
    with pytest.raises(errors.ShapeError, match=message):
        next(loader.epoch(0))
    assert not scorer.asked  # and so nothing was drawn


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_what_samples_share_goes_into_every_mini_batch(num_workers: int) -> None:
    loader = SelectiveLoader(
        DictSet(), select(), Scorer(), collate_fn=with_positions, num_workers=num_workers, per_sample=["id", "x"]
    )
    for batch, scale in loader.epoch(0):
        assert len(batch["id"]) == len(batch["x"]) == len(scale) < SIZE
        assert batch["position_ids"].tolist() == list(range(SIZE))


def test_a_batch_that_differs_later_is_refused_there() -> None:
    sizes = itertools.count()
    loader = SelectiveLoader(
        DictSet(), select(), Scorer(), collate_fn=lambda samples: data.default_collate(samples[next(sizes) > 2 :])
    )
    with pytest.raises(errors.ShapeError, match=r"leaf 'id' .* has 9 rows in a batch of 10 samples"):
        list(loader.epoch(0))


class Texts(data.Dataset[list[int]]):
    """Sample i is a text of 1 + i % 7 tokens, each of which is i + 1."""

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> list[int]:
        return [index + 1] * (1 + index % 7)


def padded(samples: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, samples))
    return torch.tensor([sample + [0] * (longest - len(sample)) for sample in samples])


class TextsAtOnce(Texts):
    """The same, in padded batches."""

    def __getitems__(self, ids: list[int]) -> torch.Tensor:
        return padded([self[index] for index in ids])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("make, collate", [(Texts, padded), (TextsAtOnce, as_is)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_drawn_texts_are_padded_anew_where_asked_for(make: Any, collate: Any, num_workers: int) -> None:
    widths: dict[bool, list[int]] = {}
    for recollate in (False, True):
        loader = SelectiveLoader(
            make(),
            select(),
            lambda batch: loss_of((batch[:, 0] - 1).tolist()),
            collate_fn=collate,
            num_workers=num_workers,
            recollate=recollate,
        )
        widths[recollate] = []
        for batch, _ in loader.epoch(0):
            assert loader.draw is not None
            ids = loader.draw.ids.tolist()
            assert batch[:, : 7 if recollate else None].tolist() == [
                text + [0] * (batch.shape[1] - len(text)) for text in map(make().__getitem__, ids)
            ]
            widths[recollate].append(batch.shape[1] - max(1 + index % 7 for index in ids))
    assert max(widths[False]) > 0  # as wide as the longest of the meta-batch
    assert max(widths[True]) == 0


@pytest.mark.parametrize("make, collate", [(Texts, padded), (TextsAtOnce, as_is)])
def test_the_part_that_is_scored_is_padded_anew_too(make: Any, collate: Any) -> None:
    widths: list[int] = []

    def score(batch: torch.Tensor) -> NDArray[np.float32]:
        ids = (batch[:, 0] - 1).tolist()
        widths.append(batch.shape[1] - max(1 + index % 7 for index in ids))
        assert batch.tolist() == padded([Texts()[index] for index in ids]).tolist()
        return loss_of(ids)

    loader = SelectiveLoader(make(), select(score_share=0.2), score, collate_fn=collate, recollate=True)
    assert [sum(1 for _ in loader.epoch(epoch)) for epoch in range(3)] == [5, 5, 5]
    assert set(widths) == {0}


def test_batches_that_cannot_be_taken_apart_can_be_collated_anew() -> None:
    loader = SelectiveLoader(
        DictSet(),
        select(),
        lambda batch: loss_of(sorted(batch)),
        collate_fn=lambda s: {x["id"] for x in s},
        recollate=True,
    )
    for batch, _ in loader.epoch(0):
        assert loader.draw is not None
        assert batch == set(loader.draw.ids.tolist())


@pytest.mark.parametrize("settings", [{"per_sample": "id"}, {"per_sample": ["id"], "recollate": True}])
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError, match="must be a list of names, and left out with recollate"):
        SelectiveLoader(DictSet(), select(), Scorer(), **settings)


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table_counts_what_was_seen_and_what_was_trained_on() -> None:
    selector = select(anneal=(0.25, 0.0))
    loader = SelectiveLoader(DictSet(), selector, Scorer(), reuse_losses=True)
    trained: Counter[int] = Counter()
    for epoch in range(3):  # one annealing, two that select
        for batch, _ in loader.epoch(epoch):
            trained.update(ids_of(batch))
            loader.observe(loss_of(ids_of(batch)))
    assert column(selector, "visits") == [3] * NUM
    assert column(selector, "selected") == [trained[index] for index in range(NUM)]
    assert trained.total() == NUM + 2 * (4 * 3 + 2) == selector.ledger.trained


def test_of_a_blind_draw_only_what_was_trained_on_is_seen() -> None:
    selector = select(es.methods.random())
    loader = SelectiveLoader(DictSet(), selector, Scorer(), reuse_losses=True)
    trained: Counter[int] = Counter()
    for epoch in range(2):
        for batch, _ in loader.epoch(epoch):
            trained.update(ids_of(batch))
            loader.observe(loss_of(ids_of(batch)))
    assert column(selector, "visits") == [trained[index] for index in range(NUM)]
    assert column(selector, "selected") == [trained[index] for index in range(NUM)]


@pytest.mark.parametrize("observes_last", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("method", [es.methods.evolved(), es.methods.full()])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_epoch_may_be_left_early(method: es.methods.Method, num_workers: int, observes_last: bool) -> None:
    selector = select(method)
    loader = SelectiveLoader(DictSet(), selector, Scorer(), reuse_losses=True, num_workers=num_workers)
    trained: Counter[int] = Counter()
    for step, (batch, _) in enumerate(loader.epoch(0)):
        trained.update(ids_of(batch))
        if step == 1:
            if observes_last:
                loader.observe(loss_of(ids_of(batch)))
            break
        loader.observe(loss_of(ids_of(batch)))
    sizes = []
    for batch, _ in loader.epoch(1):
        trained.update(ids_of(batch))
        sizes.append(len(ids_of(batch)))
        loader.observe(loss_of(ids_of(batch)))
    assert len(sizes) == 5
    assert sum(sizes) == (NUM if not method.selects else 4 * 3 + 2)
    assert column(selector, "selected") == [trained[index] for index in range(NUM)]
    unseen = 0 if observes_last or method.selects else SIZE
    assert sum(column(selector, "visits")) == 2 * SIZE + NUM - unseen


# -- signals and hidden samples -----------------------------------------------------------------------------------


def test_what_an_epoch_hid_is_scored_at_its_end_and_trained_on_by_nobody() -> None:
    """KAKURENBO: the easiest fifth is predicted right and with certainty, so it is hidden from epoch 1 on."""
    easy = set(range(9))

    def signals(ids: list[int]) -> dict[str, NDArray[np.float32]]:
        is_easy = np.array([one in easy for one in ids], dtype=np.float32)
        return {"loss": loss_of(ids) + 1 - is_easy, "correct": is_easy, "confidence": is_easy}

    scored: list[list[int]] = []

    def score(batch: torch.Tensor) -> dict[str, NDArray[np.float32]]:
        scored.append(batch.tolist())
        return signals(batch.tolist())

    selector = select(es.methods.kakurenbo(0.2), reweight="none")
    loader = SelectiveLoader(WholeSet(), selector, score, reuse_losses=True, collate_fn=as_is)
    for epoch in range(EPOCHS):
        trained: list[int] = []
        scored.clear()
        for batch, scale in loader.epoch(epoch):
            trained += batch.tolist()
            assert scale.tolist() == [1.0] * len(batch)
            loader.observe(signals(batch.tolist()))
        untouched = set(range(NUM)) - set(trained)
        is_last = epoch == EPOCHS - 1
        num_hidden = round(NUM - NUM / selector.learning_rate_factor)
        assert (num_hidden > 0) == (epoch > 0)
        sits_out = (NUM - num_hidden) % SIZE == 1  # it would be a step of its own
        assert len(untouched) == num_hidden + sits_out
        assert len(untouched - easy) <= sits_out
        hidden = sorted(itertools.chain(*scored))
        assert len(hidden) == (0 if is_last else num_hidden)
        assert set(hidden) <= untouched & easy
    assert selector.ledger.trained + selector.ledger.scored == sum(column(selector, "visits"))


@pytest.mark.parametrize("reuse_losses", [True, False])
def test_a_loop_that_counts_its_steps_leaves_a_state_to_continue_from(reuse_losses: bool) -> None:
    """As frameworks do: the loader is never asked for a batch behind the last one."""
    selector = select(anneal=(0.25, 0))
    loader = SelectiveLoader(tuples(), selector, Scorer(), reuse_losses=reuse_losses)
    kept = []
    for epoch in range(2):
        kept.append(batches := loader.epoch(epoch))
        for _ in range(-(-NUM // SIZE)):
            batch, _ = next(batches)
            loader.observe(loss_of(ids_of(batch)))
        state = selector.state_dict()
        assert (state["finished_epochs"], state["share"]) == (epoch + 1, None)
    assert select(anneal=(0.25, 0)).load_state_dict(state) == 2


def test_what_was_hidden_is_scored_by_finish_epoch_too() -> None:
    def signals(ids: list[int]) -> dict[str, NDArray[np.float32]]:
        is_easy = (np.array(ids) < 9).astype(np.float32)
        return {"loss": loss_of(ids) + 1 - is_easy, "correct": is_easy, "confidence": is_easy}

    tables = []
    for asks_on in (True, False):
        selector = select(es.methods.kakurenbo(0.2), reweight="none")
        loader = SelectiveLoader(
            WholeSet(), selector, lambda batch: signals(batch.tolist()), reuse_losses=True, collate_fn=as_is
        )
        for epoch in range(EPOCHS):
            batches = loader.epoch(epoch)
            batch, _ = next(batches)
            loader.observe(signals(batch.tolist()))
            for batch, _ in batches if asks_on else itertools.islice(batches, selector.steps(epoch) - 1):
                loader.observe(signals(batch.tolist()))
            loader.finish_epoch()
            assert selector.state_dict()["finished_epochs"] == epoch + 1
        tables.append(selector.table())
        assert selector.ledger.scored > 0
    assert repr(tables[0].to_pydict()) == repr(tables[1].to_pydict())


def test_infobatch_weighs_what_it_keeps() -> None:
    selector = select(es.methods.infobatch(0.5), reweight="none")
    loader = SelectiveLoader(WholeSet(), selector, Scorer(), reuse_losses=True, collate_fn=as_is)
    sums = []
    for epoch in range(EPOCHS):
        total = 0.0
        for batch, scale in loader.epoch(epoch):
            total += float(scale.sum())
            loader.observe(loss_of(batch.tolist()))
        sums.append(total)
    assert sums == pytest.approx([NUM] * EPOCHS)  # as if all had been trained on
    assert selector.ledger.trained < 3.5 * NUM


class Ahead:
    """Losses by id, as an `es.Scorer` gives them; at every third step it has none."""

    def __init__(self) -> None:
        self.steps = 0

    def losses(self, selector: es.Selector) -> NDArray[np.float32] | None:
        self.steps += 1
        if self.steps % 3 == 0 or not selector.wants_scores:
            return None
        return loss_of(selector.batches()[0].tolist())


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.thorough)])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_losses_from_a_scorer_take_the_place_of_passes_and_of_what_they_fetch(num_workers: int) -> None:
    alone, helped = select(anneal=(0.25, 0.0)), select(anneal=(0.25, 0.0))
    dataset, own = DictSet(), Scorer()
    loader = SelectiveLoader(
        dataset,
        helped,
        own,
        reuse_losses=True,
        num_workers=num_workers,
        per_sample=["id", "x", "name"],
        scorer=Ahead(),  # type: ignore[arg-type]
    )
    plain = SelectiveLoader(DictSet(), alone, Scorer(), reuse_losses=True)
    for epoch in range(EPOCHS):
        fetched = Counter(dataset.fetched)
        for (batch, scale), (expected, expected_scale) in zip(loader.epoch(epoch), plain.epoch(epoch), strict=True):
            assert ids_of(batch) == ids_of(expected)
            assert torch.equal(scale, expected_scale)
            assert loader.weight == plain.weight
            for each, some in ((loader, batch), (plain, expected)):
                each.observe(loss_of(ids_of(some)))
        if epoch and not num_workers:
            steps = sum(Counter(dataset.fetched).values()) - sum(fetched.values())
            assert steps < NUM  # whole meta-batches only where the trainer scored
    assert helped.table().equals(alone.table())
    assert 0 < helped.ledger.scored == sum(map(len, own.asked)) < alone.ledger.scored / 2
    assert helped.ledger.trained == alone.ledger.trained

"""es.wrap: a torch DataLoader that selects."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import data

import es_service as es
from es_service import errors
from es_service.training import losses as per_sample_losses
from es_service.training import scoring
from es_service.training.fetching import Fetcher

NUM, SIZE, EPOCHS = 46, 10, 4  # the last meta-batch of an epoch has 6
SELECTION = es.Selection(es.methods.evolved(), ratio=0.3, anneal=(0.25, 0), seed=5)
NO_CAST = contextlib.nullcontext
no_fork_warning = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


pytestmark = pytest.mark.usefixtures("one_thread")


def make_set(num: int = NUM) -> data.TensorDataset:
    x = torch.randn(num, 4, generator=torch.Generator().manual_seed(1))
    return data.TensorDataset(x, (x.sum(dim=1) > 0).long())


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2)
    )


def losses_of(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return per_sample_losses.cross_entropy(model(batch[0]), batch[1])


def wrap(loader: Any = None, selection: es.Selection = SELECTION, **settings: Any) -> es.SelectiveLoader:
    loader = data.DataLoader(make_set(), SIZE, shuffle=True) if loader is None else loader
    return es.wrap(loader, selection, **{"epochs": EPOCHS, "model": make_model(), "losses": losses_of, **settings})


class Training:
    """A loop over a wrapped loader."""

    def __init__(self, selection: es.Selection = SELECTION, loader: Any = None, **settings: Any) -> None:
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.loader = wrap(loader, selection, model=self.model, **settings)

    def step(self, batch: Any) -> None:
        self.optimizer.zero_grad()
        self.loader.mean(losses_of(self.model, batch)).backward()
        self.optimizer.step()

    def epoch(self) -> int:
        steps = 0
        for batch, _ in self.loader:
            self.step(batch)
            steps += 1
        return steps

    def result(self) -> tuple[Any, ...]:
        weights = [value.tolist() for value in self.model.state_dict().values()]
        return weights, self.loader.selector.table().to_pydict()


def by_hand(selection: es.Selection = SELECTION, accumulate: int = 1, autocast: Any = NO_CAST) -> tuple[Any, ...]:
    """The same, written out with a Selector."""
    dataset, model = make_set(), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
    num = 0
    for epoch in range(EPOCHS):
        for ids_B in selector.epoch(epoch):
            batch = dataset[ids_B.tolist()]
            scored = None
            if selector.wants_scores:
                with autocast():
                    scored = scoring.score(model, batch, losses_of)
            draw = selector.select(ids_B, scored)
            with autocast():
                losses = losses_of(model, [column[draw.positions] for column in batch])
            selector.observe(losses)
            ((losses * torch.from_numpy(draw.scale)).mean() / accumulate).backward()
            num += 1
            if num % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return [value.tolist() for value in model.state_dict().values()], selector.table().to_pydict()


# -- what it does ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    [
        SELECTION,
        es.Selection(es.methods.evolved(), ratio=0.3, prune_ratio=0.3, anneal=(0.25, 0), reweight="unbiased"),
        es.Selection(es.methods.random(), ratio=0.3),
    ],
)
def test_it_trains_exactly_as_a_loop_written_by_hand(selection: es.Selection) -> None:
    training = Training(selection)
    for _ in range(EPOCHS):
        training.epoch()
    assert training.result() == by_hand(selection)
    assert 0 < training.loader.selector.ledger.trained < training.loader.selector.ledger.full


@pytest.mark.parametrize("accumulate, autocast", [(3, NO_CAST), (1, lambda: torch.autocast("cpu", torch.bfloat16))])
def test_accumulated_and_in_mixed_precision_it_is_the_loop_by_hand(accumulate: int, autocast: Any) -> None:
    training = Training(autocast=autocast)
    for num, (batch, _) in enumerate(itertools.chain(*(training.loader for _ in range(EPOCHS))), 1):
        with autocast():
            losses = losses_of(training.model, batch)
        (training.loader.mean(losses) / accumulate).backward()
        if num % accumulate == 0:
            training.optimizer.step()
            training.optimizer.zero_grad()
    assert training.result() == by_hand(SELECTION, accumulate, autocast)


def test_an_own_mean_and_observe_are_the_same_as_mean() -> None:
    first = Training()
    first.epoch()
    first.epoch()
    second = Training()
    for _ in range(2):
        for batch, scale in second.loader:
            second.optimizer.zero_grad()
            losses = losses_of(second.model, batch)
            second.loader.observe(losses)
            (losses * scale).mean().backward()
            second.optimizer.step()
    assert first.result() == second.result()


def test_its_lengths_are_those_of_the_plan() -> None:
    selection = es.Selection(es.methods.evolved(), prune_ratio=0.5, anneal=(0.25, 0))
    training = Training(selection)
    assert (len(training.loader), training.loader.total_steps) == (5, 5 + 3 * 3)
    made = []
    for _ in range(EPOCHS):
        expected = len(training.loader)
        for step, (batch, _) in enumerate(training.loader):
            assert len(training.loader) == expected, step  # inside an epoch, its own
            training.step(batch)
        made.append(step + 1)
        assert made[-1] == expected
    assert made == [5, 3, 3, 3]
    assert sum(made) == training.loader.total_steps
    assert (training.loader.batch_size, len(training.loader.dataset)) == (SIZE, NUM)


def test_frameworks_may_name_the_epoch_or_count_steps() -> None:
    """`sampler.set_epoch` as Lightning calls it; and no batch is asked for behind the last."""
    plain = Training()
    for _ in range(EPOCHS):
        plain.epoch()
    named = Training()
    for epoch in range(EPOCHS):
        named.loader.sampler.set_epoch(epoch)
        for batch, _ in itertools.islice(named.loader, len(named.loader)):
            named.step(batch)
        assert named.loader.state_dict()["finished_epochs"] == epoch + 1
    assert plain.result() == named.result()


def test_an_epoch_left_early_is_closed_and_the_next_one_follows() -> None:
    training = Training()
    training.step(next(iter(training.loader))[0])
    assert training.epoch() == 5
    assert training.loader.state_dict()["finished_epochs"] == 2


def test_an_iterator_that_is_still_held_does_not_keep_its_epoch() -> None:
    training = Training()
    held = iter(training.loader)  # as a notebook does after an interrupt, in the traceback of the cell
    training.step(next(held)[0])
    assert [training.epoch() for _ in range(EPOCHS - 1)] == [5] * (EPOCHS - 1)
    assert next(held, None) is None
    assert training.loader.state_dict()["finished_epochs"] == EPOCHS


@no_fork_warning
@pytest.mark.parametrize("epochs, steps, num_workers", [(1, 0, 0), (0, 2, 0), (1, 3, 0), (2, 4, 0), (1, 3, 1)])
def test_a_resumed_training_is_as_if_it_had_not_been_interrupted(epochs: int, steps: int, num_workers: int) -> None:
    loader = data.DataLoader(make_set(), SIZE, num_workers=num_workers)
    straight = Training(loader=loader)
    for _ in range(EPOCHS):
        straight.epoch()
    first = Training(loader=loader)
    for _ in range(epochs):
        first.epoch()
    for batch, _ in itertools.islice(first.loader, steps):
        first.step(batch)
    random_state = torch.get_rng_state()
    kept = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict(), first.loader.state_dict()))
    second = Training(loader=loader)
    second.model.load_state_dict(kept[0])
    second.optimizer.load_state_dict(kept[1])
    epoch = second.loader.load_state_dict(kept[2])
    assert epoch == epochs
    torch.set_rng_state(random_state)
    made = [second.epoch() for _ in range(epoch, EPOCHS)]
    assert made == [5 - steps, *[5] * (EPOCHS - epoch - 1)]
    assert second.result() == straight.result()


def test_batches_come_where_the_model_is() -> None:
    model = torch.nn.Linear(4, 2, device="meta")
    loader = wrap(model=model)
    assert loader.device == torch.device("meta")
    model.to_empty(device="cpu")  # moved after it was wrapped
    assert loader.device == torch.device("cpu")


def test_signals_beside_the_loss_reach_the_method() -> None:
    def signals(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        logits = model(batch[0])
        return {
            "loss": per_sample_losses.cross_entropy(logits, batch[1]),
            "correct": (logits.argmax(dim=1) == batch[1]).float(),
            "confidence": logits.detach().softmax(dim=1).amax(dim=1),
        }

    selection = es.Selection(es.methods.kakurenbo(0.2), anneal=(0, 0))
    loader = wrap(selection=selection, losses=signals)
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    model = make_model()
    for _ in range(EPOCHS):
        for batch, _ in loader:
            optimizer.zero_grad()
            loader.mean(signals(model, batch)).backward()
    assert min(loader.selector.table()["visits"].to_pylist()) == EPOCHS  # what was hidden is scored, too


# -- what is taken over ---------------------------------------------------------------------------------------------


class Where(data.Dataset[tuple[int, int]]):
    """Samples (id, process that fetched it)."""

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> tuple[int, int]:
        info = data.get_worker_info()
        return index, -1 if info is None else info.seed - info.id


def hash_losses(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return (batch[0] * 37 % 11 + 1) * next(model.parameters()).square().sum()


@no_fork_warning
@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_fetch_and_may_persist(persistent: bool) -> None:
    plain = data.DataLoader(Where(), SIZE, shuffle=True, num_workers=2, persistent_workers=persistent)
    loader, seeds = wrap(plain, losses=hash_losses, reuse_losses=False), []
    for _ in range(3):
        found: list[torch.Tensor] = []
        for (ids, seed), _ in loader:
            assert loader.draw is not None
            assert ids.tolist() == loader.draw.ids.tolist()
            found += seed
        seeds.append({int(seed) for seed in found})
    assert all(len(one) == 1 and -1 not in one for one in seeds)
    assert (len(set.union(*seeds)) == 1) == persistent  # the seed of a process is drawn when it starts
    assert wrap(losses=hash_losses, loader=data.DataLoader(Where(), SIZE)).draw is None


@no_fork_warning
def test_persistent_workers_go_on_behind_an_epoch_that_was_left_early() -> None:
    plain = data.DataLoader(Where(), SIZE, num_workers=2, persistent_workers=True, prefetch_factor=4)
    loader = wrap(plain, losses=hash_losses, reuse_losses=False)
    next(iter(loader))
    for (ids, _), _ in loader:
        assert loader.draw is not None
        assert ids.tolist() == loader.draw.ids.tolist()
    assert len(loader) == 5


def test_drop_last_is_taken_over() -> None:
    for drop_last, in_selection, steps in [(False, False, 5), (True, False, 4), (False, True, 4), (True, True, 4)]:
        plain = data.DataLoader(make_set(), SIZE, shuffle=True, drop_last=drop_last)
        selection = es.Selection(es.methods.evolved(), drop_last=in_selection)
        assert len(wrap(plain, selection)) == steps


# -- batches collated again -----------------------------------------------------------------------------------------

Text = dict[str, Any]


class Texts(data.Dataset[Text]):
    """Sample i is a text of 1 + i % 7 tokens, each of which is i + 1."""

    def __init__(self, make: Callable[[list[int]], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, index: int) -> Text:
        return {"tokens": self.make([index + 1] * (1 + index % 7)), "name": f"text {index}"}


def pad(samples: list[Text], *, left: bool = False) -> dict[str, Any]:
    texts = [list(map(int, sample["tokens"])) for sample in samples]
    longest = max(map(len, texts))
    fill = [[0] * (longest - len(text)) for text in texts]
    rows = [zeros + text if left else text + zeros for text, zeros in zip(texts, fill, strict=True)]
    return {"tokens": torch.tensor(rows), "names": [sample["name"] for sample in samples], "longest": longest}


def pad_left(samples: list[Text]) -> dict[str, Any]:
    return pad(samples, left=True)


def pad_and_mask(samples: list[Text]) -> dict[str, Any]:
    batch = pad(samples)
    return {**batch, "tokens": batch["tokens"] * (torch.rand(batch["tokens"].shape) > 0.2)}


def of_names(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    weight = next(model.parameters()).square().sum()
    return torch.tensor([int(name[5:]) * 37 % 11 + 1.0 for name in batch["names"]]) * weight


def widths(loader: es.SelectiveLoader, *, masked: bool = False) -> list[int]:
    """How much wider each batch is than its longest text; and every batch holds the drawn samples."""
    found = []
    for batch, _ in loader:
        assert loader.draw is not None
        ids = loader.draw.ids.tolist()
        assert batch["names"] == [f"text {index}" for index in ids]
        for index, row in zip(ids, batch["tokens"].tolist(), strict=True):
            assert set(row) <= {0, index + 1}
            assert masked or row.count(index + 1) == 1 + index % 7
        found.append(batch["tokens"].shape[1] - max(1 + index % 7 for index in ids))
        if not max(found):
            assert batch["longest"] == batch["tokens"].shape[1]
    return found


@no_fork_warning
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("collate", [pad, pad_left])
@pytest.mark.parametrize("make", [list, torch.tensor, np.array])
def test_texts_are_padded_to_the_longest_that_was_drawn(make: Any, collate: Any, num_workers: int) -> None:
    plain = data.DataLoader(Texts(make), SIZE, collate_fn=collate, num_workers=num_workers)
    settings = {"losses": of_names, "reuse_losses": False, "selection": es.Selection(es.methods.loss(), anneal=(0, 0))}
    assert max(widths(wrap(plain, **settings))) == 0
    assert max(widths(wrap(plain, **settings, recollate=False))) > 0


def as_lists(samples: list[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


def padded_images(samples: list[Any]) -> Any:
    width = max(image.shape[2] for image, _ in samples)
    images = [torch.nn.functional.pad(image, (0, width - image.shape[2])) for image, _ in samples]
    return torch.stack(images), torch.tensor([index for _, index in samples])


@pytest.mark.parametrize(
    "collate, samples, is_kept",
    [
        (pad, [Texts(list)[index] for index in range(4)], True),
        (pad, [Texts(list)[3]] * 4, False),  # none is longer
        (as_lists, [(torch.ones(index + 1), index) for index in range(4)], False),  # nothing is padded
        (padded_images, [(torch.ones(3, 4, index + 1), index) for index in range(4)], False),
    ],
)
def test_samples_are_kept_only_where_sequences_were_padded(collate: Any, samples: list[Any], is_kept: bool) -> None:
    """What is kept, worker processes send twice."""
    kept = Fetcher(samples, collate, None, 0, {}).fetch(np.arange(4)).samples
    assert kept == (samples if is_kept else None)


@no_fork_warning
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_was_masked_at_random_is_trained_on_as_it_was_scored(num_workers: int) -> None:
    scored: list[torch.Tensor] = []

    def remember(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        scored.append(batch["tokens"])
        return of_names(model, batch)

    plain = data.DataLoader(Texts(list), SIZE, collate_fn=pad_and_mask, num_workers=num_workers)
    selection = es.Selection(es.methods.loss(), anneal=(0, 0))
    loader = wrap(plain, selection, losses=remember, reuse_losses=False)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch, _ in loader:
            assert loader.draw is not None
            assert batch["tokens"].tolist() == scored[-1][loader.draw.positions].tolist()


def test_the_trial_whether_a_collate_function_is_random_leaves_no_trace() -> None:
    states = []
    for recollate in (None, False):
        torch.manual_seed(3)
        plain = data.DataLoader(Texts(list), SIZE, collate_fn=pad_and_mask)
        selection = es.Selection(es.methods.loss(), anneal=(0, 0))
        found = [
            batch["tokens"].tolist()
            for batch, _ in wrap(plain, selection, losses=of_names, reuse_losses=False, recollate=recollate)
        ]
        states.append((found, torch.get_rng_state().tolist()))
    assert states[0] == states[1]


def test_a_random_collate_function_is_refused_where_collating_again_is_asked_for() -> None:
    plain = data.DataLoader(Texts(list), SIZE, collate_fn=pad_and_mask)
    selection = es.Selection(es.methods.loss(), anneal=(0, 0))
    loader = wrap(plain, selection, losses=of_names, recollate=True)
    with pytest.raises(errors.ShapeError, match=r"leaf 'tokens' differs by more than padding: .* draws at random"):
        list(loader)


# -- what is refused ------------------------------------------------------------------------------------------------


class Endless(data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(NUM))


class Lengthless(data.Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class Backwards(data.Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(NUM - 1, -1, -1))

    def __len__(self) -> int:
        return NUM


def made(**settings: Any) -> Callable[[], Any]:
    return lambda: data.DataLoader(make_set(), **settings)


@pytest.mark.parametrize(
    "make, message",
    [
        (made(batch_size=SIZE, sampler=data.WeightedRandomSampler([1.0] * NUM, NUM)), "sampler WeightedRandomSampler"),
        (made(batch_size=SIZE, sampler=data.SubsetRandomSampler([1, 2])), "SubsetRandomSampler.*utils.data.Subset"),
        (made(batch_size=SIZE, sampler=Backwards()), "the sampler Backwards, and the selector decides.*es.stream"),
        (made(batch_size=SIZE, sampler=[3, 2, 1]), "the sampler list"),
        (made(batch_size=SIZE, sampler=data.RandomSampler(range(NUM), replacement=True)), "replacement=True"),
        (made(batch_size=SIZE, sampler=data.RandomSampler(range(NUM), num_samples=20)), "num_samples=20 of 46"),
        (
            made(batch_size=SIZE, sampler=data.DistributedSampler(range(NUM), num_replicas=2, rank=0)),  # type: ignore[arg-type]
            "DistributedSampler for 2 ranks, and this process is one of 1",
        ),
        (
            made(batch_sampler=data.BatchSampler(data.SequentialSampler(range(NUM)), SIZE, False)),
            "batch_sampler=BatchSampler.*batch_size instead",
        ),
        (made(batch_size=None), "batch_size=None"),
        (made(batch_size=SIZE, in_order=False), "in_order=False"),
        (lambda: data.DataLoader(Endless(), SIZE), "Endless, is an IterableDataset.*es.stream"),
        (lambda: data.DataLoader(Lengthless(), SIZE, sampler=range(3)), "Lengthless, has no length"),
        (lambda: [1, 2], "takes a torch.utils.data.DataLoader, got a list"),
        (wrap, "takes a torch.utils.data.DataLoader, got a SelectiveLoader"),
        (made(batch_size=NUM + 1), r"batch_size=47 is larger than the plan"),
    ],
)
def test_a_loader_that_cannot_be_taken_over_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        wrap(make())


@pytest.mark.parametrize("sampler", [data.SequentialSampler, data.RandomSampler])
def test_samplers_that_the_selector_replaces_are_accepted(sampler: Any) -> None:
    assert len(wrap(data.DataLoader(make_set(), SIZE, sampler=sampler(range(NUM))))) == 5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model": lambda x: x}, "model must be a torch.nn.Module, got function"),
        ({"losses": torch.tensor(1.0)}, "losses must be a function"),
        ({"selection": "eswp"}, "selection must be an es.Selection"),
        ({"recollate": True, "per_sample": ["0"]}, "recollate=True"),
        ({"epochs": 0}, "num_epochs"),
        ({"exchange": "leased"}, "pass run="),
        ({"deadline_s": 5}, "exchange 'in-process' has no setting 'deadline_s'"),
        ({"lables": [0]}, "'lables'; did you mean 'labels'"),
        ({"exchange": "leased", "run": "r", "world_sise": 2}, "exchange 'leased' has no setting 'world_sise'"),
    ],
)
def test_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        wrap(**settings)


@contextlib.contextmanager
def group(rank: int, world_size: int) -> Iterator[None]:
    """A group of torch.distributed, of whose ranks this process is one and the others are not there."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def test_several_ranks_share_a_run_and_so_need_its_name() -> None:
    with group(0, 2):
        plain = data.DataLoader(make_set(), SIZE, sampler=data.DistributedSampler(make_set()))
        with pytest.raises(errors.ConfigError, match=r"among 2 rank.*pass run="):
            wrap(plain)
        assert len(wrap(plain, exchange="in-process", world_size=1)) == 5  # each by itself, as tensor-parallel ranks do
        with pytest.raises(errors.ConfigError, match="DistributedSampler for 4 ranks, and this process is one of 2"):
            wrap(data.DataLoader(make_set(), SIZE, sampler=data.DistributedSampler(make_set(), num_replicas=4)))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"prefetch": 3}, "unknown setting 'prefetch': .* prefetch_factor"),
        ({"persistent_workers": True}, "persistent_workers option needs num_workers > 0"),
        ({"num_workers": -1}, "num_workers option should be non-negative"),
    ],
)
def test_settings_of_workers_are_refused_when_the_loader_is_made(settings: dict[str, Any], message: str) -> None:
    selector = es.Selector(SELECTION, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
    with pytest.raises(errors.ConfigError, match=message):
        es.SelectiveLoader(make_set(), selector, lambda batch: batch, **settings)


def test_epochs_beyond_the_plan_are_refused() -> None:
    training = Training(epochs=1)
    with pytest.raises(errors.ConfigError, match=r"epoch.*\b1\b"):
        training.loader.set_epoch(1)
    training.epoch()
    with pytest.raises(errors.ConfigError, match="all epochs=1 of this run are made"):
        training.epoch()


def test_a_data_set_that_grows_is_refused_before_the_epoch() -> None:
    dataset = Texts(list)
    loader = wrap(data.DataLoader(dataset, SIZE, collate_fn=pad), losses=of_names, reuse_losses=False)
    list(loader)
    dataset.__class__ = type("Longer", (Texts,), {"__len__": lambda self: NUM + 1})
    with pytest.raises(errors.ConfigError, match="47 samples, the selector was made for num_samples=46"):
        list(loader)
    assert loader.selector.next_epoch == 1


@pytest.mark.parametrize("anneal", [(0, 0), (0.25, 0)])
def test_losses_as_a_mean_are_refused_before_the_first_step(anneal: tuple[float, float]) -> None:
    def mean(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return losses_of(model, batch).mean()

    loader = wrap(selection=es.Selection(es.methods.evolved(), anneal=anneal), losses=mean)
    batches = iter(loader)
    with pytest.raises(errors.ShapeError, match=r"one number for .* it must give one loss per sample"):
        loader.mean(mean(make_model(), next(batches)[0]))


def test_a_collate_function_that_drops_samples_is_refused() -> None:
    plain = data.DataLoader(make_set(), SIZE, collate_fn=lambda samples: data.default_collate(samples[1:]))
    with pytest.raises(errors.ShapeError, match="has 9 rows in a batch of 10 samples"):
        next(iter(wrap(plain)))


def test_mean_is_for_a_batch() -> None:
    with pytest.raises(errors.ShapeError, match="none was yet"):
        wrap().mean(torch.ones(3))
    loader = wrap()
    next(iter(loader))
    with pytest.raises(errors.ShapeError, match=r"\(4,\) for 10 samples"):
        loader.mean(torch.ones(4))
    with pytest.raises(errors.ShapeError, match="signals 'correct', and no 'loss'"):
        loader.mean({"correct": torch.ones(10)})


def test_a_promised_observe_that_does_not_come_is_named() -> None:
    with pytest.raises(errors.ShapeError, match=r"loader.observe\(losses\), or loader.mean\(losses\)"):
        list(wrap())


def test_data_that_cannot_be_sent_to_processes_is_refused_before_the_first_step() -> None:
    plain = data.DataLoader(
        make_set(), SIZE, collate_fn=lambda samples: samples, num_workers=1, multiprocessing_context="spawn"
    )
    loader = wrap(plain)
    with pytest.raises(errors.ConfigError, match=r"num_workers=1: the data set, collate_fn .* cannot be sent"):
        next(iter(loader))


def test_a_state_of_another_batch_size_is_refused() -> None:
    state = wrap().state_dict()
    with pytest.raises(errors.RunMismatchError, match="batch_size"):
        wrap(data.DataLoader(make_set(), 5)).load_state_dict(state)

"""One conformance suite for the exchanges: the same seed gives the same selection and the same table, bit for bit."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import es_service as es
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection import methods
from es_service.selection.local_run import LocalRun
from es_service.selection.named import preset
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage
from es_service.storage.table_files import encode_table

pytestmark = pytest.mark.filterwarnings("ignore::es_service.errors.SelectionStoppedWarning")
NUM_SAMPLES, NUM_EPOCHS, BATCH_SIZE = 1003, 5, 32
SHAPE = {"num_samples": NUM_SAMPLES, "num_epochs": NUM_EPOCHS, "batch_size": BATCH_SIZE}
RNG = np.random.default_rng(5)
LOSSES = RNG.exponential(size=(NUM_EPOCHS, NUM_SAMPLES)).astype(np.float32)
SIGNALS = {
    "loss": LOSSES,
    "correct": (RNG.random(LOSSES.shape) < np.linspace(0.7, 1, NUM_EPOCHS)[:, None]).astype(np.float32),
    "confidence": RNG.uniform(0.5, 1.0, LOSSES.shape).astype(np.float32),
    "grad_norm": RNG.exponential(size=LOSSES.shape).astype(np.float32),
}
IRREDUCIBLE = RNG.exponential(size=NUM_SAMPLES).astype(np.float32)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "es": ("es", {"seed": 3, "anneal": (0.2, 0.2)}),
    "eswp": ("eswp", {"seed": 4, "anneal": (0.2, 0.0), "prune_ratio": 0.4, "max_age": 2, "reweight": "unbiased"}),
    "loss-systematic": ("loss", {"seed": 5, "anneal": (0, 0), "draw": "systematic", "reweight": "unbiased"}),
    "ema-topk": ("ema", {"seed": 6, "anneal": (0, 0), "draw": "topk"}),
    "random": ("random", {"seed": 7, "anneal": (0.2, 0)}),
    "full": ("full", {"seed": 8}),
    "es-grad-norm": ("es", {"seed": 9, "anneal": (0, 0), "signal": "grad_norm"}),
    "es-capped": ("es", {"seed": 10, "anneal": (0, 0), "cap": 0.75, "power": 0.5, "reweight": "unbiased"}),
    "es-stale": ("es", {"seed": 11, "anneal": (0.2, 0), "score_every": 2}),
    "importance": ("importance", {"seed": 12, "anneal": (0, 0)}),
    "random-subset": ("random_subset", {"seed": 13, "anneal": (0, 0.2)}),
    "ordered": ("ordered", {"seed": 14}),
    "backprop": ("selective_backprop", {"seed": 15, "history": 3 * BATCH_SIZE + 5}),
    "backprop-stale": ("selective_backprop", {"seed": 16, "history": 3 * BATCH_SIZE + 5, "score_every": 2}),
    "backprop-composer": ("selective_backprop_composer", {"seed": 17, "anneal": (0.2, 0)}),
    "infobatch": ("infobatch", {"seed": 18}),
    "kakurenbo": ("kakurenbo", {"seed": 19}),
    "ucb": ("ucb", {"seed": 20, "anneal": (0.2, 0), "every": 2, "max_age": None}),
    "epsilon-greedy": ("epsilon_greedy", {"seed": 21, "anneal": (0, 0), "epsilon": 0.2, "max_age": 2}),
    "closeness": ("threshold_closeness", {"seed": 23, "anneal": (0.2, 0)}),
    "variance": ("prediction_variance", {"seed": 24, "anneal": (0, 0), "beta": 0.7}),
    "rho": ("rho", {"seed": 22, "anneal": (0, 0)}),
    "es-drop-last": ("es", {"seed": 25, "anneal": (0.2, 0), "drop_last": True}),
    "infobatch-drop-last": ("infobatch", {"seed": 26, "drop_last": True}),
    "es-part": (
        "eswp",
        {"seed": 27, "anneal": (0.2, 0), "prune_ratio": 0.2, "score_share": 0.4, "reweight": "unbiased"},
    ),
    "backprop-part": ("selective_backprop", {"seed": 28, "history": 3 * BATCH_SIZE + 5, "score_share": 0.3}),
    "auto": ("auto", {"seed": 29}),
    "es-guarded": ("es", {"seed": 30, "anneal": (0, 0), "guard": True}),
    "es-skip": ("es", {"seed": 23, "anneal": (0.2, 0), "on_bad_loss": "skip"}),
}
SELECTIONS = {name: preset(short, **settings) for name, (short, settings) in CASES.items()}
SCORED_UNASKED = ["es", "es-stale", "random", "kakurenbo"]  # losses come with every step, wanted or not

Connect = Callable[[es.Selection, int], list[es.Selector]]


def embedded(selection: es.Selection, world_size: int) -> list[es.Selector]:
    """All ranks over one local_run in this process: the reference."""
    keeper = LocalRun(RunConfig(selection=selection, **SHAPE))
    ranks = [Embedded(keeper, Position(rank, world_size)) for rank in range(world_size)]
    return [es.Selector(selection, **SHAPE, irreducible_losses=IRREDUCIBLE, exchange=rank) for rank in ranks]


def remote(
    run: str, storage: str, exchange: Any, selection: es.Selection, world_size: int, shards: int | None = None
) -> list[es.Selector]:
    generation = uuid.uuid4().hex
    return [
        es.connect(
            run,
            selection,
            **SHAPE,
            irreducible_losses=IRREDUCIBLE,
            exchange=exchange,
            shards=shards,
            storage=storage,
            rank=rank,
            world_size=world_size,
            generation=generation,
        )
        for rank in range(world_size)
    ]


def observed(epoch: int, ids: Any, *, with_gaps: bool = False) -> dict[str, Any]:
    """All that a model could say of these samples in this epoch; with gaps, one loss in five is infinite."""
    signals = {name: values[epoch, ids] for name, values in SIGNALS.items()}
    if with_gaps:
        signals["loss"][(ids + epoch) % 5 == 0] = np.inf
    return signals


def train(selectors: Sequence[es.Selector], epochs: range, *, scored: bool = True) -> list[Any]:
    """Drive all ranks in lockstep; return every step's ids, positions and scale, and what each epoch hid."""
    steps: list[Any] = []
    with_gaps = selectors[0].config.selection.on_bad_loss == "skip"
    for epoch in epochs:
        for row in itertools.zip_longest(*(selector.epoch(epoch) for selector in selectors)):
            for rank, (selector, ids) in enumerate(zip(selectors, row, strict=True)):
                if scored:
                    draw = selector.select(ids, observed(epoch, ids, with_gaps=with_gaps))
                else:
                    asked = selector.to_score(ids)
                    seen = observed(epoch, ids[asked], with_gaps=with_gaps) if asked.size else None
                    draw = selector.select(ids, seen, scored=asked)
                    selector.observe(observed(epoch, draw.ids, with_gaps=with_gaps))
                steps.append((epoch, rank, ids.tolist(), draw.positions.tolist(), draw.scale.tobytes()))
        steps += [(epoch, rank, selector.decision) for rank, selector in enumerate(selectors) if selector.decision]
        for rank, selector in enumerate(selectors):
            factor = selector.learning_rate_factor
            for ids in selector.hidden_batches():
                selector.refresh(ids, observed(epoch, ids))
                steps.append((epoch, rank, "hidden", ids.tolist(), factor))
    return steps


def go_on(selector: es.Selector, steps: Iterator[Any], epoch: int) -> None:
    """Make the steps that are left of an open epoch."""
    for ids in steps:
        selector.select(ids, observed(epoch, ids))
    for ids in selector.hidden_batches():
        selector.refresh(ids, observed(epoch, ids))


def same(one: pa.Table, other: pa.Table) -> bool:
    """Bit for bit: a NaN equals a NaN."""
    return encode_table(one) == encode_table(other)


def finish(selectors: Sequence[es.Selector]) -> pa.Table:
    table = selectors[0].table()
    for selector in selectors:
        selector.close()
    return table


AGAIN = {"backprop-part", "es-guarded", "infobatch-drop-last"}  # what another case has shown of the exchange
EVERY = [*((name, False) for name in SELECTIONS), *((name, True) for name in SCORED_UNASKED)]


def cases(*before: Any) -> Iterator[Any]:
    """The cases of `EVERY` behind these arguments; some of them in `make thorough` only."""
    for name, scored in EVERY:
        marks = [pytest.mark.thorough] if name in AGAIN else []
        yield pytest.param(*before, name, scored, marks=marks)


SOME = [("es", True), ("eswp", False), ("infobatch", False), ("kakurenbo", False), ("ucb", False), ("backprop", False)]


@pytest.mark.parametrize(
    ("groups", "name", "scored"),
    [  # every method by both, with several ranks, and some with one; one group of ranks after the other on one server
        *cases(("sync", 3, "leased", 2)),
        *(pytest.param(("leased", 1, "sync", 1), *case, marks=pytest.mark.thorough) for case in SOME),
        *(pytest.param(("leased", 3), *case, marks=pytest.mark.thorough) for case in SOME),
    ],
)
def test_same_selection_and_table_as_in_process(
    groups: tuple[Any, ...], name: str, scored: bool, run: str, storage: str
) -> None:
    selection = SELECTIONS[name]
    for exchange, world_size in zip(groups[::2], groups[1::2], strict=True):
        reference = embedded(selection, world_size)
        expected = train(reference, range(NUM_EPOCHS), scored=scored)
        selectors = remote(run, storage, exchange, selection, world_size)
        for selector in selectors:
            selector.reset()
        assert train(selectors, range(NUM_EPOCHS), scored=scored) == expected
        assert same(finish(selectors), finish(reference))
        for one, other in zip(selectors, reference, strict=True):
            for count in ("scored", "trained", "full", "full_steps"):
                assert getattr(one.ledger, count) == getattr(other.ledger, count)


@pytest.mark.parametrize(
    ("exchange", "name", "shards"),
    [
        ("sync", "eswp", 2),
        ("leased", "eswp", 7),
        pytest.param("leased", "infobatch", 2, marks=pytest.mark.thorough),
        ("sync", "kakurenbo", 4),
        ("leased", "epsilon-greedy", 4),
        pytest.param("sync", "backprop-stale", 7, marks=pytest.mark.thorough),
        ("leased", "backprop-stale", 2),
        ("leased", "es-part", 3),
    ],
)
def test_same_selection_and_table_over_any_number_of_shards(
    exchange: str, name: str, shards: int, run: str, storage: str
) -> None:
    """Methods whose plans ask about all rows, and one that draws by its lease."""
    selection = SELECTIONS[name]
    reference = embedded(selection, 2)
    expected = train(reference, range(NUM_EPOCHS), scored=False)
    selectors = remote(run, storage, exchange, selection, 2, shards)
    assert train(selectors, range(NUM_EPOCHS), scored=False) == expected
    assert same(finish(selectors), finish(reference))
    assert same(RunStorage(storage, run).table(), reference[0].table())
    assert repr(selectors[0].top(7).to_pydict()) == repr(reference[0].top(7).to_pydict())
    assert repr(selectors[1].distribution("s")) == repr(reference[0].distribution("s"))


@pytest.mark.parametrize(("batch_size", "shards"), [(1003, 1), (501, 3)])
def test_reports_too_large_for_one_message_go_in_pieces(
    shards: int, batch_size: int, run: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from es_service.actors import launch, wire

    monkeypatch.setattr(wire, "MAX_BYTES", 2048)  # 100 ids instead of 4,800
    selection, shape = SELECTIONS["es"], {**SHAPE, "batch_size": batch_size}
    for exchange in ("sync", "leased"):
        name = f"{run}-{exchange}"
        selector = es.connect(name, selection, **shape, exchange=exchange, shards=shards, storage=storage)
        reference = es.Selector(selection, **shape)
        assert train([selector], range(2)) == train([reference], range(2))
        assert same(finish([selector]), reference.table())
        launch.stop(name)


@pytest.mark.parametrize(
    ("name", "scored", "shards"),
    [
        ("eswp", False, 1),
        ("es-stale", False, 3),
        ("random", False, 1),
        ("ucb", False, 3),
        ("kakurenbo", True, 1),
        ("backprop", False, 1),
        ("backprop-stale", False, 3),
        ("rho", False, 1),
        ("es-part", False, 3),
    ],
)
def test_same_selection_and_table_where_rows_are_fetched_step_by_step(
    name: str, scored: bool, shards: int, run: str, storage: str
) -> None:
    selection = SELECTIONS[name]
    expected = train(reference := embedded(selection, 2), range(NUM_EPOCHS), scored=scored)
    selectors = remote(run, storage, "prefetch", selection, 2, shards)
    assert train(selectors, range(NUM_EPOCHS), scored=scored) == expected
    assert same(finish(selectors), finish(reference))


def collective(run: str, storage: str, selection: es.Selection, every: int) -> es.Selector:
    """This rank, inside one of the processes of `ranks`."""
    shape = {**SHAPE, "irreducible_losses": IRREDUCIBLE, "storage": storage}
    return es.connect(run, selection, **shape, exchange="collective", every=every)


def train_one_rank(
    name: str, every: int, scored: bool, storage: str, state: dict[str, Any] | None, epochs: range, dies_in: int | None
) -> Any:
    """Be one rank of a group; return its steps, its table, its counts and its state. Rank 1 dies in epoch `dies_in`."""
    selector = collective("run", storage, SELECTIONS[name], every)
    if state is not None:
        assert selector.load_state_dict(state) == state["finished_epochs"]
    steps = train([selector], epochs, scored=scored)
    if dies_in is not None:
        for step, ids in enumerate(selector.epoch(dies_in)):
            selector.select(ids, observed(dies_in, ids))
            if step == 3 and selector.exchange.position.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    state = selector.state_dict()
    counts = {count: getattr(selector.ledger, count) for count in COUNTS}
    assert "ray" not in sys.modules
    return steps, encode_table(finish([selector])), counts, state


COUNTS = ("scored", "trained", "full", "full_steps", "skipped")


def by_rank(steps: list[Any], world_size: int) -> list[list[Any]]:
    """Return what each rank did, by itself."""
    return [[(step[0], 0, *step[2:]) for step in steps if step[1] == rank] for rank in range(world_size)]


@pytest.mark.parametrize(
    ("world_size", "every", "name", "scored"),
    [*cases(3, 4), *((2, gap, *case) for case in SOME for gap in (1, 1000))],
)
def test_replicas_give_the_same_selection_and_table_as_one_process(
    name: str, scored: bool, world_size: int, every: int, ranks: Any, storage: str
) -> None:
    reference = embedded(SELECTIONS[name], world_size)
    expected = by_rank(train(reference, range(NUM_EPOCHS), scored=scored), world_size)
    args = (name, every, scored, storage, None, range(NUM_EPOCHS), None)
    answers = ranks.run(train_one_rank, *args, world_size=world_size)
    table = encode_table(finish(reference))
    for (steps, own_table, counts, _), own_steps, other in zip(answers, expected, reference, strict=True):
        assert steps == own_steps
        assert own_table == table
        assert counts == {count: getattr(other.ledger, count) for count in COUNTS}
    assert encode_table(RunStorage(storage, "run").table()) == table  # rank 0's snapshot


@pytest.mark.parametrize(
    ("name", "world_size", "every"),
    [("eswp", 2, 1), ("infobatch", 3, 4), ("kakurenbo", 2, 4), ("ucb", 3, 1), ("backprop-stale", 2, 1000)],
)
def test_replicas_start_again_between_epochs(name: str, world_size: int, every: int, ranks: Any, storage: str) -> None:
    """A rank dies inside epoch 3; the group starts again from the state before it."""
    reference = embedded(SELECTIONS[name], world_size)
    expected = by_rank(train(reference, range(NUM_EPOCHS)), world_size)
    first = ranks.run(train_one_rank, name, every, True, storage, None, range(3), None, world_size=world_size)
    state = first[0][3]
    died = ranks.run(train_one_rank, name, every, True, storage, state, range(3, 3), 3, world_size=world_size)
    assert died[1] is None
    assert all(isinstance(one, es.ServerUnavailableError) for one in (died[0], *died[2:]))
    second = ranks.run(
        train_one_rank, name, every, True, storage, state, range(3, NUM_EPOCHS), None, world_size=world_size
    )
    assert [one[0] + other[0] for one, other in zip(first, second, strict=True)] == expected
    assert {one[1] for one in second} == {encode_table(finish(reference))}


def counted(selectors: Sequence[es.Selector], epochs: range) -> list[Any]:
    """Drive all ranks as `train` does, in a loop that counts its steps and never asks for a batch behind the last."""
    steps: list[Any] = []
    for epoch in epochs:
        batches = [selector.epoch(epoch) for selector in selectors]
        num_steps = 1
        while num_steps:
            for rank, (selector, ids) in enumerate(zip(selectors, map(next, batches), strict=True)):
                draw = selector.select(ids, observed(epoch, ids))
                steps.append((epoch, rank, ids.tolist(), draw.positions.tolist(), draw.scale.tobytes()))
            num_steps = num_steps + 1 if num_steps < selectors[0].steps(epoch) else 0
        STILL_OPEN.extend(batches)
    return steps


STILL_OPEN: list[Any] = []  # generators that nobody asks any more, nor closes


@pytest.mark.parametrize(("exchange", "name"), [("sync", "eswp"), ("leased", "infobatch"), ("prefetch", "es")])
def test_a_state_taken_right_after_the_last_step_can_be_continued(
    exchange: str, name: str, run: str, storage: str
) -> None:
    expected = train(reference := embedded(SELECTIONS[name], 2), range(NUM_EPOCHS))
    first = remote(run, storage, exchange, SELECTIONS[name], 2)
    before = counted(first, range(3))
    state = first[0].state_dict()
    assert state["finished_epochs"] == 3
    second = remote(run, storage, exchange, SELECTIONS[name], 2)
    for selector in second:
        assert selector.load_state_dict(state) == 3
    assert before + counted(second, range(3, NUM_EPOCHS)) == expected
    assert same(finish(second), finish(reference))
    for selector in first:
        selector.close()


def count_steps_of_one_rank(name: str, storage: str) -> Any:
    selector = collective("run", storage, SELECTIONS[name], 4)
    steps = counted([selector], range(NUM_EPOCHS))
    return steps, selector.state_dict()["finished_epochs"], encode_table(finish([selector]))


def test_replicas_close_their_epochs_behind_the_last_step(ranks: Any, storage: str) -> None:
    expected = by_rank(train(reference := embedded(SELECTIONS["eswp"], 2), range(NUM_EPOCHS)), 2)
    table = encode_table(finish(reference))
    answers = ranks.run(count_steps_of_one_rank, "eswp", storage, world_size=2)
    assert answers == [(steps, NUM_EPOCHS, table) for steps in expected]


def test_another_seed_gives_another_selection() -> None:
    one = train(embedded(preset("es", seed=1), 1), range(2))
    assert one == train(embedded(preset("es", seed=1), 1), range(2))
    assert one != train(embedded(preset("es", seed=2), 1), range(2))


def test_every_method_has_a_case_and_every_case_does_what_it_is_there_for() -> None:
    assert {selection.method.name for selection in SELECTIONS.values()} == set(methods.METHODS)
    decided = [step[2] for step in train(embedded(SELECTIONS["es-guarded"], 1), range(NUM_EPOCHS)) if len(step) == 3]
    assert {one["ratio"] for one in decided} == {0.25, 1.0}
    steps = train(embedded(SELECTIONS["kakurenbo"], 2), range(NUM_EPOCHS), scored=False)
    assert {step[0] for step in steps if step[2] == "hidden"} == set(range(1, NUM_EPOCHS - 1))
    [stale] = embedded(SELECTIONS["backprop-stale"], 1)
    train([stale], range(NUM_EPOCHS), scored=False)
    assert stale.ledger.scored == 3 * NUM_SAMPLES
    [part] = embedded(SELECTIONS["backprop-part"], 1)
    train([part], range(NUM_EPOCHS), scored=False)
    assert part.ledger.scored < 3 * NUM_SAMPLES
    [composer] = embedded(SELECTIONS["backprop-composer"], 1)
    sizes = [len(step[3]) for step in train([composer], range(2), scored=False) if step[0] == 1]
    assert sizes[:4] == [32, 16, 32, 16] or sizes[:4] == [16, 32, 16, 32]


@pytest.mark.parametrize(("exchange", "world_size"), [("sync", 2), ("leased", 2)])
@pytest.mark.parametrize("name", ["eswp", "infobatch", "kakurenbo", "ucb", "backprop-stale", "es-guarded"])
def test_a_restart_between_epochs_changes_nothing(
    exchange: str, world_size: int, name: str, run: str, storage: str
) -> None:
    """The group of ranks dies inside epoch 3 and starts again from the checkpoint of epoch 2."""
    selection = SELECTIONS[name]
    reference = embedded(selection, world_size)
    expected = train(reference, range(NUM_EPOCHS))

    first = remote(run, storage, exchange, selection, world_size)
    before = train(first, range(3))
    state = pickle.loads(pickle.dumps(first[0].state_dict()))
    halfway = [selector.epoch(3) for selector in first]
    for selector, ids in zip(first, map(next, halfway), strict=True):
        selector.select(ids, observed(3, ids))

    second = remote(run, storage, exchange, selection, world_size)
    for selector in second:
        assert selector.load_state_dict(state) == 3
    after = train(second, range(3, NUM_EPOCHS))
    assert before + after == expected
    assert same(finish(second), finish(reference))
    # The ranks of the first life are refused from now on, and leave no trace.
    with pytest.raises(es.EpochOrderError, match="fenced"):
        go_on(first[0], halfway[0], 3)
    first[0].close()


@pytest.mark.parametrize(
    ("exchange", "name", "shards", "killed"),
    [
        pytest.param("sync", "es", 1, 0, marks=pytest.mark.thorough),
        ("leased", "kakurenbo", 1, 0),
        pytest.param("prefetch", "es", 1, 0, marks=pytest.mark.thorough),
        ("sync", "eswp", 3, 0),
        pytest.param("leased", "eswp", 3, 1, marks=pytest.mark.thorough),
        ("prefetch", "infobatch", 3, 2),
        ("leased", "auto", 3, 0),
    ],
)
def test_a_server_killed_inside_an_epoch_and_between_two_is_not_noticed(
    exchange: str, name: str, shards: int, killed: int, run: str, storage: str
) -> None:
    from es_service.actors import launch
    from es_service.actors.calls import call_patiently

    selection = SELECTIONS[name]
    expected = train(reference := embedded(selection, 1), range(NUM_EPOCHS))
    [selector] = remote(run, storage, exchange, selection, 1, shards)

    def kill() -> None:
        ask = launch.find_shards(run)[killed].pid.options(concurrency_group="read")
        os.kill(call_patiently(ask.remote, 30.0, "ask for its pid"), signal.SIGKILL)

    drawn = train([selector], range(1))
    kill()  # nobody asks anything of it at the moment
    drawn += train([selector], range(1, 2))
    steps: list[Any] = []
    for number, ids in enumerate(selector.epoch(2)):
        if number in (1, 3):
            kill()
        if selector.wants_scores:
            draw = selector.select(ids, observed(2, ids))
        else:
            draw = selector.select(ids)
            selector.observe(observed(2, draw.ids))
        steps.append((2, 0, ids.tolist(), draw.positions.tolist(), draw.scale.tobytes()))
    kill()  # what the steps said may be under way
    steps += [(2, 0, selector.decision)] if selector.decision else []
    for ids in selector.hidden_batches():
        selector.refresh(ids, observed(2, ids))
        steps.append((2, 0, "hidden", ids.tolist(), selector.learning_rate_factor))
    drawn += steps + train([selector], range(3, NUM_EPOCHS))
    assert drawn == expected
    assert same(finish([selector]), finish(reference))


def test_a_server_whose_storage_is_lost_with_it_is_told_apart(run: str, storage: str, tmp_path: Any) -> None:
    """It comes back with less than its rank has let go of: the rank has to start again from a checkpoint."""
    from es_service.actors import launch
    from es_service.actors.calls import call

    selection = SELECTIONS["es"]
    expected = train(reference := embedded(selection, 1), range(NUM_EPOCHS))
    [first] = remote(run, storage, "sync", selection, 1)
    before = train([first], range(2))
    state = first.state_dict()
    halfway = first.epoch(2)
    ids = next(halfway)
    first.select(ids, observed(2, ids))
    server = launch.find(run)
    call(server.settle.remote(0, first.exchange._caller.generation, 1), 10.0, "settle")
    ids = next(halfway)
    first.select(ids, observed(2, ids))
    pid = call(server.pid.remote(), 10.0, "ask for its pid")
    for segment in sorted((tmp_path / "runs" / run / "journal" / "0-of-1").glob("*.arrow"))[-2:]:
        segment.write_bytes(b"gone bad")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(es.ServerRestartedError, match=r"connect again and continue from the (last )?checkpoint"):
        go_on(first, halfway, 2)
    first.close()
    [second] = remote(run, storage, "sync", selection, 1)
    assert second.load_state_dict(state) == 2
    assert before + train([second], range(2, NUM_EPOCHS)) == expected
    assert same(finish([second]), finish(reference))


@pytest.mark.parametrize(("shards", "then"), [(1, 3), pytest.param(4, 2, marks=pytest.mark.thorough), (3, 1)])
def test_a_run_goes_on_with_another_number_of_shards(shards: int, then: int, run: str, storage: str) -> None:
    from es_service.actors import launch

    selection = SELECTIONS["eswp"]
    expected = train(reference := embedded(selection, 2), range(NUM_EPOCHS))
    first = remote(run, storage, "leased", selection, 2, shards)
    before = train(first, range(2))
    with pytest.raises(es.RunMismatchError, match=rf"is up with {shards} shard\(s\), not {then}"):
        remote(run, storage, "leased", selection, 2, then)
    for selector in first:
        selector.close()
    launch.stop(run)
    second = remote(run, storage, "sync", selection, 2, then)  # from storage alone
    assert before + train(second, range(2, NUM_EPOCHS)) == expected
    assert same(finish(second), finish(reference))


def test_a_state_goes_to_a_server_that_never_saw_it(run: str, storage: str, tmp_path: Any) -> None:
    """Scores travel inside the checkpoint: another storage folder, another server, the same continuation."""
    selection = SELECTIONS["eswp"]
    expected = train(reference := embedded(selection, 1), range(NUM_EPOCHS))
    [one] = embedded(selection, 1)
    before = train([one], range(2))
    selectors = remote(run, str(tmp_path / "elsewhere"), "leased", selection, 1)
    assert selectors[0].load_state_dict(one.state_dict()) == 2
    assert before + train(selectors, range(2, NUM_EPOCHS)) == expected
    assert same(finish(selectors), finish(reference))


@pytest.mark.parametrize("exchange", ["sync", "leased"])
def test_reset_starts_over(exchange: str, run: str, storage: str) -> None:
    selection = SELECTIONS["es"]
    selectors = remote(run, storage, exchange, selection, 1)
    once = train(selectors, range(2))
    selectors[0].reset()
    assert train(selectors, range(2)) == once
    assert finish(selectors).column("visits").to_numpy().max() == 2


@pytest.mark.parametrize("exchange", ["sync", "leased", "prefetch"])
def test_all_ranks_reset_inside_an_epoch(exchange: str, run: str, storage: str) -> None:
    """What the slower rank has under way when the first one resets is dropped with the rest."""
    selectors = remote(run, storage, exchange, SELECTIONS["es"], 2)
    expected = train(embedded(SELECTIONS["es"], 2), range(2))
    halfway = [selector.epoch(0) for selector in selectors]
    for selector, steps in zip(selectors, halfway, strict=True):
        ids = next(steps)
        selector.select(ids, observed(0, ids))
    for selector in selectors:
        selector.reset()
    assert train(selectors, range(2)) == expected
    assert finish(selectors).column("visits").to_numpy().max() == 2


def test_a_load_that_fails_leaves_another_one_possible(run: str, storage: str) -> None:
    [selector] = remote(run, storage, "sync", SELECTIONS["es"], 1)
    expected = train([selector], range(2))
    good = selector.state_dict()
    train([selector], range(2, 3))
    with pytest.raises(es.StorageError):
        selector.load_state_dict({**good, "table": good["table"][:-20]})
    assert selector.load_state_dict(good) == 2
    selector.reset()
    assert train([selector], range(2)) == expected


def test_a_selector_goes_on_where_a_snapshot_could_not_be_written(run: str, storage: str) -> None:
    """It is written while the next epoch trains, whose end says what became of it."""
    from es_service.actors import launch
    from es_service.actors.calls import call

    [selector] = remote(run, storage, "leased", SELECTIONS["es"], 1)
    expected = train(embedded(SELECTIONS["es"], 1), range(3))
    (Path(storage) / run / "snapshots").write_text("in the way")
    steps = train([selector], range(1))
    with pytest.raises(es.StorageError):
        call(launch.find(run).stored_epochs.remote(), 30.0, "ask what is stored")
    (Path(storage) / run / "snapshots").unlink()

    def train_one_more() -> None:
        for ids in selector.epoch(1):
            draw = selector.select(ids, observed(1, ids))
            steps.append((1, 0, ids.tolist(), draw.positions.tolist(), draw.scale.tobytes()))

    with pytest.raises(es.StorageError):
        train_one_more()
    assert steps + train([selector], range(2, 3)) == expected
    assert call(launch.find(run).stored_epochs.remote(), 30.0, "ask what is stored") == 3
    selector.close()


@pytest.mark.parametrize("exchange", ["sync", "leased"])
def test_an_exchange_pickles_to_a_name(exchange: str, run: str, storage: str) -> None:
    selection = SELECTIONS["es"]
    [selector] = remote(run, storage, exchange, selection, 1)
    train([selector], range(1))
    selector.close()
    data = pickle.dumps(selector.exchange)
    assert len(data) < 4096  # a name and settings, no table
    clone = pickle.loads(data)
    assert same(clone.table(), selector.table())
    again = es.Selector(selection, **SHAPE, exchange=clone)
    reference = embedded(selection, 1)
    train(reference, range(1))
    assert train([again], range(1, NUM_EPOCHS)) == train(reference, range(1, NUM_EPOCHS))
    again.close()


BAD = {
    "nan": (lambda ids, losses: (ids, np.where(np.arange(ids.size) == 7, np.nan, losses)), es.LossError, "position 7"),
    "infinite": (lambda ids, losses: (ids, losses + np.inf), es.LossError, "position 0"),
    "negative": (lambda ids, losses: (ids, -losses), es.LossError, "negative"),
    "twice": (lambda ids, losses: (np.r_[ids[:-1], ids[0]], losses), es.IdError, f"position {BATCH_SIZE - 1}"),
    "out of range": (lambda ids, losses: (np.r_[ids[:-1], NUM_SAMPLES], losses), es.IdError, "outside"),
    "below zero": (lambda ids, losses: (np.r_[-1, ids[1:]], losses), es.IdError, "id -1 at position 0"),
    "short": (lambda ids, losses: (ids, losses[1:]), es.ShapeError, "shape"),
    "a mean": (lambda ids, losses: (ids, losses.mean()), es.ShapeError, "reduction='none'"),
    "float ids": (lambda ids, losses: (ids.astype(np.float32), losses), es.ShapeError, "float32"),
    "two dimensions": (lambda ids, losses: (ids[None], losses), es.ShapeError, "one-dimensional"),
}


@pytest.mark.parametrize("exchange", ["embedded", "sync", "leased"])
def test_bad_input_changes_nothing(exchange: str, run: str, storage: str) -> None:
    """Before every step of an epoch, one of the reports that are refused."""
    selection = preset("es", seed=3, anneal=(0, 0))
    [selector] = embedded(selection, 1) if exchange == "embedded" else remote(run, storage, exchange, selection, 1)
    [reference] = embedded(selection, 1)
    left = iter(BAD.items())
    for ids, same_ids in zip(selector.epoch(0), reference.epoch(0), strict=True):
        losses = LOSSES[0, ids]
        for _, (spoil, error, message) in itertools.islice(left, 1):
            with pytest.raises(error, match=message):
                selector.select(*spoil(ids, losses))
        draw, expected = selector.select(ids, losses), reference.select(same_ids, losses)
        assert draw.positions.tolist() == expected.positions.tolist()
    assert not list(left)
    assert same(finish([selector]), finish([reference]))


def test_leased_serves_reordered_ids_and_refuses_foreign_ones(run: str, storage: str) -> None:
    selection = SELECTIONS["loss-systematic"]
    selectors = remote(run, storage, "leased", selection, 2)
    steps = [selector.epoch(0) for selector in selectors]
    mine, theirs = (next(step) for step in steps)
    draw = selectors[0].select(mine[::-1], LOSSES[0, mine[::-1]])
    assert set(draw.ids) <= set(mine)
    with pytest.raises(es.IdError, match="not in this rank's share"):
        selectors[0].select(theirs, LOSSES[0, theirs])
    for selector in selectors:
        selector.close()


def test_waiting_for_a_missing_rank_ends_and_names_it(run: str, storage: str) -> None:
    selection = SELECTIONS["es"]
    generation = uuid.uuid4().hex
    first, second = (
        es.connect(
            run, selection, **SHAPE, storage=storage, rank=rank, world_size=2, generation=generation, deadline_s=5.0
        )
        for rank in range(2)
    )
    for ids in first.epoch(0):
        first.select(ids, LOSSES[0, ids])
    with pytest.raises(es.ServerUnavailableError, match=r"rank\(s\) \[1\]"):
        next(first.epoch(1))
    first.close()
    second.close()


def test_state_dict_inside_an_epoch_is_refused_over_ray(run: str, storage: str) -> None:
    [selector] = remote(run, storage, "sync", SELECTIONS["es"], 1)
    next(selector.epoch(0))
    with pytest.raises(es.EpochOrderError, match="epoch 0 is open"):
        selector.state_dict()

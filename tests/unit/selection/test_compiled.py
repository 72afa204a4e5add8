"""Machine code gives the bits that numpy gives; where it is not to be had, that is said or does not matter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import es_service as es
import es_service.selection
from es_service import errors
from es_service.environment import COMPILED
from es_service.selection import compiled, keys
from es_service.selection.config import Selection
from es_service.selection.draws import first_arrivals, race_keys
from es_service.selection.engine import Engine
from es_service.selection.named import preset
from es_service.selection.observations import check_ids, check_losses
from es_service.selection.shards import Shard
from es_service.storage.table_files import encode_table

Switch = Callable[[bool], None]


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """A function that turns machine code on and off."""

    def to(on: bool) -> None:
        monkeypatch.setenv(COMPILED, str(int(on)))
        compiled.loops.cache_clear()
        assert (compiled.loops() is not None) == on

    yield to
    compiled.loops.cache_clear()


@pytest.fixture
def with_machine_code(switch: Switch) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    switch(True)


def both(switch: Switch, work: Callable[[], object]) -> tuple[object, object]:
    results = []
    for on in (True, False):
        switch(on)
        results.append(work())
    return results[0], results[1]


def test_random_numbers_and_arrival_times_are_the_same(with_machine_code: None, switch: Switch) -> None:
    ids = np.array([0, 1, 2, -1, 2**62, -(2**63), 2**63 - 1, *range(1000, 30_000)], dtype=np.int64)
    rng = np.random.default_rng(0)
    weights = rng.lognormal(sigma=9, size=ids.size).astype(np.float32)
    weights[:9] = 0, -0.0, 1e-45, 1e-38, 1e38, 3.4e38, 1, 0, 0

    def work() -> tuple[bytes, bytes]:
        uniforms = keys.uniforms(2**63 - 1, keys.Purpose.DRAW, 12, ids)
        return uniforms.tobytes(), race_keys(weights, uniforms).tobytes()

    one, other = both(switch, work)
    assert one == other


SELECTIONS = {
    "es": preset("es", seed=3, anneal=(0, 0)),
    "eswp": preset("eswp", seed=4, anneal=(0.2, 0), reweight="unbiased", max_age=2),
    "loss": preset("loss", seed=5, anneal=(0, 0), draw="systematic"),
    "ema": preset("ema", seed=6, anneal=(0, 0), cap=0.75, power=0.5),
    "by gradient norm": preset("es", seed=7, anneal=(0, 0), signal="grad_norm"),
    "stale": preset("es", seed=8, anneal=(0, 0.2), score_every=2),
    "in part": preset("es", seed=10, anneal=(0, 0), score_share=0.3),
    "no averages": preset("ucb", seed=9, anneal=(0, 0)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_run_is_the_same(name: str, with_machine_code: None, switch: Switch) -> None:
    selection = SELECTIONS[name]
    rng = np.random.default_rng(1)
    signals = {one: rng.lognormal(sigma=3, size=(5, 1003)).astype(np.float32) for one in ("loss", "grad_norm")}
    signals["loss"][:, :8] = 0, 1e18, 1e-45, 5, 0, 1, 2, 3
    signals["correct"] = signals["confidence"] = np.ones_like(signals["loss"])

    def work() -> tuple[list[object], bytes]:
        selector = es.Selector(selection, num_samples=1003, num_epochs=5, batch_size=64)
        steps: list[object] = []
        for epoch in range(5):
            for ids in selector.epoch(epoch):
                seen = {one: values[epoch, ids] for one, values in signals.items()}
                asked = selector.to_score(ids)
                draw = selector.select(ids, {one: values[asked] for one, values in seen.items()}, scored=asked)
                steps.append((draw.positions.tolist(), draw.scale.tobytes()))
        return steps, encode_table(selector.table())

    one, other = both(switch, work)
    assert one == other


IDS = {
    "distinct": np.random.default_rng(2).permutation(70_000)[:5000],
    "one": np.array([0]),
    "more than are hashed": np.arange(70_000)[::-1],
    "of one slot": np.arange(60) << 52,
    "repeated": np.array([5, 3, 9, 3, 5]),
    "repeated far apart": np.concatenate([np.arange(30_000), [17]]),
    "negative": np.array([4, -1, 4]),
    "too large": np.array([4, 2**62, 4]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_are_checked_the_same(name: str, with_machine_code: None, switch: Switch) -> None:
    def work() -> bytes | str:
        try:
            return check_ids(IDS[name], 2**62).tobytes()
        except errors.IdError as error:
            return str(error)

    one, other = both(switch, work)
    assert one == other
    assert isinstance(one, str) == (name in ("repeated", "repeated far apart", "negative", "too large"))


@pytest.mark.parametrize("loss", [0.0, -0.0, 1e18, 1.1e18, -1e-45, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("position", [0, 2])
def test_losses_are_checked_the_same(loss: float, position: int, with_machine_code: None, switch: Switch) -> None:
    losses = np.ones(3, dtype=np.float32)
    losses[position] = loss

    def work() -> bytes | str:
        try:
            return check_losses(losses, 3, non_negative=True).tobytes()
        except errors.LossError as error:
            return str(error)

    one, other = both(switch, work)
    assert one == other
    assert isinstance(one, bytes) == (loss in (0.0, 1e18, -1e-45))  # the last is 0 but for rounding


def test_equal_arrivals_are_drawn_the_same(with_machine_code: None, switch: Switch) -> None:
    arrivals = np.array([2.0, 1, 1, 1, 3, 1, 0])
    one, other = both(switch, lambda: first_arrivals(np.ones(7), arrivals, 3).positions_b.tolist())
    assert one == other
    assert len(set(one)) == 3  # type: ignore[call-overload]
    assert 6 in one  # type: ignore[operator]


def test_a_weight_that_cannot_be_drawn_by_is_named(with_machine_code: None, switch: Switch) -> None:
    def work() -> str:
        engine = Engine(SELECTIONS["es"], 8)
        records = engine.copy_records()
        records["s"][5] = np.inf
        engine.load_records(records)
        ids = np.arange(8)
        with pytest.raises(errors.InputError) as raised:
            engine.step(ids, {"loss": np.ones(8, dtype=np.float32)}, 2, 0)
        return str(raised.value)

    one, other = both(switch, work)
    assert one == other
    assert "weight inf at position 5" in str(one)


def test_only_two_averages_take_the_way_through_machine_code(with_machine_code: None) -> None:
    assert [name for name, one in SELECTIONS.items() if Engine(one, 10)._compiled is None] == ["no averages"]


@given(st.integers(1, 5), st.integers(0, 2**31), st.data())
def test_records_of_a_shard_are_the_same(count: int, run_step: int, data: st.DataObject) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    index = data.draw(st.integers(0, count - 1))
    rows = data.draw(st.lists(st.integers(0, 19), min_size=1, unique=True))
    losses = np.array(
        data.draw(st.lists(st.floats(0, 2.0**59, width=32), min_size=len(rows), max_size=len(rows))), "f4"
    )
    ids = np.array(rows, dtype=np.int64) * count + index
    run_step = min(run_step, 2**31 - 1)

    def records(on: bool) -> tuple[NDArray[np.void], NDArray[np.float32]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(COMPILED, str(int(on)))
            compiled.loops.cache_clear()
            engine = Engine(Selection(es.methods.evolved(0.1, 0.7)), 20 * count, Shard(index, count))
            weights = [engine.record(ids, {"loss": losses * scale}, ids[::2], run_step) for scale in (1, 0.5, 0.25)]
        compiled.loops.cache_clear()
        return engine.copy_records(), np.concatenate(weights)

    (one, weights), (other, same_weights) = records(True), records(False)
    assert one.tobytes() == other.tobytes()
    assert weights.tobytes() == same_weights.tobytes()


def test_it_is_off_where_numba_is_not_installed_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # Python's way to say: not installed
    monkeypatch.delitem(sys.modules, "es_service.selection.machine_code", raising=False)
    monkeypatch.delattr(es_service.selection, "machine_code", raising=False)
    try:
        monkeypatch.setenv(COMPILED, "")
        compiled.loops.cache_clear()
        assert compiled.loops() is None
        monkeypatch.setenv(COMPILED, "1")
        compiled.loops.cache_clear()
        with pytest.raises(errors.ConfigError, match=r"es-service\[fast\]"):
            compiled.loops()
        monkeypatch.setenv(COMPILED, "yes")
        with pytest.raises(errors.ConfigError, match="got 'yes'"):
            compiled.loops()
    finally:
        compiled.loops.cache_clear()


def test_importing_the_package_imports_no_numba() -> None:
    program = "import sys, es_service; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

"""Counter-based random numbers: range, uniformity, independence, and values that must never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from es_service.selection import keys
from es_service.selection.keys import Purpose

MIN_P = 1e-4
I64 = NDArray[np.int64]

seeds = st.integers(0, 2**63 - 1)
purposes = st.sampled_from(Purpose)
counters = st.integers(0, 2**40)
id_arrays = hnp.arrays(np.int64, st.integers(1, 50), elements=st.integers(-(2**63), 2**63 - 1))


def test_golden_values_never_change() -> None:
    """A checkpoint, or another machine, relies on these."""
    ids = np.array([0, 1, 2, -1, 2**31, 2**53 + 1, 19_999_999], dtype=np.int64)
    assert keys.hashes(0, Purpose.DRAW, 0, ids).tolist() == [
        17644710939063997017,
        15114123258453576503,
        4672125198739041305,
        13621494560332819304,
        13856441288433756263,
        17850605611007762511,
        2331681779851209227,
    ]
    assert keys.hashes(2**63 - 1, Purpose.PRUNE, 11, np.array([0, 5, 2**62], dtype=np.int64)).tolist() == [
        1323192867811701887,
        18361927449615812505,
        15021668344271243480,
    ]
    assert keys.uniforms(7, Purpose.SHUFFLE, 3, np.arange(3)).tolist() == pytest.approx(
        [0.24680437547003614, 0.9912539370552973, 0.8721923433136487], abs=1e-15
    )


@given(seeds, purposes, counters, id_arrays)
def test_uniforms_lie_inside_the_open_unit_interval(seed: int, purpose: Purpose, counter: int, ids: I64) -> None:
    uniforms = keys.uniforms(seed, purpose, counter, ids)
    assert uniforms.dtype == np.float64
    assert uniforms.shape == ids.shape
    assert np.all((uniforms > 0) & (uniforms < 1))


def _unshift(value: int, shift: int) -> int:
    result = value
    for _ in range(64 // shift + 1):
        result = value ^ (result >> shift)
    return result


def _id_with_hash(wanted: int, seed: int, purpose: Purpose, counter: int) -> int:
    """Invert the hash: SplitMix64 is a bijection, so every word belongs to one id."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15
    before_mixing = []
    for word in (wanted, int(keys.hashes(seed, purpose, counter, np.array([0]))[0])):
        z = _unshift(word, 31) * pow(0x94D049BB133111EB, -1, 2**64) & mask
        z = _unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
        before_mixing.append(_unshift(z, 30))
    found = (before_mixing[0] - before_mixing[1]) * pow(golden, -1, 2**64) & mask
    return found - 2**64 if found >= 2**63 else found


@pytest.mark.parametrize("word", [0, 1, 2**63, 2**64 - 1], ids=["lowest", "next", "middle", "highest"])
def test_the_interval_is_open_even_at_the_extreme_words(word: int) -> None:
    ids = np.array([_id_with_hash(word, 3, Purpose.DRAW, 5)], dtype=np.int64)
    assert keys.hashes(3, Purpose.DRAW, 5, ids).tolist() == [word]
    assert 0.0 < float(keys.uniforms(3, Purpose.DRAW, 5, ids)[0]) < 1.0


@pytest.mark.parametrize("start", [0, 19_950_000, 2**31 - 25_000, 2**53 - 25_000, -50_000])
@pytest.mark.parametrize("purpose", list(Purpose))
def test_numbers_over_the_ids_are_uniform(start: int, purpose: Purpose) -> None:
    uniforms = keys.uniforms(0, purpose, 0, np.arange(start, start + 50_000, dtype=np.int64))
    assert stats.kstest(uniforms, "uniform").pvalue > MIN_P
    assert stats.chisquare(np.bincount((uniforms * 256).astype(int), minlength=256)).pvalue > MIN_P
    low_bits = (uniforms * 2.0**24) % 1.0  # what the comb of the systematic draw starts from
    assert stats.kstest(low_bits, "uniform").pvalue > MIN_P


@pytest.mark.parametrize("ids", [[0], [12_345_678], [2**31 + 1], [-7]])
def test_numbers_over_steps_and_over_seeds_are_uniform(ids: list[int]) -> None:
    array = np.array(ids, dtype=np.int64)
    over_steps = [float(keys.uniforms(1, Purpose.DRAW, step, array)[0]) for step in range(3000)]
    over_seeds = [float(keys.uniforms(seed, Purpose.DRAW, 1, array)[0]) for seed in range(3000)]
    assert stats.kstest(over_steps, "uniform").pvalue > MIN_P
    assert stats.kstest(over_seeds, "uniform").pvalue > MIN_P


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, Purpose.DRAW, 0), (1, Purpose.DRAW, 0)),
        ((0, Purpose.DRAW, 0), (0, Purpose.PRUNE, 0)),
        ((0, Purpose.PRUNE, 0), (0, Purpose.SHUFFLE, 0)),
        ((0, Purpose.DRAW, 0), (0, Purpose.DRAW, 1)),
        ((0, Purpose.DRAW, 1), (1, Purpose.DRAW, 0)),
        ((0, Purpose.PRUNE, 1), (0, Purpose.DRAW, 2)),
        ((2**62, Purpose.DRAW, 0), (0, Purpose.DRAW, 2**62)),
    ],
)
def test_streams_are_independent(one: tuple[int, Purpose, int], other: tuple[int, Purpose, int]) -> None:
    ids = np.arange(20_000, dtype=np.int64)
    first, second = keys.uniforms(*one, ids), keys.uniforms(*other, ids)
    table = np.histogram2d(first, second, bins=12, range=[[0, 1], [0, 1]])[0]
    assert stats.chi2_contingency(table).pvalue > MIN_P
    assert not np.any(first == second)
    for lag in (1, 2, 7):  # nor is one a shifted copy of the other
        assert abs(np.corrcoef(first[lag:], second[:-lag])[0, 1]) < 0.04


def test_neighbouring_ids_are_independent() -> None:
    uniforms = keys.uniforms(9, Purpose.DRAW, 4, np.arange(40_001, dtype=np.int64))
    table = np.histogram2d(uniforms[:-1], uniforms[1:], bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chi2_contingency(table).pvalue > MIN_P


def test_a_million_ids_have_a_million_numbers() -> None:
    ids = np.arange(19_000_000, 20_000_000, dtype=np.int64)
    assert np.unique(keys.hashes(0, Purpose.SHUFFLE, 0, ids)).size == ids.size


@given(seeds, purposes, counters, id_arrays)
def test_permuting_the_ids_permutes_the_numbers(seed: int, purpose: Purpose, counter: int, ids: I64) -> None:
    order = np.argsort(keys.hashes(seed ^ 1, purpose, counter, np.arange(ids.size)))
    straight = keys.uniforms(seed, purpose, counter, ids)
    assert keys.uniforms(seed, purpose, counter, ids[order]).tolist() == straight[order].tolist()
    one_by_one = [float(keys.uniforms(seed, purpose, counter, ids[i : i + 1])[0]) for i in range(ids.size)]
    assert straight.tolist() == one_by_one


@given(seeds, purposes, counters, id_arrays)
def test_asking_again_gives_the_same_and_leaves_the_ids_alone(
    seed: int, purpose: Purpose, counter: int, ids: I64
) -> None:
    before = ids.copy()
    first = keys.hashes(seed, purpose, counter, ids)
    assert first.dtype == np.uint64
    assert keys.hashes(seed, purpose, counter, ids).tolist() == first.tolist()
    assert ids.tolist() == before.tolist()


def test_global_numpy_state_is_neither_read_nor_moved() -> None:
    before = repr(np.random.get_state())  # noqa: NPY002
    keys.uniforms(0, Purpose.DRAW, 0, np.arange(10))
    assert repr(np.random.get_state()) == before  # noqa: NPY002


def test_a_seed_or_counter_that_is_a_numpy_integer_counts_as_the_same_number() -> None:
    """Seeds come out of np.arange, epochs too."""
    plain = keys.hashes(3, Purpose.DRAW, 5, np.arange(4)).tolist()
    assert keys.hashes(np.int64(3), Purpose.DRAW, 5, np.arange(4)).tolist() == plain  # type: ignore[arg-type]
    assert keys.hashes(3, Purpose.DRAW, np.int64(5), np.arange(4)).tolist() == plain  # type: ignore[arg-type]


@given(seeds, purposes, counters, id_arrays)
def test_a_hash_leads_back_to_its_id(seed: int, purpose: Purpose, counter: int, ids: I64) -> None:
    assert keys.ids_of(keys.hashes(seed, purpose, counter, ids), seed, purpose, counter).tolist() == ids.tolist()


def test_a_hash_leads_back_to_its_id_over_many_blocks() -> None:
    ids = np.arange(-100_000, 100_000, dtype=np.int64)
    assert np.array_equal(keys.ids_of(keys.hashes(3, Purpose.SHUFFLE, 5, ids), 3, Purpose.SHUFFLE, 5), ids)

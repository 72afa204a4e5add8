"""Every input that must be refused, and what the message names; and inputs that must not be refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import es_service as es
from es_service import errors
from es_service.selection import observations
from es_service.selection.observations import check_ids, check_losses, first_duplicate, split_losses

torch = pytest.importorskip("torch")

INF, NAN = float("inf"), float("nan")


def naive_first_duplicate(ids: list[int]) -> int | None:
    seen: set[int] = set()
    for position, one in enumerate(ids):
        if one in seen:
            return position
        seen.add(one)
    return None


# -- ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64])
def test_every_integer_dtype_becomes_contiguous_int64(dtype: Any) -> None:
    ids = check_ids(np.array([5, 0, 9, 3], dtype=dtype)[::-1], 10)
    assert ids.dtype == np.int64
    assert ids.flags.c_contiguous
    assert ids.tolist() == [3, 9, 0, 5]


@pytest.mark.parametrize("ids", [[4, 2], (4, 2), range(4, 1, -2), torch.tensor([4, 2]), pa.array([4, 2])])
def test_any_sequence_of_integers_will_do(ids: Any) -> None:
    assert check_ids(ids, 5).tolist() == [4, 2]


class OnAccelerator(torch.Tensor):  # type: ignore[misc]
    """Numbers that numpy cannot read before they are on the CPU, as those of a GPU."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_ids_may_lie_on_an_accelerator_as_losses_may() -> None:
    ids = torch.tensor([4, 2, 3]).as_subclass(OnAccelerator)
    assert check_ids(ids, 5).tolist() == [4, 2, 3]
    losses = torch.tensor([0.5, 1.5, 2.5], dtype=torch.bfloat16).as_subclass(OnAccelerator)
    assert check_losses(losses, 3, non_negative=True).tolist() == [0.5, 1.5, 2.5]
    selector = es.Selector(es.Selection(es.methods.loss(), anneal=(0, 0)), num_samples=5, num_epochs=1, batch_size=5)
    for _ in selector.epoch(0):
        drawn = selector.select(ids, losses)
        assert drawn.ids.tolist() == [[4, 2, 3][position] for position in drawn.positions]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ids_on_a_gpu() -> None:
    assert check_ids(torch.tensor([4, 2], device="cuda"), 5).tolist() == [4, 2]


def test_tensors_without_values_are_refused() -> None:
    with pytest.raises(errors.ShapeError, match="ids cannot be read as an array"):
        check_ids(torch.empty(2, dtype=torch.int64, device="meta"), 5)
    with pytest.raises(errors.ShapeError, match="losses cannot be read as an array"):
        check_losses(torch.empty(2, device="meta"), 2, non_negative=True)


def test_ids_beyond_31_and_53_bits_are_taken_where_the_set_is_that_large() -> None:
    ids = [2**31, 2**31 - 1, 2**53 + 1, 2**53, 2**62]
    assert check_ids(ids, 2**62 + 1).tolist() == ids
    assert check_ids(np.array(ids, dtype=np.uint64), 2**62 + 1).tolist() == ids


@pytest.mark.parametrize(
    ("ids", "position", "value"),
    [
        ([0, 1, 10, 11], 2, 10),
        ([-1], 0, -1),
        ([3, -(2**63), 99], 1, -(2**63)),
        ([1, 2, 2**62], 2, 2**62),
        ([9, 8, 7, 10], 3, 10),
        ([5, 5, -2], 2, -2),
    ],
)
def test_an_id_out_of_range_is_named(ids: list[int], position: int, value: int) -> None:
    with pytest.raises(errors.IdError, match=rf"^id {value} at position {position} is outside \[0, 10\)"):
        check_ids(np.array(ids, dtype=np.int64), 10)


@given(st.lists(st.integers(-5, 25), min_size=1, max_size=40))
def test_checks_agree_with_the_naive_ones(ids: list[int]) -> None:
    outside = next((i for i, one in enumerate(ids) if not 0 <= one < 20), None)
    repeated = naive_first_duplicate(ids)
    bad = outside if outside is not None else repeated
    if bad is None:
        assert check_ids(ids, 20).tolist() == ids
    else:
        with pytest.raises(errors.IdError, match=rf"^id {ids[bad]} at position {bad} "):
            check_ids(ids, 20)


@given(st.lists(st.one_of(st.integers(0, 30), st.sampled_from([2**k for k in range(62)])), min_size=1, max_size=60))
def test_first_duplicate_agrees_with_a_set(ids: list[int]) -> None:
    assert first_duplicate(np.array(ids, dtype=np.int64)) == naive_first_duplicate(ids)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.integers(0, 2**40), max_size=12),
    st.integers(4, 20),
)
def test_first_duplicate_survives_many_ids_in_one_slot(multiples: list[int], others: list[int], shift: int) -> None:
    """Multiples of a large power of two share a slot of any table this small."""
    ids = [multiple << shift << 10 for multiple in multiples] + others
    assert first_duplicate(np.array(ids, dtype=np.int64)) == naive_first_duplicate(ids)


def test_three_way_collisions() -> None:
    big = 1 << 40
    for ids, expected in (
        ([big, 2 * big, 3 * big], None),
        ([big, 2 * big, big], 2),
        ([big, big, 2 * big], 1),
        ([2 * big, big, big, big], 2),
        ([big, 2 * big, 3 * big, 2 * big, big], 3),
        ([0, big, 2 * big, 0], 3),
    ):
        assert first_duplicate(np.array(ids, dtype=np.int64)) == expected


@pytest.mark.parametrize("size", [1, 2, 1000, 70_000])
def test_large_batches_with_and_without_a_repetition(size: int) -> None:
    ids = np.random.default_rng(0).permutation(10 * size)[:size].astype(np.int64)
    assert check_ids(ids, 10 * size).tolist() == ids.tolist()
    if size > 1:
        ids[-1] = ids[(size - 1) // 2]
        with pytest.raises(errors.IdError, match=rf"^id {ids[-1]} at position {size - 1} stands twice"):
            check_ids(ids, 10 * size)


@pytest.mark.parametrize(
    "ids", [[], np.empty(0, dtype=np.int64), 3, np.int64(3), [[1, 2]], np.zeros((2, 0), dtype=int)]
)
def test_ids_of_another_shape_are_refused(ids: Any) -> None:
    with pytest.raises(errors.ShapeError, match=re.escape(f"got shape {np.shape(ids)}")):
        check_ids(ids, 10)


@pytest.mark.parametrize(
    "ids", [[1.0, 2.0], np.array([1], dtype=np.float32), [True, False], ["1"], [None], [1 + 0j], [2**70], [2**63, -1]]
)
def test_ids_that_are_no_integers_are_refused(ids: Any) -> None:
    with pytest.raises(errors.ShapeError, match=f"got dtype {np.asarray(ids).dtype}"):
        check_ids(ids, 10)


def test_ragged_ids_are_refused_as_a_shape() -> None:
    with pytest.raises(errors.ShapeError):
        check_ids([[1], [1, 2]], 10)


def test_an_unsigned_id_that_does_not_fit_is_named() -> None:
    ids = np.array([1, 2**63, 2**64 - 1], dtype=np.uint64)
    with pytest.raises(errors.IdError, match=f"id {2**63} at position 1 "):
        check_ids(ids, 10)


# -- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_every_numeric_dtype_becomes_contiguous_float32(dtype: Any) -> None:
    losses = check_losses(np.array([1, 0, 3], dtype=dtype)[::-1], 3, non_negative=True)
    assert losses.dtype == np.float32
    assert losses.flags.c_contiguous
    assert losses.tolist() == [3.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_losses_with_a_gradient_in_any_precision(dtype: Any) -> None:
    leaf = torch.tensor([0.5, 1.5, 2.0], dtype=dtype, requires_grad=True)
    losses = check_losses(leaf * 2, 3, non_negative=True)
    assert losses.dtype == np.float32
    assert losses.tolist() == [1.0, 3.0, 4.0]


def test_a_torch_loss_of_no_dimension_is_explained() -> None:
    with pytest.raises(errors.ShapeError, match=r"single loss for 4 ids.*reduction='none'"):
        check_losses(torch.tensor(1.0, requires_grad=True), 4, non_negative=True)


@pytest.mark.parametrize("single", [1.0, np.float32(1.0), np.array(2.0)])
def test_a_single_loss_is_explained(single: Any) -> None:
    with pytest.raises(errors.ShapeError, match=r"single loss for 3 ids"):
        check_losses(single, 3, non_negative=False)


@pytest.mark.parametrize("shape", [(2,), (4,), (0,), (3, 1), (1, 3)])
def test_losses_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.ShapeError, match=re.escape(f"must have shape (3,), one per id, got {shape}")):
        check_losses(np.ones(shape), 3, non_negative=True)


@pytest.mark.parametrize("losses", [["a", "b"], [True, False], [1j, 2j], [None, None]])
def test_losses_that_are_no_floats_are_refused(losses: Any) -> None:
    with pytest.raises(errors.ShapeError, match=f"got dtype {np.asarray(losses).dtype}"):
        check_losses(losses, 2, non_negative=True)


def test_ragged_losses_are_refused_as_a_shape() -> None:
    with pytest.raises(errors.ShapeError):
        check_losses([[1.0], [1.0, 2.0]], 2, non_negative=True)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("non_negative", [True, False])
@pytest.mark.parametrize("as_torch", [True, False])
def test_a_loss_that_is_not_finite_is_named(bad: float, position: int, non_negative: bool, as_torch: bool) -> None:
    losses = [1.0, 2.0, 3.0, 4.0]
    losses[position] = bad
    given_losses = torch.tensor(losses) if as_torch else np.array(losses)
    with pytest.raises(errors.LossError, match=rf"^loss {bad} at position {position} is not finite"):
        check_losses(given_losses, 4, non_negative=non_negative)


def test_the_first_of_several_bad_losses_is_named() -> None:
    with pytest.raises(errors.LossError, match=r"^loss inf at position 1 "):
        check_losses([0.0, INF, NAN, -1.0], 4, non_negative=True)
    with pytest.raises(errors.LossError, match=r"^loss -2\.0 at position 2 is negative"):
        check_losses([0.0, 1.0, -2.0, -3.0], 4, non_negative=True)


def test_a_float64_beyond_float32_is_named_as_it_came() -> None:
    with pytest.raises(errors.LossError, match=r"^loss 1e\+39 at position 1 is not finite"):
        check_losses(np.array([1.0, 1e39]), 2, non_negative=True)


def test_negative_losses_are_refused_only_where_they_become_weights() -> None:
    assert check_losses([-1.0, 2.0], 2, non_negative=False).tolist() == [-1.0, 2.0]
    with pytest.raises(errors.LossError, match=r"^loss -1\.0 at position 0 is negative.*shift the loss"):
        check_losses([-1.0, 2.0], 2, non_negative=True)


def test_zero_negative_zero_and_the_smallest_loss_are_fine() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    assert check_losses([0.0, -0.0, tiny], 3, non_negative=True).tolist() == [0.0, 0.0, tiny]


@given(st.lists(st.sampled_from([0.0, 1.5, -1.0, NAN, INF, -INF]), min_size=1, max_size=12), st.booleans())
def test_loss_checks_agree_with_the_naive_ones(losses: list[float], non_negative: bool) -> None:
    infinite = next((i for i, one in enumerate(losses) if not np.isfinite(one)), None)
    negative = next((i for i, one in enumerate(losses) if one < 0), None) if non_negative else None
    bad = infinite if infinite is not None else negative
    if bad is None:
        assert check_losses(losses, len(losses), non_negative=non_negative).tolist() == losses
    else:
        with pytest.raises(errors.LossError, match=rf"^loss {losses[bad]} at position {bad} "):
            check_losses(losses, len(losses), non_negative=non_negative)


# -- losses of which some may be skipped --------------------------------------------------------------------------


def test_split_names_the_finite_ones() -> None:
    losses, good = split_losses([NAN, 1.0, INF, 0.0], 4, non_negative=True)
    assert good.tolist() == [1, 3]
    assert losses[good].tolist() == [1.0, 0.0]


def test_split_raises_where_none_is_finite() -> None:
    with pytest.raises(errors.LossError, match=r"none of the 2 losses is finite \(the first is nan\)"):
        split_losses([NAN, INF], 2, non_negative=False)


def test_split_names_a_negative_loss_by_its_place_in_the_report() -> None:
    with pytest.raises(errors.LossError, match=r"loss -3\.0 at position 2 is negative"):
        split_losses([NAN, INF, -3.0], 3, non_negative=True)


def test_split_still_refuses_wrong_shapes() -> None:
    with pytest.raises(errors.ShapeError, match="one per id"):
        split_losses([1.0], 2, non_negative=True)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
def test_right_or_wrong_may_come_as_any_array_of_bools(make: Any) -> None:
    observed = {"loss": [1.0, 2.0], "correct": make([True, False])}
    needed = ("loss", "correct")
    for seen in (
        observations.check_signals(observed, 2, needed, non_negative=True),
        observations.split_signals(observed, 2, needed, non_negative=True)[0],
    ):
        assert seen["correct"].dtype == np.float32
        assert seen["correct"].tolist() == [1.0, 0.0]


def test_the_callers_arrays_are_never_written() -> None:
    ids, losses = np.array([3, 1]), np.array([1.0, 2.0], dtype=np.float32)
    ids.setflags(write=False)
    losses.setflags(write=False)
    observations.check_ids(ids, 5)
    observations.check_losses(losses, 2, non_negative=True)
    assert (ids.tolist(), losses.tolist()) == ([3, 1], [1.0, 2.0])


# -- rounding below 0 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        (np.array([-1.2e-7, 0.5, 0.0], dtype=np.float32), [0.0, 0.5, 0.0]),
        (np.array([-2.4e-7, 1e-7, 1e-7], dtype=np.float32), [0.0, 1e-7, 1e-7]),
        (np.array([-1e-4, 900.0, 1.0], dtype=np.float32), [0.0, 900.0, 1.0]),
        (np.array([-1e-13, 0.5, 1.0]), [0.0, 0.5, 1.0]),
        (torch.tensor([-0.0078, 0.5, 1.0], dtype=torch.bfloat16), [0.0, 0.5, 1.0]),
    ],
)
def test_rounding_below_zero_counts_as_zero(losses: Any, kept: list[float]) -> None:
    before = np.array(losses.tolist())
    taken = check_losses(losses, 3, non_negative=True)
    assert taken.tolist() == pytest.approx(kept, abs=0, rel=1e-6)
    split, good = split_losses(losses, 3, non_negative=True)
    assert split.tolist() == taken.tolist()
    assert good.tolist() == [0, 1, 2]
    assert np.array(losses.tolist()).tolist() == before.tolist(), "the caller's array was written to"
    assert check_losses(taken, 3, non_negative=True).tolist() == taken.tolist(), "a server takes what a rank took"
    assert check_losses(losses, 3, non_negative=False).min() < 0


def test_one_minus_cosine_similarity_is_a_loss() -> None:
    directions = torch.nn.functional.normalize(torch.randn(4096, 64, generator=torch.manual_seed(0)), dim=1)
    losses = 1 - torch.nn.functional.cosine_similarity(directions, directions * 3)
    assert losses.min() < 0, "nothing to show"
    assert check_losses(losses, 4096, non_negative=True).min() == 0


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_skip_leaves_the_truly_negative_out(name: str) -> None:
    values = np.array([-0.25, 0.5, -1e-7, NAN, 2.0], dtype=np.float32)
    signals = {"loss": np.ones(5, dtype=np.float32), name: values}
    needed = tuple(dict.fromkeys(("loss", name)))
    seen, good = observations.split_signals(signals, 5, needed, non_negative=True)
    assert good.tolist() == [1, 2, 4]
    assert seen[name][good].tolist() == [0.5, 0.0, 2.0]
    with pytest.raises(errors.LossError, match="at position 0 is negative"):
        observations.check_signals({**signals, name: np.nan_to_num(values)}, 5, needed, non_negative=True)


def test_skip_with_none_left_says_why() -> None:
    with pytest.raises(errors.LossError, match="is negative"):
        split_losses(np.array([-1.0, -2.0], dtype=np.float32), 2, non_negative=True)

"""Signals beside the loss: gradient norms are autograd's, confidence is over the classes."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from es_service import errors
from es_service.training import losses, signals

logits_of = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(-30, 30, width=32),
)


def gradient_norms(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(values.sum(), at)
    return gradient.reshape(len(values), -1).norm(dim=1)


@given(logits_of, st.data())
def test_of_cross_entropy_it_is_the_norm_of_the_gradient(values: NDArray[np.float64], data: st.DataObject) -> None:
    logits = torch.from_numpy(values).float().requires_grad_()
    label = st.integers(0, logits.shape[1] - 1) | st.just(losses.IGNORE_INDEX)
    labels = torch.tensor(data.draw(st.lists(label, min_size=len(logits), max_size=len(logits))))
    expected = gradient_norms(losses.cross_entropy(logits, labels), logits)
    got = signals.cross_entropy_grad_norm(logits, labels)
    assert (got.dtype, got.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_sample_that_is_all_but_certain_keeps_a_gradient_norm() -> None:
    got = signals.cross_entropy_grad_norm(torch.tensor([[25.0, 0.0]]), torch.tensor([0]))
    assert got.item() == pytest.approx(math.sqrt(2) * math.exp(-25), rel=1e-5)  # float32 makes 1 - p_y of it 0


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-100, 100, width=32)))
def test_of_squared_error_it_is_the_norm_of_the_gradient(values: NDArray[np.float32]) -> None:
    predictions = torch.from_numpy(values).requires_grad_()
    targets = torch.linspace(-1, 1, predictions.numel()).reshape(predictions.shape)
    expected = gradient_norms(losses.squared_error(predictions, targets), predictions)
    got = signals.squared_error_grad_norm(predictions, targets)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_with_one_number_per_sample_it_is_twice_the_error() -> None:
    got = signals.squared_error_grad_norm(torch.tensor([1.0, -2.0]), torch.tensor([3.0, -2.5]))
    assert got.tolist() == [4.0, 1.0]


@given(logits_of)
def test_confidence_is_over_the_classes_and_never_over_the_batch(values: NDArray[np.float64]) -> None:
    logits = torch.from_numpy(values).float()
    got = signals.confidence(logits)
    num_classes = logits.shape[1]
    assert ((got >= 1 / num_classes - 1e-6) & (got <= 1 + 1e-6)).all()
    for row in range(len(logits)):  # what else is in the batch changes nothing
        torch.testing.assert_close(got[row], signals.confidence(logits[row : row + 1])[0])
    exact = np.exp(values - values.max(axis=1, keepdims=True))
    np.testing.assert_allclose(got, (exact / exact.sum(axis=1, keepdims=True)).max(axis=1), rtol=1e-5)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(errors.ShapeError, match=r"\[B, C\], got \(3,\)"):
        signals.confidence(torch.zeros(3))
    with pytest.raises(errors.ShapeError, match="do not fit"):
        signals.cross_entropy_grad_norm(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(errors.ShapeError, match="do not fit"):
        signals.squared_error_grad_norm(torch.zeros(3, 1), torch.zeros(3))

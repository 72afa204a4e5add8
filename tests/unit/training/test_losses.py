"""Per-sample losses: against torch's own, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from es_service import errors
from es_service.training.losses import IGNORE_INDEX, check_per_sample, cross_entropy, squared_error


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_one_label_per_sample_is_torchs_without_reduction(label_smoothing: float) -> None:
    logits, labels = torch.randn(7, 5), torch.randint(0, 5, (7,))
    got = cross_entropy(logits, labels, label_smoothing)
    expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("inner", [(4,), (3, 2)])
def test_tokens_are_averaged_within_their_sample_only(inner: tuple[int, ...]) -> None:
    logits, labels = torch.randn(6, *inner, 5), torch.randint(0, 5, (6, *inner))
    labels.view(6, -1)[1, 0] = IGNORE_INDEX
    labels.view(6, -1)[2, 1:] = IGNORE_INDEX
    got = cross_entropy(logits, labels)
    each = [F.cross_entropy(logits[i].reshape(-1, 5), labels[i].reshape(-1)) for i in range(6)]
    torch.testing.assert_close(got, torch.stack(each))


def test_a_sample_with_nothing_to_predict_has_loss_and_gradient_zero() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.tensor([[IGNORE_INDEX] * 3, [0, 1, 2]])
    losses = cross_entropy(logits, labels)
    assert losses[0].item() == 0.0
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert logits.grad[1].any()


def test_the_mean_gradient_is_torchs() -> None:
    logits, labels = torch.randn(7, 5, requires_grad=True), torch.randint(0, 5, (7,))
    (got,) = torch.autograd.grad(cross_entropy(logits, labels).mean(), logits)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    torch.testing.assert_close(got, expected)


def test_half_precision_is_computed_in_single() -> None:
    logits, labels = torch.randn(7, 5).bfloat16(), torch.randint(0, 5, (7,), dtype=torch.int32)
    got = cross_entropy(logits, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, F.cross_entropy(logits.float(), labels.long(), reduction="none"))


@pytest.mark.parametrize(
    "logits, labels, problem",
    [
        (torch.zeros(4, 5), torch.zeros(3, dtype=torch.long), "do not fit"),
        (torch.zeros(4, 5, 6), torch.zeros(4, dtype=torch.long), "do not fit"),
        (torch.zeros(4), torch.zeros((), dtype=torch.long), "do not fit"),
        (torch.zeros(4, 5, 6), torch.zeros(4, 6, dtype=torch.long), r"movedim\(1, -1\)"),
        (torch.zeros(4, 5), torch.zeros(4), "integers"),
    ],
)
def test_shapes_that_do_not_fit(logits: torch.Tensor, labels: torch.Tensor, problem: str) -> None:
    with pytest.raises(errors.ShapeError, match=problem):
        cross_entropy(logits, labels)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 3), (0,), (0, 3)])
def test_squared_errors_are_averaged_within_their_sample_only(shape: tuple[int, ...]) -> None:
    predictions, targets = torch.randn(shape, requires_grad=True), torch.randn(shape)
    got = squared_error(predictions, targets)
    expected = F.mse_loss(predictions, targets, reduction="none").reshape(shape[0], math.prod(shape[1:])).mean(dim=1)
    torch.testing.assert_close(got, expected)
    assert got.requires_grad


def test_squared_errors_broadcast_nothing() -> None:
    with pytest.raises(errors.ShapeError, match=r"\(4, 1\) do not fit targets of shape \(4,\).*squeeze"):
        squared_error(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(errors.ShapeError, match="do not fit"):
        squared_error(torch.zeros(1), torch.zeros(4))
    with pytest.raises(errors.ShapeError, match="do not fit"):
        squared_error(torch.zeros(()), torch.zeros(()))


def test_losses_must_be_one_per_sample() -> None:
    check_per_sample(torch.zeros(4), 4)
    for wrong, problem in [
        (torch.zeros(()), "one number for 4 samples.*reduction='none'"),
        (torch.zeros(4, 2), r"shape \(4, 2\) for 4 samples"),
        (torch.zeros(3), r"it must be \(4,\)"),
        (1.5, "got float"),
    ]:
        with pytest.raises(errors.ShapeError, match=problem):
            check_per_sample(wrong, 4)


@pytest.mark.parametrize("shape, place", [((4,), "2"), ((4, 5), "2, 0")])
@pytest.mark.parametrize("stray", [3, -1, 7])
def test_a_label_that_is_no_class_is_named(stray: int, shape: tuple[int, ...], place: str) -> None:
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[0] = IGNORE_INDEX
    labels.reshape(4, -1)[2, 0] = stray
    with pytest.raises(
        errors.DataError, match=rf"label {stray} at position {place} of the batch is none of the 3 classes"
    ):
        cross_entropy(torch.randn(*shape, 3), labels)


def test_outputs_that_are_no_tensor_are_described() -> None:
    target = torch.zeros(2)
    for call in (squared_error, cross_entropy):
        with pytest.raises(
            errors.ShapeError, match=r"the model returned a tuple of Tensor\[2\], where .* must be a tensor"
        ):
            call((target,), target)  # type: ignore[arg-type]

"""Per-sample losses: against torch's own, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from es_service import errors
from es_service.training.losses import (
    IGNORE_INDEX,
    absolute_error,
    binary_cross_entropy,
    bpr,
    check_per_sample,
    classification,
    cross_entropy,
    huber,
    in_batch_contrastive,
    num_tokens,
    pairwise_margin,
    squared_error,
    token_cross_entropy,
)


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


# -- tokens -------------------------------------------------------------------------------------------------------


def texts(num: int = 5, length: int = 7, vocabulary: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels; a prompt, padding, and a text with nothing to predict are ignored."""
    logits, labels = torch.randn(num, length, vocabulary), torch.randint(0, vocabulary, (num, length))
    labels[0, :3] = labels[1, 4:] = labels[2] = IGNORE_INDEX
    return logits, labels


def one_text(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    """torch's own loss of one text, the logits at a place before the label that they predict."""
    return F.cross_entropy(logits[:-1], labels[1:], reduction=reduction)


def test_the_loss_of_a_text_is_the_mean_of_its_own_tokens() -> None:
    logits, labels = texts()
    got = token_cross_entropy(logits, labels)
    expected = [one_text(*text, "mean").nan_to_num() for text in zip(logits, labels, strict=True)]
    torch.testing.assert_close(got, torch.stack(expected))
    assert got[2] == 0
    sums = token_cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(sums, torch.stack([one_text(*text, "sum") for text in zip(logits, labels, strict=True)]))
    torch.testing.assert_close(sums, got * num_tokens(labels))


def test_by_length_the_mean_over_texts_is_the_mean_over_tokens() -> None:
    logits, labels = texts()
    got = token_cross_entropy(logits, labels, reduction="by_length")
    torch.testing.assert_close(got.mean(), F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
    nothing = torch.full_like(labels, IGNORE_INDEX)
    assert token_cross_entropy(logits, nothing, reduction="by_length").tolist() == [0.0] * 5


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_without_a_shift_labels_and_logits_belong_together_place_by_place(label_smoothing: float) -> None:
    logits, labels = texts()
    got = token_cross_entropy(logits, labels, shift=False, label_smoothing=label_smoothing)
    torch.testing.assert_close(got, cross_entropy(logits, labels, label_smoothing))
    assert num_tokens(labels, shift=False).tolist() == [4, 4, 0, 7, 7]
    assert num_tokens(labels).tolist() == [4, 3, 0, 6, 6]


PACKED = [[3, 1, 4], [5, 2], [8], [1, 6]]  # lengths of the texts in each row of 8 places; what is left is padding


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Rows of texts one behind the other: logits, labels, position_ids; and the texts by themselves."""
    logits, labels = torch.randn(len(PACKED), 8, 11), torch.randint(0, 11, (len(PACKED), 8))
    position_ids, alone = torch.zeros(len(PACKED), 8, dtype=torch.int64), []
    for row, lengths in enumerate(PACKED):
        start = 0
        for length in lengths:
            place = slice(start, start + length)
            position_ids[row, place] = torch.arange(length)
            alone.append((logits[row, place], labels[row, place]))
            start += length
    return logits, labels, position_ids, alone


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "by_length"])
def test_texts_in_a_packed_row_have_the_losses_that_they_have_alone(reduction: Any, shift: bool) -> None:
    """A row's padding belongs to no text, and no text's first token is predicted by the text before it."""
    logits, labels, position_ids, alone = packed()
    got = token_cross_entropy(logits, labels, shift=shift, reduction=reduction, position_ids=position_ids)
    each = "sum" if reduction == "by_length" else reduction
    expected = torch.cat(
        [token_cross_entropy(text[None], own[None], shift=shift, reduction=each) for text, own in alone]
    )
    lengths = num_tokens(labels, shift=shift, position_ids=position_ids)
    assert lengths.tolist() == [num - shift for row in PACKED for num in row]
    if reduction == "by_length":
        expected = expected * len(alone) / lengths.sum()
    torch.testing.assert_close(got, expected)


def test_gradients_in_a_packed_row_are_those_of_the_texts_alone() -> None:
    logits, labels, position_ids, _ = packed()
    logits.requires_grad_()
    got = token_cross_entropy(logits, labels, position_ids=position_ids)
    (gradient,) = torch.autograd.grad(got[3], logits)
    assert gradient[1, :4].any()
    assert not gradient[1, 4:].any()  # its last token predicts nothing
    assert not gradient[[0, 2, 3]].any()


def test_a_row_of_padding_holds_no_text() -> None:
    logits, labels, position_ids, _ = packed()
    position_ids[0] = 0
    assert len(token_cross_entropy(logits, labels, position_ids=position_ids)) == 5
    assert num_tokens(labels, position_ids=torch.zeros_like(position_ids)).shape == (0,)


def test_a_row_that_begins_inside_a_text_is_refused() -> None:
    logits, labels, position_ids, _ = packed()
    position_ids[2] += 3
    for call in (
        lambda: token_cross_entropy(logits, labels, position_ids=position_ids),
        lambda: num_tokens(labels, position_ids=position_ids),
    ):
        with pytest.raises(errors.DataError, match="row 2 of position_ids starts at 3, not at 0"):
            call()


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: token_cross_entropy(torch.zeros(2, 3), torch.zeros(2).long()), errors.ShapeError, r"\[B, T, V\]"),
    (lambda: token_cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 2).long()), errors.ShapeError, "do not fit"),
    (lambda: token_cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 3)), errors.ShapeError, "must be integers"),
    (lambda: token_cross_entropy((torch.zeros(2),), torch.zeros(2)), errors.ShapeError, "a tuple of"),  # type: ignore[arg-type]
    (
        lambda: token_cross_entropy(torch.zeros(2, 3, 5), torch.tensor([[0, 0, 0], [0, 0, 5]])),
        errors.DataError,
        "label 5 at position 1, 2 of the batch is none of the 5",
    ),
    (
        lambda: token_cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 3).long(), position_ids=torch.zeros(3)),
        errors.ShapeError,
        r"position_ids of shape \(3,\)",
    ),
    (
        lambda: token_cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 3).long(), reduction="none"),  # type: ignore[arg-type]
        errors.ConfigError,
        "unknown reduction 'none'",
    ),
    (lambda: num_tokens(torch.zeros(2).long()), errors.ShapeError, r"\[B, T\]"),
    (lambda: binary_cross_entropy(torch.zeros(2, 3), torch.zeros(3, 2)), errors.ShapeError, "do not fit"),
    (lambda: binary_cross_entropy(torch.zeros(()), torch.zeros(())), errors.ShapeError, "do not fit"),
    (
        lambda: binary_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3), pos_weight=torch.ones(2)),
        errors.ShapeError,
        r"pos_weight of shape \(2,\)",
    ),
    (
        lambda: binary_cross_entropy(torch.zeros(2, 3), torch.tensor([[0, 1, 0], [2, 0, 0]])),
        errors.DataError,
        r"target 2 at position 1, 0 of the batch is outside \[0, 1\]",
    ),
    (
        lambda: binary_cross_entropy(torch.zeros(2), torch.tensor([0.5, torch.nan])),
        errors.DataError,
        "target nan at position 1",
    ),
    (lambda: in_batch_contrastive(torch.zeros(2, 3), torch.zeros(3, 3)), errors.ShapeError, r"must be \[B, D\]"),
    (lambda: in_batch_contrastive(torch.zeros(2), torch.zeros(2)), errors.ShapeError, r"must be \[B, D\]"),
    (lambda: in_batch_contrastive(torch.zeros(2, 3), [0]), errors.ShapeError, "keys must be a tensor"),  # type: ignore[arg-type]
    (
        lambda: in_batch_contrastive(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0.0),
        errors.ConfigError,
        "temperature must be above 0",
    ),
    (lambda: pairwise_margin(torch.zeros(2), torch.zeros(3)), errors.ShapeError, "do not belong together"),
    (lambda: bpr(torch.zeros(2, 1), torch.zeros(2, 1)), errors.ShapeError, "do not belong together"),
    (lambda: absolute_error(torch.zeros(2, 1), torch.zeros(2)), errors.ShapeError, "do not fit"),
    (lambda: huber(torch.zeros(2, 1), torch.zeros(2)), errors.ShapeError, "do not fit"),
]


@pytest.mark.parametrize("call, kind, problem", REFUSED)
def test_what_does_not_fit_is_refused(call: Callable[[], Any], kind: type[Exception], problem: str) -> None:
    with pytest.raises(kind, match=problem):
        call()


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest float32 tensor that torch made had."""

    seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float32:
                self.seen = max(self.seen, one.numel())
        return result


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("of", [token_cross_entropy, cross_entropy])
def test_many_logits_are_taken_piece_by_piece(
    of: Callable[..., torch.Tensor], label_smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses and the gradient are the same, bit for bit, and no copy in float32 is of all logits."""
    logits, labels = texts(num=6, length=9, vocabulary=50)
    logits = logits.bfloat16().requires_grad_()

    def losses() -> tuple[torch.Tensor, torch.Tensor, int]:
        kept = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * (tensor.dtype == torch.float32)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = of(logits, labels, label_smoothing=label_smoothing)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        return found, gradient, kept

    whole, gradient, kept = losses()
    assert kept > logits.numel()
    monkeypatch.setattr(classification, "_MOST", 500)
    with Largest() as largest:
        pieces, same_gradient, kept = losses()
    assert torch.equal(pieces, whole)
    assert torch.equal(same_gradient, gradient)
    assert largest.seen <= 500
    assert kept < 500
    with torch.no_grad():
        assert torch.equal(of(logits, labels, label_smoothing=label_smoothing), whole)


# -- several labels, numbers, pairs -------------------------------------------------------------------------------


@pytest.mark.parametrize("pos_weight", [None, torch.tensor([1.0, 2.0, 0.5])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_several_labels_are_averaged_within_their_sample(pos_weight: torch.Tensor | None, dtype: torch.dtype) -> None:
    logits, targets = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).to(dtype)
    got = binary_cross_entropy(logits, targets, pos_weight=pos_weight)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none", pos_weight=pos_weight)
    torch.testing.assert_close(got, expected.mean(dim=1))
    torch.testing.assert_close(
        binary_cross_entropy(logits[:, 0], targets[:, 0]), binary_cross_entropy(logits[:, :1], targets[:, :1])
    )


def test_labels_that_are_not_known_count_for_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, -100.0, 0.3], [-100.0] * 4, [0.0, 1.0, 1.0, 0.0]])
    got = binary_cross_entropy(logits, targets)
    known = torch.tensor([0, 1, 3])
    torch.testing.assert_close(got[0], F.binary_cross_entropy_with_logits(logits[0, known], targets[0, known]))
    assert got[1] == 0
    got.sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert not logits.grad[0, 2]


@pytest.mark.parametrize(
    "of, torchs", [(absolute_error, F.l1_loss), (huber, F.huber_loss), (squared_error, F.mse_loss)]
)
def test_errors_are_torchs(of: Callable[..., torch.Tensor], torchs: Callable[..., torch.Tensor]) -> None:
    predictions, targets = 3 * torch.randn(6, 4), torch.randn(6, 4)
    torch.testing.assert_close(of(predictions, targets), torchs(predictions, targets, reduction="none").mean(dim=1))
    torch.testing.assert_close(huber(predictions, targets, 0.3).mean(), F.huber_loss(predictions, targets, delta=0.3))


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_row_is_to_find_its_partner(symmetric: bool) -> None:
    queries, keys = torch.randn(5, 8), torch.randn(5, 8)
    cosines = F.cosine_similarity(queries[:, None], keys[None], dim=2) / 0.2
    expected = F.cross_entropy(cosines, torch.arange(5), reduction="none")
    if symmetric:
        expected = (expected + F.cross_entropy(cosines.T, torch.arange(5), reduction="none")) / 2
    got = in_batch_contrastive(queries, keys, temperature=0.2, symmetric=symmetric)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert in_batch_contrastive(queries, queries, temperature=0.01).max() < 1e-3


def test_a_better_item_is_to_lead_worse_ones() -> None:
    better, worse = torch.randn(6), torch.randn(6, 4)
    expected = F.margin_ranking_loss(better[:, None].expand(6, 4), worse, torch.ones(6, 4), 0.7, reduction="none")
    torch.testing.assert_close(pairwise_margin(better, worse, 0.7), expected.mean(dim=1))
    torch.testing.assert_close(pairwise_margin(better, worse[:, 0], 0.7), expected[:, 0])
    torch.testing.assert_close(bpr(better, worse), -F.logsigmoid(better[:, None] - worse).mean(dim=1))
    torch.testing.assert_close(bpr(better, worse[:, 0]), -F.logsigmoid(better - worse[:, 0]))

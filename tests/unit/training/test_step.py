"""One optimizer step: in micro-batches it is the same step, with as few passes and gradient exchanges as may be."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from es_service import errors
from es_service.training.step import autocast_for, train_step

Batch = dict[str, torch.Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def make(num: int) -> tuple[nn.Module, Batch, torch.Tensor]:
    """A model without BatchNorm, a batch of `num`, and a scale that differs from sample to sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    batch = {"x": torch.randn(num, 4), "y": torch.randint(0, 3, (num,))}
    return model, batch, torch.linspace(0.25, 3.0, num)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def gradients(model: nn.Module) -> list[torch.Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    return [gradient.clone() for gradient in found if gradient is not None]


def stepped(num: int, most: int | None) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    model, batch, scale = make(num)
    observed = train_step(model, sgd(model), batch, scale, losses, micro_batch_size=most)
    return gradients(model), [parameter.detach().clone() for parameter in model.parameters()], observed


SIZES = [(10, 3), (10, 1), (10, 9), (10, 10), (10, 99), (7, 2), (9, 4), (1, 1), (64, 5)]


@pytest.mark.parametrize("num, most", SIZES)
def test_micro_batches_make_the_same_step_as_one_pass(num: int, most: int) -> None:
    gradients_one, weights_one, losses_one = stepped(num, None)
    gradients_many, weights_many, losses_many = stepped(num, most)
    assert len(gradients_one) == len(gradients_many) == 4
    for one, many in zip(gradients_one + weights_one, gradients_many + weights_many, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses_many, losses_one, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_sum_of_scaled_losses_over_b() -> None:
    model, batch, scale = make(10)
    (losses(model, batch) * scale).sum().div(10).backward()  # type: ignore[no-untyped-call]
    expected = gradients(model)
    model, batch, scale = make(10)
    train_step(model, sgd(model), batch, scale, losses, micro_batch_size=4)
    for got, want in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_scale_of_zero_moves_nothing() -> None:
    model, batch, _ = make(6)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train_step(model, sgd(model), batch, torch.zeros(6), losses, micro_batch_size=4)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_gradients_left_over_from_before_are_cleared() -> None:
    expected = stepped(10, 3)[0]
    model, batch, scale = make(10)
    losses(model, batch).sum().backward()  # type: ignore[no-untyped-call]
    train_step(model, sgd(model), batch, scale, losses, micro_batch_size=3)
    assert all(torch.equal(got, want) for got, want in zip(gradients(model), expected, strict=True))


@pytest.mark.parametrize("num, most", [*SIZES, (10, None)])
def test_there_are_as_many_passes_as_it_takes_and_none_is_too_large(num: int, most: int | None) -> None:
    model, batch, scale = make(num)
    forward_sizes: list[int] = []
    backward_sizes: list[int] = []

    def count(_: nn.Module, __: Any, outputs: torch.Tensor) -> None:
        forward_sizes.append(len(outputs))
        outputs.register_hook(lambda gradient: backward_sizes.append(len(gradient)))

    model.register_forward_hook(count)
    train_step(model, sgd(model), batch, scale, losses, micro_batch_size=most)
    assert len(forward_sizes) == (1 if most is None else math.ceil(num / most))
    assert forward_sizes == backward_sizes
    assert sum(forward_sizes) == num
    assert max(forward_sizes) <= (most or num)


@pytest.mark.parametrize("num, most", [(10, 3), (7, 2), (241, 16)])
def test_pieces_differ_by_one_sample_at_most_so_that_batch_norm_has_more_than_one(num: int, most: int) -> None:
    model, batch, scale = make(num)
    sizes: list[int] = []
    model.register_forward_hook(lambda _, __, outputs: sizes.append(len(outputs)))
    train_step(model, sgd(model), batch, scale, losses, micro_batch_size=most)
    assert max(sizes) - min(sizes) <= 1, sizes


@pytest.mark.parametrize("most", [None, 3])
def test_the_losses_come_back_in_the_order_of_the_batch_without_gradient(most: int | None) -> None:
    model, batch, scale = make(10)
    expected = losses(model, batch).detach()  # of the weights before the step
    observed = train_step(model, sgd(model), batch, scale, losses, micro_batch_size=most)
    assert observed.shape == (10,)
    assert observed.dtype == torch.float32
    assert not observed.requires_grad
    assert observed.grad_fn is None
    torch.testing.assert_close(observed, expected, rtol=1e-5, atol=1e-6)  # not multiplied by the scale


def mean_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch["x"]), batch["y"])


def column_of_losses(model: nn.Module, batch: Batch) -> torch.Tensor:
    return losses(model, batch)[:, None]


@pytest.mark.parametrize("wrong", [mean_loss, column_of_losses])
@pytest.mark.parametrize("num, most", [(10, None), (10, 3), (1, None)])
def test_losses_that_are_not_one_per_sample_are_refused(
    wrong: Callable[[nn.Module, Batch], torch.Tensor], num: int, most: int | None
) -> None:
    model, batch, scale = make(num)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(errors.ShapeError, match="reduction='none'"):
        train_step(model, sgd(model), batch, scale, wrong, micro_batch_size=most)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_there_is_no_autocast_on_a_cpu() -> None:
    context = autocast_for(torch.device("cpu"))
    assert isinstance(context, contextlib.nullcontext)
    with context:
        assert not torch.is_autocast_enabled("cpu")


def test_every_forward_pass_but_no_backward_pass_runs_in_a_context_of_its_own() -> None:
    model, batch, scale = make(10)
    seen: list[tuple[str, bool]] = []
    made = 0

    def autocast() -> contextlib.AbstractContextManager[Any]:
        nonlocal made
        made += 1
        return torch.autocast("cpu", dtype=torch.bfloat16)

    model.register_forward_hook(lambda *_: seen.append(("forward", torch.is_autocast_enabled("cpu"))))
    next(model.parameters()).register_hook(lambda _: seen.append(("backward", torch.is_autocast_enabled("cpu"))))
    observed = train_step(model, sgd(model), batch, scale, losses, micro_batch_size=5, autocast=autocast)
    assert made == 2
    assert seen == [("forward", True), ("backward", False)] * 2
    assert observed.dtype == torch.float32


# -- DistributedDataParallel --------------------------------------------------------------------------------------


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def count_exchange(seen, bucket):  # type: ignore[no-untyped-def]  # torch refuses annotations that are strings
    """A communication hook for a group of one: note the gradients and hand them back."""
    seen.append(bucket.buffer().clone())
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("most", [None, 3, 5])
def test_gradients_are_exchanged_once_a_step_and_whole(most: int | None) -> None:
    expected_gradients, expected_weights, _ = stepped(10, most)
    inner, batch, scale = make(10)
    model = nn.parallel.DistributedDataParallel(inner)
    exchanged: list[torch.Tensor] = []
    model.register_comm_hook(exchanged, count_exchange)
    optimizer = sgd(model)
    train_step(model, optimizer, batch, scale, losses, micro_batch_size=most)
    assert len(exchanged) == 1  # one bucket holds this small model
    whole = torch.cat([gradient.flatten() for gradient in expected_gradients])
    torch.testing.assert_close(exchanged[0].sort().values, whole.sort().values, rtol=1e-5, atol=1e-6)
    for got, want in zip(inner.parameters(), expected_weights, strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-5, atol=1e-6)
    for _ in range(2):
        train_step(model, optimizer, batch, scale, losses, micro_batch_size=most)
    assert len(exchanged) == 3


@pytest.mark.parametrize("most", [None, 4])
def test_signals_are_observed_by_name_in_the_order_of_the_batch(most: int | None) -> None:
    model, batch, scale = make(10)

    def signals(model: nn.Module, part: Batch) -> dict[str, torch.Tensor]:
        return {"loss": losses(model, part), "first": part["x"][:, 0]}

    observed: Any = train_step(model, sgd(model), batch, scale, signals, micro_batch_size=most)
    assert not observed["loss"].requires_grad
    assert torch.equal(observed["first"], batch["x"][:, 0])
    twin, _, _ = make(10)
    torch.testing.assert_close(
        observed["loss"], train_step(twin, sgd(twin), batch, scale, losses, micro_batch_size=most)
    )
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)

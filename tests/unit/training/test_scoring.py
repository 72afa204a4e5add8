"""Scoring gives the losses of a train-mode pass, and the model cannot tell that it took place."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch._dynamo.testing
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from es_service import errors
from es_service.training import scoring

NUM = 10


class Batch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Net(nn.Module):
    """BatchNorm, dropout, and buffers that a forward pass updates in place, replaces, adds and removes."""

    calls: torch.Tensor
    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.tensor([float("nan"), -0.0]))
        self.register_buffer("once", torch.ones(1))
        self.register_buffer("later", None)
        self.register_buffer("wide", torch.ones(1).expand(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1  # in place
        self.seen = self.seen + x.sum()  # another tensor under the same name
        self.once = None
        self.later = x.detach().clone()
        out: torch.Tensor = self.last(self.drop(self.norm(self.first(x))))
        return out


def inputs(batch: Batch) -> torch.Tensor:
    return batch.x


def losses(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(outputs, batch.y, reduction="none")


def make(num: int = NUM) -> tuple[Net, Batch]:
    """A model that has taken a training step, so that it has gradients and moved statistics."""
    torch.manual_seed(3)
    model = Net()
    batch = Batch(torch.randn(num, 4), torch.randint(0, 3, (num,)))
    F.cross_entropy(model(batch.x), batch.y).backward()  # type: ignore[no-untyped-call]
    model.register_buffer("once", torch.ones(1))
    return model, batch


def state(model: nn.Module) -> dict[str, Any]:
    """All there is to see of a model and of the generator, as bytes and identities."""
    return {
        "buffers": [
            (key, id(buffer), None if buffer is None else (buffer.dtype, buffer.numpy().tobytes()))
            for module in model.modules()
            for key, buffer in module._buffers.items()
        ],
        "parameters": [(id(p), p.detach().numpy().tobytes()) for p in model.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes()) for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "random": torch.get_rng_state().numpy().tobytes(),
        "modes": (torch.is_grad_enabled(), torch.is_autocast_cache_enabled()),
    }


def score(model: nn.Module, batch: Any, **settings: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return scoring.score(model, batch, **{"inputs": inputs, "losses": losses, **settings})


def test_the_losses_are_those_of_the_training_step() -> None:
    model, batch = make()
    expected = losses(copy.deepcopy(model)(batch.x), batch).detach().numpy()
    torch.manual_seed(3)
    model, batch = make()
    got = score(model, batch)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("micro_batch_size", [None, 4, 100])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(training: bool, micro_batch_size: int | None) -> None:
    model, batch = make()
    model.train(training)
    model.norm.eval()
    before = state(model)
    result = score(model, batch, micro_batch_size=micro_batch_size)
    assert state(model) == before
    assert result.shape == (NUM,)
    assert np.isfinite(result).all()


def fail(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind_by_a_failure(training: bool) -> None:
    model, batch = make()
    model.train(training)
    before = state(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        score(model, batch, losses=fail)
    assert state(model) == before


def test_the_test_can_see_a_change() -> None:
    """Without `untouched`, the same pass changes every buffer and the generator."""
    model, batch = make()
    before = state(model)
    with torch.no_grad():
        model(batch.x)
    after = state(model)
    changed = {
        name for old, new in zip(before["buffers"], after["buffers"], strict=True) for name in [old[0]] if old != new
    }
    assert changed == {"running_mean", "running_var", "num_batches_tracked", "calls", "seen", "once", "later"}
    assert after["random"] != before["random"]


def test_train_mode_statistics_even_of_an_evaluating_model() -> None:
    model, batch = make()
    model.drop.p = 0.0
    expected = score(model, batch)
    with torch.no_grad():
        other = losses(copy.deepcopy(model).eval()(batch.x), batch).numpy()
    np.testing.assert_array_equal(score(model.eval(), batch), expected)
    assert not np.allclose(other, expected)


def test_a_frozen_part_of_a_training_model_stays_frozen() -> None:
    model, batch = make()
    model.drop.eval()
    model.norm.eval()
    with torch.no_grad():
        expected = losses(copy.deepcopy(model)(batch.x), batch).numpy()
    np.testing.assert_array_equal(score(model, batch), expected)


def test_micro_batches_come_in_order() -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3), make()[1]
    np.testing.assert_allclose(score(model, batch, micro_batch_size=3), score(model, batch), rtol=1e-6)


def test_micro_batches_are_as_equal_as_may_be() -> None:
    """64 samples in passes of at most 48 are 32 and 32: a small last one would have poor statistics."""
    sizes = []

    def seeing(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        sizes.append(len(outputs))
        return losses(outputs, batch)

    model, batch = make(64)
    score(model, batch, losses=seeing, micro_batch_size=48)
    assert sizes == [32, 32]


def test_an_empty_batch() -> None:
    model, _ = make()
    assert score(model, Batch(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))).shape == (0,)


@pytest.mark.parametrize(
    "bad, problem",
    [
        (lambda outputs, batch: F.cross_entropy(outputs, batch.y), "reduction='none'"),
        (lambda outputs, batch: outputs[:-1, 0], r"\(9,\) for 10 samples"),
        (lambda outputs, batch: outputs, r"\(10, 3\) for 10 samples"),
        (lambda outputs, batch: outputs[:, :1], r"\(10, 1\) for 10 samples"),
        (lambda outputs, batch: outputs[:, 0].tolist(), "must return a tensor, got list"),
    ],
)
def test_losses_that_are_not_one_per_sample(bad: Callable[..., Any], problem: str) -> None:
    model, batch = make()
    before = state(model)
    with pytest.raises(errors.ShapeError, match=problem):
        score(model, batch, losses=bad)
    assert state(model) == before


def test_one_sample_and_a_mean_is_refused_too() -> None:
    """The one case in which the number would be right: it would fail later, at the next size."""
    with pytest.raises(errors.ShapeError, match="reduction='none'"):
        score(nn.Linear(4, 3), make(1 + 1)[1], losses=lambda o, b: F.cross_entropy(o, b.y), micro_batch_size=1)


def test_micro_batches_below_one() -> None:
    model, batch = make()
    with pytest.raises(errors.ConfigError, match="at least 1"):
        score(model, batch, micro_batch_size=0)


def test_autocast_is_used_and_leaves_no_cast_weights() -> None:
    """Scoring inside a training loop's autocast: weights it cast without gradient must not reach the training step."""
    torch.manual_seed(0)
    model, batch = nn.Linear(4, 3), make()[1]
    dtypes = []

    def seeing(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        dtypes.append(outputs.dtype)
        assert not torch.is_autocast_cache_enabled()  # newer versions of torch get it right by themselves
        return losses(outputs, batch)

    cast = torch.autocast("cpu", dtype=torch.bfloat16)
    assert score(model, batch, losses=seeing, autocast=lambda: cast).dtype == np.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score(model, batch, losses=seeing)
        losses(model(batch.x), batch).mean().backward()  # type: ignore[no-untyped-call]
    assert dtypes == [torch.bfloat16, torch.bfloat16]
    assert model.weight.grad is not None
    assert model.weight.grad.any()


@pytest.fixture
def _process_group(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
def test_the_module_beneath_ddp_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inner, batch = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), make()[1]
    model = nn.parallel.DistributedDataParallel(inner)
    expected = score(inner, batch)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a collective of DistributedDataParallel ran while scoring")

    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "forward", refuse)
    np.testing.assert_array_equal(score(model, batch), expected)
    assert scoring.unwrap(model) is inner
    assert scoring.unwrap(nn.DataParallel(inner)) is inner
    assert scoring.unwrap(inner) is inner


def test_untouched_alone() -> None:
    model, batch = make()
    before = state(model)

    def use() -> None:
        with torch.no_grad(), scoring.untouched(model):
            model.eval()
            model.train()(batch.x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert state(model) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_the_models_device() -> None:
    model, batch = make()
    model, batch = model.cuda(), Batch(batch.x.cuda(), batch.y.cuda())
    before = torch.cuda.get_rng_state(), model.norm.running_mean.clone()  # type: ignore[union-attr]
    score(model, batch)
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(model.norm.running_mean, before[1])  # type: ignore[arg-type]


# -- signals ------------------------------------------------------------------------------------------------------


def signals(outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": losses(outputs, batch), "correct": (outputs.argmax(dim=1) == batch.y)}


@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_signals_come_by_name_and_leave_no_trace_either(micro_batch_size: int | None) -> None:
    model, batch = make()
    expected = score(model, batch, micro_batch_size=micro_batch_size)
    before = state(model)
    got: Any = score(model, batch, losses=signals, micro_batch_size=micro_batch_size)
    assert state(model) == before
    assert list(got) == ["loss", "correct"]
    np.testing.assert_array_equal(got["loss"], expected)
    assert got["correct"].dtype == np.float32
    assert set(got["correct"].tolist()) <= {0.0, 1.0}


def test_a_signal_that_is_not_one_per_sample_is_refused() -> None:
    model, batch = make()
    with pytest.raises(errors.ShapeError, match="one number"):
        score(model, batch, losses=lambda o, b: {"loss": losses(o, b), "correct": torch.ones(())})


# -- models and batches of another make ---------------------------------------------------------------------------


class ByName(nn.Module):
    """Takes its inputs by name, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, *, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.net(x * mask)
        return outputs


def by_name(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    outputs: torch.Tensor = model(x=batch["x"], mask=batch["mask"])
    return outputs


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_model_may_take_its_inputs_by_name(micro_batch_size: int | None) -> None:
    torch.manual_seed(0)
    model, batch = ByName(), {"x": torch.randn(NUM, 4), "mask": torch.ones(NUM, 4), "y": torch.randint(0, 3, (NUM,))}
    model.eval()  # all of it trains while it scores: a module around it would hide that from `score`
    torch.manual_seed(1)
    found = scoring.score(
        model,
        batch,
        forward=by_name,
        losses=lambda outputs, part: F.cross_entropy(outputs, part["y"], reduction="none"),
        micro_batch_size=micro_batch_size,
    )
    evaluated = F.cross_entropy(by_name(model, batch), batch["y"], reduction="none").detach().numpy()
    assert found.shape == (NUM,)
    assert not np.allclose(found, evaluated)  # dropout dropped
    assert not model.training


def of_class(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    return F.cross_entropy(outputs, batch["y"], reduction="none")


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_a_batch_that_is_a_mapping_goes_in_by_keyword(micro_batch_size: int | None) -> None:
    class Whole(ByName):
        def forward(self, *, x: torch.Tensor, mask: torch.Tensor, y: Any = None) -> torch.Tensor:
            return super().forward(x=x, mask=mask)

    torch.manual_seed(0)
    model = Whole()
    batch = UserDict(x=torch.randn(NUM, 4), mask=torch.ones(NUM, 4), y=torch.randint(0, 3, (NUM,)))
    size = {"micro_batch_size": micro_batch_size}
    found = scoring.score(model, batch, losses=of_class, **size)
    np.testing.assert_array_equal(found, scoring.score(model, batch, forward=by_name, losses=of_class, **size))


@pytest.mark.parametrize("micro_batch_size", [None, 4])
@pytest.mark.parametrize("named", [False, True])
def test_the_function_of_the_training_step_scores_too(named: bool, micro_batch_size: int | None) -> None:
    model, batch = make()
    expected: Any = score(model, batch, losses=signals if named else losses, micro_batch_size=micro_batch_size)
    before = state(model)

    def forward_losses(given: nn.Module, part: Batch) -> Any:
        return (signals if named else losses)(given(part.x), part)

    found: Any = scoring.score(model, batch, forward_losses, micro_batch_size=micro_batch_size)
    assert state(model) == before
    np.testing.assert_equal(found, expected)


WAYS: list[tuple[dict[str, Any], str]] = [
    ({}, "score needs either forward_losses"),
    ({"inputs": inputs}, "score needs either forward_losses"),
    ({"losses": losses, "inputs": inputs, "forward": by_name}, "at most one of inputs .* and forward"),
    ({"losses": losses}, "a batch of type Batch goes into the model: pass forward_losses"),
    *[
        ({"forward_losses": by_name, **more}, "but not both")
        for more in ({"losses": losses}, {"inputs": inputs}, {"forward": by_name})
    ],
]


@pytest.mark.parametrize("settings, problem", WAYS)
def test_a_model_is_called_in_one_way(settings: dict[str, Any], problem: str) -> None:
    model, batch = make()
    before = state(model)
    with pytest.raises(errors.ConfigError, match=problem):
        scoring.score(model, batch, **settings)
    assert state(model) == before


class Around(nn.Module):
    """A user's module around a model: in training mode whatever the model's is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("wrap", [Around, lambda model: Around(nn.DataParallel(model)), nn.Sequential])
def test_a_module_around_a_model_does_not_hide_that_it_evaluates(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, batch = make()
    expected = score(model, batch)
    model.eval()
    before = state(model)
    np.testing.assert_array_equal(score(wrap(model), batch), expected)
    assert state(model) == before
    model.train()
    model.drop.eval()
    model.norm.eval()
    np.testing.assert_array_equal(score(wrap(model), batch), score(model, batch))  # what is frozen stays so


# -- autocast and torch.compile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [True, False])
def test_under_autocast_the_losses_are_those_of_the_training_step(around: bool) -> None:
    def cast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    dtypes = []

    def forward_losses(given: nn.Module, part: Batch) -> torch.Tensor:
        outputs = given(part.x)
        dtypes.append(outputs.dtype)
        return losses(outputs, part)

    model, batch = make()
    with cast():
        expected = losses(copy.deepcopy(model)(batch.x), batch).detach().float().numpy()
    torch.manual_seed(3)
    model, batch = make()
    if around:
        with cast():
            found = scoring.score(model, batch, forward_losses)
    else:
        found = scoring.score(model, batch, forward_losses, autocast=cast)
    np.testing.assert_array_equal(found, expected)
    assert dtypes == [torch.bfloat16]
    assert not np.array_equal(found, score(model, batch))  # which a pass in single precision does not give


class Plain(nn.Module):
    """BatchNorm and dropout, and nothing that a compiler would have to stop for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("wrap", ["around", "inside"])
@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_model_scores_as_it_trains_and_keeps_no_trace(backend: str, wrap: str, training: bool) -> None:
    torch.manual_seed(0)
    inner, batch = Plain(), make()[1]
    torch.manual_seed(1)
    expected = score(inner, batch)
    torch._dynamo.reset()
    compiled: nn.Module = torch.compile(inner, backend=backend)  # type: ignore[assignment]
    model = compiled if wrap == "around" else Around(compiled)
    inner.train(training)
    torch.manual_seed(1)
    before = state(inner)
    np.testing.assert_array_equal(score(model, batch), expected)
    assert state(inner) == before
    model.train()
    np.testing.assert_array_equal(losses(model(batch.x), batch).detach().numpy(), expected)
    torch._dynamo.reset()


def test_changing_between_scoring_and_training_compiles_nothing_again() -> None:
    """Once for each: with and without gradient; and for sizes, of B, b and a last batch, that are not known yet."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    inner = Plain()
    model: nn.Module = torch.compile(inner, backend=counter)  # type: ignore[assignment]
    counts = []
    for _ in range(3):
        for size in (16, 16, 16, 9):
            x, y = torch.randn(size, 4), torch.randint(0, 3, (size,))
            score(model, Batch(x, y))
            part = Batch(x[: size // 4], y[: size // 4])
            losses(model(part.x), part).mean().backward()  # type: ignore[no-untyped-call]
        inner.eval()
        with torch.no_grad():
            model(torch.randn(32, 4))  # an evaluation between the epochs
        inner.train()
        counts.append(counter.frame_count)
    assert counts[0] <= 5
    assert counts == [counts[0]] * 3
    torch._dynamo.reset()


def test_micro_batches_need_a_row_per_sample_and_whole_batches_do_not() -> None:
    model, (x, y) = make()
    batch = {"weights": torch.ones(3), "x": x, "y": y}

    def settings(**more: Any) -> Any:
        return {
            "inputs": lambda part: part["x"],
            "losses": lambda outputs, part: F.cross_entropy(outputs, part["y"], part["weights"], reduction="none"),
            **more,
        }

    assert scoring.score(model, batch, **settings()).shape == (NUM,)
    with pytest.raises(errors.ShapeError, match=r"leaf 'x' .*has 10 rows in a batch of 3|'weights'.*3 rows"):
        scoring.score(model, batch, **settings(micro_batch_size=4))
    found = scoring.score(model, batch, **settings(micro_batch_size=4, per_sample=["x", "y"]))
    assert found.shape == (NUM,)

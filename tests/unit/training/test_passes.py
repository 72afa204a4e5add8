"""The passes of a step: how large and of what type those that score are, and how the model is arranged."""

from __future__ import annotations

import copy
import itertools
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import es_service as es
from es_service import errors
from es_service.selection.named import preset
from es_service.training import loop, losses
from es_service.training.memory import peak_memory
from es_service.training.passes import ScoringPasses, arrange, compile_errors
from es_service.training.settings import TrainSettings
from es_service.training.step import autocast_for, train_step
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.images import ImageSet
from es_service.training.tasks.images.augment import CropAndFlip
from es_service.training.tasks.resnet import SmallResNet
from es_service.training.tasks.supervised import Classification
from es_service.training.workers.local import LocalWorkers

NUM, SIZE, EPOCHS = 96, 24, 2
CPU = torch.device("cpu")


class Points:
    def __init__(self, num: int) -> None:
        self.x = torch.randn(num, 3, generator=torch.Generator().manual_seed(num))
        self.y = (self.x.sum(dim=1) > 0).long()

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[list(ids)], self.y[list(ids)]


class Task:
    """Points; notes for each pass whether it has a gradient, its size and the type of its outputs."""

    name = "points"
    label_names = labels = held_out_labels = None
    defaults = TaskDefaults(epochs=EPOCHS, batch_size=SIZE, learning_rate=0.1)

    def __init__(self, most: int = NUM) -> None:
        self.train_set, self.held_out = Points(NUM), Points(20)
        self.most, self.passes = most, Counter[tuple[bool, int, torch.dtype]]()

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

    def inputs(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if not torch.is_grad_enabled() and len(batch[1]) > self.most:
            raise torch.cuda.OutOfMemoryError(f"{len(batch[1])} samples do not fit")
        return batch[0]

    def losses(self, outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.passes[torch.is_grad_enabled(), len(batch[1]), outputs.dtype] += 1
        return F.cross_entropy(outputs.float(), batch[1], reduction="none")

    def signals(self, outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {}

    def metric(self, outputs: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return outputs.argmax(dim=1) == batch[1]

    def sizes(self, *, trained: bool) -> set[int]:
        return {size for with_gradient, size, _ in self.passes if with_gradient == trained}


def fitted(folder: Path, task: Task, method: str = "evolved", ratio: float = 0.5, **settings: Any) -> dict[str, Any]:
    selection = es.Selection(getattr(es.methods, method)(), ratio=ratio, anneal=(0, 0), seed=1)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
    return loop.fit(task, selector, TrainSettings(learning_rate=0.1, **settings), LocalWorkers(folder))  # type: ignore[arg-type]


# -- scoring ------------------------------------------------------------------------------------------------------


def test_the_meta_batch_is_scored_at_once_and_trained_in_micro_batches(tmp_path: Path) -> None:
    task = Task()
    fitted(tmp_path / "a", task, micro_batch_size=5)
    assert task.sizes(trained=True) == {4}  # 12 in three
    assert task.sizes(trained=False) == {SIZE, 20}  # and the held-out ones
    task = Task()
    fitted(tmp_path / "b", task, scoring_batch_size=6)
    assert task.sizes(trained=True) == {12}
    assert task.sizes(trained=False) == {6, 2}  # the rest of the 20 held out


def test_passes_that_do_not_fit_are_halved_for_good_and_it_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task(most=20)
    with caplog.at_level(logging.WARNING):
        expected = fitted(tmp_path / "a", task)
    assert task.sizes(trained=False) == {12, 8}
    logged = [one.getMessage() for one in caplog.records if "out of memory" in one.getMessage()]
    assert len(logged) == 1
    assert "at most 12 samples in a pass" in logged[0]
    whole = fitted(tmp_path / "b", Task(), scoring_batch_size=12)
    assert expected["history"][-1]["train_loss"] == whole["history"][-1]["train_loss"]


def test_what_fits_no_single_sample_is_an_error_and_the_model_is_as_it_was() -> None:
    task, model = Task(most=0), Task().build_model()

    def forward_losses(model: nn.Module, batch: Any) -> torch.Tensor:
        return task.losses(model(task.inputs(batch)), batch)

    passes = ScoringPasses(model, forward_losses, TrainSettings(learning_rate=0.1), CPU)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(torch.cuda.OutOfMemoryError, match="1 samples do not fit"):
        passes(task.train_set.__getitems__(range(8)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    task.most = 3
    assert passes(task.train_set.__getitems__(range(8))).shape == (8,)


def test_the_type_of_scoring_is_its_own(tmp_path: Path) -> None:
    for dtype, expected in (("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        task = Task()
        fitted(tmp_path / dtype, task, scoring_dtype=dtype)
        assert {one for _, size, one in task.passes if size == SIZE} == {expected}
        assert {one for _, size, one in task.passes if size != SIZE} == {torch.float32}  # training, evaluation
    with autocast_for(CPU, "bfloat16"):
        assert torch.is_autocast_enabled("cpu")
    with autocast_for(CPU):
        assert not torch.is_autocast_enabled("cpu")


def test_losses_of_bfloat16_rank_samples_like_those_of_float32() -> None:
    torch.manual_seed(0)
    model, batch = SmallResNet(), (torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,)))

    def forward_losses(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")

    whole, half = (
        ScoringPasses(model, forward_losses, TrainSettings(learning_rate=0.1, scoring_dtype=dtype), CPU)(batch)
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(whole - half).max() < 0.05 * whole.std() + 0.05
    assert np.corrcoef(whole, half)[0, 1] > 0.99


# -- the model ----------------------------------------------------------------------------------------------------


def trained(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], times: int = 2) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(times):
        train_step(
            model,
            optimizer,
            batch,
            torch.ones(len(batch[1])),
            lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        )
    return model.state_dict()


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """What a forward pass keeps for its backward pass."""
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return kept


def test_with_gradient_checkpointing_the_same_is_learnt_from_fewer_activations() -> None:
    torch.manual_seed(0)
    plain, batch = SmallResNet(widths=(8, 16)), (torch.randn(16, 1, 28, 28), torch.randint(0, 10, (16,)))
    other = copy.deepcopy(plain)
    arrange(other, TrainSettings(learning_rate=0.1, gradient_checkpointing=True))
    assert saved_bytes(other, batch[0]) < 0.5 * saved_bytes(plain, batch[0])
    expected = trained(plain.train(), batch)
    for name, value in trained(other.train(), batch).items():  # BatchNorm's statistics too
        assert torch.equal(value, expected[name]), name


class Offering(nn.Module):
    def __init__(self, supported: bool = True) -> None:
        super().__init__()
        self.supported, self.given = supported, Counter[str]()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        if not self.supported:
            raise ValueError("Offering does not support gradient checkpointing.")
        self.given[str(gradient_checkpointing_kwargs)] += 1


def test_models_that_offer_gradient_checkpointing_are_found_inside_others_and_no_others_taken() -> None:
    settings = TrainSettings(learning_rate=0.1, gradient_checkpointing=True)
    inner = Offering()
    arrange(nn.Sequential(nn.Linear(2, 2), inner), settings)
    assert inner.given == {"{'use_reentrant': False}": 1}
    with pytest.raises(errors.ConfigError, match=r"the method gradient_checkpointing_enable\(\).*Linear"):
        arrange(nn.Linear(2, 2), settings)
    with pytest.raises(errors.ConfigError, match=r"--gradient-checkpointing: Offering does not support"):
        arrange(Offering(supported=False), settings)


def test_a_model_of_transformers_is_checkpointed_by_its_own_method() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, bos_token_id=0, eos_token_id=0, n_positions=16, n_embd=16, n_layer=2, n_head=2
    )
    torch.manual_seed(0)
    plain = transformers.GPT2LMHeadModel(config)
    other = copy.deepcopy(plain)
    arrange(other, TrainSettings(learning_rate=0.1, gradient_checkpointing=True))
    tokens = torch.randint(0, 50, (3, 12))

    def forward_losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return losses.token_cross_entropy(model(input_ids=batch, use_cache=False).logits, batch)

    found = []
    for model in (plain.train(), other.train()):
        torch.manual_seed(1)  # of dropout
        scores = ScoringPasses(model, forward_losses, TrainSettings(learning_rate=0.1), CPU)(tokens)
        forward_losses(model, tokens).mean().backward()
        found.append((scores, [one.grad for one in model.parameters()]))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))


def test_channels_last_changes_the_layout_of_weights_and_nothing_else() -> None:
    torch.manual_seed(0)
    plain, batch = SmallResNet(widths=(8, 16)), (torch.randn(16, 1, 28, 28), torch.randint(0, 10, (16,)))
    other = copy.deepcopy(plain)
    arrange(other, TrainSettings(learning_rate=0.1, channels_last=True))
    weight = other.blocks[1].conv1.weight
    assert isinstance(weight, torch.Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    expected = trained(plain.train(), batch, times=1)
    for name, value in trained(other.train(), batch, times=1).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.fixture
def _no_compiler() -> Iterator[None]:
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, "/nonexistent/g++"), "force_disable_caches": True, "compile_threads": 1}):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.filterwarnings("ignore")  # of torch itself
def test_what_cannot_be_compiled_is_an_error_that_names_the_reason() -> None:
    settings = TrainSettings(learning_rate=0.1, compile=True)
    model = nn.Sequential(nn.Linear(3, 2), nn.GELU())
    arrange(model, settings)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]  # checkpoints fit the model with and without
    message = r"--compile: .*No working C\+\+ compiler.*leave --compile out"
    with pytest.raises(errors.ConfigError, match=message), compile_errors(settings):
        model(torch.zeros(5, 3))
    with pytest.raises(ZeroDivisionError), compile_errors(settings):
        raise ZeroDivisionError


@pytest.mark.thorough
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch itself
def test_a_compiled_training_selects_the_same_each_time_and_learns_as_one_that_is_not(tmp_path: Path) -> None:
    def run(name: str, *, compiled: bool) -> tuple[dict[str, Any], Any]:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0), seed=1)
        selector = es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
        settings = TrainSettings(learning_rate=0.1, compile=compiled)
        metrics = loop.fit(Task(), selector, settings, LocalWorkers(tmp_path / name))  # type: ignore[arg-type]
        assert (torch._dynamo.utils.counters["frames"]["ok"] > 0) == compiled
        return metrics, selector.table()

    first, again, plain = run("1", compiled=True), run("2", compiled=True), run("3", compiled=False)
    assert first[1].equals(again[1])  # losses, weights and picks of every sample, bit for bit
    assert first[0]["history"][-1]["train_loss"] == again[0]["history"][-1]["train_loss"]
    assert first[0]["history"][-1]["train_loss"] == pytest.approx(plain[0]["history"][-1]["train_loss"], rel=1e-3)
    assert np.array_equal(first[1]["selected"], plain[1]["selected"])


# -- memory, waiting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "es", "eswp"])
def test_the_result_has_the_peak_of_memory(tmp_path: Path, method: str) -> None:
    selector = es.Selector(preset(method), num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
    found = loop.fit(Task(), selector, TrainSettings(learning_rate=0.1), LocalWorkers(tmp_path))["memory"]  # type: ignore[arg-type]
    kind = "cuda" if torch.cuda.is_available() else "rss"
    assert found["kind"] == kind
    assert 1e4 < found["peak_bytes"] <= peak_memory(LocalWorkers(tmp_path).device)["peak_bytes"]


class Copies(TorchFunctionMode):
    """Counts what waits for the device, or copies to it without pinned memory, where it is not the CPU."""

    NAMES = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero", "tensor", "as_tensor")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        caller = sys._getframe(1).f_code
        is_to = name == "to" and any(isinstance(one, torch.device | str) for one in args[1:])
        if is_to and caller.co_name != "moved":  # which goes by way of pinned memory
            self.seen["to"] += 1
        elif name in self.NAMES and "torch/optim" not in caller.co_filename:  # its counts of steps are on the CPU
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "ratio"), [("random", 0.5), ("full", 1.0), ("evolved", 0.5)])
def test_a_step_waits_for_the_device_once(method: str, ratio: float) -> None:
    """For the losses: where the step was drawn without any, after it, and where it scores, before it."""
    task, model = Task(), Task().build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def forward_losses(model: nn.Module, batch: Any) -> torch.Tensor:
        return task.losses(model(task.inputs(batch)), batch)

    selection = es.Selection(getattr(es.methods, method)(), ratio=ratio, anneal=(0, 0))
    selector = es.Selector(selection, num_samples=NUM, num_epochs=1, batch_size=SIZE)
    passes = ScoringPasses(model, forward_losses, TrainSettings(learning_rate=0.1), CPU)
    loader = es.SelectiveLoader(task.train_set, selector, passes, reuse_losses=True, collate_fn=lambda batch: batch)
    batches = loader.epoch(0)
    steps = []
    for _ in range(NUM // SIZE):
        with Copies() as copies:
            batch, scale = next(batches)
            loader.observe(train_step(model, optimizer, batch, scale, forward_losses, weight=loader.weight))
        steps.append(copies.seen)
    waits = [{name: num for name, num in seen.items() if name != "numpy"} for seen in steps[1:]]  # behind a .cpu()
    chosen = {"tensor": 1} if method == "evolved" else {}  # the positions, which `moved` copies from pinned memory
    assert waits == [{"cpu": 1, **chosen}] * (len(steps) - 1)


class Marked(Classification):
    """Counts, under `Copies`, what happened from one training pass of the task to the next."""

    def losses(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            MARKS.append(Counter(SEEN[-1]) if SEEN else Counter())
        return super().losses(outputs, batch)


MARKS: list[Counter[str]] = []
SEEN: list[Counter[str]] = []


@pytest.mark.parametrize("weighed", [False, True])
def test_a_step_of_a_whole_training_waits_once_too(tmp_path: Path, weighed: bool) -> None:
    """With augmentation, weights of the task and AdamW: what they draw is copied from pinned memory."""
    images, labels = image_files.pictures(NUM, side=8)

    class Images(Marked):
        def inputs(self, batch: Any) -> torch.Tensor:
            return batch[0].permute(0, 3, 1, 2).float()  # type: ignore[no-any-return]

    samples = ImageSet(images, labels)
    task = Images(
        name="small", train_set=samples, held_out=samples, defaults=Task.defaults,
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), augment=CropAndFlip(crop=True, flip=True),
    )  # fmt: skip
    if weighed:
        object.__setattr__(task, "weights", lambda batch: np.ones(len(batch[1]), dtype=np.float32))
    selector = es.Selector(preset("es", anneal=(0, 0)), num_samples=NUM, num_epochs=1, batch_size=12)
    MARKS.clear()
    with Copies() as copies:
        SEEN[:] = [copies.seen]
        loop.fit(task, selector, TrainSettings(learning_rate=0.01, optimizer="adamw"), LocalWorkers(tmp_path))
    SEEN.clear()
    between = [after - before for before, after in itertools.pairwise(MARKS)]
    between = [Counter({name: num for name, num in one.items() if name != "numpy"}) for one in between]
    assert len(between) == NUM // 12 - 1
    assert between == [Counter(cpu=1, tensor=1)] * len(between)  # the scores; the positions

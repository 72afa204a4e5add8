"""A selective loader in a loop of Accelerate trains, bit for bit, what a loop written by hand does."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
from torch import nn
from torch.utils import data

import es_service as es
from es_service.integrations.accelerate import prepare
from es_service.selector import Selector
from es_service.training import losses as loss_functions
from es_service.training import scoring

NUM, SIZE, EPOCHS, EACH = 200, 7, 3, 4
STEPS = 29  # of an epoch: 8 updates of 4 steps, the last of them of one
X = torch.randn(NUM, 6, generator=torch.Generator().manual_seed(0))
DATA = data.TensorDataset(X, (X.sum(dim=1) > 0).long())


def forget() -> None:
    """Accelerate keeps one state in a process: begin with none."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    forget()
    yield
    forget()


def accelerator_of(**settings: Any) -> Accelerator:
    return Accelerator(cpu=True, gradient_accumulation_steps=EACH, **settings)


def selector_of(**settings: Any) -> Selector:
    settings = {"ratio": 0.5, "anneal": (0, 1 / EPOCHS), "seed": 3, **settings}
    return es.Selector(
        es.Selection(es.methods.evolved(), **settings), num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE
    )


def build(total: int) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total)


def losses_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return loss_functions.cross_entropy(model(batch[0]), batch[1])


def loader_of(selector: Selector, model: nn.Module, **settings: Any) -> es.SelectiveLoader:
    def score(batch: Any) -> Any:
        return scoring.score(model, batch, forward=losses_of, losses=lambda losses, _: losses)

    return es.SelectiveLoader(DATA, selector, score, reuse_losses=True, **settings)


def values_of(model: nn.Module, selector: Selector) -> dict[str, Any]:
    """All that two training runs are compared by."""
    weights = {name: value.double().tolist() for name, value in scoring.unwrap(model).state_dict().items()}
    table = selector.table()
    return {"weights": weights, "table": {name: table[name].to_numpy().tobytes().hex() for name in table.column_names}}


def by_hand(
    selector: Selector, model: nn.Module, optimizer: Any, scheduler: Any, losses_of: Callable[..., Any] = losses_of
) -> dict[str, Any]:
    """Train with plain torch."""
    is_parallel = isinstance(model, nn.parallel.DistributedDataParallel)
    for epoch in range(EPOCHS):
        for step, ids_B in enumerate(selector.epoch(epoch), 1):
            whole = DATA[ids_B.tolist()]
            losses_B = None
            if selector.wants_scores:
                losses_B = scoring.score(model, whole, forward=losses_of, losses=lambda losses, _: losses)
            draw = selector.select(ids_B, losses_B)
            is_over = step % EACH == 0 or step == selector.steps(epoch)
            with model.no_sync() if is_parallel and not is_over else contextlib.nullcontext():
                losses = losses_of(model, DATA[draw.ids.tolist()])
                ((losses * torch.from_numpy(draw.scale)).mean() / EACH).backward()
            selector.observe(losses)
            if is_over:
                optimizer.step()
                for _ in range(2 if is_parallel else 1):  # Accelerate's schedule makes a step for each process
                    scheduler.step()
                optimizer.zero_grad()
    return values_of(model, selector)


class Training:
    """A loop of Accelerate, to be stopped anywhere."""

    def __init__(self, make: Callable[[], Selector], total: int = 24, **settings: Any) -> None:
        self.accelerator = accelerator_of(**settings)
        self.model, optimizer, scheduler = build(
            total
        )  # 24: 3 epochs of 8 updates; of two processes 4, which count twice
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(self.model, optimizer, scheduler)
        self.loader = prepare(self.accelerator, loader_of(make(), self.model))
        self.updates = 0
        self.rate = math.nan

    def run(self, *, stop: tuple[int, int] | None = None) -> dict[str, Any]:
        """Train on, as far as to an update in an epoch."""
        for epoch in range(self.loader.next_epoch, EPOCHS):
            for step, (batch, scale) in enumerate(self.loader, 1):
                with self.accelerator.accumulate(self.model):
                    losses = losses_of(self.model, batch)
                    self.accelerator.backward((losses * scale).mean())
                    self.loader.observe(losses)
                    self.optimizer.step()
                    self.scheduler.step()
                    self.optimizer.zero_grad()
                self.updates += self.accelerator.sync_gradients
                if stop == (epoch, step):
                    break
            if stop is not None and stop[0] == epoch:
                break
        [self.rate] = self.scheduler.get_last_lr()
        return values_of(self.model, self.loader.selector)


def test_it_is_the_loop_written_by_hand() -> None:
    training = Training(selector_of)
    assert training.loader.scheduler_steps == 24
    assert training.run() == by_hand(selector_of(), *build(24))
    assert training.updates == 24
    assert training.rate == 0
    assert not training.accelerator.gradient_state.in_dataloader


def test_epochs_that_are_pruned_leave_no_schedule_unfinished() -> None:
    def pruned() -> Selector:
        return selector_of(prune_ratio=0.3, prune_unobserved=True)  # 20 steps, 5 updates

    training = Training(pruned, 15)
    assert training.loader.scheduler_steps == 15
    assert training.run() == by_hand(pruned(), *build(15))
    assert training.updates == 15
    assert training.rate == 0


@pytest.mark.parametrize("step", [12, STEPS])
def test_a_resumed_run_is_the_undisturbed_one(step: int) -> None:
    expected = by_hand(selector_of(), *build(24))
    first = Training(selector_of)
    first.run(stop=(1, step))
    first.accelerator.save_state("state")
    forget()
    second = Training(selector_of)
    second.accelerator.load_state("state")
    assert second.loader.next_epoch == (1 if step < STEPS else 2)
    assert second.run() == expected
    assert first.updates + second.updates == 24
    assert second.rate == 0


def test_scores_are_of_the_precision_of_the_training() -> None:
    def in_half(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch[0])
        return loss_functions.cross_entropy(outputs.float(), batch[1])

    found = Training(selector_of, mixed_precision="bf16").run()
    assert found == by_hand(selector_of(), *build(24), in_half)
    assert found["table"] != by_hand(selector_of(), *build(24))["table"]


def test_a_loader_that_was_not_prepared_is_refused_before_its_first_step() -> None:
    accelerator = accelerator_of()
    model, _, _ = build(1)
    loader = accelerator.prepare(loader_of(selector_of(), model))
    with pytest.raises(es.ConfigError, match=r"gradients of 4 steps.*accelerate\.prepare"):
        next(iter(loader))


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=False)}],
)
def test_where_nothing_ends_with_an_epoch_a_loader_need_not_be_prepared(settings: dict[str, Any]) -> None:
    Accelerator(cpu=True, **settings)
    assert len(list(loader_of(selector_of(anneal=(0, 0)), build(1)[0]).epoch(0))) == STEPS


def test_skipping_batches_is_refused() -> None:
    accelerator = accelerator_of()
    loader = prepare(accelerator, loader_of(selector_of(), build(1)[0]))
    for skip in (skip_first_batches, accelerator.skip_first_batches):
        with pytest.raises(es.ConfigError, match="load_state_dict"):
            skip(loader, 2)


def test_an_epoch_that_is_cut_short_leaves_nothing_behind() -> None:
    accelerator = accelerator_of()
    loader = prepare(accelerator, loader_of(selector_of(anneal=(0, 0)), build(1)[0]))
    assert len(loader) == STEPS
    for epoch in range(EPOCHS):
        for _, _ in zip(range(3), loader, strict=False):
            assert accelerator.gradient_state.active_dataloader is loader
            assert not accelerator.gradient_state.end_of_dataloader
        assert not accelerator.gradient_state.in_dataloader
        assert loader.next_epoch == epoch
    with pytest.raises(es.ConfigError):
        next(iter(loader))


def test_what_is_no_selective_loader_is_refused() -> None:
    accelerator = accelerator_of()
    with pytest.raises(es.ConfigError, match="got DataLoader"):
        prepare(accelerator, data.DataLoader(DATA))
    loader = prepare(accelerator, loader_of(selector_of(), build(1)[0]))
    assert prepare(accelerator, loader) is loader


def test_another_seed_of_the_order_is_refused() -> None:
    accelerator = accelerator_of(dataloader_config=DataLoaderConfiguration(data_seed=1, use_seedable_sampler=True))
    with pytest.raises(es.ConfigError, match="data_seed=1"):
        prepare(accelerator, loader_of(selector_of(), build(1)[0]))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # Accelerate ignores it
@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, 24),
        ({"step_scheduler_with_optimizer": False}, 87),
        ({"gradient_accumulation_plugin": GradientAccumulationPlugin(num_steps=4, sync_with_dataloader=False)}, 21),
    ],
)
def test_steps_of_the_schedule(settings: dict[str, Any], expected: int) -> None:
    each = {} if "gradient_accumulation_plugin" in settings else {"gradient_accumulation_steps": EACH}
    accelerator = Accelerator(cpu=True, **each, **settings)
    model, optimizer, scheduler = build(expected)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    loader = prepare(accelerator, loader_of(selector_of(), model))
    assert loader.scheduler_steps == expected
    for epoch in range(EPOCHS):
        for batch, scale in loader.epoch(epoch):
            with accelerator.accumulate(model):
                losses = losses_of(model, batch)
                accelerator.backward((losses * scale).mean())
                loader.observe(losses)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert scheduler.get_last_lr() == [0]


def test_a_checkpoint_of_another_run_is_refused() -> None:
    first = Training(selector_of)
    first.accelerator.save_state("state")
    forget()
    second = Training(lambda: selector_of(seed=4))
    with pytest.raises(es.RunMismatchError, match="seed"):
        second.accelerator.load_state("state")


# -- two processes------------------------------------------------------------------------------------------------------


def connected(run: str) -> Selector:
    selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 1 / EPOCHS), seed=3)
    return es.connect(
        run, selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE, exchange="collective", storage="runs"
    )


def refusal(**settings: Any) -> str:
    """Return what a loader is refused for where the accelerator's loaders have this setting."""
    forget()
    accelerator = accelerator_of(dataloader_config=DataLoaderConfiguration(**settings))
    selector = es.Selector(
        es.Selection(es.methods.loss()), num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE, world_size=1
    )
    with pytest.raises(es.ConfigError) as caught:
        prepare(accelerator, loader_of(selector, build(1)[0]))
    return str(caught.value)


def as_a_rank() -> dict[str, Any]:
    """What each of two processes finds."""
    for setting in ("split_batches=True", "dispatch_batches=True", "even_batches=False"):
        name, _, value = setting.partition("=")
        assert setting in refusal(**{name: value == "True"})
    forget()
    whole = Training(lambda: connected("whole"))
    found = whole.run()
    assert whole.loader.scheduler_steps == 2 * whole.updates == 2 * 12
    assert whole.rate == 0
    with pytest.raises(es.ConfigError, match="several ranks continue from the end of an epoch"):
        whole.loader.load_state_dict(torch.load("inside.pt", weights_only=False))
    forget()
    first = Training(lambda: connected("first"))
    first.run(stop=(1, 15))
    first.accelerator.save_state("state")
    forget()
    second = Training(lambda: connected("second"))
    second.accelerator.load_state("state")
    resumed = second.run()
    forget()
    synchronized = Training(lambda: connected("synchronized"), rng_types=["torch"])
    torch.manual_seed(synchronized.accelerator.process_index)
    next(iter(synchronized.loader))
    random = torch.rand(()).item()
    model, optimizer, scheduler = build(24)
    expected = by_hand(connected("by-hand"), nn.parallel.DistributedDataParallel(model), optimizer, scheduler)
    return {"expected": expected, "found": found, "resumed": resumed, "random": random}


def test_two_processes_are_the_loop_written_by_hand_and_resume() -> None:
    alone = Training(selector_of)
    alone.run(stop=(1, 12))
    torch.save(alone.loader.state_dict(), "inside.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        first, second = [json.loads(rank.communicate(timeout=240)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert first["random"] == second["random"]
    assert first["expected"]["table"] == second["expected"]["table"]
    for found in (first, second):
        assert found["found"] == found["resumed"] == found["expected"]
    of_two = torch.load("state/custom_checkpoint_0.pkl", weights_only=False)
    assert alone.loader.load_state_dict(of_two) == alone.loader.next_epoch == 2


if __name__ == "__main__":
    sys.stdout.write(json.dumps(as_a_rank()))

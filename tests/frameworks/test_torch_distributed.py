"""Ranks that torchrun starts, without Ray: DistributedDataParallel, fully_shard (FSDP2), and torch.compile around them.

All that the two ranks are to do they do in one start, since starting takes longer than the rest.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils import data

import es_service as es
from es_service.training import losses, scoring, step

NUM, SIZE, EPOCHS = 80, 10, 2
WHOLE = state_dict.StateDictOptions(full_state_dict=True)
X = torch.randn(NUM, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(dim=1) > 0).long() + (X[:, 0] > 1)


# -- what ranks do ------------------------------------------------------------------------------------------------


def net(*, root_only: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential() if root_only else block, nn.LayerNorm(8), nn.Linear(8, 3))


def sharded(model: nn.Sequential, mesh: Any = None) -> nn.Module:
    mesh = mesh if mesh is not None else init_device_mesh("cpu", (2,))
    if len(model[1]):  # type: ignore[arg-type]
        fully_shard(model[1], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


PARALLEL: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp": sharded,
    "ddp of a compiled model": lambda model: nn.parallel.DistributedDataParallel(compiled(model)),
    "compiled ddp": lambda model: compiled(nn.parallel.DistributedDataParallel(model)),
    "compiled fsdp": lambda model: compiled(sharded(model)),
}


def losses_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return losses.cross_entropy(model(batch[0]), batch[1])


def whole(parameter: torch.Tensor) -> Any:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().numpy().copy()


def train(parallel: str, run: str, num_bad: int, most: int | None, narrow: bool = False) -> dict[str, Any]:
    """Train; of each batch that rank 1 scores the last `num_bad` losses are not finite.

    `narrow`: in bfloat16, and with pruned epochs.
    """
    rank = torch.distributed.get_rank()
    model = PARALLEL[parallel](net())
    selection = es.Selection(
        es.methods.evolved(), ratio=0.5, prune_ratio=0.25 * narrow, anneal=(0, 0), seed=3, on_bad_loss="skip"
    )
    selector = es.connect(
        run, selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE, exchange="collective", storage="runs"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def losses_here(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return losses_of(model, batch)

    def score(batch: Any) -> Any:
        found: Any = scoring.score(model, batch, losses_here, micro_batch_size=most)
        return np.where(np.arange(len(found)) < len(found) - rank * num_bad, found, np.nan)

    loader = es.SelectiveLoader(data.TensorDataset(X, Y), selector, score)
    torch.manual_seed(rank)
    sizes = []
    for epoch in range(EPOCHS):
        for batch, scale in loader.epoch(epoch):
            step.train_step(model, optimizer, batch, scale, losses_here, weight=loader.weight, micro_batch_size=most)
            sizes.append(len(scale))
    table = selector.table()
    selector.close()
    return {"table": table, "sizes": sizes, "weights": [whole(one) for one in model.parameters()]}


def killed(parallel: str, run: str, dies: bool) -> dict[str, Any]:
    """Train from the last checkpoint, with one after each epoch; rank 1 may die inside the last epoch."""
    rank, saved = torch.distributed.get_rank(), Path(f"{run}.pt")
    model = PARALLEL[parallel](net())
    selection = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0, 0), seed=3)
    selector = es.connect(
        run, selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE, exchange="collective", storage="runs"
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = es.SelectiveLoader(
        data.TensorDataset(X, Y), selector, lambda batch: scoring.score(model, batch, losses_of)
    )
    start = 0
    if saved.exists():
        state = torch.load(saved)
        loaded = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        state_dict.set_state_dict(model, optimizer, options=WHOLE, **loaded)
        start = selector.load_state_dict(state["selector"])
    for epoch in range(start, EPOCHS):
        torch.manual_seed(2 * epoch + rank)
        for index, (batch, scale) in enumerate(loader.epoch(epoch)):
            if dies and rank == 1 and epoch == EPOCHS - 1 and index == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            step.train_step(model, optimizer, batch, scale, losses_of, weight=loader.weight)
        weights, moments = state_dict.get_state_dict(model, optimizer, options=WHOLE)
        state = {"model": weights, "optimizer": moments, "selector": selector.state_dict()}
        if rank == 0:
            torch.save(state, saved)
        torch.distributed.barrier()
    table = selector.table()
    selector.close()
    return {"table": table, "start": start, "weights": [whole(one) for one in model.parameters()]}


def all_there_is(model: nn.Module) -> list[Any]:
    parameters = [(id(one), isinstance(one, DTensor), whole(one).tobytes()) for one in model.parameters()]
    return [*parameters, *(one.training for one in model.modules()), torch.get_rng_state().numpy().tobytes()]


def trace(root_only: bool) -> tuple[bool, Any, Any]:
    """Score a sharded model; return whether nothing changed, the losses, and those of the model as one."""
    alone, model, batch = net(root_only=root_only), sharded(net(root_only=root_only)).eval(), (X[:6], Y[:6])
    torch.manual_seed(1)
    before = all_there_is(model)
    found = scoring.score(model, batch, losses_of, micro_batch_size=4)
    return all_there_is(model) == before, found, scoring.score(alone, batch, losses_of, micro_batch_size=4)


def factors(shape: tuple[int, ...], late: bool) -> tuple[list[Any], list[Any]]:
    """Take a step with 2 samples on rank 0 and 4 on rank 1; return the gradients, and those of one process."""
    rank = torch.distributed.get_rank()
    model = sharded(
        net(root_only=True), init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    )
    with torch.no_grad():
        model(X[:3])  # an evaluation, after which the parameters are still gathered
    mine = slice(0, 2) if rank == 0 else slice(2, 6)
    mean = None if not late else losses_of(model, (X[mine], Y[mine])).mean()
    factor = step.rank_factor(model, 2 + 2 * rank, torch.device("cpu"))
    mean = losses_of(model, (X[mine], Y[mine])).mean() if mean is None else mean
    (mean * factor).backward()  # type: ignore[no-untyped-call]
    alone = net(root_only=True)
    losses_of(alone, (X[:6], Y[:6])).mean().backward()  # type: ignore[no-untyped-call]
    return [whole(one.grad) for one in model.parameters()], [whole(one.grad) for one in alone.parameters()]  # type: ignore[arg-type]


def too_few() -> None:
    """One sample on rank 0, where rank 1 needs 3 passes."""
    num = 1 + 5 * torch.distributed.get_rank()
    model = sharded(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step.train_step(model, optimizer, (X[:num], Y[:num]), torch.ones(num), losses_of, micro_batch_size=2)


# -- what comes out -----------------------------------------------------------------------------------------------

CALLS: dict[str, tuple[Any, ...]] = {
    **{kind: ("train", kind, kind.replace(" ", "-"), 0, None) for kind in PARALLEL},
    **{f"trace, {root_only}": ("trace", root_only) for root_only in (False, True)},
    **{
        f"factors, {shape}, {late}": ("factors", shape, late)
        for shape in ((2,), (2, 1), (1, 2))
        for late in (False, True)
    },
    "ddp, unequal": ("train", "ddp", "ddp-unequal", 6, 2),
    "fsdp, unequal": ("train", "fsdp", "fsdp-unequal", 6, 2),
    "ddp, narrow": ("train", "ddp", "ddp-narrow", 0, None, True),
    "fsdp, narrow": ("train", "fsdp", "fsdp-narrow", 0, None, True),
    "too few": ("too_few",),
}


def torchrun(folder: Path, calls: list[tuple[Any, ...]]) -> list[list[Any]]:
    """Call functions of this file on two ranks; return what each call returned or raised, by rank."""
    (folder / "calls.pickle").write_bytes(pickle.dumps(calls))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
            *(str(Path(__file__).with_name("torchrun_rank.py")), __file__, str(folder)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(2)]
    return [list(both) for both in zip(*answers, strict=True)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each of CALLS came to, by rank."""
    return dict(zip(CALLS, torchrun(tmp_path_factory.mktemp("ranks"), list(CALLS.values())), strict=True))


def close(ones: list[Any], others: list[Any]) -> None:
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two trainings gave the same table and weights, bit for bit."""
    weights = zip(one["weights"], other["weights"], strict=True)
    return bool(one["table"].equals(other["table"])) and all(np.array_equal(*both) for both in weights)


@pytest.mark.parametrize("kind", PARALLEL)
def test_both_ranks_train_on_what_one_table_says(kind: str, answers: dict[str, list[Any]]) -> None:
    one, other = answers[kind]
    assert same(one, other)
    assert one["sizes"] == other["sizes"] == [5] * (EPOCHS * NUM // (2 * SIZE))
    visits = one["table"]["visits"].to_numpy()
    assert visits.tolist() == [EPOCHS] * NUM  # each sample was scored on one of the ranks


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_pruned_and_in_bfloat16_both_ranks_train_on_one_table(parallel: str, answers: dict[str, list[Any]]) -> None:
    one, other = answers[f"{parallel}, narrow"]
    assert same(one, other)
    assert one["sizes"] == other["sizes"] == [5] * (4 + 3)  # the second epoch leaves a quarter out
    assert not np.array_equal(one["table"]["last_loss"], answers[parallel][0]["table"]["last_loss"])
    close(one["weights"], answers["ddp, narrow"][0]["weights"])


@pytest.mark.parametrize("unequal", ["", ", unequal"])
def test_sharded_ranks_take_the_steps_of_ddp(unequal: str, answers: dict[str, list[Any]]) -> None:
    """With mini-batches and numbers of passes that differ between the ranks too."""
    for one, other in zip(answers[f"fsdp{unequal}"], answers[f"ddp{unequal}"], strict=True):
        assert one["sizes"] == other["sizes"]
        close(one["weights"], other["weights"])
        assert one["table"]["selected"].equals(other["table"]["selected"])
        close([one["table"]["s"].to_numpy()], [other["table"]["s"].to_numpy()])
    sizes = [answers[f"fsdp{unequal}"][rank]["sizes"] for rank in range(2)]
    assert (sizes[0] == sizes[1]) == (not unequal)


@pytest.mark.parametrize("kind", ["ddp of a compiled model", "compiled ddp", "compiled fsdp"])
def test_compiled_models_train_bit_for_bit_as_they_do_uncompiled(kind: str, answers: dict[str, list[Any]]) -> None:
    plain = "fsdp" if "fsdp" in kind else "ddp"
    assert same(answers[kind][0], answers[plain][0])


@pytest.mark.parametrize("root_only", [False, True])
def test_scoring_leaves_no_trace_in_a_sharded_model(root_only: bool, answers: dict[str, list[Any]]) -> None:
    for untouched, found, expected in answers[f"trace, {root_only}"]:
        assert untouched
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2)])
def test_the_factor_of_a_rank_counts_samples_alike(
    shape: tuple[int, ...], late: bool, answers: dict[str, list[Any]]
) -> None:
    """Sharded over both ranks, replicated over them, or one inside the other; before the forward pass and after it."""
    for gradients, alone in answers[f"factors, {shape}, {late}"]:
        close(gradients, alone)


def test_a_rank_with_fewer_samples_than_passes_is_refused_on_all(answers: dict[str, list[Any]]) -> None:
    for error in answers["too few"]:
        assert isinstance(error, es.ConfigError)
        assert "makes 3 passes for one rank's mini-batch, while another has only 1 sample" in str(error)


@pytest.mark.thorough
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_rank_and_a_new_start_of_all_change_nothing(parallel: str, tmp_path: Path) -> None:
    [undisturbed] = torchrun(tmp_path, [("killed", parallel, "whole", False)])
    with pytest.raises(AssertionError, match="SIGKILL"):
        torchrun(tmp_path, [("killed", parallel, "broken", True)])
    [continued] = torchrun(tmp_path, [("killed", parallel, "broken", False)])
    for one, other in zip(continued, undisturbed, strict=True):
        assert (one["start"], other["start"]) == (EPOCHS - 1, 0)
        assert same(one, other)

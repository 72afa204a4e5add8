"""Ranks whose mini-batches differ in size take the step of one process that has all of their samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import data

import es_service as es
from es_service.training.step import train_step

NUM, SIZE = 80, 10
X = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1) + 0.3 * torch.arange(NUM) / NUM


def losses_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]).squeeze(-1) - batch[1]).square()


def steps(storage: str, settings: dict[str, Any], most: int | None) -> list[dict[str, Any]]:
    """Train for an epoch in which rank 1 has 3 finite losses of 10 each time; return what each step was."""
    rank = torch.distributed.get_rank()
    selection = es.Selection(es.methods.loss(), ratio=0.5, seed=3, on_bad_loss="skip", **settings)
    selector = es.connect(
        "run", selection, num_samples=NUM, num_epochs=1, batch_size=SIZE, exchange="collective", storage=storage
    )
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def score(batch: Any) -> torch.Tensor:
        with torch.no_grad():
            losses = losses_of(model, batch)
        return losses.where(torch.arange(len(losses)) < (3 if rank else SIZE), torch.nan)

    loader = es.SelectiveLoader(data.TensorDataset(X, Y), selector, score)
    taken = []
    for batch, scale in loader.epoch(0):
        assert loader.draw is not None
        before = [parameter.detach().numpy().copy() for parameter in model.parameters()]
        train_step(model, optimizer, batch, scale, losses_of, weight=loader.weight, micro_batch_size=most)
        gradients = [parameter.grad.numpy().copy() for parameter in model.parameters() if parameter.grad is not None]
        taken.append(
            {"ids": loader.draw.ids, "scale": scale.numpy(), "before": before, "gradients": gradients, "rank": rank}
        )
    selector.close()
    return taken


@pytest.mark.parametrize("most", [None, 2])
@pytest.mark.parametrize(
    "settings, sizes, stands_for",
    [
        ({"anneal": (0, 0)}, (5, 3), None),
        ({"anneal": (0.99, 0)}, (10, 3), None),
        ({"anneal": (0, 0), "reweight": "unbiased"}, (5, 3), (10, 3)),
    ],
)
def test_the_gradient_is_that_of_the_mean_over_the_samples_of_all_ranks(
    ranks: Any, storage: str, settings: dict[str, Any], sizes: tuple[int, int], stands_for: Any, most: int | None
) -> None:
    for one, other in zip(*ranks.run(steps, storage, settings, most, world_size=2), strict=True):
        model = nn.Linear(3, 1)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), one["before"], strict=True):
                parameter.copy_(torch.from_numpy(value))
        sums, weights = [], []
        for step, size, weight in zip((one, other), sizes, stands_for or sizes, strict=True):
            assert len(step["ids"]) == size
            losses = losses_of(model, (X[step["ids"]], Y[step["ids"]])) * torch.from_numpy(step["scale"])
            sums.append(losses.mean() * weight)
            weights.append(weight)
        (sum(sums) / sum(weights)).backward()
        for parameter, *found in zip(model.parameters(), one["gradients"], other["gradients"], strict=True):
            assert parameter.grad is not None
            for gradient in found:
                np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-4, atol=1e-6)

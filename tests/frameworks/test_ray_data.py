"""es.stream over Ray Data: in this process, and with a score server that its ranks would share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

import es_service as es
from es_service.actors import launch

NUM, SIZE = 200, 25


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is deprecated.*")  # Ray Data sets settings that it deprecates
        ray.data.DataContext.get_current()
    yield
    ray.shutdown()


def losses(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    errors = model(batch["x"].float().unsqueeze(1)).squeeze(1) - batch["y"].float()
    return errors.square()


@pytest.mark.parametrize("run", [None, "ray-data"])
def test_batches_of_ray_data_are_selected_from(run: str | None, tmp_path: Path) -> None:
    table = ray.data.range(NUM).map_batches(lambda rows: {**rows, "x": rows["id"] / NUM, "y": rows["id"] % 2})
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selection = es.Selection(es.methods.evolved(), ratio=0.2, anneal=(0.33, 0), anneal_by="epochs")
    settings = {} if run is None else {"run": run, "storage": str(tmp_path)}
    batches = table.iterator().iter_torch_batches(batch_size=SIZE)
    stream = es.stream(
        batches, selection, epochs=3, model=model, losses=losses, batch_size=SIZE, num_samples=NUM, **settings
    )
    trained = []
    for _ in range(3):
        trained.append(0)
        for batch, scale in stream:
            assert stream.draw is not None
            assert batch["id"].tolist() == stream.draw.ids.tolist()
            assert len(batch["x"]) == len(scale)
            optimizer.zero_grad()
            stream.mean(losses(model, batch)).backward()
            optimizer.step()
            trained[-1] += len(scale)
    assert trained == [NUM, NUM // 5, NUM // 5]
    assert min(stream.selector.table()["visits"].to_pylist()) == 3
    assert stream.state_dict()["finished_epochs"] == 3
    assert type(stream.selector.exchange).__name__ == ("Embedded" if run is None else "Prefetch")
    stream.selector.close()
    if run is not None:
        launch.stop(run)

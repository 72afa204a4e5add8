"""One rank of a DistributedDataParallel training with es.wrap; arguments: rank, world size, folder, epochs, state."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils import data

import es_service as es
from es_service.training import losses as per_sample

NUM, SIZE = 120, 10


def losses(model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return per_sample.cross_entropy(model(batch[0]), batch[1])


def main(rank: int, world_size: int, folder: Path, epochs: int, state: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / f'group{epochs}'}", rank=rank, world_size=world_size
    )
    torch.manual_seed(0)
    x = torch.randn(NUM, 4)
    dataset = data.TensorDataset(x, (x.sum(dim=1) > 0).long(), torch.arange(NUM))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
    sampler = data.DistributedSampler(dataset)
    selection = es.Selection(es.methods.evolved(), ratio=0.3, anneal=(0.33, 0), anneal_by="epochs")
    plain = data.DataLoader(dataset, SIZE, sampler=sampler, num_workers=1)
    loader = es.wrap(plain, selection, epochs=3, model=model, losses=losses, run="ranks", storage=str(folder))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if state:
        loader.load_state_dict(torch.load(state, weights_only=True))
    seen: list[list[int]] = []
    for _ in range(epochs):
        seen.append([])
        assert len(loader) == NUM // world_size // SIZE
        for batch, _ in loader:
            assert loader.draw is not None
            assert batch[2].tolist() == loader.draw.ids.tolist()
            seen[-1] += batch[2].tolist()
            optimizer.zero_grad()
            loader.mean(losses(model, batch)).backward()
            optimizer.step()
    kept = {"seen": seen, "state": loader.state_dict(), "weights": model.module.state_dict()}
    torch.save(kept, folder / f"{rank}.pt")
    loader.selector.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])

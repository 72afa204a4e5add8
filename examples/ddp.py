"""DistributedDataParallel with torchrun, no Ray: every rank draws from its own part of an epoch.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import torch
from pytorch import build_model, load, losses
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import es_service as es

EPOCHS = 4


def main():
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    train_set, held_out = load()
    model = DistributedDataParallel(build_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = es.wrap(  # no DistributedSampler: the selection gives each rank its share of an epoch
        DataLoader(train_set, batch_size=32, shuffle=True),
        es.Selection(es.methods.evolved(), ratio=0.25),
        epochs=EPOCHS,
        model=model,
        losses=losses,
        run="ddp",
        storage="runs",
        exchange="collective",
    )
    for epoch in range(EPOCHS):
        for batch, _scale in loader:
            optimizer.zero_grad()
            loader.mean(losses(model, batch)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            images, labels = held_out.tensors
            accuracy = (model.module(images).argmax(dim=1) == labels).float().mean().item()
        model.train()
        loader.selector.log(accuracy=accuracy)
        if distributed.get_rank() == 0:
            print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
    loader.selector.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

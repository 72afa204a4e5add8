"""Hugging Face Accelerate: the loop of an Accelerator, with gradient accumulation and checkpoints.

python examples/accelerate_loop.py      # or: accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from pytorch import build_model, load, losses
from torch.utils.data import DataLoader

import es_service as es
from es_service.integrations.accelerate import prepare

EPOCHS = 4


def main():
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    train_set, held_out = load()
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = es.wrap(
        DataLoader(train_set, batch_size=64, shuffle=True),
        es.Selection(es.methods.evolved(), ratio=0.5),
        epochs=EPOCHS,
        model=model,
        losses=losses,
        run="accelerate",
        storage="runs",
    )
    loader = prepare(accelerator, loader)  # instead of accelerator.prepare(loader)

    for epoch in range(EPOCHS):
        for batch, _scale in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loader.mean(losses(model, batch)))
                optimizer.step()
                optimizer.zero_grad()
        accelerator.save_state(f"checkpoints/{epoch}")  # accelerator.load_state(...) continues, the selection too
        model.eval()
        with torch.no_grad():
            images, labels = (tensor.to(accelerator.device) for tensor in held_out.tensors)
            accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
        model.train()
        loader.selector.log(accuracy=accuracy)
        accelerator.print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
    accelerator.print(f"backward passes saved: {loader.selector.ledger.saving()['samples']:.0%}")
    accelerator.end_training()


if __name__ == "__main__":
    main()

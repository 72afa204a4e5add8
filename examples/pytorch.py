"""Plain PyTorch: a small network on Fashion-MNIST, which comes with es_service. Comments mark what selection changes.

python examples/pytorch.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import es_service as es
from es_service.training.losses import cross_entropy
from es_service.training.tasks import fashion

EPOCHS = 6


def load():
    task = fashion.build()
    parts = (task.train_set, 4000), (task.held_out, 2000)  # images to train on, and held out
    return [TensorDataset(*images.__getitems__(range(num))) for images, num in parts]


def build_model():
    first = nn.Sequential(nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(64 * 49, 10))


def losses(model, batch):
    return cross_entropy(model(batch[0]), batch[1])  # float[b], one per image


def main():
    torch.manual_seed(0)
    (train_set, held_out), model = load(), build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    loader = DataLoader(train_set, batch_size=64, shuffle=True)
    selection = es.Selection(es.methods.evolved(), ratio=0.25)  # added
    loader = es.wrap(loader, selection, epochs=EPOCHS, model=model, losses=losses)  # added
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=loader.total_steps)

    for epoch in range(EPOCHS):
        for batch, _scale in loader:  # changed: it was `for batch in loader`
            optimizer.zero_grad()
            loader.mean(losses(model, batch)).backward()  # changed: it was `losses(model, batch).mean().backward()`
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(held_out.tensors[0]).argmax(dim=1) == held_out.tensors[1]).float().mean().item()
        model.train()
        print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
    saving = loader.selector.ledger.saving()  # samples back-propagated, passes (a backward counts as two), seconds
    print("saved", ", ".join(f"{share:.0%} of the {what}" for what, share in saving.items()))


if __name__ == "__main__":
    main()

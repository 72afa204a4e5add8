"""Plain PyTorch: a small network on Fashion-MNIST, which comes with es_service. Lines that selection adds or changes say so.

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
    """Return 8,000 images to train on and 2,000 held out, each with its label."""
    task = fashion.build()
    return [TensorDataset(*part.__getitems__(range(len(part)))) for part in (task.train_set, task.held_out)]


def build_model():
    """Return a small convolutional network."""
    first = nn.Sequential(nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(first, second, nn.Flatten(), nn.Linear(64 * 49, 10))


def losses(model, batch):
    """Return the loss of each image, float[b]."""
    images, labels = batch
    return cross_entropy(model(images), labels)  # as torch's, with reduction="none"


def main():
    torch.manual_seed(0)
    train_set, held_out = load()
    model = build_model()
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
            images, labels = held_out.tensors
            accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
        model.train()
        print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
    saving = loader.selector.ledger.saving()
    print(f"saved {saving['samples']:.0%} of back-propagation, {saving['cost']:.0%} of all passes, {saving['seconds']:.0%} of the time")


if __name__ == "__main__":
    main()

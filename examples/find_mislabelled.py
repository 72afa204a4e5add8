"""Find mislabelled images: train with selection, then look at the samples whose loss is high and stays high.

python examples/find_mislabelled.py      # then: es-service serve --storage runs, and open the run's suspects
"""

import numpy as np
import torch
from pytorch import build_model, load, losses
from torch.utils.data import DataLoader, TensorDataset

import es_service as es
from es_service.training.tasks import fashion

EPOCHS, NUM_WRONG = 6, 200


def main():
    torch.manual_seed(0)
    images, labels = load()[0].tensors
    generator = np.random.default_rng(0)
    wrong = generator.choice(len(labels), NUM_WRONG, replace=False)  # 5 % of the labels are wrong from here on
    labels[wrong] = (labels[wrong] + torch.from_numpy(generator.integers(1, 10, NUM_WRONG))) % 10

    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pictures = fashion.build().train_set.images_n
    loader = es.wrap(
        DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True),
        es.Selection(es.methods.evolved(), ratio=0.5),
        epochs=EPOCHS,
        model=model,
        losses=losses,
        run="mislabelled",  # kept in the storage, for the dashboard
        storage="runs",
        labels=labels.numpy(),
        label_names=fashion.CLASSES,
        preview=lambda sample_id: pictures[sample_id],
    )
    for _epoch in range(EPOCHS):
        for batch, _scale in loader:
            optimizer.zero_grad()
            loader.mean(losses(model, batch)).backward()
            optimizer.step()

    table = loader.selector.table()
    mean, variance = (table.column(name).to_numpy() for name in ("loss_mean", "loss_var"))
    suspects = np.argsort(-(mean - np.sqrt(variance)))[:100]  # the highest suspicion first
    found = np.isin(suspects, wrong).sum()
    expected = 100 * NUM_WRONG // len(labels)
    print(f"{found} of the 100 most suspicious labels are wrong; of 100 at random about {expected} would be")
    for sample_id in suspects[:3].tolist():
        print(f"  id {sample_id}: labelled {fashion.CLASSES[labels[sample_id]]!r}, mean loss {mean[sample_id]:.1f}")


if __name__ == "__main__":
    main()

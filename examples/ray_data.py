"""Ray Data: selection in the batches of a pipeline, by the id that each row carries.

python examples/ray_data.py
"""

import ray
import torch
from pytorch import build_model, load

import es_service as es
from es_service.training.losses import cross_entropy

EPOCHS = 4


def losses(model, batch):
    return cross_entropy(model(batch["image"]), batch["label"])  # float[b]


def main():
    torch.manual_seed(0)
    train_set, held_out = load()
    images, labels = (tensor.numpy() for tensor in train_set.tensors)
    rows = ray.data.range(len(labels)).map_batches(lambda b: {**b, "image": images[b["id"]], "label": labels[b["id"]]})
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    stream = es.stream(
        lambda epoch: rows.random_shuffle(seed=epoch).iter_torch_batches(batch_size=64),
        es.Selection(es.methods.evolved(), ratio=0.25),
        epochs=EPOCHS,
        model=model,
        losses=losses,
        id="id",
        batch_size=64,
        num_samples=len(labels),
    )
    for epoch in range(EPOCHS):
        for batch, _scale in stream:
            optimizer.zero_grad()
            stream.mean(losses(model, batch)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(held_out.tensors[0]).argmax(dim=1) == held_out.tensors[1]).float().mean().item()
        model.train()
        print(f"epoch {epoch + 1}: accuracy {accuracy:.3f}")
    print(f"backward passes saved: {stream.selector.ledger.saving()['samples']:.0%}")


if __name__ == "__main__":
    ray.init("local", include_dashboard=False, log_to_driver=False)
    main()

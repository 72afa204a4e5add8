"""Ray Train, a training function of your own: two workers share one score server, and a failed group resumes.

python examples/ray_train.py
"""

import tempfile
from pathlib import Path

import torch
from pytorch import build_model, load, losses
from ray import train
from ray.train.torch import TorchTrainer, prepare_model
from torch.utils.data import DataLoader

import es_service as es
from es_service.integrations.ray import resume_or_reset, save

EPOCHS = 4


def work(config):
    torch.manual_seed(0)
    (train_set, held_out), model = load(), prepare_model(build_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = es.wrap(  # no prepare_data_loader: the selection gives each worker its share of an epoch
        DataLoader(train_set, batch_size=32, shuffle=True),
        es.Selection(es.methods.evolved(), ratio=0.25),
        epochs=EPOCHS,
        model=model,
        losses=losses,
        run="ray-train",
        storage=config["storage"],
    )
    if (checkpoint := train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            model.module.load_state_dict(torch.load(Path(folder) / "model.pt"))
    for epoch in range(resume_or_reset(loader.selector, checkpoint), EPOCHS):
        for batch, _scale in loader:
            optimizer.zero_grad()
            loader.mean(losses(model, batch)).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(held_out.tensors[0]).argmax(dim=1) == held_out.tensors[1]).float().mean().item()
        model.train()
        loader.selector.log(accuracy=accuracy)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.module.state_dict(), Path(folder) / "model.pt")
            save(loader.selector, folder)
            train.report({"epoch": epoch, "accuracy": accuracy}, checkpoint=train.Checkpoint.from_directory(folder))


if __name__ == "__main__":
    trainer = TorchTrainer(
        work,
        train_loop_config={"storage": str(Path("runs").resolve())},
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(failure_config=train.FailureConfig(max_failures=1)),
    )
    print(f"accuracy {trainer.fit().metrics['accuracy']:.3f}")

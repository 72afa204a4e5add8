"""Lightning: a data module that selects; the LightningModule changes in one line.

python examples/lightning_module.py
"""

import logging
import warnings

import lightning as L
import torch
from pytorch import build_model, load
from torch.utils.data import DataLoader

import es_service as es
from es_service.integrations.lightning import SelectiveData
from es_service.training.losses import cross_entropy

EPOCHS = 4


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = build_model()

    def losses(self, batch):
        return cross_entropy(self.model(batch[0]), batch[1])  # float[b], one per image

    def training_step(self, batch, batch_idx):
        return self.trainer.datamodule.mean(self.losses(batch))  # it was `self.losses(batch).mean()`

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self.model(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main():
    L.seed_everything(0, verbose=False)
    train_set, held_out = load()
    data = SelectiveData(
        train_set,
        Classifier.losses,
        es.Selection(es.methods.evolved(), ratio=0.25),
        batch_size=64,
        val=DataLoader(held_out, batch_size=500),
    )
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Classifier(), data)
    print(f"accuracy {trainer.callback_metrics['accuracy']:.3f}")
    print(f"backward passes saved: {data.selector.ledger.saving()['samples']:.0%}")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    main()

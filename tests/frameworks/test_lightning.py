"""Lightning's Trainer with a `SelectiveData`: the same bits as a loop by hand, whatever happens in between."""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import es_service as es
from es_service.integrations.lightning import SelectiveData
from es_service.training import scoring

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no.*"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
]

NUM, BATCH, EPOCHS = 130, 32, 4
_GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(NUM, 6, generator=_GENERATOR)
DATA = TensorDataset(X, (X[:, 0] * X[:, 1] > 0).long(), torch.arange(NUM))
EVOLVED = es.Selection(es.methods.evolved(), ratio=0.25, seed=3)
PRUNED = es.Selection(es.methods.evolved(), ratio=0.5, prune_ratio=0.4, reweight="unbiased", anneal=(0.25, 0), seed=3)
INFOBATCH = es.Selection(es.methods.infobatch(), anneal=(0, 0.25), seed=3)


class Tiny(L.LightningModule):
    """A classifier whose rate falls to 0 by the last update; it notes which samples it trained on."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(dropout),
                torch.nn.Linear(8, 2),
            )  # fmt: skip
        self.ids: list[list[int]] = []
        self.rates: list[float] = []

    def losses(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.ids.append(batch[2].tolist())
        return self.trainer.datamodule.mean(self.losses(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch).mean())

    def optimizers_for(self, num_updates: int) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_updates)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.optimizers_for(self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer_of(**settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    if any(isinstance(one, ModelCheckpoint) for one in settings.get("callbacks", [])):
        del quiet["enable_checkpointing"]
    return L.Trainer(**{"accelerator": "cpu", "max_epochs": EPOCHS, **quiet, **settings})


def data_of(selection: es.Selection = EVOLVED, **settings: Any) -> SelectiveData:
    return SelectiveData(DATA, Tiny.losses, selection, **{"batch_size": BATCH, **settings})


def fitted(data: SelectiveData, *, dropout: float = 0.0, ckpt_path: Any = None, **settings: Any) -> Tiny:
    module, trainer = Tiny(dropout), trainer_of(**settings)
    torch.manual_seed(7)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    module.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    return module


def by_hand(
    selection: es.Selection,
    *,
    dropout: float = 0.0,
    accumulate: int = 1,
    limit: Callable[[int], int] = lambda num: num,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[Tiny, pa.Table]:
    """Return what the loop in docs/how-to/training.md makes of the same settings."""
    model = Tiny(dropout)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=BATCH)

    def score(batch: Any) -> Any:
        return scoring.score(model, batch, forward=Tiny.losses, losses=lambda losses, _: losses, autocast=autocast)

    loader = es.SelectiveLoader(DATA, selector, score, reuse_losses=True)
    steps = [limit(selector.steps(epoch)) for epoch in range(EPOCHS)]
    optimizer, schedule = model.optimizers_for(sum(math.ceil(num / accumulate) for num in steps))
    torch.manual_seed(7)
    for epoch in range(EPOCHS):
        for index, (batch, scale) in enumerate(loader.epoch(epoch), 1):
            model.ids.append(batch[2].tolist())
            is_last = index == limit(selector.steps(epoch))
            with autocast():
                losses = model.losses(batch)
                mean = (losses * scale).mean()
            loader.observe(losses.detach())
            (mean / accumulate).backward()
            if index % accumulate == 0 or is_last:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            if is_last and index < selector.steps(epoch):
                break
        loader.finish_epoch()
    model.rates.append(optimizer.param_groups[0]["lr"])
    return model, selector.table()


def assert_same(module: Tiny, data: SelectiveData, other: Tiny, table: pa.Table) -> None:
    assert data.selector is not None
    num = min(len(module.ids), len(other.ids))
    assert module.ids[len(module.ids) - num :] == other.ids[len(other.ids) - num :]
    assert module.rates[-1:] == other.rates[-1:]
    ours, theirs = module.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert repr(data.selector.table().to_pydict()) == repr(table.to_pydict())  # nan is nan


# -- the same as by hand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", [EVOLVED, PRUNED, INFOBATCH], ids=["evolved", "pruned", "infobatch"])
def test_a_fit_gives_the_bits_of_a_loop_by_hand(selection: es.Selection) -> None:
    data = data_of(selection)
    module = fitted(data, dropout=0.2)
    assert_same(module, data, *by_hand(selection, dropout=0.2))
    assert {len(ids) for ids in module.ids} >= {8 if selection is EVOLVED else 32}


def test_scoring_runs_in_the_precision_of_training() -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    data = data_of()
    module = fitted(data, precision="bf16-mixed")
    model, table = by_hand(EVOLVED, autocast=autocast)
    assert_same(module, data, model, table)
    assert repr(table.to_pydict()) != repr(by_hand(EVOLVED)[1].to_pydict())


@pytest.mark.parametrize(("accumulate", "limit"), [(3, None), (1, 2), (2, 0.6)])
def test_accumulated_and_limited_epochs_end_where_they_should(accumulate: int, limit: Any) -> None:
    def limited(num: int) -> int:
        return num if limit is None else min(num, limit) if isinstance(limit, int) else int(num * limit)

    data = data_of(PRUNED)
    limits = {} if limit is None else {"limit_train_batches": limit}
    module = fitted(data, accumulate_grad_batches=accumulate, **limits)
    assert_same(module, data, *by_hand(PRUNED, accumulate=accumulate, limit=limited))
    assert data.selector is not None and data.selector.next_epoch == EPOCHS
    assert module.rates == [0.0]


# -- resume ----------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path, **settings: Any) -> list[Any]:
    return [ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **settings)]


@pytest.mark.parametrize("when", ["epochs", "validations", "steps", "half_epochs"])
@pytest.mark.parametrize("selection", [EVOLVED, PRUNED, INFOBATCH], ids=["evolved", "pruned", "infobatch"])
def test_a_resumed_fit_ends_as_an_undisturbed_one(selection: es.Selection, when: str, tmp_path: Path) -> None:
    saving = {
        "epochs": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        "validations": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
        "half_epochs": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
        "steps": {"every_n_train_steps": 1},
    }[when]
    settings = {
        "epochs": {},
        "validations": {"val": DataLoader(DATA, 64)},
        "half_epochs": {"val": DataLoader(DATA, 64)},
        "steps": {"val": DataLoader(DATA, 64)},
    }[when]
    limits = {"val_check_interval": 0.5} if when == "half_epochs" else {"accumulate_grad_batches": 2}
    data = data_of(selection, **settings)
    module = fitted(data, callbacks=checkpoints(tmp_path, **saving), num_sanity_val_steps=0, **limits)
    assert data.selector is not None
    table = data.selector.table()
    found = sorted(tmp_path.glob("*.ckpt"))
    print(len(found))
    for path in found:
        again = data_of(selection, **settings)
        resumed = fitted(again, ckpt_path=path, num_sanity_val_steps=0, **limits)
        print('ckpt', len(resumed.ids), len(module.ids), path.name)
        assert_same(resumed, again, module, table)

"""Lightning's Trainer with a `SelectiveData`: the same bits as a loop by hand, whatever happens in between."""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import es_service as es
from es_service.integrations.lightning import SelectiveData
from es_service.training import scoring
from es_service.training.observed import joined, losses_in
from es_service.training.signals import confidence

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no.*"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from.*"),
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


KAKURENBO = es.Selection(es.methods.kakurenbo(), anneal=(0, 0.25), seed=3)


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
        self.counts: list[Any] = []

    def losses(self, batch: Any) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.ids.append(batch[2].tolist())
        return self.trainer.datamodule.mean(self.losses(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.losses(batch).mean(), sync_dist=True)

    def optimizers_for(self, num_updates: int) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_updates)

    def configure_optimizers(self) -> Any:
        self.counts.append(self.trainer.estimated_stepping_batches)
        optimizer, schedule = self.optimizers_for(self.counts[-1])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WithSignals(Tiny):
    def losses(self, batch: Any) -> dict[str, torch.Tensor]:
        logits = self.net(batch[0])
        seen = {"correct": (logits.argmax(1) == batch[1]).float(), "confidence": confidence(logits)}
        return {"loss": F.cross_entropy(logits, batch[1], reduction="none"), **seen}


def trainer_of(**settings: Any) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    if any(isinstance(one, ModelCheckpoint) for one in settings.get("callbacks", [])):
        del quiet["enable_checkpointing"]
    return L.Trainer(**{"accelerator": "cpu", "max_epochs": EPOCHS, **quiet, **settings})


def data_of(selection: es.Selection = EVOLVED, **settings: Any) -> SelectiveData:
    return SelectiveData(DATA, selection=selection, **{"losses": Tiny.losses, "batch_size": BATCH, **settings})


def fitted(
    data: SelectiveData, *, kind: type[Tiny] = Tiny, dropout: float = 0.0, ckpt_path: Any = None, **settings: Any
) -> Tiny:
    module, trainer = kind(dropout), trainer_of(**settings)
    torch.manual_seed(7)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    module.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    return module


def by_hand(
    selection: es.Selection,
    *,
    kind: type[Tiny] = Tiny,
    dropout: float = 0.0,
    accumulate: int = 1,
    limit: Callable[[int], int] = lambda num: num,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[Tiny, pa.Table]:
    """Return what the loop in docs/how-to/training.md makes of the same settings."""
    model = kind(dropout)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=BATCH)

    def score(batch: Any) -> Any:
        return scoring.score(model, batch, forward=kind.losses, losses=lambda losses, _: losses, autocast=autocast)

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
                mean = (losses_in(losses) * scale).mean()
            loader.observe(joined([losses]))
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


def test_hidden_samples_are_seen_and_signals_go_through() -> None:
    data = data_of(KAKURENBO, losses=WithSignals.losses)
    module = fitted(data, kind=WithSignals)
    assert_same(module, data, *by_hand(KAKURENBO, kind=WithSignals))
    assert data.selector.ledger.scored > 0  # what it hid


class Doubled(Tiny):
    def losses(self, batch: Any) -> Any:
        return super().losses((batch[0] * 2, batch[1]))


class DoubledByHook(Tiny):
    """Optimizes by itself, and has its batches changed on the device."""

    automatic_optimization = False

    def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
        return batch[0] * 2, *batch[1:]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, mean = self.optimizers(), super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(mean)
        optimizer.step()
        self.lr_schedulers().step()


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")  # and they are the module's
def test_a_modules_own_hooks_and_optimization_are_kept() -> None:
    module = DoubledByHook()
    data = data_of(PRUNED, losses=module.losses, num_workers=1)
    trainer = trainer_of()
    trainer.fit(module, data)
    module.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    assert_same(module, data, *by_hand(PRUNED, kind=Doubled))


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
    assert data.selector.next_epoch == EPOCHS
    assert module.rates == [0.0]


# -- resume ----------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path, **settings: Any) -> list[Any]:
    return [ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **settings)]


def fitted_with(when: str, selection: es.Selection, folder: Path, ckpt_path: Path | None = None) -> tuple[Any, Any]:
    """Return (module, data) of a fit that writes checkpoints at each epoch's end, behind validations, or at steps."""
    saving: dict[str, Any] = {"every_n_epochs": 1, "save_on_train_epoch_end": when == "epochs"}
    if when == "steps":
        saving = {"every_n_train_steps": 1}
    # inside an epoch without accumulation: Lightning does not save gradients that are being accumulated
    settings: dict[str, Any] = {"accumulate_grad_batches": 2} if when in ("epochs", "validations") else {}
    if when == "half_epochs":
        settings["val_check_interval"] = 0.5
    data = data_of(selection, **({} if when == "epochs" else {"val": DataLoader(DATA, 64)}))
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}-{step}", **saving)
    return fitted(data, callbacks=[saver], num_sanity_val_steps=0, ckpt_path=ckpt_path, **settings), data


def check_resumes(when: str, selection: es.Selection, folder: Path) -> list[Path]:
    module, data = fitted_with(when, selection, folder / "first")
    found = sorted((folder / "first").glob("*.ckpt"))
    for path in found:
        resumed, again = fitted_with(when, selection, folder / path.stem, path)
        assert_same(resumed, again, module, data.selector.table())
        assert resumed.counts == module.counts[-1:] * len(resumed.counts)
    return found


@pytest.mark.parametrize(("when", "selection"), [("epochs", EVOLVED), ("validations", PRUNED), ("steps", INFOBATCH)])
def test_a_resumed_fit_ends_as_an_undisturbed_one(when: str, selection: es.Selection, tmp_path: Path) -> None:
    found = check_resumes(when, selection, tmp_path)
    assert len(found) == {"epochs": EPOCHS, "validations": EPOCHS, "steps": 16}[when]


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["epochs", "validations", "steps", "half_epochs"])
@pytest.mark.parametrize("selection", [EVOLVED, PRUNED, INFOBATCH], ids=["evolved", "pruned", "infobatch"])
def test_a_fit_may_be_resumed_anywhere_and_again(selection: es.Selection, when: str, tmp_path: Path) -> None:
    module, data = fitted_with(when, selection, tmp_path / "first")
    for path in check_resumes(when, selection, tmp_path):
        for later in sorted((tmp_path / path.stem).glob("*.ckpt")):
            resumed, again = fitted_with(when, selection, tmp_path / "unread", later)
            assert_same(resumed, again, module, data.selector.table())


class FailsOnce(Tiny):
    fails_at: int | None = 7  # batches

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(self.ids) == self.fails_at:
            self.fails_at = None
            raise OSError("the disk is gone")
        return super().training_step(batch, batch_idx)


def test_an_interrupted_fit_continues_from_its_checkpoint_only(tmp_path: Path) -> None:
    module, data = FailsOnce(), data_of(PRUNED)
    trainer = trainer_of(callbacks=[ModelCheckpoint(tmp_path, every_n_epochs=1)])
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.fit(module, data)
    with pytest.raises(es.EpochOrderError, match="trainer is at epoch 1, the selector at epoch 2"):
        trainer.fit(module, data)
    trainer.fit(module, data, ckpt_path=next(tmp_path.glob("*.ckpt")))
    module.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    del module.ids[5:7]  # are made again
    assert_same(module, data, *by_hand(PRUNED))


# -- what the trainer counts -----------------------------------------------------------------------------------------


def test_every_epoch_is_validated_once_and_logged(tmp_path: Path) -> None:
    module = Tiny()
    data = data_of(INFOBATCH, val=DataLoader(DATA, 64))
    logger = CSVLogger(tmp_path, name="")
    trainer = trainer_of(logger=logger, log_every_n_steps=1)
    trainer.fit(module, data)
    rows = (tmp_path / "version_0" / "metrics.csv").read_text().splitlines()
    names, values = rows[0].split(","), [row.split(",") for row in rows[1:]]
    for name in ("val_loss", "selection/loss_all"):
        assert sum(row[names.index(name)] != "" for row in values) == EPOCHS
    assert "selection/loss_all" in trainer.callback_metrics  # for callbacks that monitor


def test_fast_dev_run_scores_and_leaves_no_trace() -> None:
    data = data_of(val=DataLoader(DATA, 64))
    module = fitted(data, fast_dev_run=2)
    assert [len(ids) for ids in module.ids] == [8, 8]
    module = fitted(data)  # of a new trainer: from the start
    assert_same(module, data, *by_hand(EVOLVED))


def test_several_fits_of_one_trainer_are_one_training() -> None:
    data, module, trainer = data_of(PRUNED, epochs=EPOCHS), Tiny(), trainer_of(max_epochs=1)
    trainer.fit(module, data)
    selector = data.selector
    assert (selector.next_epoch, len(module.ids)) == (1, 5)
    trainer.fit_loop.max_epochs = EPOCHS
    trainer.fit(module, data)
    assert (data.selector, selector.next_epoch, len(module.ids)) == (selector, EPOCHS, 5 + 3 * 3)
    assert sum(selector.table()["selected"].to_pylist()) == sum(map(len, module.ids))
    assert (type(trainer), trainer.reload_dataloaders_every_n_epochs, trainer.callbacks) == (L.Trainer, 0, [])
    trainer.fit_loop.max_epochs = EPOCHS + 1
    with pytest.raises(es.ConfigError, match="max_epochs=5, and the plan has 4"):
        trainer.fit(module, data)


def test_early_stopping_closes_the_epoch() -> None:
    data = data_of(val=DataLoader(DATA, 64))
    fitted(data, callbacks=[EarlyStopping("val_loss", mode="max", patience=1)])
    assert 0 < data.selector.next_epoch < EPOCHS
    with pytest.raises(es.EpochOrderError, match="no epoch is open"):
        data.selector.select([0, 1], [0.5, 0.5])


def test_max_steps_ends_the_plan() -> None:
    data = data_of(PRUNED, epochs=EPOCHS)
    num = 5 + 3 * 3
    module = fitted(data, max_epochs=-1, max_steps=num)
    assert_same(module, data, *by_hand(PRUNED))


# -- ranks -----------------------------------------------------------------------------------------------------------


def as_rank(rank: int, port: int, folder: Path, function: Callable[..., Any], *args: Any) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    torch.save(function(*args), folder / f"{rank}.pt")


def on_two_ranks(folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what a function returns on each of two gloo ranks, which are forks: nothing is imported again."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=as_rank, args=(rank, port, folder, function, *args)) for rank in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
    assert [one.exitcode for one in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def fit_on_a_rank(folder: Path, saving: dict[str, Any], ckpt_path: Path | None = None) -> Any:
    data = data_of(PRUNED, batch_size=16, run="ranks", storage=str(folder), val=DataLoader(DATA, 64), num_workers=0)
    saver = ModelCheckpoint(folder / "ckpt", save_top_k=-1, filename="{epoch}-{step}", **saving)
    module = fitted(data, strategy="ddp", devices=2, callbacks=[saver], ckpt_path=ckpt_path, num_sanity_val_steps=0)
    return module.ids, module.state_dict(), data.selector.table().to_pydict(), module.rates


def test_ranks_share_a_table_and_get_different_samples(tmp_path: Path) -> None:
    saving = {"every_n_epochs": 1}
    ranks = on_two_ranks(tmp_path / "a", fit_on_a_rank, tmp_path / "whole", saving)
    (ids, weights, table, rates), (other_ids, other_weights, other_table, _) = ranks
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights if "running" not in name)
    assert repr(table) == repr(other_table)
    assert rates == [0.0]
    for mine, theirs in zip(ids, other_ids, strict=True):
        assert len(mine) == len(theirs) == len({*mine, *theirs}) / 2
    path = next((tmp_path / "whole" / "ckpt").glob("epoch=1*.ckpt"))
    [resumed, _] = on_two_ranks(tmp_path / "b", fit_on_a_rank, tmp_path / "resumed", saving, path)
    assert resumed[0] == ids[-len(resumed[0]) :]
    assert repr(resumed[2]) == repr(table)
    assert all(torch.equal(weights[name], resumed[1][name]) for name in weights)
    with pytest.raises(es.RunMismatchError, match="of 2 rank"):
        fitted(data_of(PRUNED, batch_size=16), ckpt_path=path)


def test_a_checkpoint_inside_an_epoch_of_ranks_has_the_model_and_is_not_continued(tmp_path: Path) -> None:
    saving = {"every_n_train_steps": 3}
    on_two_ranks(tmp_path / "a", fit_on_a_rank, tmp_path / "whole", saving)
    path = next((tmp_path / "whole" / "ckpt").glob("*step=3.ckpt"))
    kept = torch.load(path)
    assert kept["SelectiveData"]["selector"] is None
    assert "net.0.weight" in kept["state_dict"]
    data = data_of(PRUNED, batch_size=16)
    data.trainer = trainer_of()
    kept["SelectiveData"]["world_size"] = 1
    torch.save(kept, path)
    with pytest.raises(es.EpochOrderError, match="written inside epoch 0"):
        fitted(data, ckpt_path=path)


# -- refused before the first step -----------------------------------------------------------------------------------


class OwnLoaders(Tiny):
    def train_dataloader(self) -> Any:
        return DataLoader(DATA, 8)


class OwnValidation(Tiny):
    def val_dataloader(self) -> Any:
        return DataLoader(DATA, 8)


class OwnMean(Tiny):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.losses(batch).mean()


class MeanLosses(Tiny):
    def losses(self, batch: Any) -> torch.Tensor:
        return super().losses(batch).mean()


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from DATA


@pytest.mark.parametrize(
    ("expected", "trainer", "data", "module"),
    [
        ("max_epochs=None", {"max_epochs": None}, {}, Tiny),
        ("max_epochs=-1", {"max_epochs": -1}, {}, Tiny),
        ("max_epochs=1000, and the plan has 3", {"max_epochs": None}, {"epochs": 3}, Tiny),
        ("max_epochs=4, and the plan has 3", {}, {"epochs": 3}, Tiny),
        ("max_steps=21 goes beyond .* 20 optimizer steps", {"max_epochs": -1, "max_steps": 21}, {"epochs": 4}, Tiny),
        ("max_steps=15 ends before the last of max_epochs=4", {"max_steps": 15}, {}, Tiny),
        ("overfit_batches=2", {"overfit_batches": 2}, {}, Tiny),
        ("reload_dataloaders_every_n_epochs=2", {"reload_dataloaders_every_n_epochs": 2}, {"selection": PRUNED}, Tiny),
        ("OwnLoaders has a train_dataloader", {}, {}, OwnLoaders),
        ("OwnValidation has a val_dataloader", {}, {}, OwnValidation),
        ("OwnMean.training_step has to weigh", {}, {}, OwnMean),
        ("reduction='none'", {}, {"losses": MeanLosses.losses}, MeanLosses),
        ("batch_size=200 is larger", {}, {"batch_size": 200}, Tiny),
        ("batch_size must be", {}, {"batch_size": 0}, Tiny),
        ("selection must be an es.Selection", {}, {"selection": es.methods.evolved()}, Tiny),
        ("losses must be a function", {}, {"losses": "losses"}, Tiny),
    ],
)
@pytest.mark.filterwarnings("ignore:`max_epochs` was not set")
def test_settings_that_contradict_selection_are_refused(
    expected: str, trainer: dict[str, Any], data: dict[str, Any], module: type[Tiny]
) -> None:
    settings = {"losses": Tiny.losses, "selection": EVOLVED, "batch_size": BATCH, **data}
    one = module()
    before = copy.deepcopy(one.state_dict())
    fitting = trainer_of(**trainer)
    with pytest.raises((es.ConfigError, es.ShapeError), match=expected):
        fitting.fit(one, SelectiveData(DATA, **settings))
    assert all(torch.equal(before[name], one.state_dict()[name]) for name in before if "net.1" not in name)
    assert type(fitting) is L.Trainer
    assert fitting.callbacks == []


@pytest.mark.parametrize("train_set", [Endless(), DataLoader(DATA, 8), iter(DATA)])
def test_data_without_numbers_are_refused(train_set: Any) -> None:
    with pytest.raises(es.ConfigError, match="train_set must be a map-style data set"):
        SelectiveData(train_set, Tiny.losses, EVOLVED, batch_size=BATCH)


def test_other_data_or_epochs_cannot_continue_a_checkpoint(tmp_path: Path) -> None:
    fitted_with("epochs", EVOLVED, tmp_path)
    path = next(tmp_path.glob("epoch=1*.ckpt"))
    smaller = torch.utils.data.Subset(DATA, range(NUM - 1))
    with pytest.raises(es.RunMismatchError, match="num_samples: run 130, yours 129"):
        fitted(SelectiveData(smaller, Tiny.losses, EVOLVED, batch_size=BATCH), ckpt_path=path)
    with pytest.raises(es.RunMismatchError, match="num_epochs: run 4, yours 5"):
        fitted(data_of(), max_epochs=5, ckpt_path=path)
    trainer_of().validate(Tiny(), data_of(val=DataLoader(DATA, 64)), ckpt_path=path)  # needs none of it


def test_a_checkpoint_of_a_plain_fit_is_not_continued(tmp_path: Path) -> None:
    class Plain(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.losses(batch).mean()

    trainer = trainer_of(max_epochs=2)
    trainer.fit(Plain(), DataLoader(DATA, BATCH))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(es.EpochOrderError, match="trainer is at epoch 2, the selector at epoch 0"):
        fitted(data_of(), ckpt_path=tmp_path / "plain.ckpt")


@pytest.mark.filterwarnings("ignore:It is recommended to use .*sync_dist=True")
def test_a_named_run_is_not_begun_twice_by_mistake(tmp_path: Path) -> None:
    named = {"run": "named", "exchange": "collective", "storage": str(tmp_path)}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fitted(data_of(**named), max_epochs=2)
        with (
            pytest.warns(UserWarning, match="finished"),
            pytest.raises(es.EpochOrderError, match="selector at epoch 2"),
        ):
            fitted(data_of(**named), max_epochs=2)
        fitted(data_of(**named), max_epochs=2, fast_dev_run=True)
        fitted(data_of(**named), max_epochs=2, fast_dev_run=True)
    finally:
        torch.distributed.destroy_process_group()


def test_strategies_that_spread_the_parameters_are_refused() -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    from es_service.integrations.lightning.trainer import check_trainer

    trainer = trainer_of()
    trainer.strategy._lightning_module = Tiny()
    check_trainer(trainer, has_val=False, is_pruned=False)
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(es.ConfigError, match="FSDPStrategy"):
        check_trainer(trainer, has_val=False, is_pruned=False)

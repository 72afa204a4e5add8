"""`integrations.transformers.select`: real Trainers, against loops written by hand, bit for bit."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

import es_service as es
from es_service import errors
from es_service.training.losses import cross_entropy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

_N, _B, _WORDS = 44, 8, 20
_SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def _texts(num: int = _N, seed: int = 0) -> datasets.Dataset:
    """Token sequences of several lengths, with a column that no model takes."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, _WORDS, size=rng.integers(3, 9)).tolist() for _ in range(num)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, "note": [f"text {i}" for i in range(num)]})


def _pad(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(one["input_ids"]) for one in samples)
    rows = {name: [one[name] for one in samples] for name in ("input_ids", "labels")}
    fill = {"input_ids": 0, "labels": -100}
    batch = {name: torch.tensor([row + [fill[name]] * (width - len(row)) for row in rows[name]]) for name in rows}
    batch["attention_mask"] = (batch["labels"] != -100).long()
    return batch


def _causal(seed: int = 0, dropout: float = 0.2) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(vocab_size=_WORDS, attention_dropout=dropout, **_SIZES))


def _labelled(num: int = _N) -> datasets.Dataset:
    texts = _texts(num).remove_columns("labels")
    return texts.add_column("label", [len(ids) % 3 for ids in texts["input_ids"]])


def _pad_labelled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = _pad([{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in samples])
    return {**batch, "labels": torch.tensor([one["label"] for one in samples])}


def _classifier(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(vocab_size=_WORDS, num_labels=3, **_SIZES))


def _selection(**changes: Any) -> es.Selection:
    settings = {"ratio": 0.5, "prune_ratio": 0.3, "anneal": (0.25, 0.0), "seed": 3, **changes}
    return es.Selection(settings.pop("method", es.methods.evolved()), **settings)


def _args(**changes: Any) -> TrainingArguments:
    defaults = {
        "output_dir": "out",
        "per_device_train_batch_size": _B,
        "num_train_epochs": 4,
        "learning_rate": 0.05,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    return TrainingArguments(**{**defaults, **changes})


def _trainer(model: Any, args: TrainingArguments, dataset: Any, collate: Any, cls: Any = Trainer, **more: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)
    return cls(model, args, data_collator=collate, train_dataset=dataset, optimizers=(optimizer, None), **more)


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    others = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, others[name]), name


def _sequence_losses(model: Any, batch: Any) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits[:, :-1], batch["labels"][:, 1:])


def _loop(
    model: Any,
    dataset: Any,
    selection: es.Selection,
    *,
    accumulation: int,
    weighs: bool = False,
    selector: es.Selector | None = None,
) -> es.Selector:
    """Train a causal model as a Trainer would, by hand; under DistributedDataParallel with a selector of its rank."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if selector is None:
        selector = es.Selector(selection, num_samples=len(dataset), num_epochs=4, batch_size=_B)
    world_size = selector.exchange.position.world_size
    total = sum(math.ceil(selector.steps(epoch) / accumulation) for epoch in range(4))
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, total)

    def score(batch: Any) -> Any:
        return es.training.scoring.score(model, batch, forward=_sequence_losses, losses=lambda each, _: each)

    loader = es.SelectiveLoader(dataset, selector, score, collate_fn=_pad, recollate=True)
    model.train()
    for epoch in range(4):
        batches = loader.epoch(epoch)
        while window := [one for _, one in zip(range(accumulation), batches, strict=False)]:
            num_items = sum((batch["labels"][:, 1:] != -100).sum() for batch, _ in window)
            if world_size > 1:
                torch.distributed.all_reduce(num_items)
            for index, (batch, scale) in enumerate(window):
                is_last = world_size == 1 or index + 1 == len(window)
                with contextlib.nullcontext() if is_last else model.no_sync():
                    if weighs:
                        loss = (_sequence_losses(model, batch) * scale).mean() / len(window)
                    else:
                        loss = model(**batch, num_items_in_batch=num_items).loss * world_size
                    loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return selector


@pytest.mark.parametrize("accumulation", [1, 4])
def test_trains_as_a_loop_by_hand_does(accumulation: int) -> None:
    by_hand, model, data = _causal(), _causal(), _texts()
    trainer = _trainer(model, _args(gradient_accumulation_steps=accumulation), data, _pad)
    es.integrations.transformers.select(trainer, _selection())
    torch.manual_seed(1)
    trainer.train()
    torch.manual_seed(1)
    selector = _loop(by_hand, data, _selection(), accumulation=accumulation)
    _assert_same(model, by_hand)
    assert trainer.selector.table().equals(selector.table())
    assert trainer.state.log_history[-2]["epoch"] == 4
    assert trainer.lr_scheduler.get_last_lr() == [0.0]


def test_continues_at_an_epochs_end_and_inside_one(tmp_path: Path) -> None:
    data = _texts(80)  # epochs of 5, 4, 4, 4 updates, of two steps each but the last in each pruned epoch
    args = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def trained(folder: str, resume: str | None = None) -> Any:
        trainer = _trainer(_causal(), _args(output_dir=folder, **args), data, _pad)
        es.integrations.transformers.select(trainer, _selection(method=es.methods.evolved(), reweight="unbiased"))
        torch.manual_seed(1)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained("whole")
    assert [log["step"] for log in whole.state.log_history if log["epoch"] in (1.0, 2.0)] == [5, 9]
    for step in (5, 6, 11):
        resumed = trained(f"resumed-{step}", f"whole/checkpoint-{step}")
        _assert_same(resumed.model, whole.model)
        assert resumed.selector.table().equals(whole.selector.table())
        assert resumed.lr_scheduler.get_last_lr() == [0.0]
        logs = [
            {name: log.get(name) for name in ("step", "epoch", "loss", "learning_rate")}
            for log in (*whole.state.log_history[:-1], *resumed.state.log_history[:-1])
        ]
        assert logs[: len(logs) // 2] == logs[len(logs) // 2 :]


@pytest.mark.parametrize("way", ["reweight", "losses"])
def test_scaled_losses_train_as_by_hand(way: str) -> None:
    selection, losses = {
        "reweight": (_selection(reweight="unbiased"), None),
        "losses": (_selection(), _sequence_losses),
    }[way]
    by_hand, model, data = _causal(), _causal(), _texts()
    trainer = _trainer(model, _args(gradient_accumulation_steps=2), data, _pad)
    es.integrations.transformers.select(trainer, selection, losses=losses)
    torch.manual_seed(1)
    trainer.train()
    torch.manual_seed(1)
    selector = _loop(by_hand, data, selection, accumulation=2, weighs=True)
    _assert_same(model, by_hand)
    assert trainer.selector.table().equals(selector.table())
    assert trainer.lr_scheduler.get_last_lr() == [0.0]


@pytest.mark.parametrize("method", ["infobatch", "kakurenbo"])
def test_the_schedule_ends_at_0_where_epochs_turn_out_shorter(method: str) -> None:
    made = {"infobatch": es.methods.infobatch(), "kakurenbo": es.methods.kakurenbo(0.9, threshold=0.0)}[method]
    trainer = _trainer(_classifier(), _args(num_train_epochs=5), _labelled(), _pad_labelled)
    selection = _selection(method=made, prune_ratio=0.0, ratio=1.0)
    es.integrations.transformers.select(trainer, selection)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps < 5 * math.ceil(_N / _B)
    assert trainer.lr_scheduler.get_last_lr() == [0.0]
    rates = [log["learning_rate"] for log in trainer.state.log_history[:-1]]
    assert rates == sorted(rates, reverse=True) or method == "kakurenbo"  # which raises it in epochs that hide
    assert trainer.selector.next_epoch == 5


def test_scores_in_micro_batches() -> None:
    tables = []
    for size in (None, 3):
        trainer = _trainer(_causal(dropout=0.0), _args(num_train_epochs=1), _texts(), _pad)
        es.integrations.transformers.select(trainer, _selection(anneal=(0, 0)), micro_batch_size=size)
        trainer.train()
        tables.append(trainer.selector.table()["last_loss"].to_numpy())
    np.testing.assert_allclose(*tables, rtol=1e-5)


def test_blind_steps_take_the_losses_that_training_computes() -> None:
    trainer = _trainer(_causal(), _args(), _texts(), _pad)
    es.integrations.transformers.select(trainer, _selection(method=es.methods.random(), prune_ratio=0.0))
    trainer.train()
    assert trainer.selector.ledger.scored == 0
    table = trainer.selector.table()
    assert np.array_equal(table["visits"].to_numpy(), table["selected"].to_numpy())
    assert np.isfinite(table["last_loss"].to_numpy()).all()


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_part_is_scored_and_other_drawn_samples_take_the_losses_of_training(accumulation: int) -> None:
    selection = _selection(prune_ratio=0.0, anneal=(0, 0), score_share=0.25)
    by_hand, model, data = _causal(), _causal(), _texts()
    trainer = _trainer(model, _args(gradient_accumulation_steps=accumulation), data, _pad)
    es.integrations.transformers.select(trainer, selection)
    torch.manual_seed(1)
    trainer.train()
    ledger, table = trainer.selector.ledger, trainer.selector.table()
    assert _N < ledger.scored < 2 * _N  # all of them in the first of four epochs
    assert int(table["selected"].to_numpy().sum()) == ledger.trained
    num_observed = int(table["visits"].to_numpy().sum())
    if accumulation == 1:
        assert num_observed > ledger.scored
    else:  # drawn ahead of training: no losses are taken from there
        torch.manual_seed(1)
        selector = _loop(by_hand, data, selection, accumulation=accumulation)
        _assert_same(model, by_hand)
        assert table.equals(selector.table())
        assert num_observed == ledger.scored


class _Stops(transformers.TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("remove", [True, False])
def test_evaluates_every_epoch_and_keeps_or_removes_columns(remove: bool) -> None:
    seen: list[set[str]] = []

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.append(set(samples[0]))
        return _pad_labelled(samples)

    args = _args(eval_strategy="epoch", remove_unused_columns=remove, dataloader_drop_last=True, num_train_epochs=2)
    trainer = _trainer(_classifier(), args, _labelled(), collate, eval_dataset=_labelled(10))
    es.integrations.transformers.select(trainer, _selection(prune_ratio=0.0, anneal=(0, 0)))
    trainer.train()
    assert all(("note" in names) is not remove for names in seen)
    evaluated = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log["epoch"] for log in evaluated] == [1.0, 2.0]
    assert trainer.evaluate()["eval_loss"] == evaluated[-1]["eval_loss"]
    assert trainer.selector.config.selection.drop_last
    assert trainer.selector.ledger.trained == 2 * (_N // _B) * _B // 2
    for stop in (True, False):  # again, and again after a stop: from the first epoch
        if stop:
            trainer.callback_handler.callbacks.append(stopper := _Stops())
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            trainer.callback_handler.callbacks.remove(stopper)
        else:
            trainer.train()
    assert trainer.selector.ledger.trained == 2 * (_N // _B) * _B // 2


def test_max_steps_decides_how_many_epochs_there_are() -> None:
    for max_steps, num_epochs in ((3, 1), (9, 2), (12, 3)):  # epochs of 6, 4, 4 … steps
        trainer = _trainer(_causal(), _args(max_steps=max_steps, num_train_epochs=1), _texts(), _pad)
        es.integrations.transformers.select(trainer, _selection(anneal=(0, 0)))
        trainer.train()
        assert trainer.selector.config.num_epochs == num_epochs == trainer.selector.next_epoch
        assert trainer.state.global_step == max_steps
        assert trainer.lr_scheduler.get_last_lr() == [0.0]


def test_workers_fetch_ahead_and_leave_random_numbers_alone_so_that_a_run_continues_inside_an_epoch() -> None:
    def trained(folder: str, num_workers: int, resume: str | None = None) -> Any:
        args = _args(output_dir=folder, num_train_epochs=2, dataloader_num_workers=num_workers)
        args.set_save(strategy="steps", steps=8)
        trainer = _trainer(_causal(), args, _texts(), _pad)
        es.integrations.transformers.select(trainer, _selection(anneal=(0, 0)))
        torch.manual_seed(1)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    alone, ahead = trained("alone", 0), trained("ahead", 1)
    resumed = trained("resumed", 1, "ahead/checkpoint-8")
    for trainer in (ahead, resumed):
        _assert_same(trainer.model, alone.model)
        assert trainer.selector.table().equals(alone.selector.table())


def test_scores_in_the_precision_that_it_trains_in() -> None:
    tables = []
    for more in ({}, {"bf16": True}):
        trainer = _trainer(_causal(), _args(num_train_epochs=1, **more), _texts(), _pad)
        es.integrations.transformers.select(trainer, _selection(anneal=(0, 0)))
        torch.manual_seed(1)
        trainer.train()
        tables.append(trainer.selector.table()["last_loss"].to_numpy())
    assert not np.array_equal(*tables)
    np.testing.assert_allclose(*tables, rtol=0.1)


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        (transformers.BertForSequenceClassification, {"problem_type": "regression", "num_labels": 1}),
        (transformers.BertForSequenceClassification, {"problem_type": "regression", "num_labels": 4}),
        (transformers.BertForSequenceClassification, {"problem_type": "multi_label_classification", "num_labels": 4}),
        (transformers.BertForTokenClassification, {"num_labels": 4}),
        (transformers.T5ForConditionalGeneration, {}),
    ],
    ids=["regression", "regression of 4", "multi-label", "tokens", "seq2seq"],
)
def test_losses_have_the_models_own_loss_as_their_mean(model: Any, labels: dict[str, Any]) -> None:
    torch.manual_seed(0)
    if model is transformers.T5ForConditionalGeneration:
        config = transformers.T5Config(
            vocab_size=_WORDS, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    else:
        config = BertConfig(vocab_size=_WORDS, **_SIZES, **labels)
    batch = {"input_ids": torch.randint(1, _WORDS, (6, 5))}
    if "problem_type" in labels:
        shape = (6,) if labels["num_labels"] == 1 else (6, 4)
        batch["labels"] = torch.rand(shape).round() if "multi" in labels["problem_type"] else torch.rand(shape)
    else:
        batch["labels"] = torch.randint(0, 4, (6, 5))
    bare = model(config).eval()
    samples = [{name: one[index] for name, one in batch.items()} for index in range(6)]
    trainer = _trainer(bare, _args(per_device_train_batch_size=2), samples, None)
    es.integrations.transformers.select(trainer, _selection(anneal=(0, 0)))
    losses = trainer.selection_settings.losses(bare, batch, [1] * 6)
    assert losses.shape == (6,)
    torch.testing.assert_close(losses.mean(), bare(**batch).loss)


def _subclass(**members: Any) -> type[Trainer]:
    return type("Own", (Trainer,), members)


@pytest.mark.parametrize(
    ("args", "more", "selecting", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, {}, {}, "'random'"),
        ({"train_sampling_strategy": "batch_rebalance"}, {}, {}, "'random'"),
        (
            {},
            {"cls": _subclass(_get_train_sampler=lambda self, _=None: torch.utils.data.SequentialSampler(_texts()))},
            {},
            "SequentialSampler",
        ),
        (
            {},
            {"cls": _subclass(get_train_dataloader=lambda self: torch.utils.data.DataLoader(_texts(), shuffle=False))},
            {},
            "SequentialSampler",
        ),
        ({}, {"cls": _subclass(get_train_dataloader=lambda self: [])}, {}, "must return a DataLoader"),
        ({"auto_find_batch_size": True}, {}, {}, "auto_find_batch_size"),
        ({"per_device_train_batch_size": 64}, {}, {}, "larger than the plan"),
        ({}, {"dataset": None}, {}, "no train_dataset"),
        ({"max_steps": 5}, {"dataset": _texts().to_iterable_dataset()}, {}, "selector.stream"),
        (
            {},
            {"cls": _subclass(compute_loss=lambda self, model, inputs, **_: model(**inputs).loss)},
            {"reweight": "unbiased"},
            "pass losses=",
        ),
        (
            {},
            {"compute_loss_func": lambda outputs, labels, **_: outputs.loss},
            {"reweight": "unbiased"},
            "pass losses=",
        ),
    ],
)
def test_refuses_what_it_cannot_work_with(args: Any, more: Any, selecting: Any, message: str) -> None:
    trainer = _trainer(_causal(), _args(**args), more.pop("dataset", _texts()), _pad, **more)
    cls = type(trainer)
    with pytest.raises(errors.ConfigError, match=message):
        es.integrations.transformers.select(trainer, _selection(**selecting))
    assert type(trainer) is cls


def test_refuses_losses_that_are_a_mean_and_arguments_that_changed() -> None:
    trainer = _trainer(_causal(), _args(), _texts(), _pad)
    es.integrations.transformers.select(trainer, _selection(), losses=lambda model, batch: model(**batch).loss)
    before = _weights(trainer.model)
    with pytest.raises(errors.ShapeError, match="one loss per sample"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    with pytest.raises(errors.ConfigError, match="selects already"):
        es.integrations.transformers.select(trainer, _selection())
    trainer.args.num_train_epochs = 9
    with pytest.raises(errors.ConfigError, match="before select"):
        trainer.train()


def test_refuses_to_resume_another_run() -> None:
    def trainer(dataset: Any = None, **args: Any) -> Any:
        args = _args(save_strategy="epoch", **{"num_train_epochs": 2, **args})
        made = _trainer(_causal(), args, dataset or _texts(), _pad)
        return es.integrations.transformers.select(made, _selection(anneal=(0, 0)))

    trainer().train()
    with pytest.raises(errors.RunMismatchError, match="num_samples"):
        trainer(_texts(_N + 1)).train(resume_from_checkpoint=True)
    with pytest.raises(errors.RunMismatchError, match="num_epochs"):
        trainer(num_train_epochs=3).train(resume_from_checkpoint=True)
    folder = next(Path("out").glob("checkpoint-10/selection-0-of-1"))
    folder.rename(folder.with_name("selection-0-of-2"))
    with pytest.raises(errors.RunMismatchError, match="2 rank"):
        trainer().train(resume_from_checkpoint="out/checkpoint-10")
    (folder.with_name("selection-0-of-2")).rename("elsewhere")
    with pytest.raises(errors.StorageError, match="no state of a selection"):
        trainer().train(resume_from_checkpoint="out/checkpoint-10")


def _ranks(way: str, num: int = 2) -> None:
    """Run a function of this module in processes that are ranks of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, way],
            env={**os.environ, **({**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if num > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * num, "\n".join(outputs)


def _train_a_rank() -> None:
    """Train, continue from the end of an epoch, and train by hand."""
    data = _texts(80)

    def select(run: str, **more: Any) -> Any:
        args = _args(output_dir="out", gradient_accumulation_steps=2, ddp_backend="gloo", **more)
        trainer = _trainer(_causal(), args, data, _pad)
        return es.integrations.transformers.select(trainer, _selection(), run=run, storage="runs")

    try:
        select("steps", save_strategy="steps")
    except errors.ConfigError as error:
        assert "save_strategy='epoch'" in str(error)  # noqa: PT017 - not a test of its own
    else:
        raise AssertionError("a checkpoint inside an epoch was not refused")
    whole = select("whole", save_strategy="epoch")
    torch.manual_seed(1)
    whole.train()
    assert whole.lr_scheduler.get_last_lr() == [0.0]
    checkpoints = sorted(Path("out").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    resumed = select("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoints[1]))
    by_hand = _causal()
    shape = {"num_samples": 80, "num_epochs": 4, "batch_size": _B}
    selector = es.connect("by-hand", _selection(), **shape, exchange="collective", storage="runs")
    torch.manual_seed(1)
    _loop(torch.nn.parallel.DistributedDataParallel(by_hand), data, _selection(), accumulation=2, selector=selector)
    for trainer in (whole, resumed):
        _assert_same(trainer.model, by_hand)
        assert trainer.selector.table().equals(selector.table())
    torch.distributed.destroy_process_group()


def _train_with_a_score_server() -> None:
    """Train as in one process, continue under another name and under the same, and be refused in between."""
    import ray

    from es_service.actors import launch

    def select(run: str | None, **more: Any) -> Any:
        options = {} if run is None else {"run": run, "storage": "runs"}
        trainer = _trainer(_causal(), _args(output_dir="out", **more), _texts(), _pad)
        return es.integrations.transformers.select(trainer, _selection(), **options)

    alone = select(None)
    torch.manual_seed(1)
    alone.train()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    whole = select("whole", save_strategy="epoch")
    torch.manual_seed(1)
    whole.train()
    with pytest.raises(errors.RunExistsError, match="'whole' has 4 finished epochs"):
        select("whole").train()
    trained = [whole, select("another"), select("whole")]
    for trainer in trained[1:]:
        trainer.train(resume_from_checkpoint="out/checkpoint-10")
    for trainer in trained:
        _assert_same(trainer.model, alone.model)
        assert trainer.selector.table().equals(alone.selector.table())
    for run in ("whole", "another"):
        launch.stop(run)
    ray.shutdown()


@pytest.mark.thorough
def test_a_score_server_holds_the_table_of_a_named_run() -> None:
    _ranks("_train_with_a_score_server", 1)


def test_two_ranks_train_as_a_loop_by_hand_and_continue() -> None:
    _ranks("_train_a_rank")


if __name__ == "__main__":
    globals()[sys.argv[1]]()

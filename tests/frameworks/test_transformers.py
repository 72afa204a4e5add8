"""`integrations.transformers.select`: real Trainers, against loops written by hand, bit for bit."""

from __future__ import annotations

import math
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
from es_service.training.losses import cross_entropy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

_N, _B, _WORDS = 44, 8, 20


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


def _causal(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=_WORDS, attention_dropout=0.2, **sizes))


def _labelled(num: int = _N) -> datasets.Dataset:
    texts = _texts(num).remove_columns("labels")
    return texts.add_column("label", [len(ids) % 3 for ids in texts["input_ids"]])


def _pad_labelled(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = _pad([{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in samples])
    return {**batch, "labels": torch.tensor([one["label"] for one in samples])}


def _classifier(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=_WORDS, num_labels=3, **sizes))


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


def _loop(model: Any, dataset: Any, selection: es.Selection, *, accumulation: int, weighs: bool = False) -> es.Selector:
    """Train a causal model as a Trainer would, by hand."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    selector = es.Selector(selection, num_samples=len(dataset), num_epochs=4, batch_size=_B)
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
            for batch, scale in window:
                if weighs:
                    loss = (_sequence_losses(model, batch) * scale).mean() / len(window)
                else:
                    loss = model(**batch, num_items_in_batch=num_items).loss
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
    data = _texts()
    args = {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1}

    def trained(folder: str, resume: str | None = None) -> Any:
        trainer = _trainer(_causal(), _args(output_dir=folder, **args), data, _pad)
        es.integrations.transformers.select(trainer, _selection(method=es.methods.evolved(), reweight="unbiased"))
        torch.manual_seed(1)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = trained("whole")
    assert [log["step"] for log in whole.state.log_history if log["epoch"] in (1.0, 2.0)] == [3, 5]
    for step in (3, 4, 9):
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

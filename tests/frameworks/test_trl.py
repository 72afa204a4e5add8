"""`integrations.transformers.select` with TRL's `SFTTrainer`: padded, without padding, and packed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
import trl
from test_transformers import _B, _WORDS, _assert_same, _causal, _pad, _selection, _texts

import es_service as es
from es_service import errors
from es_service.integrations.transformers.losses import LogitLosses
from es_service.training.losses import cross_entropy

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*padding-free.*:UserWarning"),
]


def _tokenizer() -> Any:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, _WORDS)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def _tuner(model: Any = None, **changes: Any) -> Any:
    defaults = {
        "output_dir": "out",
        "per_device_train_batch_size": _B,
        "num_train_epochs": 1,
        "learning_rate": 0.0,  # so that losses can be checked afterwards
        "max_length": 24,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    args = trl.SFTConfig(**{**defaults, **changes})
    data = _texts().remove_columns("note")
    return trl.SFTTrainer(model or _causal(dropout=0.0), args, train_dataset=data, processing_class=_tokenizer())


def _loss_of(model: Any, sample: dict[str, Any]) -> float:
    """Return the mean loss of the examples in a sample, each by itself."""
    lengths = sample.get("seq_lengths") or [len(sample["input_ids"])]
    parts = zip(*(torch.tensor(sample[name]).split(lengths) for name in ("input_ids", "labels")), strict=True)
    with torch.no_grad():
        losses = [cross_entropy(model(input_ids=ids[None]).logits[:, :-1], labels[None, 1:]) for ids, labels in parts]
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"padding_free": True, "max_length": None},
        {"packing": True, "per_device_train_batch_size": 4},
        {"packing": True, "packing_strategy": "wrapped", "per_device_train_batch_size": 4},
    ],
    ids=["padded", "padding-free", "packed", "wrapped"],
)
@pytest.mark.parametrize("reweight", ["none", "unbiased"])
def test_scores_each_sample_whatever_shares_a_row_with_it(layout: dict[str, Any], reweight: Any) -> None:
    trainer = _tuner(**layout)
    samples = list(trainer.train_dataset)
    assert ("seq_lengths" in samples[0]) is (layout.get("packing", False) and "packing_strategy" not in layout)
    es.integrations.transformers.select(trainer, _selection(anneal=(0, 0), prune_ratio=0.0, reweight=reweight))
    trainer.train()
    losses = trainer.selector.table()["last_loss"].to_numpy()
    np.testing.assert_allclose(losses, [_loss_of(trainer.model, one) for one in samples], rtol=1e-5)
    assert trainer.selector.ledger.trained < trainer.selector.ledger.scored == len(samples)
    assert ("mean_token_accuracy" in trainer.state.log_history[0]) is (reweight == "none")


def test_continues_inside_an_epoch() -> None:
    def tuned(folder: str, resume: str | None = None) -> Any:
        more = {"output_dir": folder, "learning_rate": 0.01, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
        trainer = _tuner(_causal(), save_strategy="steps", save_steps=1, **more)
        es.integrations.transformers.select(trainer, _selection(anneal=(0, 0)))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = tuned("whole")
    resumed = tuned("resumed", "whole/checkpoint-1")
    _assert_same(resumed.model, whole.model)
    assert resumed.selector.table().equals(whole.selector.table())
    assert whole.lr_scheduler.get_last_lr() == resumed.lr_scheduler.get_last_lr() == [0.0, 0.0]


def _losses(outputs: dict[str, Any], batch: dict[str, Any], counts: list[int]) -> Any:
    of = LogitLosses(is_causal=True, is_multi_label=False, label_smoothing=0.0, needs_labels=False, names=["loss"])
    return of.of(outputs, batch, counts)


def test_refuses_rows_of_several_samples_that_nothing_tells_apart() -> None:
    batch = _pad([{"input_ids": [3, 4, 5, 6, 7], "labels": [3, 4, 5, 6, 7]}])
    outputs = {"logits": torch.zeros(1, 5, _WORDS)}
    with pytest.raises(errors.ShapeError, match=re.escape("2 examples of 2 samples share 1 row(s)")):
        _losses(outputs, batch, [1, 1])
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    assert _losses(outputs, {**batch, "position_ids": positions}, [1, 1]).shape == (2,)
    assert _losses(outputs, {**batch, "position_ids": positions}, [2]).shape == (1,)
    with pytest.raises(errors.ShapeError, match="restart for 2 examples, and the samples hold 3"):
        _losses(outputs, {**batch, "position_ids": positions}, [1, 2])
    with pytest.raises(errors.ConfigError, match="pass losses="):
        _losses({"loss": torch.zeros(())}, batch, [1])

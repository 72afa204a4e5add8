"""Per-sample losses beside the mean that transformers' models return, and scoring them, wrapped by Accelerate too."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from es_service.training import losses, scoring

NUM, LENGTH, VOCABULARY = 4, 9, 40
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, use_cache=False, **SIZES))


def bert(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**SIZES, **more))


def texts() -> dict[str, torch.Tensor]:
    """Texts of unequal length, padded on the right, each with a prompt that is not predicted."""
    torch.manual_seed(1)
    input_ids, lengths = torch.randint(1, VOCABULARY, (NUM, LENGTH)), torch.tensor([9, 4, 7, 6])
    attention_mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = input_ids.masked_fill((attention_mask == 0) | (torch.arange(LENGTH) < 2), losses.IGNORE_INDEX)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def causal(model: Any, batch: Any) -> torch.Tensor:
    return losses.token_cross_entropy(model(**batch).logits, batch["labels"])


def test_weighed_by_their_tokens_the_losses_of_texts_are_the_models_loss() -> None:
    model, batch = llama(), texts()
    outputs = model(**batch)
    each, nums = causal(model, batch), losses.num_tokens(batch["labels"])
    torch.testing.assert_close((each * nums).sum() / nums.sum(), outputs.loss)
    by_length = losses.token_cross_entropy(outputs.logits, batch["labels"], reduction="by_length")
    torch.testing.assert_close(by_length.mean(), outputs.loss)
    sums = losses.token_cross_entropy(outputs.logits, batch["labels"], reduction="sum")
    whole = model(**batch, num_items_in_batch=100).loss  # as the Trainer has it, over accumulated batches
    torch.testing.assert_close(sums.sum() / 100, whole)
    alone = [model(**{key: values[[row]] for key, values in batch.items()}).loss for row in range(NUM)]
    torch.testing.assert_close(each, torch.stack(alone))


def test_texts_packed_into_a_row_have_the_losses_that_they_have_alone() -> None:
    model, batch = llama(), texts()
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    one = [values[row, :length] for values in (batch["input_ids"],) for row, length in enumerate(lengths)]
    collate = transformers.DataCollatorWithFlattening(return_tensors="pt")
    packed = collate([{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in one])
    logits = model(**{key: packed[key] for key in ("input_ids", "position_ids")}).logits
    found = losses.token_cross_entropy(logits, packed["labels"], position_ids=packed["position_ids"])
    expected = torch.stack([model(input_ids=ids[None], labels=ids[None]).loss for ids in one])
    torch.testing.assert_close(found, expected)
    nums = losses.num_tokens(packed["labels"], position_ids=packed["position_ids"])
    assert nums.tolist() == [length - 1 for length in lengths]
    torch.testing.assert_close((found * nums).sum() / nums.sum(), model(**packed).loss)


def test_masked_tokens_are_predicted_where_they_stand() -> None:
    model, batch = bert("BertForMaskedLM"), texts()
    outputs = model.eval()(**batch)
    each = losses.token_cross_entropy(outputs.logits, batch["labels"], shift=False, reduction="by_length")
    torch.testing.assert_close(each.mean(), outputs.loss)


@pytest.mark.parametrize(
    "problem, labels, of",
    [
        ("single_label_classification", torch.tensor([0, 2, 1, 1]), losses.cross_entropy),
        ("multi_label_classification", torch.eye(4)[:, :3], losses.binary_cross_entropy),
        ("regression", torch.arange(12.0).reshape(4, 3), losses.squared_error),
    ],
)
def test_the_mean_over_samples_is_the_loss_of_a_classifier(problem: str, labels: torch.Tensor, of: Any) -> None:
    model = bert("BertForSequenceClassification", num_labels=3, problem_type=problem).eval()
    batch = {**texts(), "labels": labels}
    outputs = model(**batch)
    torch.testing.assert_close(of(outputs.logits, labels).mean(), outputs.loss)


def test_a_batch_of_transformers_is_scored_by_keyword_as_the_training_step_has_it() -> None:
    """With dropout, from an evaluating model, and no trace in it."""
    model, batch = bert("BertForMaskedLM"), transformers.BatchEncoding(texts())

    def of(outputs: Any, batch: Any) -> torch.Tensor:
        return losses.token_cross_entropy(outputs.logits, batch["labels"], shift=False)

    torch.manual_seed(2)
    expected = of(copy.deepcopy(model).train()(**batch), batch).detach().numpy()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(scoring.score(model.eval(), batch, losses=of), expected)
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


class Adapted(nn.Module):
    """Passes everything on to a base model, as PEFT's models do, and adds parameters of its own inside it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base_model = base.requires_grad_(False)
        self.base_model.lm_head = nn.Sequential(base.lm_head, nn.Linear(VOCABULARY, VOCABULARY), nn.Dropout(0.2))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("make", [llama, lambda: Adapted(llama())])
def test_under_accelerate_the_losses_are_those_of_the_training_step(make: Any, precision: str) -> None:
    """Accelerate replaces the model's forward: it casts, and converts the outputs back."""
    AcceleratorState._reset_state(True)
    model = make()
    torch.manual_seed(2)
    plain = scoring.score(copy.deepcopy(model), texts(), causal)
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    model = accelerator.prepare(model)
    torch.manual_seed(2)
    found = scoring.score(model, texts(), causal)
    assert np.array_equal(found, plain) == (precision == "no")
    torch.manual_seed(2)
    trained = causal(model.train(), texts())
    np.testing.assert_array_equal(found, trained.detach().numpy())
    trained.mean().backward()  # type: ignore[no-untyped-call]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    AcceleratorState._reset_state(True)

"""Hugging Face Trainer: one line selects. A small BERT learns which sentences of movie reviews are praise.

make data && python examples/transformers_trainer.py
"""

import sys

import numpy as np
import torch
from datasets import Dataset
from texts import load
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import es_service as es


def main():
    torch.manual_seed(0)
    texts, labels, tokenizer = load(*sys.argv[1:])
    data = Dataset.from_dict({"label": labels, **tokenizer(texts, return_token_type_ids=False)})
    data = data.train_test_split(500, seed=0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    trainer = Trainer(
        model=BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)),
        args=TrainingArguments(
            "checkpoints",
            num_train_epochs=4,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            logging_strategy="no",
            eval_strategy="epoch",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": np.mean(found.predictions.argmax(axis=1) == found.label_ids)},
    )
    es.integrations.transformers.select(trainer, es.Selection(es.methods.evolved(), ratio=0.25))  # added
    trainer.train()
    print(f"backward passes saved: {trainer.selector.ledger.saving()['samples']:.0%}")


if __name__ == "__main__":
    main()

"""Hugging Face Trainer: one line selects. A small BERT learns from 8,455 sentences of movie reviews.

make data && python examples/transformers_trainer.py
"""

import sys

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

import es_service as es
from es_service.training.tasks import reviews


def load(folder="data"):
    """Return the sentences, whether each is praise, and a tokenizer made from them."""
    task = reviews.build(folder)
    texts, labels = [task.preview(row) for row in range(len(task.train_set))], task.labels.tolist()
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    words = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    return texts, labels, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **words)


def main():
    torch.manual_seed(0)
    texts, labels, tokenizer = load(*sys.argv[1:])
    data = Dataset.from_dict({"label": labels, **tokenizer(texts, return_token_type_ids=False)}).train_test_split(0.2, seed=0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    trainer = Trainer(
        model=BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes)),
        args=TrainingArguments(
            "checkpoints", num_train_epochs=4, per_device_train_batch_size=64, learning_rate=1e-3, logging_steps=100,
            eval_strategy="epoch", report_to="none", disable_tqdm=True,
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": np.mean(found.predictions.argmax(axis=1) == found.label_ids)},
    )
    es.integrations.transformers.select(trainer, es.Selection(es.methods.evolved(), ratio=0.25))  # added
    trainer.train()
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()

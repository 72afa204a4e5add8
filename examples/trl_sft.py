"""TRL's SFTTrainer: one line selects. A small Llama learns to write movie reviews.

make data && python examples/trl_sft.py
"""

import sys

import torch
from datasets import Dataset
from texts import load
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

import es_service as es


def main():
    torch.manual_seed(0)
    texts, _, tokenizer = load(*sys.argv[1:])
    data = Dataset.from_dict({"text": texts[:800]})
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    trainer = SFTTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)),
        args=SFTConfig(
            "checkpoints",
            num_train_epochs=3,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            max_length=64,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=False,
            use_cpu=True,
        ),
        train_dataset=data,
        processing_class=tokenizer,
    )
    es.integrations.transformers.select(trainer, es.Selection(es.methods.evolved(), ratio=0.5))  # added
    trainer.train()
    print(f"backward passes saved: {trainer.selector.ledger.saving()['samples']:.0%}")


if __name__ == "__main__":
    main()

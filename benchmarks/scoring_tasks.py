"""The tasks that `benchmarks.scoring` measures: built-in ones, and those from files, with made-up files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from es_service.storage.png import encode_png
from es_service.training.tasks import build_task
from es_service.training.tasks.base import Task
from es_service.training.tasks.options import TaskOptions

__all__ = ["SMALL", "TASKS"]

_NUM, _WORDS = 640, 2000


def _images(folder: Path) -> Task:
    rng = np.random.default_rng(0)
    for index in range(_NUM):
        path = folder / f"class-{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)))
    return build_task("images", str(folder), options=TaskOptions(model="resnet18"))


def _sentence(rng: np.random.Generator, longest: int) -> str:
    """Words as often as they are in texts: the k-th most frequent is 1/k as frequent as the first."""
    frequencies = 1 / np.arange(1, _WORDS + 1)
    words = rng.choice(_WORDS, rng.integers(longest // 4, longest), p=frequencies / frequencies.sum())
    return " ".join(f"w{word}" for word in words)


def _texts(folder: Path, model: str) -> Task:
    rng = np.random.default_rng(0)
    rows = [json.dumps({"text": _sentence(rng, 60), "label": index % 2}) for index in range(_NUM)]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    return build_task("text", str(folder / "texts.jsonl"), options=TaskOptions(model=model))


def _answers(folder: Path) -> Task:
    """Fine-tuning of a Llama of 0.9 million parameters, without weights, whose tokens are bytes."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4}
    transformers.LlamaConfig(
        **sizes, vocab_size=257, num_key_value_heads=4, max_position_embeddings=512, eos_token_id=256, bos_token_id=None
    ).save_pretrained(folder)
    rng = np.random.default_rng(0)
    rows = [json.dumps({"prompt": _sentence(rng, 12), "answer": _sentence(rng, 40)}) for _ in range(_NUM)]
    (folder / "answers.jsonl").write_text("\n".join(rows))
    return build_task("sft", str(folder / "answers.jsonl"), options=TaskOptions(model=str(folder)))


TASKS: Mapping[str, Callable[[Path], Task]] = {
    "fashion": lambda _: build_task("fashion"),
    "reviews": lambda _: build_task("reviews", "data"),
    "flights": lambda _: build_task("flights", "data"),
    "images": _images,
    "text bow": lambda folder: _texts(folder, "bow"),
    "text tiny": lambda folder: _texts(folder, "tiny"),
    "sft": _answers,
}
"""Name -> function that builds the task; it may put files into the folder."""
SMALL: Mapping[str, int] = {"images": 16, "sft": 16}
"""Meta-batches that a CPU takes seconds for, not minutes."""

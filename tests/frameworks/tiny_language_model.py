"""A folder with a tiny Llama and a tokenizer of bytes, made on the spot, and sums for it to learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

END = "<|end|>"
CHAT = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template: str | None = None) -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, additional_special_tokens=["<|turn|>"]
    )
    wrapped.chat_template = chat_template
    return wrapped


def make_config(**changes: Any) -> transformers.LlamaConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
    return transformers.LlamaConfig(**{**sizes, **changes})


def make_folder(folder: Path, *, chat_template: str | None = None, weights: bool = False, **changes: Any) -> Path:
    """A configuration and a tokenizer, and weights where asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(**changes)
    config.save_pretrained(folder)
    make_tokenizer(chat_template).save_pretrained(folder)
    if weights:
        transformers.set_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sums(num: int) -> list[dict[str, str]]:
    """Sums, with answers of several lengths."""
    rows = [(i % 7, i // 7 % 7) for i in range(num)]
    return [
        {"question": f"{a}+{b}?", "answer": f"{'so ' * (a % 3)}it is\n#### {1_000 * a + b:,}" if b else "#### 0"}
        for a, b in rows
    ]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_gguf(path: Path) -> transformers.LlamaForCausalLM:
    """Write a tiny Llama, its tokenizer and its chat template as a GGUF file; return the model."""
    config = make_config(vocab_size=259)
    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters, END, "<|turn|>", "ab"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(256)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        tensor = value.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # GGUF keeps the halves of rotary embeddings interleaved
            tensor = tensor.reshape(config.num_attention_heads, 2, -1, tensor.shape[1]).swapaxes(1, 2)
            tensor = np.ascontiguousarray(tensor.reshape(value.shape))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model

"""Answers that a model generates, and whether they are the right ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["final_answer", "generate"]

_AT_ONCE = 32


def final_answer(text: str) -> str:
    """Return what counts of an answer: what stands behind its last `####` as far as the line goes, else all of it.

    Of a number commas, a dollar sign and a full stop at its end do not count.
    """
    _, is_marked, last = text.rpartition("####")
    if not is_marked:
        return text.strip()
    return last.strip().partition("\n")[0].replace(",", "").replace("$", "").strip().rstrip(".")


def generate(
    language_model: Any,
    prompts: Sequence[NDArray[np.int64]],
    *,
    most: int,
    ends: Sequence[int],
    to_device: Callable[[Any], Any],
) -> list[NDArray[np.int64]]:
    """Return the tokens that a model, greedily, puts behind each prompt, up to one of `ends`, which is left out.

    Prompts of similar length go through together, 32 at once, filled up at the beginning.

    Args:
        language_model: of transformers.
        prompts: int64[T] each.
        most: tokens of an answer.
        ends: tokens that end one.
        to_device: moves a batch to where the model is.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=most, do_sample=False, use_cache=True, eos_token_id=list(ends) or None, pad_token_id=0
    )
    answers: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: -prompts[number].size)
    with torch.no_grad(), _set_to(language_model, settings):
        for start in range(0, len(order), _AT_ONCE):
            numbers = order[start : start + _AT_ONCE]
            longest = prompts[numbers[0]].size
            tokens = torch.zeros((len(numbers), longest), dtype=torch.int64)
            mask = torch.zeros_like(tokens)
            for row, number in enumerate(numbers):
                tokens[row, longest - prompts[number].size :] = torch.from_numpy(prompts[number])
                mask[row, longest - prompts[number].size :] = 1
            inputs = to_device({"input_ids": tokens, "attention_mask": mask})
            made = language_model.generate(**inputs)[:, longest:].cpu().numpy()
            for row, number in enumerate(numbers):
                is_end = np.isin(made[row], ends)
                answers[number] = made[row, : is_end.argmax() if is_end.any() else None]
    return answers


@contextlib.contextmanager
def _set_to(model: Any, settings: Any) -> Iterator[None]:
    """Put a model in evaluation mode, to generate as the settings say: its folder may have others, e.g. a penalty."""
    before = model.training, model.generation_config
    model.eval()
    model.generation_config = settings
    try:
        yield
    finally:
        model.train(before[0])
        model.generation_config = before[1]

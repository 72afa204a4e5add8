"""Supervised fine-tuning of a causal language model on a user's prompts and answers, or conversations."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from es_service import errors
from es_service.selection.settings import suggest
from es_service.training.tables import files, holdout, read
from es_service.training.tables.left_out import LeftOut
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.folders import imported
from es_service.training.tasks.options import TaskOptions
from es_service.training.tasks.sft import adapters
from es_service.training.tasks.sft.conversations import conversations
from es_service.training.tasks.sft.encoding import Encoder, Part
from es_service.training.tasks.sft.folder import LanguageModelFolder
from es_service.training.tasks.sft.model import AnswerModel
from es_service.training.tasks.sft.task import FineTuning

__all__ = ["build"]

_METRICS = ("token_accuracy", "negative_loss")
_USUAL_LENGTH = 1024


def build(data: str, options: TaskOptions) -> FineTuning:
    """Build the task.

    Args:
        data: file or folder of the samples; see `tables.files.find_parts`.
        options: of the task.

    Raises:
        ConfigError: an option, the model's folder, its tokenizer or a column that cannot be used, or a missing package.
        DataError: the data cannot be read, or a row of them cannot be used.
    """
    metric = options.metric or _METRICS[0]
    if metric not in _METRICS:
        once = "; exact_match is measured at the end of each run anyway" if metric == "exact_match" else ""
        raise errors.ConfigError(f"--metric {metric!r}: {suggest(metric, _METRICS)}{once}")
    if options.lora_targets is not None and options.lora is None:
        raise errors.ConfigError("--lora-targets names layers that get adapters: give --lora too")
    folder = LanguageModelFolder.find(options.model, download=bool(options.download))
    if options.lora is not None:
        imported("peft", "--lora")
    tokenizer, config = folder.tokenizer(), folder.config()
    skeleton = folder.skeleton(config)
    targets = None if options.lora is None else adapters.targets_of(skeleton, options.lora_targets)
    ends = _ends(tokenizer, config)
    train, held_out, left_out = _read(data, options, Encoder(tokenizer, _max_length(options.max_length, config), ends))
    _check_vocabulary(skeleton, train, held_out)
    return FineTuning(
        train=train,
        held_out=held_out,
        tokenizer=tokenizer,
        ends=ends,
        build_model=functools.partial(_model, folder, config, options.lora, targets),
        defaults=TaskDefaults(
            epochs=2,
            batch_size=32,
            learning_rate=5e-4 if options.lora is not None else 5e-5,
            weight_decay=0.0,
            optimizer="adamw",
            schedule="cosine",
            warm_up=0.05,
            backward_cost=None,
        ),
        per_token=options.loss_per == "token",
        negative_loss=metric == "negative_loss",
        left_out=left_out,
    )


def _model(folder: LanguageModelFolder, config: Any, rank: int | None, targets: list[str] | None) -> torch.nn.Module:
    language_model = folder.model(config)
    if rank is not None and targets is not None:
        language_model = adapters.add_adapters(language_model, rank, targets)
    return AnswerModel(language_model)


def _read(data: str, options: TaskOptions, encoder: Encoder) -> tuple[Part, Part, LeftOut]:
    parts = files.find_parts(data, options.held_out)
    skip_broken = bool(options.skip_broken)
    found = [read.read_table(paths, skip_broken=skip_broken) for paths in (parts.train, parts.held_out) if paths]
    tables = [one.table for one in found]
    rows = [np.arange(table.num_rows) for table in tables]
    if parts.share is not None:
        rows = list(holdout.split(tables[0].num_rows, parts.share, None))
        tables = [tables[0].take(of_part) for of_part in rows]
    train, held_out = (
        encoder.encode(name, conversations(table, options), of_part, skip_broken=skip_broken)
        for name, table, of_part in zip(("train", "held-out"), tables, rows, strict=True)
    )
    of_both = (train, held_out)
    num_used, num_cut = (sum(len(one.answers) for one in of_both), sum(one.num_truncated for one in of_both))
    return train, held_out, LeftOut.of(found, num_used, truncated=num_cut)


def _ends(tokenizer: Any, config: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: the tokenizer's, and those of the model's configuration."""
    named = getattr(config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return tuple(dict.fromkeys(int(one) for one in found if one is not None))


def _max_length(asked: int | None, config: Any) -> int:
    """Return the most tokens of a sequence; ConfigError where the model cannot take as many as were asked for."""
    most = getattr(config, "max_position_embeddings", None)
    if asked is None:
        return min(_USUAL_LENGTH, most or _USUAL_LENGTH)
    if most is not None and asked > most:
        raise errors.ConfigError(f"--max-length {asked}: the model takes {most} tokens at most")
    return asked


def _check_vocabulary(model: Any, *parts: Part) -> None:
    """Raise ConfigError where a token is none of the model's."""
    size = int(model.get_input_embeddings().weight.shape[0])
    highest = max(part.sequences.highest_token for part in parts)
    if highest >= size:
        raise errors.ConfigError(
            f"the tokenizer gives token {highest}, and the model has an embedding for {size}: they do not belong "
            "together; save the model's own tokenizer into its folder"
        )

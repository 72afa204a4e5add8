"""Selection in Hugging Face's `Trainer` and in its subclasses, TRL's `SFTTrainer` among them.

    trainer = es.integrations.transformers.select(SFTTrainer(model, args, train_dataset=data), selection)
    trainer.train()

The trainer's class is replaced by a subclass of it, made on the spot. It draws where batches are fetched, so that
whatever counts them (`num_items_in_batch`, callbacks, the schedule) sees the drawn samples only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import transformers
from torch.utils import data

from es_service import errors
from es_service.attach import attach
from es_service.exchange.embedded import Embedded
from es_service.integrations.transformers import trainer as selective
from es_service.integrations.transformers.losses import LogitLosses, UsersLosses
from es_service.selection.config import Selection
from es_service.selection.methods.base import Method
from es_service.selection.run import RunConfig
from es_service.selector import Selector
from es_service.training.observed import Signals

__all__ = ["select"]

_ONE_SAMPLER = "train_sampling_strategy must be 'random', and no subclass may bring a sampler of its own"


def select(
    trainer: Any,
    selection: Selection,
    *,
    run: str | None = None,
    losses: Callable[[Any, Any], Signals] | None = None,
    exchange: Any = None,
    micro_batch_size: int | None = None,
    **options: Any,
) -> Any:
    """Let a Trainer train on selected samples; everything else is set in it as usual.

    `per_device_train_batch_size` is B, the meta-batch of a rank: of each, b = ⌈ratio·B⌉ samples are trained on. With
    `gradient_accumulation_steps` of G an update trains on G·b samples, drawn from G meta-batches.

    Args:
        trainer: a `transformers.Trainer` of any subclass, with a map-style train set; its item i is the sample of id i.
        selection: what to select, and how.
        run: names the run; several ranks need it, see `es_service.attach`.
        losses: (model, batch) -> losses[b], one per sample and differentiable, or signals by name, "loss" among them.
            It scores and trains, by mean(losses·scale). None: the model's logits and the labels give the scores, and
            the trainer's own loss trains, unless the selection scales losses (`reweight`, or a method with plans).
        exchange: see `es_service.attach`.
        micro_batch_size: most samples of one forward pass that scores; None takes the meta-batch at once.
        options: further arguments of `es.Selector` or `es.connect`; `labels` and `preview` may be the names of columns.

    Returns:
        The same trainer, with its `selector`.

    Raises:
        ConfigError: the trainer is set up in a way that selection cannot work with; nothing was changed.
    """
    _check(trainer)
    args = trainer.args
    if args.dataloader_drop_last and isinstance(selection, Selection):
        selection = dataclasses.replace(selection, drop_last=True)
    num_epochs = _num_epochs(selection, len(trainer.train_dataset), args)
    weighs = losses is not None or selection.reweight != "none" or type(selection.method).plan is not Method.plan
    is_plain = trainer.compute_loss_func is None and type(trainer).compute_loss is transformers.Trainer.compute_loss
    is_known = is_plain or (trainer.compute_loss_func is None and _is_sft(trainer))
    if weighs and losses is None and not is_known:
        raise errors.ConfigError(
            f"this selection scales the loss of each sample, and {type(trainer).__name__} computes its loss itself: "
            "pass losses=, a function (model, batch) -> losses[b], one per sample"
        )
    selector = attach(
        selection,
        num_samples=len(trainer.train_dataset),
        num_epochs=num_epochs,
        batch_size=args.per_device_train_batch_size,
        run=run,
        exchange=exchange,
        dataset=trainer.train_dataset,
        **options,
    )
    _check_saving(args, selector)
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = getattr(model, "config", None)
    trainer.selector = selector
    trainer.selection_settings = selective.Settings(
        losses=UsersLosses(losses)
        if losses is not None
        else LogitLosses(
            is_causal=trainer._loss_shifts_labels,
            is_multi_label=getattr(config, "problem_type", None) == "multi_label_classification",
            label_smoothing=args.label_smoothing_factor,
            needs_labels=bool(getattr(config, "is_encoder_decoder", False)),
            names=selector.config.selection.signals,
        ),
        weighs=weighs,
        reuses_losses=args.gradient_accumulation_steps == 1 and (weighs or is_plain),
        micro_batch_size=micro_batch_size,
        run=run,
        planned=selective.planned(args),
    )
    selective.adopt(trainer)
    return trainer


def _num_epochs(selection: Selection, num_samples: int, args: Any) -> int:
    """Return E: `num_train_epochs`, or as many as `max_steps` updates need."""
    shape = (selection, num_samples)
    config = RunConfig.of(*shape, max(1, math.ceil(args.num_train_epochs)), args.per_device_train_batch_size)
    config.check_world(args.world_size)
    if args.max_steps <= 0:
        return config.num_epochs
    most_steps = math.ceil(config.rank_share(num_samples, args.world_size) / config.batch_size)
    num_epochs: int = math.ceil(args.max_steps / math.ceil(most_steps / args.gradient_accumulation_steps))
    while True:  # longer, where epochs are pruned
        config = RunConfig.of(*shape, num_epochs, args.per_device_train_batch_size)
        if sum(selective.num_updates(config, epoch, args) for epoch in range(num_epochs)) >= args.max_steps:
            return num_epochs
        num_epochs += 1


def _is_sft(trainer: Any) -> bool:
    """Whether its loss is TRL's for supervised fine-tuning, the mean over tokens."""
    return str(getattr(type(trainer).compute_loss, "__module__", "")).startswith("trl.trainer.sft_trainer")


def _check(trainer: Any) -> None:
    """Raise ConfigError where this trainer cannot select."""
    if not isinstance(trainer, transformers.Trainer):
        raise errors.ConfigError(f"trainer must be a transformers.Trainer, got {type(trainer).__name__}")
    if isinstance(trainer, selective.Selective):
        raise errors.ConfigError("this trainer selects already: make another one for another selection")
    dataset, args = trainer.train_dataset, trainer.args
    if dataset is None:
        raise errors.ConfigError("the trainer has no train_dataset, whose samples could be selected")
    if (
        isinstance(dataset, data.IterableDataset)
        or not hasattr(dataset, "__getitem__")
        or not hasattr(dataset, "__len__")
    ):
        raise errors.ConfigError(
            f"train_dataset is a {type(dataset).__name__}, whose samples have no numbers: make it map-style, "
            "e.g. datasets.Dataset, or stream it in a loop of your own with selector.stream"
        )
    sharded = args.deepspeed or args.fsdp or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if sharded or getattr(trainer, "is_distributed_loading_by_transformers", False):
        raise errors.ConfigError(
            "DeepSpeed and FSDP cannot be combined with selection in a Trainer: scoring needs the whole model on each "
            "rank. Use DistributedDataParallel"
        )
    if trainer.get_tp_size() * trainer.get_cp_size() * trainer.get_sp_size() > 1:
        raise errors.ConfigError(
            "tensor, context and sequence parallelism cannot be combined with selection in a Trainer"
        )
    if args.n_gpu > 1:
        raise errors.ConfigError(
            f"the trainer would spread batches over {args.n_gpu} GPUs by DataParallel: start it with torchrun, one "
            "process for each GPU, or set CUDA_VISIBLE_DEVICES to one"
        )
    if args.auto_find_batch_size:
        raise errors.ConfigError("auto_find_batch_size=True changes the meta-batch during a run: set it to False")
    if args.train_sampling_strategy != "random":
        raise errors.ConfigError(f"train_sampling_strategy={args.train_sampling_strategy!r}: {_ONE_SAMPLER}")
    loader = trainer.get_train_dataloader()
    if not isinstance(loader, data.DataLoader):
        raise errors.ConfigError(
            f"{type(trainer).__name__}.get_train_dataloader returns a {type(loader).__name__}: it must return a "
            "DataLoader, whose data set, collator and workers are taken over"
        )
    sampler: Any = loader.batch_sampler
    while (inner := getattr(sampler, "batch_sampler", getattr(sampler, "sampler", None))) is not None:
        sampler = inner
    if not isinstance(sampler, data.RandomSampler):
        raise errors.ConfigError(
            f"{type(trainer).__name__} samples with a {type(sampler).__name__}, and the selection decides the order: "
            f"{_ONE_SAMPLER}"
        )


def _check_saving(args: Any, selector: Selector) -> None:
    """Raise ConfigError where checkpoints would be written inside an epoch that cannot be resumed there."""
    inside = args.save_strategy == "steps" or (args.save_strategy == "best" and args.eval_strategy == "steps")
    if isinstance(selector.exchange, Embedded) or args.save_only_model or not inside:
        return
    raise errors.ConfigError(
        f"save_strategy={args.save_strategy.value!r} saves inside an epoch, and with several ranks or a score server a "
        "run continues from the end of one only: take save_strategy='epoch', or save_only_model=True"
    )

"""Tasks of the user's own: found by `module:function`, and checked before any training starts."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from es_service import errors, plugins
from es_service.training import batches, losses
from es_service.training.tasks.base import Task, TaskDefaults
from es_service.training.tasks.metrics import check_statistics, metric_name
from es_service.training.tasks.supervised import Classification, check_labels

__all__ = ["check", "load"]

_VALUES = ("name", "train_set", "held_out", "labels", "held_out_labels", "label_names", "defaults")
_METHODS = ("build_model", "inputs", "losses", "signals", "metric")
_SIGNALS = ("confidence", "correct", "grad_norm")
_NUM_TRIED = 4  # samples


def load(spec: str, data: str | None) -> Task:
    """Import a function `build_task(data: str | None) -> Task`, call it, and check what it returns.

    The current directory counts as importable, as for `python -m`. What the function itself raises is passed on.

    Args:
        spec: "package.module:function".
        data: for the function.

    Raises:
        ConfigError: no such module or function, or what it returns is not a task.
        DataError, ShapeError: see `check`.
    """
    return check(plugins.load(f"task {spec!r}", spec)(data), spec)


def check(task: Any, spec: str) -> Task:
    """Return the task, once it was found to keep the contract: complete, and with one loss for each sample.

    A new model sees a few samples of either set, once; torch's random generator is put back afterwards.

    Args:
        task: to check.
        spec: what messages call it.

    Raises:
        ConfigError: something is missing, or of the wrong type; the losses have no gradient.
        DataError: a set is empty, its batches do not have the samples that were asked for, or labels do not fit, each
            other or the width of the logits.
        ShapeError: the losses, signals or metric of a batch are not one for each sample.
    """
    missing = [name for name in _VALUES if not hasattr(task, name)]
    missing += [f"{name}()" for name in _METHODS if not callable(getattr(task, name, None))]
    if missing:
        raise errors.ConfigError(
            f"task {spec!r} returned a {type(task).__name__} without {', '.join(missing)}: "
            "tasks.supervised.Classification and Regression have all that a task needs"
        )
    if not isinstance(task.defaults, TaskDefaults):
        raise errors.ConfigError(
            f"task {spec!r}: defaults must be a TaskDefaults of es_service.training.tasks.base, "
            f"got {type(task.defaults).__name__}"
        )
    if (task.labels is None) != (task.held_out_labels is None):
        raise errors.ConfigError(f"task {spec!r}: labels and held_out_labels must both be there, or both be None")
    metric_name(task)
    try:
        for part, labels_n in (("train_set", task.labels), ("held_out", task.held_out_labels)):
            _check_samples(part, getattr(task, part))
            if labels_n is not None:
                check_labels(part, labels_n, len(getattr(task, part)), task.label_names)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            _check_outputs(task)
    except errors.EsServiceError as error:
        raise type(error)(f"task {spec!r}: {error}") from error
    return cast("Task", task)


def _check_samples(part: str, samples: Any) -> None:
    for name in ("__len__", "__getitems__"):
        if not callable(getattr(samples, name, None)):
            raise errors.ConfigError(
                f"its {part} has no {name}: it must say how many samples there are, and return the batch of a list of "
                "ids; tasks.supervised.TensorSet does"
            )
    if len(samples) == 0:
        raise errors.DataError(f"its {part} is empty")


def _few(samples: Any, labels_n: Any) -> list[int]:
    """Return ids to try: the last ones, which may not be there, and those of the lowest and the highest label."""
    extremes = [] if labels_n is None else [int(labels_n.argmin()), int(labels_n.argmax())]
    last = reversed(range(len(samples))[-_NUM_TRIED:])
    return sorted(list(dict.fromkeys([*extremes, *last]))[:_NUM_TRIED])


def _check_outputs(task: Any) -> None:
    model = task.build_model()
    if not isinstance(model, torch.nn.Module):
        raise errors.ConfigError(f"build_model must return a torch.nn.Module, got {type(model).__name__}")
    model.eval()  # a few samples are too few for the statistics of a BatchNorm
    for part, labels_n in (("train_set", task.labels), ("held_out", task.held_out_labels)):
        ids = _few(getattr(task, part), labels_n)
        try:
            batch = getattr(task, part).__getitems__(ids)
        except IndexError as error:
            raise errors.DataError(
                f"its {part} says it has {ids[-1] + 1} samples, but not id {ids[-1]}: {error}"
            ) from error
        if batches.batch_length(batch) != len(ids):
            raise errors.DataError(
                f"its {part} returned a batch of {batches.batch_length(batch)} samples for {len(ids)} ids"
            )
        augment = getattr(task, "augment", None) if part == "train_set" else None
        if augment is not None:
            batch = augment(batch, np.array(ids), 0, 0)
            if batches.batch_length(batch) != len(ids):
                raise errors.DataError(
                    f"its augment returned a batch of {batches.batch_length(batch)} samples for {len(ids)}"
                )
        outputs = model(task.inputs(batch))
        if isinstance(task, Classification):
            task.check_logits(outputs)
        try:
            values = task.losses(outputs, batch)
        except IndexError as error:  # what torch raises for a label that is not a class
            labels = "" if labels_n is None else f" with the labels {labels_n[ids].tolist()}"
            raise errors.DataError(
                f"its losses failed for samples {ids} of the {part}{labels}, whose outputs have the shape "
                f"{list(getattr(outputs, 'shape', ()))}: {error}"
            ) from error
        losses.check_per_sample(values, len(ids))
        if not values.requires_grad:
            raise errors.ConfigError("its losses have no gradient: do not detach them, and do not use no_grad")
        _check_each("metric", task.metric(outputs, batch), len(ids))
        if getattr(task, "statistics", None) is not None:
            check_statistics(task.statistics(outputs, batch), len(ids))
        signals = task.signals(outputs, batch)
        if not isinstance(signals, dict) or not set(signals) <= set(_SIGNALS):
            raise errors.ConfigError(
                f"signals must return a dict with any of {', '.join(_SIGNALS)}, got "
                f"{list(signals) if isinstance(signals, dict) else type(signals).__name__}"
            )
        for name, value in signals.items():
            _check_each(f"signal {name!r}", value, len(ids))


def _check_each(name: str, value: Any, num: int) -> None:
    if not isinstance(value, torch.Tensor) or value.shape != (num,):
        found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise errors.ShapeError(f"its {name} must be a tensor with one value for each of {num} samples, got {found}")

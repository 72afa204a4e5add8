"""Metrics of a classification that are no mean over samples: they follow from how often each class was predicted.

Reference: Gorodkin, *Comparing two K-category assignments by a K-category correlation coefficient*, Computational
Biology and Chemistry 28, 2004, for Matthews' correlation of more than two classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.settings import suggest

__all__ = ["METRICS", "check_metric", "counts", "f1", "matthews"]


def counts(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    """Return float32[B, 3C] of logits float[B, C]: is the sample rightly predicted as, predicted as, of each class."""
    num_classes = outputs.shape[1]
    predicted, true = (F.one_hot(classes, num_classes) for classes in (outputs.argmax(dim=1), batch[1]))
    return torch.cat([predicted * true, predicted, true], dim=1).float()


def matthews(sums: Any, num: int) -> float:
    """Return Matthews' correlation in [-1, 1] from the sums of `counts` over `num` samples; 0 where it is undefined.

    It is undefined where all samples, or all predictions, are of one class.
    """
    right, predicted, true = _by_class(sums)
    spread = (num**2 - predicted @ predicted) * (num**2 - true @ true)
    return float((num * right.sum() - predicted @ true) / math.sqrt(spread)) if spread > 0 else 0.0


def f1(sums: Any, _: int) -> float:
    """Return F1 in [0, 1]: of class 1 where there are two, else the mean over the classes that occur (macro)."""
    right, predicted, true = _by_class(sums)
    occurring = predicted + true > 0
    each = 2 * right / np.where(occurring, predicted + true, 1.0)
    return float(each[1] if each.size == 2 else each[occurring].mean())


METRICS: Mapping[str, Callable[[Any, int], float]] = MappingProxyType({"matthews": matthews, "f1": f1})
"""Name -> function of the sums of `counts` and the number of samples."""


def check_metric(name: str | None) -> str:
    """Return the name of a classification's metric, "accuracy" for None; ConfigError where there is none of it."""
    known = ("accuracy", *METRICS)
    if name is not None and name not in known:
        raise errors.ConfigError(f"--metric {name!r}: {suggest(name, known)}")
    return name or "accuracy"


def _by_class(sums: Any) -> NDArray[np.float64]:
    return np.asarray(sums, dtype=np.float64).reshape(3, -1)

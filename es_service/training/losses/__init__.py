"""Per-sample losses: one number for each sample of a batch, which selection needs and a mean does not have.

All compute in float32, whatever the dtype of the model, and are differentiable. The mean over the batch is the usual
loss, but where their text says otherwise.
"""

from __future__ import annotations

from es_service.training.losses.checks import check_outputs, check_per_sample
from es_service.training.losses.classification import IGNORE_INDEX, binary_cross_entropy, cross_entropy
from es_service.training.losses.ranking import bpr, in_batch_contrastive, pairwise_margin
from es_service.training.losses.regression import absolute_error, huber, residuals, squared_error
from es_service.training.losses.tokens import num_tokens, token_cross_entropy

__all__ = [
    "IGNORE_INDEX",
    "absolute_error",
    "binary_cross_entropy",
    "bpr",
    "check_outputs",
    "check_per_sample",
    "cross_entropy",
    "huber",
    "in_batch_contrastive",
    "num_tokens",
    "pairwise_margin",
    "residuals",
    "squared_error",
    "token_cross_entropy",
]

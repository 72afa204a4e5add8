"""Signals: what training can report of a sample."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["SIGNALS", "WeightSignal"]

SIGNALS = ("loss", "correct", "confidence", "grad_norm", "irreducible_loss")
"""Names, in the order in which a message carries them; a report has the loss and whatever the method asks for.

    loss              what is minimised
    correct           1 where the prediction is right, 0 where it is wrong
    confidence        the largest class probability, in [0, 1]
    grad_norm         upper bound of the norm of the loss's gradient (Katharopoulos & Fleuret, arXiv 1803.00942)
    irreducible_loss  loss of a model that has learnt all there is to learn; it does not change during a run
"""

WeightSignal: TypeAlias = Literal["loss", "grad_norm"]

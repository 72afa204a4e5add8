"""Ordered SGD: always the samples with the largest losses.

Reference: Kawaguchi & Lu, *Ordered SGD: A New Stochastic Optimization Framework for Empirical Risk Minimization*,
arXiv 1907.04371.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from es_service.selection import reductions
from es_service.selection.methods.base import LastValue
from es_service.selection.plans import Plan, Prospect
from es_service.selection.reductions import Agreed
from es_service.selection.settings import make_plain

__all__ = ["Ordered", "ordered"]

_STAGES = ((0.995, 1 / 16), (0.95, 1 / 8), (0.90, 1 / 4), (0.80, 1 / 2))  # train accuracy of at least, q/s


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ordered(LastValue):
    """The q largest losses of s; make it with `ordered()`."""

    name: ClassVar[str] = "ordered"
    observes: ClassVar[tuple[str, ...]] = ("correct",)
    columns: ClassVar[tuple[str, ...]] = ("correct",)
    adaptive: bool = True

    def __post_init__(self) -> None:
        make_plain(self)

    def plan(self, prospect: Prospect) -> Agreed[Plan]:
        """Return the usual plan, with the share q/s that the train accuracy of the last predictions calls for."""
        plan = yield from prospect.pruned_by(self.pruning_column())
        if not self.adaptive:
            return plan
        correct = prospect.column("correct")
        [num_correct, num_known] = yield from reductions.count(correct > 0, ~np.isnan(correct))
        accuracy = num_correct / num_known if num_known else 0.0
        ratio = next((share for least, share in _STAGES if accuracy >= least), 1.0)
        return dataclasses.replace(plan, ratio=ratio)


def ordered(*, adaptive: bool = True) -> Ordered:
    """Train on the q largest losses of a meta-batch of s: the gradient of their mean. Goes with `draw="topk"`.

    Args:
        adaptive: q as published: s, s/2, s/4, s/8, s/16 as the train accuracy passes 80, 90, 95 and 99.5 %, looked at
            when an epoch opens; `Selection.ratio` is then ignored. False: q = ⌈ratio·s⌉ throughout.

    The train accuracy is that of each sample's last prediction, so the signal `correct` has to be reported. As
    published the q are found in the forward pass that is then back-propagated; here scoring is a pass of its own.

    Reference: Kawaguchi & Lu, arXiv 1907.04371.
    """
    return Ordered(adaptive=adaptive)

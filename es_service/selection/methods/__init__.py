"""Methods, one file per family; what users reach as `es.methods`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from es_service.selection.methods.active_bias import prediction_variance, threshold_closeness
from es_service.selection.methods.auto import auto
from es_service.selection.methods.bandit import epsilon_greedy, ucb
from es_service.selection.methods.base import Method
from es_service.selection.methods.evolved import ema, evolved, loss
from es_service.selection.methods.infobatch import infobatch
from es_service.selection.methods.kakurenbo import kakurenbo
from es_service.selection.methods.ordered import ordered
from es_service.selection.methods.rho import rho
from es_service.selection.methods.selective_backprop import selective_backprop
from es_service.selection.methods.uniform import full, random, random_subset

__all__ = [
    "METHODS",
    "Method",
    "auto",
    "ema",
    "epsilon_greedy",
    "evolved",
    "full",
    "infobatch",
    "kakurenbo",
    "loss",
    "ordered",
    "prediction_variance",
    "random",
    "random_subset",
    "rho",
    "selective_backprop",
    "threshold_closeness",
    "ucb",
]

METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        "full": full,
        "random": random,
        "random_subset": random_subset,
        "loss": loss,
        "auto": auto,
        "ema": ema,
        "evolved": evolved,
        "ordered": ordered,
        "selective_backprop": selective_backprop,
        "infobatch": infobatch,
        "kakurenbo": kakurenbo,
        "ucb": ucb,
        "epsilon_greedy": epsilon_greedy,
        "rho": rho,
        "threshold_closeness": threshold_closeness,
        "prediction_variance": prediction_variance,
    }
)
"""Factories by `Method.name`, for settings that come from a file or a command line."""

"""Short names of the built-in methods, with the settings that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["ALIASES", "PRESETS"]

PRESETS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "full": ("full", {}),
        "random": ("random", {}),
        "random_subset": ("random_subset", {"prune_ratio": 0.5, "anneal": (0.0, 0.0)}),
        "loss": ("loss", {}),
        "importance": (
            "loss",
            {"ratio": 0.3333, "signal": "grad_norm", "draw": "replacement", "reweight": "unbiased"},
        ),
        "ema": ("ema", {}),
        "es": ("evolved", {"beta1": 0.2, "beta2": 0.9}),
        "auto": ("auto", {"anneal": (0.0, 0.0)}),
        "eswp": ("evolved", {"beta1": 0.2, "beta2": 0.8, "prune_ratio": 0.2}),
        "ordered": ("ordered", {"draw": "topk", "anneal": (0.0, 0.0)}),
        "selective_backprop": ("selective_backprop", {"draw": "systematic", "anneal": (0.0, 0.0)}),
        "selective_backprop_composer": (
            "selective_backprop",
            {"beta": 1.0, "history": 0, "ratio": 0.5, "anneal": (0.5, 0.1), "interrupt": 2},
        ),
        "infobatch": ("infobatch", {"anneal": (0.0, 0.125)}),
        "kakurenbo": ("kakurenbo", {"anneal": (0.0, 0.0)}),
        "ucb": ("ucb", {"prune_ratio": 0.3, "anneal": (0.0, 0.0)}),
        "epsilon_greedy": ("epsilon_greedy", {"prune_ratio": 0.3, "anneal": (0.0, 0.0)}),
        "threshold_closeness": ("threshold_closeness", {}),
        "prediction_variance": ("prediction_variance", {}),
        "rho": ("rho", {"ratio": 0.1, "draw": "topk", "anneal": (0.0, 0.0)}),
    }
)
"""What a command line calls a method: (name in METHODS, settings that differ from the defaults)."""

ALIASES: Mapping[str, str] = MappingProxyType({"evolved": "es"})
"""Names in METHODS that no preset has -> the preset of the same settings."""

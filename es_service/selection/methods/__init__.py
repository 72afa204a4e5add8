"""Methods, one file per family; what users reach as `es.methods`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from es_service.selection.methods.base import Method
from es_service.selection.methods.evolved import ema, evolved, loss
from es_service.selection.methods.uniform import full, random

__all__ = ["METHODS", "Method", "ema", "evolved", "full", "loss", "random"]

METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {"full": full, "random": random, "loss": loss, "ema": ema, "evolved": evolved}
)
"""Factories by `Method.name`, for settings that come from a file or a command line."""

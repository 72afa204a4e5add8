"""Weights & Biases: log `selector.metrics()` to a run.

run = wandb.init()
...
es.integrations.wandb.log(selector)         # in the loop, on rank 0, every so many steps
"""

from __future__ import annotations

import weakref
from typing import Any

from es_service import errors
from es_service.selector import Selector

try:
    import wandb
except ImportError as error:
    raise errors.ConfigError(f"logging to Weights & Biases needs its package: pip install wandb ({error})") from error

__all__ = ["log"]

_DEFINED: weakref.WeakSet[Any] = weakref.WeakSet()  # runs that know the axis of our metrics


def log(selector: Selector, run: Any = None, *, step: int | None = None) -> None:
    """Log the metrics of now. Their charts have the selector's own step as x axis, whatever W&B counts.

    Args:
        selector: see `Selector.metrics`.
        run: what `wandb.init()` returned; the active run by default.
        step: of W&B, as in `run.log`; by default W&B counts its own.

    Raises:
        ConfigError: no run is active.
    """
    run = wandb.run if run is None else run
    if run is None:
        raise errors.ConfigError("no W&B run is active: call wandb.init() first, or pass run=")
    if run not in _DEFINED:
        run.define_metric("selection/*", step_metric="selection/step")
        _DEFINED.add(run)
    run.log(selector.metrics(), step=step)

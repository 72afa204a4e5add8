"""Whether a loop of Accelerate that accumulates gradients sees the end of an epoch. Nothing is imported to find out."""

from __future__ import annotations

import sys

from es_service import errors

__all__ = ["check_accumulation"]


def check_accumulation() -> None:
    """Raise ConfigError where `accelerator.accumulate` is to count steps, and no loader shows it where they end."""
    state = sys.modules.get("accelerate.state")
    if state is None:
        return
    gradients = state.GradientState()
    if gradients.num_steps > 1 and gradients.sync_with_dataloader and not gradients.in_dataloader:
        raise errors.ConfigError(
            f"Accelerate accumulates the gradients of {gradients.num_steps} steps, but cannot see where an epoch of "
            "this loader ends (accelerator.prepare returns such a loader as it is): iterate "
            "es.integrations.accelerate.prepare(accelerator, loader) instead"
        )

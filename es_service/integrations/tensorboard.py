"""TensorBoard: write `selector.metrics()` as scalars.

writer = SummaryWriter("logs")
...
tensorboard.log(selector, writer)       # in the loop, on rank 0, every so many steps
"""

from __future__ import annotations

from typing import Any

from es_service import errors
from es_service.selector import Selector

__all__ = ["log"]


def log(selector: Selector, writer: Any, *, step: int | None = None) -> None:
    """Write the metrics of now.

    Args:
        selector: see `Selector.metrics`.
        writer: a SummaryWriter, of torch.utils.tensorboard or tensorboardX.
        step: where on the axis; the selector's own step by default, which counts over all epochs.

    Raises:
        ConfigError: the writer has no `add_scalar`.
    """
    if not hasattr(writer, "add_scalar"):
        raise errors.ConfigError(
            f"writer={writer!r} has no add_scalar: pass a torch.utils.tensorboard.SummaryWriter, which needs "
            "TensorBoard (pip install tensorboard)"
        )
    found = selector.metrics()
    at = int(found.get("selection/step", 0)) if step is None else step
    for name, value in found.items():
        writer.add_scalar(name, value, at)

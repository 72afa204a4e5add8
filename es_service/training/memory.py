"""Peak memory of a worker."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

__all__ = ["peak_memory", "reset_peak"]


def reset_peak(device: torch.device) -> None:
    """Reset the peak of a CUDA device; that of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Return {"peak_bytes", "kind"}: of kind "cuda" what tensors took on the device, of "rss" what this process took.

    The peak of the process is that since its start, whatever ran in it before.
    """
    if device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated(device), "kind": "cuda"}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "kind": "rss"}

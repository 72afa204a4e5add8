"""How the pictures of all benchmarks look; for `plt.rc_context(STYLE)`."""

from __future__ import annotations

from typing import Any

__all__ = ["INK", "STYLE"]

INK = "#222222"
STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}

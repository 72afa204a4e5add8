"""Flags that say what is trained on: the task, its data, and what to make of its train set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["DEFAULT_TASK", "DERIVED", "add_task_flags", "derived_settings"]

DEFAULT_TASK = "fashion"
DERIVED: Mapping[str, type] = {"label_noise": float, "long_tail": float, "shots": int, "limit": int}
"""Settings of `training.tasks.derived.Derived` that have a flag, and what they are."""


def add_task_flags(flag: Callable[..., Any]) -> None:
    """Add the flags to a parser whose `add_argument` this is."""
    flag("--task", help="fashion, reviews, flights, or your own my_module:build_task (default: fashion)")
    flag("--data", metavar="DIR", help="where the task's data are (default: the data that comes with a package)")
    flag("--label-noise", type=float, metavar="SHARE", help="give this share of the samples a wrong label")
    flag(
        "--long-tail",
        type=float,
        metavar="SHARE",
        help="thin the classes out: the rarest keeps this share of the largest",
    )
    flag("--shots", type=int, metavar="K", help="keep K samples per class")
    flag("--limit", type=int, metavar="N", help="keep N samples")


def derived_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `Derived` that were given."""
    return {name: values[name] for name in DERIVED if values.get(name) is not None}

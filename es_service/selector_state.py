"""What a checkpoint keeps of a Selector, as plain values and one bytes object with the table; and its restore.

A digest of all of it goes along. States of format 2 have none: there the table's columns, ids and length are checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from es_service import errors
from es_service.exchange.base import SavedState
from es_service.ledger import Ledger
from es_service.selection.run import RunConfig, Share
from es_service.selection.settings import as_integer
from es_service.storage import runs, sealed

__all__ = ["FORMAT", "state_from_dict", "state_to_dict"]

FORMAT = 3
_READABLE = (2, 3)  # 2: without a digest


def state_to_dict(config: RunConfig, saved: SavedState, step: int, ledger: Ledger) -> dict[str, Any]:
    """Return a state as plain values.

    Args:
        config: of the run.
        saved: what the exchange knows.
        step: of the open epoch, to continue with; 0 where none is open.
        ledger: as it was at that step.
    """
    values = {
        "format": FORMAT,
        "config": runs.config_to_dict(config),
        "finished_epochs": saved.finished_epochs,
        "epoch_starts": list(saved.epoch_starts),
        "table": saved.table,
        "share": None if saved.share is None else _share_to_dict(saved.share),
        "step": step,
        "ledger": ledger.to_dict(),
    }
    return {**values, "sha256": _digest(values)}


def _digest(state: Mapping[str, Any]) -> str:
    return sealed.digest({name: value for name, value in state.items() if name != "table"}, state["table"])


def state_from_dict(state: dict[str, Any], config: RunConfig) -> tuple[SavedState, int, Ledger]:
    """Return (saved, step, ledger) of `state_to_dict`'s values.

    Raises:
        RunMismatchError: the state is of a run with another config.
        StorageError: it is damaged, or of another version.
    """
    if not isinstance(state, Mapping):
        raise errors.StorageError(
            f"the selector state is of type {type(state).__name__}: give load_state_dict what state_dict returned"
        )
    found = state.get("format")
    if not isinstance(found, int) or found not in _READABLE:
        raise errors.StorageError(f"the selector state has format {found!r}, this version reads {FORMAT}")
    try:
        if not isinstance(state["table"], bytes):
            raise TypeError(f"its table is of type {type(state['table']).__name__}, expected bytes")
        if (found >= FORMAT or "sha256" in state) and state["sha256"] != _digest(state):
            raise ValueError("its sha256 is not the one noted in it")
        config_then = runs.config_from_dict(state["config"])
        share = None if state["share"] is None else _share_from_dict(state["share"])
        finished, starts = as_integer("finished_epochs", state["finished_epochs"], least=0), state["epoch_starts"]
        starts = tuple(as_integer("epoch_starts", start, least=0) for start in starts)
        if list(starts) != sorted(starts):
            raise ValueError(f"its epochs begin at {starts}, which do not rise")
        saved = SavedState(finished, starts, state["table"], share)
        step, ledger = as_integer("step", state["step"], least=0), Ledger.from_dict(state["ledger"])
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise errors.StorageError(f"the selector state is damaged: {error!r}") from error
    runs.check_same("in the checkpoint", config_then, config)
    return saved, step, ledger


def _share_to_dict(share: Share) -> dict[str, Any]:
    values = {field.name: getattr(share, field.name) for field in dataclasses.fields(share)}
    return {name: one.tolist() if isinstance(one, np.ndarray) else one for name, one in values.items()}


def _share_from_dict(values: dict[str, Any]) -> Share:
    arrays = {name: np.asarray(values[name], dtype=np.int64) for name in ("ids", "hidden")}
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        scale = None if values["scale"] is None else np.asarray(values["scale"], dtype=np.float32)
    if scale is not None and not np.isfinite(scale).all():
        raise ValueError("a scale that is not finite")
    return Share(**{**values, **arrays, "scale": scale})

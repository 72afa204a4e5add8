"""What a checkpoint keeps of a Selector, as plain values and one bytes object with the table; and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np

from es_service import errors
from es_service.exchange.base import SavedState
from es_service.ledger import Ledger
from es_service.selection.run import RunConfig, Share
from es_service.storage import runs

__all__ = ["FORMAT", "state_from_dict", "state_to_dict"]

FORMAT = 2


def state_to_dict(config: RunConfig, saved: SavedState, step: int, ledger: Ledger) -> dict[str, Any]:
    """Return a state as plain values.

    Args:
        config: of the run.
        saved: what the exchange knows.
        step: of the open epoch, to go on with; 0 where none is open.
        ledger: as it was at that step.
    """
    return {
        "format": FORMAT,
        "config": runs.config_to_dict(config),
        "finished_epochs": saved.finished_epochs,
        "epoch_starts": list(saved.epoch_starts),
        "table": saved.table,
        "share": None if saved.share is None else _share_to_dict(saved.share),
        "step": step,
        "ledger": ledger.to_dict(),
    }


def state_from_dict(state: dict[str, Any], config: RunConfig) -> tuple[SavedState, int, Ledger]:
    """Return (saved, step, ledger) of `state_to_dict`'s values.

    Raises:
        RunMismatchError: the state is of a run with another config.
        StorageError: it is damaged, or of another version.
    """
    if state.get("format") != FORMAT:
        raise errors.StorageError(f"the selector state has format {state.get('format')!r}, this version reads {FORMAT}")
    try:
        runs.check_same("in the checkpoint", runs.config_from_dict(state["config"]), config)
        share = None if state["share"] is None else _share_from_dict(state["share"])
        saved = SavedState(state["finished_epochs"], tuple(state["epoch_starts"]), state["table"], share)
        return saved, int(state["step"]), Ledger.from_dict(state["ledger"])
    except (KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"the selector state is damaged: {error!r}") from error


def _share_to_dict(share: Share) -> dict[str, Any]:
    return {
        "ids": share.ids.tolist(),
        "first_step": share.first_step,
        "scale": None if share.scale is None else share.scale.tolist(),
        "ratio": share.ratio,
        "hidden": share.hidden.tolist(),
        "learning_rate_factor": share.learning_rate_factor,
    }


def _share_from_dict(values: dict[str, Any]) -> Share:
    arrays = {name: np.asarray(values[name], dtype=np.int64) for name in ("ids", "hidden")}
    scale = None if values["scale"] is None else np.asarray(values["scale"], dtype=np.float32)
    return Share(**{**values, **arrays, "scale": scale})

"""What a checkpoint keeps of a Selector, as plain values and one bytes object with the table; and its restore.

A digest of all of it goes along. States of format 2 have none: there the table's columns, ids and length are checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from es_service import errors
from es_service.epoch import Epoch
from es_service.exchange.base import Exchange, SavedState
from es_service.ledger import Ledger
from es_service.run_view import RunView
from es_service.selection import decisions
from es_service.selection.past import BEGINNING, Past
from es_service.selection.run import RunConfig, Share
from es_service.selection.settings import as_integer
from es_service.storage import runs, sealed

__all__ = ["FORMAT", "Restorable", "state_from_dict", "state_to_dict"]

FORMAT = 3
_READABLE = (2, 3)  # 2: without a digest


class Restorable(RunView):
    """A rank's place in its run, which a checkpoint can hold, and its ledger.

    Args:
        config: of the run.
        exchange: how to reach the score table.
        ledger: to count in.
    """

    def __init__(self, config: RunConfig, exchange: Exchange, ledger: Ledger) -> None:
        super().__init__(config, exchange, ledger)
        self._resume_step = 0  # of the epoch that is opened next
        self._is_placed = False  # by a state that was loaded, or a reset

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: numbers, strings, lists and one bytes object with the table.

        In-process at any step; over Ray between two epochs, when every rank has closed the last one. Behind an epoch's
        last step it is at the next epoch, whether or not the loop asked for what follows.

        Raises:
            EpochOrderError: over Ray, inside an epoch; anywhere, while `hidden_batches` are under way.
            StorageError, ServerError: the epoch could not be closed behind its last step.
        """
        here = self._here
        if here is not None:
            here.settle_part()
            here.raise_held()
            _check_savable(here)
        saved = self.exchange.save()
        ledger = self.ledger.copy()
        step = self._resume_step if here is None else 0 if saved.share is None else here.position(ledger)
        return state_to_dict(self.config, saved, step, ledger)

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Continue from `state_dict`'s return; every rank calls it. Return the epoch to continue with.

        Raises:
            RunMismatchError: the state is of a run with another config.
            StorageError: it is damaged, or of another version.
        """
        saved, step, ledger = state_from_dict(state, self.config)
        self.exchange.load(saved)
        self._stand_before(ledger.counting_as(self.ledger), step)
        return saved.finished_epochs

    def reset(self) -> None:
        """Forget every observation and stand before epoch 0; every rank calls it."""
        self.exchange.reset()
        self._stand_before(Ledger(backward_cost=self.ledger.backward_cost).counting_as(self.ledger), 0)

    def _stand_before(self, ledger: Ledger, step: int) -> None:
        """Stand before an epoch, or before a step of it."""
        self.ledger, self._resume_step, self._is_placed = ledger, step, True
        self._here = None

    def _count_on_from(self, epoch: int) -> None:
        """Take over this rank's share of what the run spent before an epoch, where another process made that."""
        if epoch and self._here is None and not self._is_placed:
            spent, position = self.exchange.spent(epoch - 1), self.exchange.position
            if spent is not None:
                self.ledger = spent.share(position.rank, position.world_size).counting_as(self.ledger)


def _check_savable(here: Epoch) -> None:
    """Raise EpochOrderError where an epoch cannot be resumed from the point it is at."""
    if here.is_closed:
        return
    if here.awaits_hidden:
        raise errors.EpochOrderError(
            f"what epoch {here.number} hid is being observed: take the state before the epoch's last step or "
            "after selector.hidden_batches()"
        )
    if here.streamed:
        raise errors.EpochOrderError(
            f"epoch {here.number} is a stream, which cannot be continued in its middle: take the state between "
            "epochs; after training on its last batch, call selector.finish_epoch() first"
        )


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
        "past": saved.past.to_dict(),
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
        past = Past.from_dict(state["past"]) if "past" in state else BEGINNING
        saved = SavedState(finished, starts, state["table"], share, past)
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
    stale = values["staleness"]
    staleness = None if stale is None else np.asarray(stale, dtype=np.uint8)
    if staleness is not None and staleness.shape != arrays["ids"].shape:
        raise ValueError("a staleness that is not one per id")
    decision = decisions.checked(values["decision"])
    return Share(**{**values, **arrays, "scale": scale, "staleness": staleness, "decision": decision})

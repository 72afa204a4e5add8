"""How far a run is: the ledger at each epoch's end, and what its user measured.

<storage>/<run>/progress.json   epoch, done, num_epochs, samples, seconds, saving: as they are now
                                history: the same at the end of every epoch, with what was measured and decided then
                                measured: by epoch, what belongs to epochs that are not over

Training does not depend on it: where it cannot be read or written, that is logged, and the next write has all of it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pyarrow import fs

from es_service import errors
from es_service.ledger import Ledger
from es_service.selection import decisions
from es_service.selection.settings import as_number
from es_service.storage import files
from es_service.storage.plain import plain

__all__ = ["SHOWN", "Progress", "check_measured"]

_log = logging.getLogger(__name__)
SHOWN = ("accuracy", "balanced_accuracy", "held_out_loss", "train_loss")
"""Measures that have a field of their own; all others are in `metrics`."""
_RENAMED = {"loss": "held_out_loss"}
_MOST_METRICS, _MOST_CHARACTERS = 100, 100


def check_measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what a user measured as finite floats, `loss` as `held_out_loss`.

    Raises:
        ConfigError: a name that cannot be shown, a value that is no finite number, or more than 100 of them.
    """
    if len(metrics) > _MOST_METRICS:
        raise errors.ConfigError(f"log takes at most {_MOST_METRICS} metrics, got {len(metrics)}")
    found = {}
    for name, value in metrics.items():
        if not 0 < len(name) <= _MOST_CHARACTERS or not name.isprintable():
            raise errors.ConfigError(
                f"the name of a metric is 1 to {_MOST_CHARACTERS} printable characters, got {name!r}"
            )
        if not isinstance(value, np.generic) and hasattr(value, "item"):  # an array or tensor with one element
            try:
                value = value.item()
            except (RuntimeError, TypeError, ValueError) as error:
                raise errors.ConfigError(f"{name} must be one number: {error}") from error
        number = as_number(name, value)
        if not math.isfinite(number):
            raise errors.ConfigError(f"{name} must be finite, got {number}")
        found[_RENAMED.get(name, name)] = number
    return found


class Progress:
    """The file in a run's folder, and what it is made of; safe to use from many threads.

    Args:
        filesystem: of the storage.
        run_path: of the run's folder.
        num_epochs: returns E.
    """

    def __init__(self, filesystem: fs.FileSystem, run_path: str, num_epochs: Callable[[], int]) -> None:
        self._filesystem, self._path, self._num_epochs = filesystem, f"{run_path}/progress.json", num_epochs
        self._lock = threading.RLock()
        self._is_read = False
        self._ledgers: dict[int, dict[str, Any]] = {}  # of the whole run, by epoch, as the file has them
        self._measured: dict[int, dict[str, float]] = {}
        self._live: dict[str, Any] | None = None  # of the open epoch

    def _read(self) -> None:
        """Take up what the file holds, once."""
        if self._is_read:
            return
        self._is_read = True
        try:
            if files.is_file(self._filesystem, self._path):
                self._take_up(plain(files.read_json(self._filesystem, self._path)))
        except (errors.StorageError, AttributeError, KeyError, TypeError, ValueError) as error:
            _log.warning("what was kept in %s cannot be used: %r", self._path, error)

    def _take_up(self, values: dict[str, Any]) -> None:
        entries = {int(one["epoch"]): one for one in values.get("history", ())}
        ledgers = {
            epoch: _entry(Ledger.from_dict(one["ledger"]), _decision(one.get("decision")))
            for epoch, one in entries.items()
        }
        measured = {
            epoch: {**{name: one[name] for name in SHOWN if one[name] is not None}, **(one.get("metrics") or {})}
            for epoch, one in entries.items()
        }
        measured |= {int(epoch): dict(one) for epoch, one in values.get("measured", {}).items()}
        self._ledgers, self._measured = ledgers, measured

    # -- what changes it -----------------------------------------------------------------------------------------------

    def finish(self, epoch: int, ledgers: Sequence[Ledger], decision: Mapping[str, Any] | None = None) -> None:
        """Take all ranks' ledgers at an epoch's end, or later ones of the same end, and what decided the epoch."""
        with self._lock:
            self._read()
            self._ledgers[epoch] = _entry(Ledger.merge(list(ledgers)), decision)

    def show(self, epoch: int, done: float, ledger: Ledger, world_size: int) -> None:
        """Take how far one rank is in the open epoch: the others make the same steps with as many samples."""
        with self._lock:
            self._live = {"epoch": epoch, "done": done, **_figures(Ledger.merge([ledger] * world_size))}

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """Take what was measured in an epoch or at its end, see `check_measured`."""
        with self._lock:
            self._read()
            self._measured[epoch] = {**self._measured.get(epoch, {}), **measured}

    def drop_from(self, epoch: int) -> None:
        """Drop what is of this epoch and later ones: the run went back to its start."""
        with self._lock:
            self._read()
            later = {one for one in (*self._ledgers, *self._measured) if one >= epoch}
            for one in later:
                self._ledgers.pop(one, None)
                self._measured.pop(one, None)
            self._live = None
            if later:
                self.write()

    def write(self) -> None:
        """Write the file; where that fails it is logged."""
        with self._lock:  # while it is written, too: the last write has the last state
            try:
                known = self.to_dict()
                if known:
                    known["measured"] = {
                        str(epoch): one for epoch, one in self._measured.items() if epoch not in self._ledgers
                    }
                files.write_json(self._filesystem, self._path, known, indent=None)
            except errors.StorageError as error:
                _log.warning("the ledger of the run is not on storage: %s", error)

    # -- what it shows -------------------------------------------------------------------------------------------------

    def spent(self, epoch: int) -> Ledger | None:
        """Return the run's ledger at the end of an epoch, None where it is not known."""
        with self._lock:
            self._read()
            return Ledger.from_dict(self._ledgers[epoch]["ledger"]) if epoch in self._ledgers else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, see the module's text; {} where nothing is known."""
        with self._lock:
            self._read()
            last, now = max(self._ledgers, default=-1), self._live
            if not (self._ledgers or self._measured or now):
                return {}
            if now is None or now["epoch"] <= last:
                ledger = Ledger() if last < 0 else Ledger.from_dict(self._ledgers[last]["ledger"])
                now = {"epoch": max(0, last), "done": float(last >= 0), **_figures(ledger)}
            history = [
                {"epoch": epoch, **_places(self._measured.get(epoch, {})), **self._ledgers[epoch]}
                for epoch in sorted(self._ledgers)
            ]
            return {**now, "num_epochs": self._num_epochs(), "history": history}


def _places(measured: Mapping[str, float]) -> dict[str, Any]:
    further = {name: value for name, value in measured.items() if name not in SHOWN}
    return {**{name: measured.get(name) for name in SHOWN}, "metrics": further}


def _entry(ledger: Ledger, decision: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "scored": ledger.scored,
        "trained": ledger.trained,
        "seconds": ledger.total_s,
        "saving": ledger.saving(),
        "decision": decision,
        "ledger": ledger.to_dict(),
    }


def _decision(found: Any) -> dict[str, Any] | None:
    """Return a decision as the file has it, None where it is damaged: the rest of its epoch is of use without."""
    try:
        return decisions.checked(found)
    except (KeyError, ValueError) as error:
        _log.warning("a decision in the progress of a run cannot be used: %s", error)
        return None


def _figures(ledger: Ledger) -> dict[str, Any]:
    return {
        "samples": {"scored": ledger.scored, "trained": ledger.trained, "full": ledger.full},
        "tokens": ledger.token_counts(),
        "backward_cost": ledger.backward_cost,
        "seconds": {"total": ledger.total_s, **ledger.seconds},
        "saving": ledger.saving(),
    }

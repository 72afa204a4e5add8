"""What a run keeps of its samples for its dashboard: their labels, and how they look or read.

The dashboard runs in another process and cannot call a user's function. So rank 0 does, in the thread that trains,
behind the end of an epoch: first for the samples that the dashboard lists first, then for all in order, if all of them
fit into the run's folder (64 MiB, 100,000 samples; see `storage.previews`). It takes 2 s at most behind the first
epoch, and then 0.2 s, or a twentieth of the epoch up to 2 s; what is left is done behind the next one. Where not all of
them fit, the oldest give way to the newest.
"""

from __future__ import annotations

import functools
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from es_service import errors
from es_service.exchange.base import Exchange
from es_service.storage import labels as sample_notes
from es_service.storage.plain import printable
from es_service.storage.png import encode_png
from es_service.storage.previews import (
    FILE_BYTES,
    MOST_BYTES,
    MOST_CHARACTERS,
    MOST_IN_ALL,
    MOST_SAMPLES,
    PNG,
    Index,
)
from es_service.storage.runs import RunStorage

__all__ = ["KeptSamples", "Preview"]

_log = logging.getLogger(__name__)
Preview: TypeAlias = Callable[[int], Any] | tuple[Any, str]
"""id -> PNG file as bytes, text, PIL image, or uint8[h, w] or [h, w, 3]; or a data set and the name of its column."""
_LISTED = [("w", 100, False), ("loss_mean", 200, False), ("selected", 50, True), ("last_step", 50, True)]
_LEAST_S, _MOST_S, _SHARE = 0.2, 2.0, 0.05
_SIDE = 256  # pixels; larger pictures are made smaller


class KeptSamples:
    """See the module's text. `begin` comes before `refresh`.

    Args:
        num_samples: n; None where it is not known.
        labels: integers [n] from 0, None for none.
        label_names: what they mean, in their order.
        preview: see `Preview`; None for none.

    Raises:
        ConfigError, ShapeError: they are not that, or the first sample cannot be shown.
    """

    def __init__(
        self, num_samples: int | None, labels: Any, label_names: Sequence[str] | None, preview: Preview | None
    ) -> None:
        self._codes = None if labels is None else _codes(labels, num_samples)
        self._names = _names(label_names, self._codes)
        self._preview = None if preview is None else _function(preview)
        self._num_samples = num_samples
        self._kind = _kind_of(None if self._preview is None or num_samples is None else _show(self._preview, 0))

    def begin(self, storage: RunStorage, exchange: Exchange) -> None:
        """Write the labels.

        Args:
            storage: of the run, as this process sees it.
            exchange: of its rank 0.

        Raises:
            StorageError: the storage cannot be written, or this process does not see the run in it.
        """
        self._storage, self._exchange = storage, exchange
        if not storage.exists():
            raise errors.StorageError(
                f"the score server keeps run {storage.run!r} in {storage.storage}, which is not seen from here, where "
                "labels and previews are written: use a storage that all machines see, or leave them out"
            )
        self._note = functools.partial(sample_notes.write_notes, storage, self._codes, self._names)
        self._note(self._kind)
        if exchange.next_epoch() == 0:  # they may be of other data
            storage.previews.clear()
        self._index: Index = {}
        self._look()
        self._next = self._num_bytes = self._num_made = 0
        self._since = time.monotonic()

    def refresh(self) -> None:
        """Keep more previews, see the module's text. Errors are logged or warned of, and training continues."""
        if self._preview is None:
            return
        now = time.monotonic()
        least_s = _LEAST_S if self._known else _MOST_S
        give_up = now + min(_MOST_S, max(least_s, _SHARE * (now - self._since)))
        try:
            self._keep(give_up)
        except (errors.StorageError, errors.ServerError) as error:
            _log.warning("no previews are kept of this epoch: %s", error)
        except errors.ConfigError as error:
            self._preview = None
            warnings.warn(f"no more previews are kept: {error}", stacklevel=2)
        self._since = time.monotonic()

    def _keep(self, give_up: float) -> None:
        assert self._preview is not None
        self._look()
        made, size = {}, 0
        try:
            for sample_id in self._wanted():
                if time.monotonic() > give_up:
                    break
                if sample_id in self._known or sample_id in made:
                    continue
                made[sample_id] = content = _show(self._preview, sample_id)
                if self._kind is None:  # of a stream, whose ids come late
                    self._kind = _kind_of(content)
                    self._note(self._kind)
                self._num_bytes, self._num_made, size = (
                    self._num_bytes + len(content),
                    self._num_made + 1,
                    size + len(content),
                )
                if size > FILE_BYTES:
                    self._write(made)
                    made, size = {}, 0
        finally:
            self._write(made)

    def _write(self, made: dict[int, bytes]) -> None:
        if made:
            self._storage.previews.write(made)
            self._known.update(made)

    def _look(self) -> None:
        """See which samples have a preview: the oldest ones give way."""
        self._index = self._storage.previews.index(self._index)
        self._known = {sample_id for ids in self._index.values() for sample_id in ids.tolist()}

    def _wanted(self) -> Iterator[int]:
        for column, num, lowest in _LISTED:
            yield from self._exchange.top(column, num, lowest=lowest).column("id").to_pylist()
        while self._next < (self._num_samples or 0) and self._all_fit():
            yield self._next
            self._next += 1

    def _all_fit(self) -> bool:
        num = self._num_samples or 0
        return num <= MOST_SAMPLES and self._num_bytes * num < 0.8 * MOST_IN_ALL * max(1, self._num_made)


def _kind_of(content: bytes | None) -> str | None:
    return None if content is None else "image/png" if content.startswith(PNG) else "text/plain"


def _codes(labels: Any, num_samples: int | None) -> Any:
    try:
        codes = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    except ValueError:  # lists of different lengths
        codes = np.empty(0, dtype=object)
    if codes.ndim != 1 or codes.dtype.kind not in "iu" or num_samples not in (None, codes.size):
        raise errors.ShapeError(
            f"labels must be one integer for each of the {num_samples or 'n'} samples, got {codes.dtype}"
            f"{list(codes.shape)}"
        )
    codes = codes.astype(np.int64)
    sample_notes.check_codes(codes)
    return codes


def _names(label_names: Sequence[str] | None, codes: Any) -> tuple[str, ...] | None:
    if label_names is None:
        return None
    names = tuple(label_names) if isinstance(label_names, Iterable) else (label_names,)
    num = 0 if codes is None else 1 + int(codes.max(initial=-1))
    if codes is None or isinstance(label_names, str) or not all(isinstance(one, str) for one in names):
        raise errors.ConfigError(f"label_names must be the names of labels, beside labels=, got {label_names!r}")
    if len(names) < num:
        raise errors.ConfigError(f"there are {len(names)} label_names for {num} labels")
    return names


def _function(preview: Preview) -> Callable[[int], Any]:
    if callable(preview):
        return preview
    if isinstance(preview, tuple) and len(preview) == 2 and isinstance(preview[1], str):
        dataset, column = preview
        return lambda sample_id: _readable(dataset[sample_id][column])
    raise errors.ConfigError(
        f"preview must be a function of an id, or a data set and the name of its column, got {type(preview).__name__}"
    )


def _readable(value: Any) -> Any:
    """Return a data set's value as it is if it is a picture, else as text."""
    return value if hasattr(value, "save") or isinstance(value, bytes | np.ndarray) else str(value)


def _show(preview: Callable[[int], Any], sample_id: int) -> bytes:
    """Return a sample's preview as a PNG file or UTF-8 text; ConfigError where there is none."""
    try:
        shown = preview(sample_id)
        if hasattr(shown, "save") and hasattr(shown, "thumbnail"):  # of PIL, which need not be installed
            small, file = shown.convert("RGB"), io.BytesIO()
            small.thumbnail((_SIDE, _SIDE))
            small.save(file, "PNG")
            shown = file.getvalue()
        elif isinstance(shown, np.ndarray):
            step = max(1, -(-max(shown.shape) // _SIDE))
            shown = encode_png(np.ascontiguousarray(shown[::step, ::step]))
    except Exception as error:  # a user's function may raise anything
        raise errors.ConfigError(f"preview({sample_id}) failed: {printable(repr(error))}") from error
    if isinstance(shown, str):
        return shown[:MOST_CHARACTERS].encode(errors="replace")
    if isinstance(shown, bytes) and shown.startswith(PNG) and len(shown) <= MOST_BYTES:
        return shown
    what = f"{len(shown):,} bytes" if isinstance(shown, bytes) else type(shown).__name__
    raise errors.ConfigError(
        f"preview({sample_id}) gave {what}: let it return a PNG file of at most {MOST_BYTES >> 10} KiB, a str, a PIL "
        "image, or an array uint8[h, w] or uint8[h, w, 3]"
    )

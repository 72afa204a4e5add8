"""Checks of what a caller reports, made before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import compiled

__all__ = ["MAX_LOSS", "check_ids", "check_known", "check_losses", "check_signals", "first_duplicate", "split_signals"]

MAX_LOSS = 1e18
"""No training comes back from a loss above it, and its square still fits the float32 of the running variance."""
_ROUNDING = 8 * 2.0**-23  # of float32: a difference of two numbers near 1, as 1 - cosine_similarity, errs by less
_COARSER = {"torch.bfloat16": 2.0**16, "torch.float16": 2.0**13, "float16": 2.0**13}  # than float32, by how much
_MOST_HASHED = (1 << 16) - 1  # ids whose positions, counted from 1, fit the hash table; more are sorted


def check_ids(ids: Any, num_samples: int, *, distinct: bool = True) -> NDArray[np.int64]:
    """Return ids as contiguous int64[B]: at least one, each in [0, num_samples), none twice unless `distinct` is False.

    They may come as anything like an array, or as a torch tensor on any device.

    Raises:
        ShapeError: not one-dimensional, empty, or not of an integer dtype; the message for keys explains numbering.
        IdError: out of range or repeated; names the first bad position.
    """
    array = _as_array(ids, "ids")
    if array.ndim != 1 or array.size == 0:
        raise errors.ShapeError(f"ids must be one-dimensional and not empty, got shape {array.shape}")
    if array.dtype.kind not in "iufcb":
        raise errors.ShapeError(
            f"ids must be integers that number the samples from 0, got dtype {array.dtype} ({array[:1].tolist()[0]!r} "
            "first): number the keys once, in sorted order, so that they are the same on every rank and in every run:\n"
            "    numbers = {key: number for number, key in enumerate(sorted(set(all_keys)))}\n"
            "    ids = [numbers[key] for key in keys_of_the_batch]"
        )
    if array.dtype.kind not in "iu":
        raise errors.ShapeError(
            f"ids must be integers, got dtype {array.dtype}: a float32 is exact only up to 2**24, so cast before any "
            "id passes through a float"
        )
    if array.dtype == np.uint64 and (huge := array > np.uint64(np.iinfo(np.int64).max)).any():
        position = int(np.argmax(huge))
        raise errors.IdError(f"id {array[position]} at position {position} does not fit int64")
    ids_B = np.ascontiguousarray(array, dtype=np.int64)
    if ids_B.size <= _MOST_HASHED and (code := compiled.loops()) is not None:
        slot_bits = ids_B.size.bit_length() + 1  # a quarter to a half of the slots are taken
        slots = np.zeros(1 << slot_bits, dtype=np.uint16)
        if code.all_distinct(ids_B, num_samples, slots, np.uint64(slot_bits)):
            return ids_B
    # One comparison covers both ends: a negative id is a huge unsigned one.
    if not (ids_B.view(np.uint64) < np.uint64(num_samples)).all():
        position = int(np.argmax((ids_B < 0) | (ids_B >= num_samples)))
        raise errors.IdError(
            f"id {ids_B[position]} at position {position} is outside [0, {num_samples:,}): "
            "ids number the samples of the data set from 0"
        )
    repeated = first_duplicate(ids_B) if distinct else None
    if repeated is not None:
        raise errors.IdError(
            f"id {ids_B[repeated]} at position {repeated} stands twice in one report: a sample has one loss per step"
        )
    return ids_B


def first_duplicate(ids_B: NDArray[np.int64]) -> int | None:
    """Return the position of the first id that repeats an earlier one, or None, which is the usual answer."""
    ordered = np.sort(ids_B)  # vectorised in numpy 2: 12 µs for 1,024, where np.unique takes 170
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    first = np.unique(ids_B, return_index=True)[1]
    return int(np.setdiff1d(np.arange(ids_B.size), first)[0])


def _as_array(values: Any, what: str) -> NDArray[Any]:
    try:
        if hasattr(values, "detach"):  # a torch tensor, perhaps with a gradient or on an accelerator
            values = values.detach().cpu()
        return np.asarray(values)
    except (TypeError, ValueError, NotImplementedError) as error:  # ragged lists, objects of all kinds; torch's "meta"
        raise errors.ShapeError(f"{what} cannot be read as an array: {error}") from error


def _as_floats(losses: Any, num: int, what: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the losses as they came and as contiguous float32[B]; ShapeError where they are not one per id."""
    if type(losses) is np.ndarray and losses.dtype == np.float32 and losses.shape == (num,):  # the usual
        return losses, np.ascontiguousarray(losses)
    if hasattr(losses, "detach"):  # a torch tensor, perhaps in bfloat16
        losses = losses.detach().float()
    array = _as_array(losses, what)
    if array.ndim == 0:
        raise errors.ShapeError(
            f"got a single {_one_of(what)} for {num} ids: per-sample ones are needed (reduction='none' in torch)"
        )
    if array.shape != (num,):
        raise errors.ShapeError(f"{what} must have shape ({num},), one per id, got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise errors.ShapeError(f"{what} must be floats, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which the checks name
        return array, np.ascontiguousarray(array, dtype=np.float32)


def _usable(losses_B: NDArray[np.float32]) -> NDArray[np.bool_]:
    usable: NDArray[np.bool_] = np.abs(losses_B) <= MAX_LOSS  # False for NaN, too
    return usable


def _rounded_up(losses_B: NDArray[np.float32], usable_B: NDArray[np.bool_], came: Any) -> NDArray[np.float32]:
    """Return the losses with 0 for those that lie below it by no more than rounding at the batch's scale.

    Args:
        losses_B: as float32.
        usable_B: which of them are numbers.
        came: as they came; what was computed in half precision is rounded more.
    """
    scale = max(1.0, float(np.abs(losses_B[usable_B]).max(initial=0.0)))
    least = -scale * _ROUNDING * _COARSER.get(str(getattr(came, "dtype", "")), 1.0)
    return np.where((losses_B < 0) & (losses_B >= least), np.float32(0), losses_B)


def _check_sign(losses_B: NDArray[np.float32], what: str) -> None:
    if losses_B.min(initial=0.0) < 0:
        position = int(np.argmax(losses_B < 0))
        raise errors.LossError(
            f"{_one_of(what)} {losses_B[position]} at position {position} is negative and cannot be a sampling weight: "
            "shift the loss so that it starts at 0"
        )


def _one_of(what: str) -> str:
    return "loss" if what == "losses" else f"value of {what}"


def _many_of(what: str) -> str:
    return "losses" if what == "losses" else f"values of {what}"


def check_losses(losses: Any, num: int, *, non_negative: bool, what: str = "losses") -> NDArray[np.float32]:
    """Return losses as contiguous float32[B], all finite and of a size that can be squared.

    Args:
        losses: array-like of floats, or a torch tensor on any device.
        num: B, the number of ids they belong to.
        non_negative: refuse negative losses, because they become sampling weights.
        what: to call them in messages.

    Raises:
        ShapeError: not float, or not one per id.
        LossError: NaN, infinite, above `MAX_LOSS` or negative; names the first bad position. What lies below 0 by
            rounding alone counts as 0.
    """
    array, losses_B = _as_floats(losses, num, what)
    if compiled.all_within(losses_B, 0.0 if non_negative else -MAX_LOSS, MAX_LOSS):
        return losses_B
    usable = _usable(losses_B)
    if not usable.all():
        position = int(np.argmin(usable))
        raise errors.LossError(
            f"{_one_of(what)} {array[position]} at position {position} is not finite, or above {MAX_LOSS:g}: lower the "
            "learning rate, or skip such samples (on_bad_loss='skip' does)"
        )
    losses_B = _rounded_up(losses_B, usable, losses)
    _check_sign(losses_B, what)
    return losses_B


def split_losses(
    losses: Any, num: int, *, non_negative: bool, what: str = "losses"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return losses as float32[B] and the positions of those that can be used; else as `check_losses`.

    Raises:
        LossError: none can be.
    """
    array, losses_B = _as_floats(losses, num, what)
    usable = _usable(losses_B)
    if non_negative and usable.any():
        losses_B = _rounded_up(losses_B, usable, losses)
        if not (usable & (losses_B >= 0)).any():
            _check_sign(np.where(usable, losses_B, np.float32(0)), what)
        usable &= losses_B >= 0
    good = np.flatnonzero(usable)
    if good.size == 0:
        raise errors.LossError(
            f"none of the {num} {_many_of(what)} is finite (the first is {array[0]}): training has diverged"
        )
    return losses_B, good


def _by_name(observed: Any, needed: Sequence[str]) -> Mapping[str, Any]:
    """Return the observation as signals by name; ShapeError where one that is needed does not come with it."""
    signals = dict(observed) if isinstance(observed, Mapping) else {"loss": observed}
    if "correct" in needed and "correct" in signals and not hasattr(signals["correct"], "detach"):
        correct = _as_array(signals["correct"], _what("correct"))
        signals["correct"] = correct.astype(np.float32) if correct.dtype == np.bool_ else correct  # of a comparison
    missing = [name for name in needed if name not in signals]
    if missing:
        raise errors.ShapeError(
            f"the method observes {', '.join(needed)} of each sample, but {', '.join(missing)} did not come: pass "
            f"{{{', '.join(f'{name!r}: ...' for name in needed)}}}, one value per id each"
        )
    return signals


def _what(name: str) -> str:
    return "losses" if name == "loss" else f"signal {name!r}"


def check_signals(
    observed: Any, num: int, needed: Sequence[str], *, non_negative: bool
) -> dict[str, NDArray[np.float32]]:
    """Return the needed signals of an observation, float32[B] each, all finite.

    Args:
        observed: losses as `check_losses` takes them, or such arrays by name; more than is needed may come.
        num: B.
        needed: names.
        non_negative: refuse negative losses and gradient norms.

    Raises:
        ShapeError: a signal is missing, or as `check_losses`.
        LossError: as `check_losses`.
    """
    if len(needed) == 1 and not isinstance(observed, Mapping):  # the usual: losses alone
        return {"loss": check_losses(observed, num, non_negative=non_negative)}
    signals = _by_name(observed, needed)
    return {
        name: check_losses(
            signals[name], num, non_negative=non_negative and name != "irreducible_loss", what=_what(name)
        )
        for name in needed
    }


def check_known(losses: Any, num_samples: int | None) -> NDArray[np.float32] | None:
    """Return irreducible losses, None for None; raise where they are not one finite number for each sample.

    Raises:
        ConfigError: the number of samples is not known.
        ShapeError, LossError: they cannot be used.
    """
    if losses is None:
        return None
    if num_samples is None:
        raise errors.ConfigError(
            "irreducible_losses need num_samples: in a stream, report them with the losses, as a signal"
        )
    return check_losses(losses, num_samples, non_negative=False, what="irreducible_losses")


def check_tokens(tokens: Any, num_samples: int | None) -> NDArray[np.int64] | None:
    """Return the tokens int64[n] of all samples, None for None.

    Raises:
        ConfigError: the number of samples is not known.
        ShapeError: they are not one whole number of at least 0 for each sample.
    """
    if tokens is None:
        return None
    if num_samples is None:
        raise errors.ConfigError("tokens need num_samples: of a stream without it, the tokens are not known beforehand")
    found = np.asarray(tokens)
    if found.shape != (num_samples,) or found.dtype.kind not in "iu" or (found < 0).any():
        raise errors.ShapeError(
            f"tokens must be one whole number of at least 0 for each of {num_samples} samples, got "
            f"{found.dtype}{list(found.shape)}"
        )
    return found.astype(np.int64)


def split_signals(
    observed: Any, num: int, needed: Sequence[str], *, non_negative: bool
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Return the needed signals, and the positions where all of them can be used; else as `check_signals`.

    Raises:
        LossError: there is no such position.
    """
    signals = _by_name(observed, needed)
    split, good = {}, np.arange(num)
    for name in needed:
        split[name], finite = split_losses(
            signals[name], num, non_negative=non_negative and name != "irreducible_loss", what=_what(name)
        )
        good = np.intersect1d(good, finite, assume_unique=True)
    if good.size == 0:
        raise errors.LossError(f"none of the {num} samples has finite {' and '.join(needed)}: training has diverged")
    return split, good

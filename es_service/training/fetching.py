"""Fetches the samples of given ids and collates them: in this process, or ahead of time in others."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import data

from es_service import errors
from es_service.training import batches, trees

__all__ = ["Fetched", "Fetcher", "random_as_it_was", "settings_of_workers"]

_I64 = NDArray[np.int64]
_OPTIONS = (
    "generator",
    "multiprocessing_context",
    "persistent_workers",
    "prefetch_factor",
    "timeout",
    "worker_init_fn",
)


def settings_of_workers(loader: data.DataLoader[Any]) -> dict[str, Any]:
    """Return the settings of a DataLoader that are about its worker processes; none where it has no such processes."""
    return {name: getattr(loader, name) for name in _OPTIONS} if loader.num_workers else {}


class Fetched(NamedTuple):
    """A batch, and the samples that it was collated from; None where they are not kept."""

    samples: Any
    batch: Any


class Fetcher:
    """Batches of a map-style data set.

    Args:
        dataset: with `__getitems__` or `__getitem__`.
        collate: samples -> batch.
        keeps: which samples to keep beside their batch: True for all, None for sequences that are padded.
        num_workers: processes that fetch ahead.
        options: further arguments of torch's DataLoader, about these processes.

    Raises:
        ConfigError: an option that DataLoader does not have, or refuses.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Any], Any],
        keeps: bool | None,
        num_workers: int,
        options: Mapping[str, Any],
    ) -> None:
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise errors.ConfigError(
                f"unknown setting {unknown[0]!r}: beside its own, the loader takes {', '.join(_OPTIONS)}, as "
                "torch's DataLoader has them"
            )
        self.dataset = dataset
        self.collate = _Keeping(collate, keeps)
        self.num_workers = num_workers
        self._plan: list[list[int]] = []
        self._seeds = None if options.get("generator") is not None else torch.Generator()  # of the processes
        options = {**options, "generator": self._seeds} if self._seeds is not None else options
        try:
            self._loader = data.DataLoader(
                dataset,
                batch_sampler=self._plan,
                num_workers=num_workers,
                collate_fn=_Packing(self.collate) if num_workers else None,
                **options,
            )
        except (TypeError, ValueError) as error:
            raise errors.ConfigError(f"torch's DataLoader refuses its settings: {error}") from error

    def fetch(self, ids: _I64) -> Fetched:
        """Fetch a batch in this process."""
        many = getattr(self.dataset, "__getitems__", None)
        indices = ids.tolist()
        return self.collate(many(indices) if many is not None else [self.dataset[index] for index in indices])

    def ahead(self, epoch: int, meta_batches: Sequence[_I64], *, pin: bool) -> Iterator[Fetched]:
        """Yield these batches, which worker processes fetch ahead of time.

        Where no generator was given, torch's random numbers are left alone, so that a training run that is resumed
        inside an epoch finds the same ones: the seeds of the processes come from that of torch and the epoch.

        Args:
            epoch: that they are of.
            meta_batches: int64[B] each.
            pin: into memory that is copied to a GPU asynchronously.

        Raises:
            ConfigError: the data cannot be sent to the processes.
        """
        self._plan[:] = [ids_B.tolist() for ids_B in meta_batches]
        self._loader.pin_memory = pin
        if self._seeds is not None:
            self._seeds.manual_seed((torch.initial_seed() * 1_000_003 + epoch) % 2**63)
        try:
            fetched = iter(self._loader)
        except OSError:
            raise
        except Exception as error:  # whatever pickling them raises
            raise errors.ConfigError(
                f"num_workers={self.num_workers}: the data set, collate_fn or worker_init_fn cannot be sent to the "
                f"processes that fetch ({error}): define functions and classes at the top of a module, not as lambdas "
                "or inside a function; or use num_workers=0"
            ) from error
        for samples, batch in fetched:
            yield Fetched(batches.mapped(samples, _unpacked), batch)


class _Keeping:
    """Collates samples, and keeps those that may be collated again; at the top of the module, as workers import it."""

    def __init__(self, collate: Callable[[Any], Any], keeps: bool | None) -> None:
        self._collate, self.keeps = collate, keeps

    def __call__(self, samples: Any) -> Fetched:
        batch = self._collate(samples)
        is_kept = isinstance(samples, list) and (_are_padded(samples, batch) if self.keeps is None else self.keeps)
        return Fetched(samples if is_kept else None, batch)


def _are_padded(samples: list[Any], batch: Any) -> bool:
    """Whether samples are sequences of different lengths, and grew on being collated.

    Those with leaves of three dimensions and more, images, are not kept: to send them twice takes too long.
    """
    shapes = [_shapes(sample) for sample in samples]
    if all(one == shapes[0] for one in shapes):
        return False
    each = [shape for one in shapes for shape in one]
    return max(map(len, each)) <= 2 and sum(map(math.prod, each)) < sum(map(math.prod, _shapes(batch)))


def _shapes(node: Any) -> list[tuple[int, ...]]:
    return [_shape(leaf) for _, leaf in trees.leaves_of(node)]


def _shape(leaf: Any) -> tuple[int, ...]:
    if isinstance(leaf, (torch.Tensor, np.ndarray)) and not trees.is_nested(leaf):
        return tuple(leaf.shape)
    return (len(leaf),) if isinstance(leaf, (list, tuple)) else ()


class _Packing:
    """What a worker process returns: the batch, and the samples without tensors.

    Each tensor would take a file descriptor on its way.
    """

    def __init__(self, collate: Callable[[Any], Fetched]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> tuple[Any, Any]:
        kept, batch = self._collate(samples)
        return batches.mapped(kept, _packed), batch


class _Packed(np.ndarray[Any, Any]):
    """A tensor as an array."""


def _packed(leaf: Any) -> Any:
    if type(leaf) is not torch.Tensor:
        return leaf
    try:
        return leaf.numpy().view(_Packed)
    except (RuntimeError, TypeError):  # of a layout or dtype that numpy lacks
        return leaf


def _unpacked(leaf: Any) -> Any:
    return torch.from_numpy(leaf.view(np.ndarray)) if isinstance(leaf, _Packed) else leaf


@contextlib.contextmanager
def random_as_it_was() -> Iterator[None]:
    """Put back the generators that data sets and collate functions may use: Python's, numpy's, torch's on the CPU."""
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs, not ours
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)  # noqa: NPY002

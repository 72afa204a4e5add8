"""Harder settings made of a task: wrong labels, a long tail of rare classes, few samples.

What is kept and what is changed follows from the seed and the sample alone, in the order limit, long tail, shots,
noise. The held-out samples stay as they are. The samples that a smaller limit keeps are among those of a larger one,
up to rounding, and so it is with shots and noise.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.settings import as_integer, check_names, exact_share, make_plain
from es_service.training.tasks.splits import shuffled, stream_of, words

if TYPE_CHECKING:
    import torch

    from es_service.training.tasks.base import Samples, Task, TaskDefaults

__all__ = ["Derived", "DerivedTask", "derive"]

_HANDED_ON = ("metric_name", "statistics", "metric_of", "final_metrics", "weights", "proxies", "left_out")
"""Members of a task that it may have, and that do not ask which samples it trains on."""


class _Purpose(enum.IntEnum):
    """Random decisions; each has its own stream of random numbers."""

    LIMIT = 1
    LONG_TAIL = 2
    SHOTS = 3
    WHICH_LABELS = 4
    OTHER_LABEL = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Derived:
    """What to make of a task's train set.

    Args:
        label_noise: share in [0, 1] of the samples, to the nearest whole number (a half counts up), whose label becomes
            another one, all others being equally likely.
        long_tail: in (0, 1]: class k of K, in the order of the labels, keeps n_k samples, n_k ∝ long_tail^(k/(K-1)), as
            many as there are for that, at least 1: the last class has this share of the first. None keeps all.
        shots: most samples of each class; None for no limit.
        limit: most samples in all, the classes in the proportions they have; None for no limit.
        seed: of which samples and labels.

    Raises:
        ConfigError: a value outside its domain.
    """

    label_noise: float = 0.0
    long_tail: float | None = None
    shots: int | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0 <= self.label_noise <= 1:
            raise errors.ConfigError(f"label_noise is a share of the samples, in [0, 1], got {self.label_noise}")
        if self.long_tail is not None and not 0 < self.long_tail <= 1:
            raise errors.ConfigError(
                f"long_tail is the size of the rarest class as a share of the most frequent one's, in (0, 1], "
                f"got {self.long_tail}"
            )
        for name in ("shots", "limit"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), least=1)
        as_integer("seed", self.seed, least=0, end=2**63)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is to be changed."""
        return dataclasses.replace(self, seed=0) == Derived()

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the settings as plain values: `Derived(**it)` is equal."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Derived:
        """Make it from `to_dict`'s values; ConfigError where one is not a setting of it."""
        known = [field.name for field in dataclasses.fields(cls)]
        check_names("a derived task", values, known)
        return cls(**values)


def derive(task: Task, derived: Derived) -> Task:
    """Return the task with its train set changed, or the task itself where nothing is to be changed.

    Raises:
        ConfigError: the task has no labels, or too few classes, for what was asked; or label noise was asked for and
            the task has no method `relabel(batch, labels_B)`.
    """
    return task if derived.is_plain else DerivedTask(task, derived)


class DerivedTask:
    """A task with another train set; see `derive`, and `Task` for the meaning of each part.

    Attributes:
        source_ids: int64[m], the id that each sample has in the task this one was made of.
        corrupted: bool[m], whether its label was changed; None where none was to be.
    """

    def __init__(self, task: Task, derived: Derived) -> None:
        self._task = task
        self.name = task.name
        self.held_out: Samples = task.held_out
        self.held_out_labels = task.held_out_labels
        self.label_names = task.label_names
        self.defaults: TaskDefaults = task.defaults
        self.source_ids = _kept(task, derived)
        self.labels: NDArray[np.int64] | None = None if task.labels is None else task.labels[self.source_ids]
        self.corrupted: NDArray[np.bool_] | None = None
        relabel = None
        if derived.label_noise:
            self.labels, self.corrupted = _with_noise(task, derived, self.source_ids)
            relabel = _relabel_of(task)
        self.train_set: Samples = _DerivedSamples(task.train_set, self.source_ids, self.labels, relabel)

    @property
    def tokens(self) -> NDArray[np.int64] | None:
        """Tokens int64[m] of each sample, where the task this one was made of counts them."""
        tokens_n: NDArray[np.int64] | None = getattr(self._task, "tokens", None)
        return None if tokens_n is None else tokens_n[self.source_ids]

    @property
    def preview(self) -> Callable[[int], bytes | str] | None:
        """Shows a sample, where the task this one was made of does."""
        shown: Callable[[int], bytes | str] | None = getattr(self._task, "preview", None)
        return None if shown is None else lambda sample_id: shown(int(self.source_ids[sample_id]))

    @property
    def augment(self) -> Callable[[Any, NDArray[np.int64], int, int], Any] | None:
        """Makes other views of samples, where the task this one was made of does: the same ones as there."""
        made: Callable[[Any, NDArray[np.int64], int, int], Any] | None = getattr(self._task, "augment", None)
        return None if made is None else lambda batch, ids_B, *when: made(batch, self.source_ids[ids_B], *when)

    def __getattr__(self, name: str) -> Any:
        if name in _HANDED_ON:
            return getattr(self._task, name, None)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the CPU."""
        return self._task.build_model()

    def inputs(self, batch: Any) -> Any:
        """Return what goes into the model."""
        return self._task.inputs(batch)

    def losses(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return float[B], one differentiable loss per sample."""
        return self._task.losses(outputs, batch)

    def signals(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Return further signals of each sample."""
        return self._task.signals(outputs, batch)

    def metric(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return float[B] or bool[B], whose mean over the held-out samples is the accuracy."""
        return self._task.metric(outputs, batch)


class _DerivedSamples:
    """Some of the samples, with other labels where `relabel` is given."""

    def __init__(
        self,
        samples: Samples,
        source_ids: NDArray[np.int64],
        labels_m: NDArray[np.int64] | None,
        relabel: Callable[[Any, torch.Tensor], Any] | None,
    ) -> None:
        self._samples, self._source_ids, self._labels_m, self._relabel = samples, source_ids, labels_m, relabel

    def __len__(self) -> int:
        return len(self._source_ids)

    def __getitems__(self, ids: Sequence[int]) -> Any:
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and ids_B.min() < 0:
            raise IndexError(f"sample id {ids_B.min()} is negative")
        batch = self._samples.__getitems__(self._source_ids[ids_B].tolist())
        if self._relabel is None or self._labels_m is None:
            return batch
        import torch

        return self._relabel(batch, torch.from_numpy(self._labels_m[ids_B]))


def _relabel_of(task: Task) -> Callable[[Any, torch.Tensor], Any]:
    relabel = getattr(task, "relabel", None)
    if not callable(relabel):
        raise errors.ConfigError(
            f"label_noise needs a method relabel(batch, labels_B) of the task {task.name!r}, which returns "
            "the batch with these labels, a tensor int64[B], instead of its own; Classification has one"
        )
    return relabel  # type: ignore[no-any-return]


def _labelled(task: Task, asked: str) -> tuple[NDArray[np.int64], int]:
    """Return the labels int64[n] and the number of classes K, or raise ConfigError: there are none, or only one."""
    if task.labels is None:
        raise errors.ConfigError(f"{asked} needs labels, and the task {task.name!r} has none: only limit works for it")
    known = [task.labels] if task.held_out_labels is None else [task.labels, task.held_out_labels]
    num = max(len(task.label_names or ()), *(int(labels.max()) + 1 for labels in known))
    if num < 2:
        raise errors.ConfigError(f"{asked} needs at least 2 classes, and the task {task.name!r} has {num}")
    return task.labels, num


def _kept(task: Task, derived: Derived) -> NDArray[np.int64]:
    """Return the ids int64[m] of the samples to keep, ascending."""
    ids = np.arange(len(task.train_set))
    if derived.limit is not None:
        labels_n = np.zeros(ids.size, dtype=np.int64) if task.labels is None else task.labels
        quotas = _proportional(np.bincount(labels_n), derived.limit)
        ids = _first_of_each(ids, labels_n, quotas, stream_of(derived.seed, _Purpose.LIMIT))
    if derived.long_tail is not None:
        labels_n, num = _labelled(task, "long_tail")
        quotas = _exponential(np.bincount(labels_n[ids], minlength=num), derived.long_tail)
        ids = _first_of_each(ids, labels_n, quotas, stream_of(derived.seed, _Purpose.LONG_TAIL))
    if derived.shots is not None:
        labels_n, num = _labelled(task, "shots")
        ids = _first_of_each(ids, labels_n, [derived.shots] * num, stream_of(derived.seed, _Purpose.SHOTS))
    return ids


def _first_of_each(
    ids: NDArray[np.int64], labels_n: NDArray[np.int64], quotas: Sequence[int], stream: int
) -> NDArray[np.int64]:
    """Return, ascending, at most quotas[k] of those ids whose label is k, for each k."""
    order = shuffled(ids, stream)
    labels_m = labels_n[order]
    return np.sort(np.concatenate([order[labels_m == label][:quota] for label, quota in enumerate(quotas)]))


def _proportional(counts: NDArray[np.int64], limit: int) -> list[int]:
    """Return quotas ∝ counts that sum to the limit: rounded down, the largest remainders up."""
    total = int(counts.sum())
    limit = min(limit, total)
    exact = [Fraction(int(count) * limit, total) for count in counts]
    quotas = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (quotas[k] - exact[k], k))
    for k in by_remainder[: limit - sum(quotas)]:
        quotas[k] += 1
    return quotas


def _exponential(counts: NDArray[np.int64], ratio: float) -> list[int]:
    """Return quotas ∝ ratio^(k/(K-1)), as large as the counts allow."""
    if not counts.all():
        raise errors.ConfigError(
            f"long_tail needs samples of every class, and there are none of class {int(counts.argmin())}: raise limit"
        )
    shares = ratio ** (np.arange(counts.size) / (counts.size - 1))
    largest = (counts / shares).min()
    return [max(1, round(float(share * largest))) for share in shares]


def _with_noise(task: Task, derived: Derived, ids_m: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the labels int64[m] after the noise, and bool[m], which of them it changed."""
    labels_n, num = _labelled(task, "label_noise")
    num_changed = math.floor(exact_share(derived.label_noise, ids_m.size) + Fraction(1, 2))
    changed = shuffled(ids_m, stream_of(derived.seed, _Purpose.WHICH_LABELS))[:num_changed]
    corrupted_m = np.isin(ids_m, changed)
    steps_m = 1 + words(ids_m, stream_of(derived.seed, _Purpose.OTHER_LABEL)) % np.uint64(num - 1)
    labels_m = labels_n[ids_m]
    return np.where(corrupted_m, (labels_m + steps_m.astype(np.int64)) % num, labels_m), corrupted_m

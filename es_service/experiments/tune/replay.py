"""`tune --from RUN`: replay a finished run's losses through other settings, without training.

    history of the run ── (step, rank): ids, losses ──► a table for each setting ──► whom it would have picked
                                                                                        │ compared with
                       ── the run's own settings ────► whom they pick ─────────────────┘

Its limit: the losses are those of a model that was trained on the run's own picks. With other picks the
model, and so the losses after the first steps, would have been others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.experiments.tune.space import Space, random_points
from es_service.selection.config import Selection
from es_service.selection.engine import Engine
from es_service.storage.runs import RunStorage

__all__ = ["REPLAYED", "Replayed", "replay", "starting_points"]

REPLAYED = ("draw", "power", "cap")
"""Settings of `Selection` that a replay can vary, besides those of the method: others change who is scored at all."""
_CANDIDATES, _MOST_STARTS = 48, 7


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """What some settings would have done with a run's losses.

    Args:
        settings: that were tried.
        differs: share of the picks that are not the picks of the run's own settings, with the same random numbers.
        lift: mean loss of what is picked, over the mean loss of the meta-batch: 1 pays no heed to losses.
        coverage: share of the observed samples that were picked at least once.
    """

    settings: dict[str, Any]
    differs: float
    lift: float
    coverage: float


def replay(storage: RunStorage, space: Space, *, samples: int, seed: int = 0) -> dict[str, Any]:
    """Rank settings by how differently they would have picked, the nearest to the run's own first.

    Args:
        storage: of a finished run.
        space: the method's own settings, draw, power and cap; a grid is taken whole.
        samples: how many settings to draw from a space that is not a grid.
        seed: of what is drawn from it.

    Returns:
        run, picks (how many were compared), chance (`differs` of picks at random), own (the run's settings: lift and
        coverage), reproduced (share of the recorded picks that they give again), rows (`Replayed`, as dictionaries).

    Raises:
        ConfigError: a setting that a replay cannot vary, or a method that goes by what was not recorded.
        StorageError: the run has no history, or not of all its epochs.
        RunNotFoundError: no such run.
    """
    points = space.grid() if space.is_grid else random_points(space, samples, seed)
    return _replayed(storage, space, points)[0]


def starting_points(storage: RunStorage, space: Space, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the settings that pick most differently from a finished run's own and from one another.

    Of many that are drawn, first the one that differs most from the run's own; then, again and again, the one whose
    nearest among the run's own and those before it is farthest away. A search that begins with them tries no two that
    pick alike.

    Args, Raises:
        see `replay`.
    """
    points = space.grid() if space.is_grid else random_points(space, _CANDIDATES, seed)
    _, apart = _replayed(storage, space, points)
    chosen = [0]  # the run's own
    while len(chosen) <= _MOST_STARTS:
        nearest = apart[:, chosen].min(axis=1)
        if nearest.max() == 0:
            break
        chosen.append(int(nearest.argmax()))
    return [points[k - 1] for k in chosen[1:]]


def _replayed(
    storage: RunStorage, space: Space, points: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Return what `replay` does, and the share of other picks between any two settings, the run's own first."""
    config = storage.config().loaded()
    own = config.selection
    _check(space, own)
    chosen = [space.selection(point, own.seed) for point in points]
    for one in chosen:
        _check_method(one, own)
    players = [_Player(one, config.num_samples) for one in (own, *chosen)]
    same = np.zeros((len(players), len(players)))
    picks = num_same = 0
    at_random = 0.0
    for ids_B, seen, picked_B, run_step in _steps(storage, config.num_epochs, own.signals):
        num = int(picked_B.sum())
        drawn = [player.step(ids_B, seen, num, run_step) for player in players]
        if num == ids_B.size:
            continue  # everything was trained on: nothing to choose
        picks += num
        num_same += int(picked_B[drawn[0]].sum())
        at_random += num * (1 - num / ids_B.size)
        marks = np.zeros((len(players), ids_B.size), dtype=np.float32)
        for player, positions, marked_B in zip(players, drawn, marks, strict=True):
            player.count(positions, ids_B, seen["loss"])
            marked_B[positions] = 1
        same += marks @ marks.T  # whole numbers, exact in float32
    if not picks:
        raise errors.ConfigError(f"run {storage.run!r} trained on everything: there are no picks to compare with")
    apart = 1 - same / picks
    rows = [
        player.result(point, float(differs))
        for player, point, differs in zip(players[1:], points, apart[1:, 0], strict=True)
    ]
    reference = players[0].result({}, 0.0)
    found = {
        "run": storage.run,
        "picks": picks,
        "chance": at_random / picks,
        "reproduced": num_same / picks,
        "own": {"lift": reference.lift, "coverage": reference.coverage},
        "rows": [dataclasses.asdict(row) for row in sorted(rows, key=lambda row: row.differs)],
    }
    return found, apart


class _Player:
    """One table, and what it picks."""

    def __init__(self, selection: Selection, num_samples: int) -> None:
        self._engine = Engine(selection, num_samples)
        self._picked_loss = self._mean_loss = 0.0
        self._seen = np.zeros(num_samples, dtype=bool)
        self._picked = np.zeros(num_samples, dtype=bool)

    def step(
        self, ids_B: NDArray[np.int64], seen: dict[str, NDArray[np.float32]], num: int, run_step: int
    ) -> NDArray[np.int64]:
        return self._engine.step(ids_B, seen, num, run_step).positions

    def count(self, positions: NDArray[np.int64], ids_B: NDArray[np.int64], losses_B: NDArray[np.float32]) -> None:
        self._picked_loss += float(losses_B[positions].sum(dtype=np.float64))
        self._mean_loss += positions.size * float(losses_B.mean(dtype=np.float64))
        self._seen[ids_B] = True
        self._picked[ids_B[positions]] = True

    def result(self, settings: dict[str, Any], differs: float) -> Replayed:
        return Replayed(
            settings=settings,
            differs=differs,
            lift=self._picked_loss / self._mean_loss if self._mean_loss else 1.0,
            coverage=float(self._picked[self._seen].mean()),
        )


def _steps(
    storage: RunStorage, num_epochs: int, signals: Sequence[str]
) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[np.float32]], NDArray[np.bool_], int]]:
    """Yield each meta-batch of a run in order: its ids, their signals, which were picked, and the step."""
    epochs = storage.history.epochs()
    if not epochs:
        raise errors.StorageError(
            f"run {storage.run!r} has no history: it has finished no epoch, or was trained by a version that kept none"
        )
    if epochs != list(range(num_epochs)):
        raise errors.StorageError(
            f"run {storage.run!r} has {len(epochs)} of {num_epochs} epochs in its history: only a finished run that "
            "kept all of them can be replayed"
        )
    for epoch in epochs:
        table = storage.history.epoch(epoch)
        columns = {name: table.column(name).to_numpy() for name in ("id", "run_step", "rank", "selected", *signals)}
        steps, ranks = columns["run_step"], columns["rank"]
        starts = np.flatnonzero((np.diff(steps, prepend=-1) != 0) | (np.diff(ranks, prepend=-1) != 0))
        for begin, end in zip(starts, [*starts[1:], steps.size], strict=True):
            part = slice(int(begin), int(end))
            if np.isnan(columns["loss"][part]).any():
                raise errors.StorageError(
                    f"run {storage.run!r} picked samples that were not scored in step {steps[begin]}: it cannot be "
                    "replayed"
                )
            seen = {name: columns[name][part] for name in signals}
            yield columns["id"][part], seen, columns["selected"][part], int(steps[begin])


def _check(space: Space, own: Selection) -> None:
    """Raise ConfigError where the space varies what a replay cannot, or the run did not score whole meta-batches."""
    if own.score_share < 1:
        raise errors.ConfigError(
            f"the run scored a part of each meta-batch (score_share={own.score_share:g}), and its history holds no "
            "other candidates: it cannot be replayed"
        )
    first = {name: domain.extremes()[0] for name, domain in space.domains.items()}
    known = (*space.selection(first, own.seed).method.settings(), *REPLAYED)
    values = own.to_dict()
    of_the_run = {**values, **values["settings"]}
    fixed = json.loads(json.dumps(dict(space.fixed)))
    same = {name for name, value in fixed.items() if name in of_the_run and of_the_run[name] == value}
    for name in (*space.domains, *space.fixed):
        if name not in known and name not in same:
            raise errors.ConfigError(
                f"a replay cannot vary {name}: it has the losses of those that the run scored, in the run's own order. "
                f"It can vary {', '.join(known)}; leave {name} to real trials"
            )


def _check_method(selection: Selection, own: Selection) -> None:
    """Raise ConfigError where a method cannot be replayed, or goes by what the run did not observe."""
    method = selection.method
    if not method.selects or not method.needs_losses or method.window:
        raise errors.ConfigError(
            f"method {method.name!r} does not pick by the losses of the meta-batch alone: it cannot be replayed"
        )
    missing = [name for name in selection.signals if name not in own.signals]
    if missing:
        raise errors.ConfigError(
            f"method {method.name!r} goes by {missing[0]!r}, which the run did not observe: it cannot be replayed"
        )

"""What each exchange costs a real training: Ray Train on the images of the package, exchanges in turns.

All runs have the same images, epochs and total batch; with as many workers they draw the same samples, so they have to
reach the same accuracy to the last digit. Seconds come from the run's own ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from es_service.selection.named import preset
from es_service.training.driver import train
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.derived import Derived

__all__ = ["QUICK", "Shape", "measure", "readable"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What every run trains: `total_batch` is that of all its workers together."""

    images: int = 5120
    epochs: int = 3
    total_batch: int = 64
    turns: int = 1

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return math.ceil(self.images / self.total_batch)


QUICK = Shape(images=320, epochs=1, total_batch=64)


def contenders(shape: Shape, num_workers: int) -> dict[str, dict[str, Any]]:
    """Return the exchanges that so many workers can take, by name."""
    if num_workers == 1:
        return {"embedded": {"exchange": "embedded"}, "leased": {"exchange": "leased"}}
    return {
        **{name: {"exchange": name} for name in ("leased", "prefetch", "sync")},
        **{f"collective({k})": {"exchange": "collective", "every": k} for k in (1, 8, 64)},
        "collective(epoch)": {"exchange": "collective", "every": shape.steps + 1},
    }


def measure(shape: Shape, workers: Sequence[int], only: Sequence[str] | None = None) -> dict[str, Any]:
    """Train with every exchange and number of workers, `turns` times in turns; `only` names some of the exchanges."""
    import torch

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray gives its workers: `embedded` trains in this process
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as storage:
        for turn in range(shape.turns):
            for num_workers in workers:
                for name, settings in contenders(shape, num_workers).items():
                    if only is None or name in only:
                        row = train_once(f"w{num_workers}-{len(rows)}", storage, shape, num_workers, settings)
                        rows.append({"exchange": name, "workers": num_workers, "turn": turn, **row})
                        print(rows[-1], file=sys.stderr, flush=True)
    torch.set_num_threads(threads)
    return {
        "shape": {**dataclasses.asdict(shape), "steps_per_epoch": shape.steps},
        "runs": rows,
        "accuracies_equal": {
            str(w): len({row["accuracy"] for row in rows if row["workers"] == w}) == 1 for w in workers
        },
    }


def train_once(run: str, storage: str, shape: Shape, num_workers: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; return seconds per step by the ledger, the mean of the ranks, and what the run reached."""
    job = TrainingSpec(
        run=run,
        storage=storage,
        task="fashion",
        derived=Derived(limit=shape.images),
        method="es",
        selection=preset("es", anneal=(0, 0), seed=0),
        epochs=shape.epochs,
        batch_size=shape.total_batch // num_workers,
        workers=num_workers,
        **settings,
    )
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what its daemons have to say
        result = train(job, lambda _: None)
    steps, seconds = shape.epochs * shape.steps, result["seconds"]
    return {
        "accuracy": result["accuracy"],
        "trained": result["samples"]["trained"],
        "ms_per_step": 1e3 * seconds["total"] / steps,
        "exchange_ms_per_step": 1e3 * seconds["exchange"] / steps,
        "wall_s": seconds["wall"],
    }


def readable(figures: dict[str, Any]) -> str:
    """Return the figures as a table, the mean of the turns."""
    shape = figures["shape"]
    lines = [
        f"training: {shape['images']:,} images, {shape['epochs']} epoch(s) of {shape['steps_per_epoch']} steps, total "
        f"batch {shape['total_batch']}, {shape['turns']} turn(s); ms per step",
        "workers  exchange             exchange   whole step   accuracy",
    ]
    for (workers, name), rows in grouped(figures).items():
        exchange, whole = (sum(row[key] for row in rows) / len(rows) for key in ("exchange_ms_per_step", "ms_per_step"))
        lines.append(f"{workers:>7}  {name:18} {exchange:10.2f} {whole:12.1f}   {rows[0]['accuracy']:8.4f}")
    equal = all(figures["accuracies_equal"].values())
    lines.append(f"accuracies of all exchanges with as many workers: {'equal' if equal else 'NOT EQUAL'}")
    return "\n".join(lines)


def grouped(figures: dict[str, Any]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Return the runs by (workers, exchange), in their order."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in figures["runs"]:
        groups.setdefault((row["workers"], row["exchange"]), []).append(row)
    return groups

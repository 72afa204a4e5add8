"""What a scoring pass costs beside a full step, per task, with the settings for memory and speed on and off.

    python -m benchmarks.scoring [--json] [--quick] [--batch-size B] [--compile]
    python -m benchmarks.scoring --task sft --data train.jsonl --model FOLDER --batch-size 32

Without --task, fashion is measured, and reviews where `make data` has put its data into data/; with it any task that
es-service train takes. A scoring pass goes over the meta-batch of B samples; a full step is forward, backward and
optimizer step over the same B samples. In every round each setting makes one of both, in turns; shown are medians, and
medians of the ratios within a round. On a GPU the clock waits for the device. --compile takes minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from es_service.cli.task_flags import add_task_flags, derived_settings, option_settings
from es_service.cli.text import grid
from es_service.errors import ConfigError, DataError
from es_service.training import batches
from es_service.training.memory import peak_memory, reset_peak
from es_service.training.optimizers import build_optimizer
from es_service.training.passes import ScoringPasses, arrange
from es_service.training.settings import TrainSettings
from es_service.training.step import autocast_for, train_step
from es_service.training.tasks import build_task
from es_service.training.tasks.base import Task
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.options import TaskOptions

__all__ = ["measure"]

TASKS = {"fashion": None, "reviews": "data"}
WARM_UP, ROUNDS, QUICK_ROUNDS = 3, 25, 3
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "scoring in float32": {"scoring_dtype": "float32"},
    "scoring in bfloat16": {"scoring_dtype": "bfloat16"},
    "scoring in pieces of B/8": {"scoring_batch_size": 8},
    "channels last": {"channels_last": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "compiled": {"compile": True},
}


class _Measured:
    """A model of the task under some settings, and its two passes over a batch."""

    def __init__(self, task: Task, settings: TrainSettings, batch: Any, num: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self._task, self._batch, self._device = task, batch, device
        model = task.build_model()
        arrange(model, settings)
        self._model = model.to(device).train()
        self._optimizer = build_optimizer(self._model, settings)
        self._scale = torch.ones(num, device=device)
        self._score = ScoringPasses(self._model, self._losses, settings, device)

    def _losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return self._task.losses(model(self._task.inputs(batch)), batch)

    def score(self) -> None:
        self._score(self._batch)

    def step(self) -> None:
        train_step(
            self._model,
            self._optimizer,
            self._batch,
            self._scale,
            self._losses,
            autocast=lambda: autocast_for(self._device),
        )

    def seconds(self, run: Callable[[], None]) -> float:
        """Return the seconds of one call, the device's work included."""
        begin = time.perf_counter()
        run()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - begin


def measure(task: Task, name: str, batch_size: int, rounds: int, settings: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per setting: milliseconds, ratios to the full step, and the peak of a GPU's memory.

    Args:
        task: whose first samples and model are taken.
        name: of the task, for the rows.
        batch_size: B.
        rounds: measured ones; some more warm up.
        settings: names of `SETTINGS`; what the model does not offer is left out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num = min(batch_size, len(task.train_set))
    batch = batches.to_device(task.train_set.__getitems__(list(range(num))), device)
    usual = {name: getattr(task.defaults, name) for name in ("learning_rate", "optimizer", "weight_decay", "momentum")}
    measured: dict[str, _Measured] = {}
    for one in settings:
        own = dict(SETTINGS[one])
        if "scoring_batch_size" in own:
            own["scoring_batch_size"] = max(1, num // own["scoring_batch_size"])
        try:
            measured[one] = _Measured(task, TrainSettings(**usual, **own), batch, num, device)
        except ConfigError:  # this model has no gradient checkpointing
            continue
    seconds: dict[str, list[tuple[float, float]]] = {one: [] for one in measured}
    peaks: dict[str, int] = {}
    for _ in range(WARM_UP + rounds):
        for one, passes in measured.items():
            reset_peak(device)
            seconds[one].append((passes.seconds(passes.score), passes.seconds(passes.step)))
            peaks[one] = peak_memory(device)["peak_bytes"]
    plain = np.array(seconds["plain"][WARM_UP:])
    rows = []
    for one, found in seconds.items():
        times = np.array(found[WARM_UP:])
        rows.append(
            {
                "task": name,
                "batch_size": num,
                "setting": one,
                "score_ms": 1e3 * statistics.median(times[:, 0]),
                "step_ms": 1e3 * statistics.median(times[:, 1]),
                "score_to_step": statistics.median(times[:, 0] / times[:, 1]),
                "score_to_plain_step": statistics.median(times[:, 0] / plain[:, 1]),
                "step_to_plain_step": statistics.median(times[:, 1] / plain[:, 1]),
                "peak_bytes": peaks[one] if device.type == "cuda" else None,
            }
        )
    return rows


def readable(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table."""
    ratios = ("score/step", "score/plain step", "step/plain step")
    header = ("task", "B", "setting", "score ms", "step ms", *ratios, "peak MB")
    return grid(
        header,
        [
            (
                *(row["task"], row["batch_size"], row["setting"]),
                *(f"{row[name]:.2f}" for name in ("score_ms", "step_ms")),
                *(f"{row[name]:.3f}" for name in ("score_to_step", "score_to_plain_step", "step_to_plain_step")),
                None if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
            )
            for row in rows
        ],
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.splitlines()[0])
    add_task_flags(parser.add_argument)
    parser.add_argument("--batch-size", type=int, metavar="B", help="samples (default: the task's meta-batch)")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--quick", action="store_true", help="few rounds: the figures mean little")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    asked = parser.parse_args()
    given = vars(asked)
    rows = []
    for name, data in TASKS.items() if asked.task is None else [(asked.task, asked.data)]:
        try:
            task = build_task(name, data, Derived(**derived_settings(given)), TaskOptions(**option_settings(given)))
        except DataError as error:
            if asked.task is not None:
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        settings = [one for one in SETTINGS if one != "compiled" or asked.compile]
        rounds = QUICK_ROUNDS if asked.quick else ROUNDS
        rows += measure(task, name, asked.batch_size or task.defaults.batch_size, rounds, settings)
    print(json.dumps(rows) if asked.json else readable(rows))


if __name__ == "__main__":
    main()

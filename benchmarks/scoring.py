"""What a scoring pass costs beside a full step, per task, in every way to make it cheaper that there is.

    python -m benchmarks.scoring [--json] [--quick] [--batch-size B] [--compile] [--only fashion,sft]
    python -m benchmarks.scoring --task sft --data train.jsonl --model FOLDER --batch-size 32

Without --task, the built-in tasks are measured (reviews and flights where `make data` has put their data into data/),
and images (resnet18), text (bow and tiny) and sft (a small Llama) on made-up files; with it any task that es-service
train takes. A scoring pass goes over the meta-batch of B samples; a full step is forward, backward and optimizer step
over the same B samples. In every round each way is taken once, in turns, until --seconds are over; shown are medians,
and medians of the ratios within a round. On a GPU the clock waits for the device. --compile takes minutes on a CPU.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.scoring_tasks import SMALL, TASKS
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

WARM_UP, ROUNDS, LEAST_ROUNDS = 1, 200, 5
SECONDS, QUICK_SECONDS = 60.0, 1.0
_QUICK_S = 0.05
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "scoring in float32": {"scoring_dtype": "float32"},
    "scoring in bfloat16": {"scoring_dtype": "bfloat16"},
    "scoring in pieces of B/8": {"scoring_batch_size": 8},
    "channels last": {"channels_last": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "compiled": {"compile": True},
}
"""Settings of a training, each with a model of its own."""
WAYS = (
    "inference mode",
    "4 meta-batches at once",
    "score_share=0.5",
    "score_share=0.25",
    "fetched, then scored",
    "fetched while scoring",
)
"""Other ways to score with the plain model. Of those at once a fourth counts; fetched is the next meta-batch."""


class _Measured:
    """A model of the task under some settings, and its two passes over a batch."""

    def __init__(
        self,
        task: Task,
        settings: TrainSettings,
        batch: Any,
        num: int,
        device: torch.device,
        fetch: Callable[[int], Any],
        clock: Callable[[], float],
    ) -> None:
        torch.manual_seed(0)
        self._task, self._batch, self._device, self._num, self._fetch = task, batch, device, num, fetch
        self._clock = clock
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
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

    def by(self, way: str) -> Callable[[], None] | None:
        """Return what scores in one of `WAYS`; None where there are too few samples for it."""
        if way == "inference mode":
            return torch.inference_mode()(self.score)
        if way == "4 meta-batches at once":
            try:
                several = self._fetch(4 * self._num)
            except IndexError:
                return None
            return lambda: self._score(several)
        if way.startswith("score_share="):
            positions = np.arange(0, self._num, round(1 / float(way.removeprefix("score_share="))))
            return lambda: self._score(batches.take(self._batch, positions, self._num))
        if way == "fetched, then scored":
            return lambda: (self._fetch(self._num), self.score())[1]

        def meanwhile() -> None:
            following = self._thread.submit(self._fetch, self._num)
            self.score()
            following.result()

        return meanwhile

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
        """Return the seconds of one call, the device's work included; of quick ones the second, with warm caches."""
        for _ in range(2):
            begin = self._clock()
            run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if (spent := self._clock() - begin) > _QUICK_S:
                break
        return spent


def measure(
    task: Task,
    name: str,
    batch_size: int,
    settings: Sequence[str],
    *,
    most_s: float,
    least: int = LEAST_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Return a row per setting: milliseconds, ratios to the full step, and the peak of a GPU's memory.

    Args:
        task: whose first samples and model are taken.
        name: of the task, for the rows.
        batch_size: B.
        settings: names of `SETTINGS`, "plain" among them, and of `WAYS`; what the model does not offer is left out.
        most_s: seconds after which no round begins.
        least: rounds that are made whatever they take, of `ROUNDS` at most; some more warm up.
        clock: seconds.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num = min(batch_size, len(task.train_set))

    def fetch(count: int) -> Any:
        return batches.to_device(task.train_set.__getitems__(list(range(count))), device)

    usual = {name: getattr(task.defaults, name) for name in ("learning_rate", "optimizer", "weight_decay", "momentum")}
    measured: dict[str, _Measured] = {}
    for one in settings:
        if one not in SETTINGS:
            continue
        own = dict(SETTINGS[one])
        if "scoring_batch_size" in own:
            own["scoring_batch_size"] = max(1, num // own["scoring_batch_size"])
        try:
            measured[one] = _Measured(task, TrainSettings(**usual, **own), fetch(num), num, device, fetch, clock)
        except ConfigError:  # this model has no gradient checkpointing
            continue
    found = {one: measured["plain"].by(one) for one in settings if one in WAYS}
    ways = {one: score for one, score in found.items() if score is not None}
    seconds: dict[str, list[tuple[float, float]]] = {one: [] for one in (*measured, *ways)}
    peaks: dict[str, int] = {}
    end = time.perf_counter() + most_s
    for number in range(WARM_UP + ROUNDS):
        if number >= WARM_UP + least and time.perf_counter() > end:
            break
        for one, passes in measured.items():
            reset_peak(device)
            seconds[one].append((passes.seconds(passes.score), passes.seconds(passes.step)))
            peaks[one] = peak_memory(device)["peak_bytes"]
        for one, score in ways.items():
            reset_peak(device)
            spent = measured["plain"].seconds(score) / (4 if one == "4 meta-batches at once" else 1)
            seconds[one].append((spent, seconds["plain"][-1][1]))
            peaks[one] = peak_memory(device)["peak_bytes"]
    plain = np.array(seconds["plain"][WARM_UP:])
    rows = []
    for one, found in seconds.items():
        times = np.array(found[WARM_UP:])
        rows.append(
            {
                "task": name,
                "batch_size": num,
                "rounds": len(times),
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
    parser.add_argument("--only", metavar="NAME,…", help=f"some of {', '.join(TASKS)}")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count seconds of this process, not of the clock: for a busy machine, with OMP_NUM_THREADS=1; what is "
        "fetched meanwhile is left out, because only the clock shows that",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help=f"for each task (default: {SECONDS:g})")
    parser.add_argument("--quick", action="store_true", help="few rounds: the figures mean little")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    asked = parser.parse_args()
    given = vars(asked)
    rows = []
    left_out = {*(() if asked.compile else ["compiled"]), *(WAYS[-2:] if asked.cpu_time else ())}
    settings = [one for one in (*SETTINGS, *WAYS) if one not in left_out]
    chosen = list(TASKS) if asked.only is None else asked.only.split(",")
    for name in chosen if asked.task is None else [asked.task]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if asked.task is None:
                    task = TASKS[name](Path(folder))
                else:
                    options = TaskOptions(**option_settings(given))
                    task = build_task(name, asked.data, Derived(**derived_settings(given)), options)
            except (DataError, ImportError) as error:
                if asked.task is not None:
                    raise
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            small = SMALL.get(name) if asked.task is None else None
            size = asked.batch_size or small or task.defaults.batch_size
            most_s = QUICK_SECONDS if asked.quick else SECONDS if asked.seconds is None else asked.seconds
            clock = time.process_time if asked.cpu_time else time.perf_counter
            found = measure(task, name, size, settings, most_s=most_s, clock=clock)
            rows += found
            if not asked.json:
                print(readable(found), flush=True)
    if asked.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()

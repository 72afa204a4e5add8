"""A trainer and a scorer on a core each, against plain data-parallel training on both: seconds, accuracy, loss, cost.

    python -m benchmarks.scorers [--seeds 0,1] [--epochs 8] [--limit N] [--json]

Every run has 128 samples in a (meta-)batch and one thread a process. `full, 2 workers` is Ray Train with 64 samples on
each core. `es, scorer …` draws 32 of the 128 by the losses of the small proxy, or of the model itself some steps old,
which has a core of its own. `es, alone` and `full, alone` leave the second core idle. `waited` is the share of its time
in which the process that trains was ready but had no core: above some hundredths other work was on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from es_service.cli.text import grid
from es_service.experiments.compare.worker import seconds_waited
from es_service.training.tasks.supervised import Classification

__all__ = ["RUNS", "build_task", "main"]

_BATCH = 128
RUNS: Mapping[str, Mapping[str, Any]] = {
    "full, 2 workers": {"method": "full", "workers": 2, "exchange": "collective", "batch_size": _BATCH // 2},
    "full, alone": {"method": "full"},
    "es, alone": {"method": "es"},
    "es, scorer small": {"method": "es", "scorers": 1, "proxy": "small"},
    "es, scorer self": {"method": "es", "scorers": 1, "proxy": "self", "proxy_age": 8},
    "rho, scorer small": {"method": "rho", "scorers": 1, "proxy": "small"},
}
"""Changes of the training's spec, by name."""


def build_task(data: str | None = None) -> Classification:
    """Return the task `fashion`, and pin this process to its core: rank r to r, a scorer to 1, any other to 0."""
    from es_service.training.tasks import fashion

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[_place() % len(cores)]})
    return fashion.build(data)


def _place() -> int:
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE:
        return 0
    from ray import train

    try:
        return int(train.get_context().get_world_rank())
    except RuntimeError:  # no worker of Ray Train: a scorer
        return 1


def _one(name: str, seed: int, epochs: int, limit: int | None) -> dict[str, Any]:
    """Make a run in this process."""
    import torch

    from es_service.actors.cluster import ensure_ray
    from es_service.selection.named import preset
    from es_service.training.driver import train
    from es_service.training.spec import TrainingSpec
    from es_service.training.tasks.derived import Derived

    ensure_ray()  # before this process is pinned: what Ray starts would inherit that
    torch.set_num_threads(1)
    changes = {"exchange": "embedded", "batch_size": _BATCH, **RUNS[name]}
    with tempfile.TemporaryDirectory() as folder:
        spec = TrainingSpec(
            run="one",
            storage=folder,
            task="benchmarks.scorers:build_task",
            selection=preset(changes["method"], seed=seed),
            derived=Derived(limit=limit),
            epochs=epochs,
            seed=seed,
            **changes,
        )
        before = seconds_waited() or 0.0
        result = train(spec, lambda _: None)
        waited = (seconds_waited() or 0.0) - before
    kept = ("accuracy", "held_out_loss", "samples", "seconds", "saving", "prepared", "scorers", "backward_cost")
    return {**{name: result.get(name) for name in kept}, "waited": waited / result["seconds"]["wall"]}


def _row(name: str, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    def mean(of: Any) -> float:
        return statistics.fmean(map(of, results))

    def cost(one: Mapping[str, Any]) -> float:
        each, prepared = 1 + one["backward_cost"], one["prepared"]
        extra = prepared["scored"] + each * prepared["trained"]
        return float(1 - one["saving"]["cost"] + extra / (each * one["samples"]["full"]))

    scorers = mean(lambda one: (one["scorers"] or {}).get("seconds", 0.0))
    return (
        name,
        f"{mean(lambda one: one['seconds']['total'] + one['prepared']['seconds']):.1f}",
        f"{mean(lambda one: one['seconds']['score']):.1f}",
        f"{scorers:.1f}",
        f"{mean(cost):.3f}",
        f"{mean(lambda one: one['accuracy']):.4f}",
        f"{mean(lambda one: one['held_out_loss']):.4f}",
        f"{mean(lambda one: one['waited']):.2f}",
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="with commas between")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--runs", default=";".join(RUNS), help="with semicolons between")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.one:
        print(json.dumps(_one(options.one, seeds[0], options.epochs, options.limit)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.runs.split(";")}
    for seed in seeds:
        for name, results in found.items():
            asked = ["--one", name, "--seeds", str(seed), "--epochs", str(options.epochs)]
            asked += [] if options.limit is None else ["--limit", str(options.limit)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scorers", *asked],
                stdout=subprocess.PIPE,
                env=environment,
                check=True,
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg(), "runs": found}))
    else:
        header = ("run", "seconds", "of them scoring", "scorer's", "cost", "accuracy", "loss", "waited")
        print(grid(header, [_row(name, results) for name, results in found.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m es_service.experiments.compare.worker RUNS RUN CORES ALONE`: one run of a comparison, in its own process.

It reads RUNS/RUN/spec.json, writes RUNS/RUN/outcome.json at the end, and ends early where its stdin closes: its parent
has ended.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.storage import files, sealed
from es_service.training.spec import TrainingSpec

__all__ = ["MOST_WAITED", "main", "seconds_waited"]

MOST_WAITED = 0.05
"""A run that was ready but had no core for more than this share of its time shared its cores."""


def seconds_waited() -> float | None:
    """Return for how long the thread of this process that waited most was ready to run while others had the core.

    None where the system does not report it.

    Reference: run-queue wait in /proc/<pid>/task/<tid>/schedstat, see the kernel's Documentation/scheduler/sched-stats.
    """
    waited = []
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited.append(int(task.read_text().split()[1]) / 1e9)
        except (OSError, IndexError, ValueError):  # the thread ended meanwhile, or the system keeps no such figures
            continue
    return max(waited, default=None)


def main(runs: str, run: str, cores: str, alone: str) -> int:
    """Train the run.

    Args:
        runs: folder of the runs.
        run: the run's name.
        cores: numbers of the cores that are the run's, with commas between; "" for whichever there are.
        alone: "1" where no other run is at work at the same time.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    local = fs.LocalFileSystem()
    spec = TrainingSpec.from_dict(files.read_json(local, f"{runs}/{run}/spec.json"))
    pinned = bool(cores)
    if pinned:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])

    import torch

    from es_service.training.driver import train

    if pinned:
        torch.set_num_threads(len(cores.split(",")))
    begin, waited_before = time.monotonic(), seconds_waited() or 0.0
    outcome: dict[str, Any] = {"spec": spec.to_dict(), "result": None, "error": None}
    try:
        outcome["result"] = train(dataclasses.replace(spec, storage=runs), _watch_nothing)
    except errors.InputError as error:  # the losses diverged: it would again
        outcome["error"] = str(error)
    outcome["wall_s"] = time.monotonic() - begin
    waited = ((seconds_waited() or 0.0) - waited_before) / outcome["wall_s"]
    shutil.rmtree(Path(runs) / run / "checkpoints", ignore_errors=True)
    on_gpu = torch.cuda.is_available()
    outcome["waited_share"] = max(0.0, waited)
    outcome["exclusive"] = pinned and (alone == "1" or not on_gpu) and waited <= MOST_WAITED
    outcome["machine"] = (
        f"{torch.cuda.get_device_name() if on_gpu else f'CPU, {torch.get_num_threads()} thread(s)'}, "
        f"torch {torch.__version__}"
    )
    files.write_json(local, f"{runs}/{run}/outcome.json", sealed.seal(outcome))
    return 0


def _watch_nothing(_: dict[str, Any]) -> None:
    pass


def _end_with_parent() -> None:
    # By its number: a thread inside sys.stdin's buffer holds its lock, and Python aborts where it ends meanwhile.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except errors.EsServiceError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)

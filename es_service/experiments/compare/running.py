"""Runs in separate processes, several at a time, each on its own cores.

Lifecycle of a run      spec.json written → process started → outcome.json written → process ended
Invariant               a run has outcome.json if and only if it ended by itself; every other one starts over
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from es_service import errors
from es_service.experiments.compare.folder import CompareFolder
from es_service.experiments.compare.outcomes import Outcome
from es_service.selection.settings import as_integer
from es_service.training.spec import TrainingSpec

__all__ = ["Slots", "run_all"]

_POLL_S = 0.05
_GRACE_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slots:
    """Places for runs: each has its own cores, or none where the system cannot pin a process.

    Args:
        cores: one tuple of core numbers for each run at a time.
    """

    cores: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, jobs: int) -> Slots:
        """Deal this process's cores out to `jobs` runs at a time; ConfigError where there are more runs than cores."""
        as_integer("jobs", jobs, least=1)
        pinnable = hasattr(os, "sched_getaffinity")
        cores = sorted(os.sched_getaffinity(0)) if pinnable else list(range(os.cpu_count() or 1))
        if jobs > len(cores):
            raise errors.ConfigError(
                f"jobs={jobs}, but this process may use {len(cores)} core(s): take at most as many"
            )
        share = len(cores) // jobs
        return cls(cores=tuple(tuple(cores[k * share : (k + 1) * share]) if pinnable else () for k in range(jobs)))


def run_all(
    specs: Sequence[TrainingSpec],
    folder: CompareFolder,
    slots: Slots,
    report: Callable[[Outcome], None],
    watch: Callable[[Sequence[TrainingSpec], str], None] = lambda *_: None,
) -> dict[str, Outcome]:
    """Run these, in this order, and return their outcomes by the run's name.

    Args:
        specs: the runs; what an interrupted one of the same name left is dropped.
        folder: of the comparison.
        slots: where they run.
        report: called with each outcome as it comes.
        watch: called again and again with the runs that are at work, and the folder of runs.

    An exception, e.g. of a signal, ends the processes and is raised; finished runs stay.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = list(reversed(specs))
    running: dict[int, tuple[TrainingSpec, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            for slot, cores in enumerate(slots.cores):
                if slot in running and running[slot][1].poll() is not None:
                    spec, process = running.pop(slot)
                    _close(process)
                    outcomes[spec.run] = folder.outcome(spec) or _failed(spec, process, folder)
                    report(outcomes[spec.run])
                if slot not in running and waiting:
                    spec = waiting.pop()
                    running[slot] = (spec, _start(spec, folder, cores, alone=len(slots.cores) == 1))
            watch([spec for spec, _ in running.values()], str(folder.runs))
            time.sleep(_POLL_S)
    finally:
        _stop([process for _, process in running.values()])
    return outcomes


def _start(
    spec: TrainingSpec, folder: CompareFolder, cores: tuple[int, ...], *, alone: bool
) -> subprocess.Popen[bytes]:
    place = folder.prepare(spec)
    environment = dict(os.environ)
    if cores:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(len(cores))
    words = [sys.executable, "-m", "es_service.experiments.compare.worker", str(folder.runs), spec.run]
    words += [",".join(map(str, cores)), "1" if alone else "0"]
    with (place / "log.txt").open("wb") as log:
        # Its own session: Ctrl-C reaches this process alone, which then ends the runs itself.
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _failed(spec: TrainingSpec, process: subprocess.Popen[bytes], folder: CompareFolder) -> Outcome:
    """Return the outcome of a process that ended without writing one; the next command tries again."""
    log = folder.runs / spec.run / "log.txt"
    lines = log.read_text(errors="replace").strip().splitlines()
    status = process.returncode
    how = f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return Outcome(spec=spec, error=f"{lines[-1] if lines else 'no message'} ({how}; see {log})")


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    give_up = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(timeout=max(0.0, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()

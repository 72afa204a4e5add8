"""Runs of `benchmarks.gpu`: processes that train one each, and the file that has a line for each that finished."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from es_service import errors
from es_service.experiments.compare.outcomes import Measured, Outcome
from es_service.training.spec import TrainingSpec

__all__ = ["Finished", "Process", "append", "read"]

_GRACE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that ended by itself: a line of runs.jsonl.

    Attributes:
        part, alone: see `gpu_plan.Job`.
        values: what `experiments.compare.worker` wrote: spec, result or error, wall_s, machine.
    """

    part: str
    alone: bool
    values: dict[str, Any]

    @functools.cached_property
    def outcome(self) -> Outcome:
        """What came of it, without seconds: `total_s` has them."""
        return Outcome.from_dict({**self.values, "exclusive": False})

    @property
    def spec(self) -> TrainingSpec:
        """What it was."""
        return self.outcome.spec

    @property
    def measured(self) -> Measured | None:
        """What it measured; None where it failed."""
        return self.outcome.measured

    @property
    def key(self) -> tuple[str, str]:
        """What no other run has."""
        return self.part, self.values["spec"]["run"]

    @property
    def total_s(self) -> float:
        """Seconds of its steps."""
        return float(self.values["result"]["seconds"]["total"])

    @property
    def wall_s(self) -> float:
        """Seconds from the start of its process to its end."""
        return float(self.values["process_s"])


def read(path: Path) -> list[Finished]:
    """Return the finished runs; a last line that was cut off is none.

    Raises:
        DataError: another line is not one of a run.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_text().split("\n")
    if rest:
        path.write_text("".join(f"{line}\n" for line in lines))
    try:
        finished = [Finished(**json.loads(line)) for line in lines]
        _ = [one.outcome for one in finished]
    except (KeyError, TypeError, ValueError) as error:
        raise errors.DataError(f"{path} holds a line that is no finished run: {error!r}") from error
    return finished


def append(path: Path, one: Finished) -> None:
    """Add a finished run."""
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(one)) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Process:
    """A process that trains one run.

    Args:
        spec: the run.
        folder: of the runs; it holds no run of this name.
        cores: the processor's cores that are its own, empty for all.
        alone: nothing else runs meanwhile.
    """

    def __init__(self, spec: TrainingSpec, folder: Path, cores: Sequence[int], *, alone: bool) -> None:
        self._place = folder / spec.run
        self._place.mkdir(parents=True)
        (self._place / "spec.json").write_text(json.dumps(spec.to_dict()))
        words = [sys.executable, "-m", "es_service.experiments.compare.worker", str(folder), spec.run]
        words += [",".join(map(str, cores)), "1" if alone else "0"]
        with (self._place / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def outcome(self) -> dict[str, Any] | str:
        """Return what it wrote, or why it wrote nothing; it has ended."""
        self.stop()
        written = self._place / "outcome.json"
        if written.exists():
            values: dict[str, Any] = json.loads(written.read_text())
            return values
        lines = (self._place / "log.txt").read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'no message'} (exit status {self._process.returncode})"

    def stop(self) -> None:
        """End it, and what it started, where it has not ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended:
                break
            os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        if self._process.stdin is not None:
            self._process.stdin.close()

"""The plan of `benchmarks.gpu`: which runs, in which order, and whether one more fits into the time that is left.

A part is a comparison of methods on one task. Its first runs have the GPU to themselves, for seconds and memory; those
with further seeds share it, for accuracy. Short full runs are as long as the first finished run of their method cost.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_runs import Finished
from es_service import errors
from es_service.experiments.compare.comparison import FULL, Candidate, Comparison, short_full
from es_service.experiments.compare.lengths import decide_lengths
from es_service.training.spec import TrainingSpec

__all__ = ["EXCHANGES", "Job", "Part", "check", "choose", "costed", "estimate", "jobs", "lengths"]

EXCHANGES = ("embedded", "leased")
_PROBE = Candidate(label="probe", name=FULL, epochs=1)
_EVALUATING = 1.25  # seconds of an epoch, held-out samples included, to those of its steps
_SLACK = 1.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One comparison.

    Args:
        name: what the table calls it.
        comparison: the task, the methods (the most valuable first), and the seeds.
        exchanges: compare `EXCHANGES` on it too.
    """

    name: str
    comparison: Comparison
    exchanges: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a part; `alone` means that nothing else runs meanwhile."""

    part: str
    spec: TrainingSpec
    alone: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What no other run has."""
        return self.part, self.spec.run

    @property
    def folder(self) -> str:
        """Name of the folder for the runs of its part: those of another part have the same names."""
        return re.sub(r"\W+", "-", self.part)


def check(parts: Sequence[Part], finished: Sequence[Finished]) -> None:
    """Raise ConfigError where a finished run has another one's name: it was made with other settings."""
    known = {job.key: job.spec for job in _all(parts, finished)}
    for one in finished:
        if one.key in known:
            there, here = (_without_paths(spec) for spec in (one.spec, known[one.key]))
            differing = [
                f"{name}: there {there[name]!r}, here {here[name]!r}" for name in here if there[name] != here[name]
            ]
            if differing:
                raise errors.ConfigError(
                    f"--out holds runs of {one.part} with other settings ({'; '.join(differing)}): name another folder"
                )


def _without_paths(spec: TrainingSpec) -> dict[str, Any]:
    values = spec.to_dict()
    own = {name: value for name, value in values["options"].items() if name not in ("model", "held_out")}
    return {**values, "data": None, "storage": None, "options": own}


def lengths(part: Part, finished: Sequence[Finished]) -> dict[str, dict[str, Any]]:
    """Return {label: {epochs, basis}} of the short full runs, as far as they can be decided: by cost, and for good."""
    first: dict[str, Finished] = {}
    for one in finished:
        if one.part == part.name and one.measured is not None:
            first.setdefault(one.spec.method, one)
    known = {one.label for one in part.comparison.candidates}
    measured = {label: [one.measured] for label, one in first.items() if label in known and one.measured is not None}
    return decide_lengths(measured, part.comparison.epochs)


def jobs(parts: Sequence[Part], finished: Sequence[Finished]) -> list[Job]:
    """Return the runs that are left, the most valuable first; a short full run once its length is known."""
    done = {one.key for one in finished}
    left: dict[tuple[str, str], Job] = {}
    for job in _all(parts, finished):
        if job.key not in done:
            left.setdefault(job.key, job)
    return list(left.values())


def costed(part: Part, finished: Sequence[Finished]) -> Part:
    """Return the part with what a backward pass counts as in all of its runs: what its probe measured."""
    for one in finished:
        if one.part == part.name and one.spec.method == _PROBE.label and one.measured is not None:
            cost = one.measured.backward_cost
            return dataclasses.replace(part, comparison=dataclasses.replace(part.comparison, backward_cost=cost))
    return part


def _all(parts: Sequence[Part], finished: Sequence[Finished]) -> Iterator[Job]:
    for part in parts:
        probe = part.comparison.spec(_PROBE, part.comparison.seeds[0])
        yield Job(part.name, dataclasses.replace(probe, backward_cost=None), alone=True)
    probed = {one.part for one in finished if one.spec.method == _PROBE.label}
    ready = [costed(part, finished) for part in parts if part.name in probed]
    decided = {part.name: lengths(part, finished) for part in ready}

    def of(part: Part, candidates: Sequence[Candidate], number: int, *, alone: bool = False) -> Iterator[Job]:
        for seed in part.comparison.seeds[number : number + 1]:
            for candidate in candidates:
                yield Job(part.name, part.comparison.spec(candidate, seed), alone)
                length = decided[part.name].get(candidate.label)
                if length is not None and length["epochs"] < part.comparison.epochs:
                    yield Job(part.name, part.comparison.spec(short_full(length["epochs"]), seed), alone)

    for part in ready:
        yield from of(part, part.comparison.candidates[:2], 0, alone=True)
    for part in ready:
        yield from _exchange_jobs(part)
    for number in (1, 2):
        for part in ready:
            yield from of(part, part.comparison.candidates, number)
    for part in ready:
        yield from of(part, part.comparison.candidates, 0, alone=True)
    for number in range(3, max((len(part.comparison.seeds) for part in ready), default=0)):
        for part in ready:
            yield from of(part, part.comparison.candidates, number)


def _exchange_jobs(part: Part) -> Iterator[Job]:
    if not part.exchanges:
        return
    es = next((one for one in part.comparison.candidates if one.name == "es"), part.comparison.candidates[-1])
    for exchange in EXCHANGES:
        spec = part.comparison.spec(dataclasses.replace(es, label=exchange, epochs=2), part.comparison.seeds[0])
        yield Job(part.name, dataclasses.replace(spec, exchange=exchange), alone=True)  # type: ignore[arg-type]


def estimate(job: Job, finished: Sequence[Finished], side_by_side: int) -> float:
    """Return about how many seconds a run will take, start and evaluation included; 0 where nothing is known.

    Args:
        job: the run.
        finished: what is known; runs of other parts say nothing.
        side_by_side: how many run at a time where they are not alone.
    """
    of_part = [one for one in finished if one.part == job.part and one.measured is not None]
    alike = [one for one in of_part if one.alone == job.alone] or of_part
    own = [one for one in alike if one.spec.method == job.spec.method] or alike
    if not own:
        return 0.0
    epochs = job.spec.epochs or 1
    known = max(own, key=lambda one: one.spec.epochs or 1)
    ran = known.spec.epochs or 1
    by_steps = known.wall_s - known.total_s + _EVALUATING * known.total_s * epochs / ran
    whole = min(by_steps, known.wall_s * max(1.0, epochs / ran))
    crowded = side_by_side if known.alone and not job.alone else 1
    return _SLACK * whole * crowded


def choose(
    waiting: Sequence[Job], running: Sequence[Job], fits: Callable[[Job], bool], side_by_side: int
) -> Job | None:
    """Return the run to start now, the most valuable of those that fit; None where it has to wait for others."""
    for job in waiting:
        if fits(job):
            crowded = any(one.alone for one in running) or len(running) >= side_by_side or (job.alone and running)
            return None if crowded else job
    return None

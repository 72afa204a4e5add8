"""What `es-service train` says at the end: did selection pay? Time is known, accuracy only beside a full run."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

from es_service import errors
from es_service.cli import text
from es_service.cli.task_flags import DEFAULT_TASK, derived_settings
from es_service.cli.training_flags import TRAINING
from es_service.experiments.progress import measured
from es_service.selection.named import preset
from es_service.storage.described import describe
from es_service.storage.listing import find_runs
from es_service.storage.plain import number
from es_service.storage.runs import RunStorage
from es_service.training.settings import OF_THE_TASK
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.derived import Derived

__all__ = ["closing", "compare_command"]

_SAME = ("task", "data", "derived", "options", "epochs", *(name for name in OF_THE_TASK if name != "backward_cost"))
_MOST_RUNS = 200  # that are looked at, the newest


def closing(spec: TrainingSpec, result: dict[str, Any]) -> str:
    """Return what the time saved cost in accuracy, as far as is known, and the command that answers it.

    Nothing for a run that selected nothing: its summary says so.

    Args:
        spec: the run, as it was asked for.
        result: of it.
    """
    saving, metric = result["saving"], result["metric"]
    if not saving["samples"]:
        return ""
    if saving["seconds"] is None:
        gained = f"{text.percent(saving['samples'])} fewer backward passes than full training, time unknown"
    else:
        less = "" if saving["seconds"] <= -text.NOTHING else " less time"
        gained = f"{text.saved(saving['seconds'], 'slower')}{less} than full training"
    words, full = metric.replace("_", " "), _full_run(spec, metric)
    if full is None:
        cost = f"{words} cost unknown: no full run beside it yet"
        answer = "this command answers it"
    else:
        name, reached, took = full
        cost = f"{words} {_difference(metric, result['metrics'][metric] - reached)} than the full run {name} ("
        cost += f"{measured(metric, reached)})"
        answer = "one run of each is no verdict, this command gives one"
        if took is not None:
            own = text.seconds(result["seconds"]["total"])
            answer = f"its steps took {text.seconds(took)}, those of this run {own}; {answer}"
    return f"{gained}; {cost}\n{answer}:\n  {shlex.join(compare_command(spec))}"


def _difference(metric: str, difference: float) -> str:
    amount = measured(metric, abs(difference)).replace(" %", " points")
    return f"{amount} {'lower' if difference < 0 else 'higher'}"


def _full_run(spec: TrainingSpec, metric: str) -> tuple[str, float, float | None] | None:
    """Return the name of a finished full run like this one, what it reached, and the seconds of its steps.

    One of the same seed if possible.
    """
    try:
        own, others = _like(RunStorage(spec.storage, spec.run).training() or {}), find_runs(spec.storage)
    except errors.EsServiceError:  # the run itself has ended well
        return None
    best = None
    for found in reversed(others[-_MOST_RUNS:]):
        if found.problem is not None or found.name == spec.run:
            continue
        try:
            run = describe(RunStorage(spec.storage, found.name))
        except errors.EsServiceError:  # a damaged run is no full run
            continue
        metrics = (run.result or {}).get("metrics")
        spent = (run.result or {}).get("seconds")
        reached = number(metrics.get(metric)) if isinstance(metrics, dict) else None
        took = number(spent.get("total")) if isinstance(spent, dict) else None
        if run.config.selection.method.name != "full" or reached is None or _like(run.training) != own:
            continue
        if run.training.get("seed") == spec.seed:
            return found.name, reached, took
        best = best or (found.name, reached, took)
    return best


def _like(training: dict[str, Any]) -> dict[str, Any]:
    """Return what two runs must have in common, but for the method, to be compared."""
    workers, batch_size = number(training.get("workers")) or 1, number(training.get("batch_size")) or 0
    return {**{name: training.get(name) for name in _SAME}, "batch": workers * batch_size}


def compare_command(spec: TrainingSpec) -> list[str]:
    """Return the words of a comparison of the run's method with full training, on the same task."""
    words = ["es-service", "compare", *(["--task", spec.task] if spec.task != DEFAULT_TASK else [])]
    batch_size = spec.batch_size
    if spec.workers > 1:  # each has a batch of its own, and a comparison's runs have one worker
        each = (RunStorage(spec.storage, spec.run).training() or {}).get("batch_size", batch_size)
        batch_size = each and each * spec.workers
    usual = {field.name: field.default for field in dataclasses.fields(TrainingSpec)}
    given = {
        "data": spec.data,
        **spec.options.to_dict(),
        **derived_settings(_changed(spec.derived.to_dict(), Derived().to_dict())),
        "epochs": spec.epochs,
        "batch_size": batch_size,
        "learning_rate": spec.learning_rate,
        **_changed({name: getattr(spec, name) for name in TRAINING}, usual),
    }
    for name, value in given.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [*words, "--methods", _label(spec), "--out", f"{spec.run}-comparison"]


def _changed(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != usual.get(name)}


def _label(spec: TrainingSpec) -> str:
    """Return the method with the settings that are not its own, as --methods takes it."""
    try:
        usual = preset(spec.method).to_dict()
    except errors.ConfigError:  # one of the user's own that needs some
        usual = {"settings": {}}
    here = spec.selection.to_dict()
    settings = _changed(here.pop("settings"), usual.pop("settings")) | _changed(here, usual)
    shown = {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in settings.items()
        if name not in ("seed", "method")
    }
    return ":".join([spec.method, *(f"{name}={value}" for name, value in shown.items())])

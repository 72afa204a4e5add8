"""`es-service train`: flags and files to a job, progress on stderr, the result on stdout."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from typing import Any

from es_service import errors
from es_service.cli import output, text
from es_service.cli.closing import closing
from es_service.cli.parser import add_command
from es_service.cli.progress import Progress
from es_service.cli.task_flags import DEFAULT_TASK, DERIVED, OPTIONS, add_task_flags, derived_settings, option_settings
from es_service.cli.training_flags import TRAINING, add_training_flags
from es_service.cli.yaml_files import read_yaml
from es_service.selection.methods.registry import preset_name
from es_service.selection.named import PRESETS, preset
from es_service.selection.settings import parse_value, suggest
from es_service.storage.runs import DEFAULT_STORAGE, RunStorage
from es_service.training.spec import TrainingSpec

__all__ = ["add_parser"]

_SELECTION_FLAGS = ("ratio", "prune_ratio")
_NO_SETTING = (
    "task",
    "method",
    "storage",
    "run",
    "selection",
    "derived",
    "options",
    "resume",
    "search",
    "backward_cost",
    "proxy_costs",
)
_DEFAULTS: dict[str, Any] = {
    "task": DEFAULT_TASK,
    "method": "es",
    "storage": DEFAULT_STORAGE,
    "run": None,
    **{field.name: field.default for field in dataclasses.fields(TrainingSpec) if field.name not in _NO_SETTING},
    **dict.fromkeys((*_SELECTION_FLAGS, *DERIVED, *OPTIONS)),
}
_PARTS = (*_SELECTION_FLAGS, *DERIVED, *OPTIONS)
_KIND_OF: dict[str, type] = {
    **dict.fromkeys(("workers", "shards", "every", "seed", "epochs", "batch_size", "scorers", "proxy_age"), int),
    **dict.fromkeys(("learning_rate", "ratio", "prune_ratio"), float),
    **DERIVED,
    **OPTIONS,
    **TRAINING,
}
_KINDS = {int: "whole number", float: "number", str: "word", bool: "truth value, true or false"}


def add_parser(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "train",
        train_command,
        help="train a task with data selection",
        examples=(
            "train --task fashion --method es --ratio 0.25 --epochs 8 --run demo --storage runs",
            "train --task images --data photos/ --model resnet18 --exchange embedded",
            "train --method eswp --set beta1=0.1 --workers 2 --label-noise 0.2",
            "train --run demo --storage runs --resume",
        ),
    )
    add_task_flags(parser.add_argument_group("task and data").add_argument)
    flag = parser.add_argument_group("selection").add_argument
    flag(
        "--method",
        help=f"{', '.join(PRESETS)}, one of an installed package, or your own my_module:my_method (default: es)",
    )
    flag(
        "--ratio",
        type=float,
        metavar="B/B",
        help="share of a meta-batch that is back-propagated (default: the method's)",
    )
    flag(
        "--prune-ratio",
        type=float,
        metavar="R",
        help="share of the data set that an epoch leaves out (default: the method's)",
    )
    flag(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting, e.g. beta1=0.1; repeatable"
    )
    flag("--irreducible", metavar="FILE", help="irreducible losses for rho (default: trains hold-out models first)")
    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=int, metavar="E", help="number of epochs (default: the task's)")
    flag("--batch-size", type=int, metavar="B", help="meta-batch of each worker (default: the task's)")
    add_training_flags(flag)
    flag("--seed", type=int, help="seed of the initial weights and the selection (default: 0)")
    flag = parser.add_argument_group("where it runs").add_argument
    flag("--scorers", type=int, metavar="N", help="processes of each worker that score ahead of it (default: 0)")
    flag("--proxy", metavar="NAME", help="what scorers run: self, a smaller model of the task, my_module:my_task")
    flag("--proxy-age", type=int, metavar="K", help="steps until --proxy self takes the new weights (default: 8)")
    flag("--workers", type=int, metavar="W", help="Ray Train workers (default: 1)")
    flag("--exchange", help="leased, sync, prefetch, collective, or embedded: one worker, no Ray (default: leased)")
    flag("--shards", type=int, metavar="S", help="actors that the score table is spread over (default: 1)")
    flag("--every", type=int, metavar="K", help="steps between two all-gathers of --exchange collective (default: 1)")
    flag = parser.add_argument_group("run").add_argument
    flag("--run", metavar="NAME", help="name of the run (default: from task, method and time)")
    flag("--storage", metavar="DIR", help=f"folder or URI for runs (default: {DEFAULT_STORAGE})")
    flag("--config", metavar="F.yaml", help="file with these settings by name; flags override it")
    flag("--resume", action="store_true", help="continue the run named by --run from its last checkpoint")
    flag("--json", action="store_true", help="print the result as one JSON object and nothing else on stdout")


def train_command(options: argparse.Namespace) -> int:
    """Train a task on the samples that the method selects, and report what that saved."""
    with output.warnings_on_stderr():
        spec = _spec(options)
    spec.check_place()
    progress = Progress(sys.stderr, quiet=options.json)
    progress.say("Loading PyTorch…")
    try:
        from es_service.training.driver import train
    except ImportError as error:
        raise errors.ConfigError(
            f"training needs torch, and Ray unless --exchange embedded: pip install 'es-service[all]' ({error})"
        ) from error
    # Ray prints output of its daemons, and stdout is for the result alone.
    showing = output.warnings_on_stderr()
    with contextlib.closing(progress), contextlib.redirect_stdout(sys.stderr), showing:
        try:
            result = train(spec, progress.show, progress.say)
        except KeyboardInterrupt:
            if RunStorage(spec.storage, spec.run).exists():
                print(f"es-service: stopped; --run {spec.run} --resume continues it", file=sys.stderr)
            raise
    if options.json:
        output.print_json(result)
    else:
        output.print_text(text.summary(result))
        if words := closing(spec, result):
            output.print_text(f"\n{words}")
    return 0


def _spec(options: argparse.Namespace) -> TrainingSpec:
    """Return what flags, file and defaults describe together."""
    given = {key: value for key, value in vars(options).items() if key in _DEFAULTS and value is not None}
    from_file = _read_config(options.config) if options.config else {}
    file_settings = from_file.pop("set", {})
    for one in (given, from_file):
        if "method" in one:
            one["method"] = preset_name(one["method"])
    before: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if options.resume:
        before, settings = _begun_with({**from_file, **given})
    settings.update(file_settings)
    settings.update(_setting(word) for word in options.set)
    values = {**_DEFAULTS, **before, **from_file, **given}
    for name in _SELECTION_FLAGS:
        if values[name] is not None:
            settings[name] = values[name]
    settings.setdefault("seed", values["seed"])
    if values["method"] == "short_full":
        raise errors.ConfigError(
            "short_full is full training with fewer epochs: --method full --epochs E; es-service compare finds the E "
            "that takes as long as a method"
        )
    selection = preset(values["method"], **settings)
    return TrainingSpec.from_dict(
        {
            **{name: value for name, value in values.items() if name not in _PARTS},
            "run": values["run"] or _run_name(values["task"], values["method"]),
            "derived": derived_settings(values),
            "options": option_settings(values),
            "selection": selection,
            "resume": options.resume,
        }
    )


def _run_name(task: str, method: str) -> str:
    return f"{task.replace(':', '-')}-{method.replace(':', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"


def _begun_with(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values and the selection's settings that the run to be resumed was started with.

    Where `values` name another method, the settings of the first are dropped: `train` then reports what differs.
    """
    if values.get("run") is None:
        raise errors.ConfigError("--resume needs --run NAME, the run to continue")
    training = RunStorage(values.get("storage", DEFAULT_STORAGE), values["run"]).training()
    if training is None:
        return {}, {}
    if training.get("task") is None:
        raise errors.RunMismatchError(
            f"run {values['run']!r} is trained by a loop of its user's own: continue it there"
        )
    try:
        known = TrainingSpec.from_dict({**training, "run": values["run"], "storage": "runs"}).description()
    except errors.ConfigError as error:
        raise errors.ConfigError(f"run {values['run']!r} cannot be resumed from its run.json: {error}") from error
    selection = known["selection"]
    settings = {**selection.pop("settings"), **selection}
    del settings["method"]
    known = {**known["derived"], **known["options"], **known}  # `derived` has a seed of its own: the training's wins
    if values.get("exchange", known["exchange"]) != known["exchange"]:
        known.pop("every", None)  # belongs to the exchange
    if values.get("method", known["method"]) != known["method"]:
        known.pop("irreducible", None)
        settings = {}
    return {key: value for key, value in known.items() if key in _DEFAULTS}, settings


def _setting(word: str) -> tuple[str, Any]:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise errors.ConfigError(f"--set {word!r}: write KEY=VALUE, e.g. beta1=0.1")
    return key, parse_value(value)


def _read_config(path: str) -> dict[str, Any]:
    values = read_yaml("--config", path)
    known = [*_DEFAULTS, "set"]
    for key in values:
        if key not in known:
            raise errors.ConfigError(f"--config {path} has an unknown setting {key!r}; {suggest(str(key), known)}")
    settings = values.get("set", {})
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise errors.ConfigError(f"--config {path}: 'set' must hold settings by name")
    return {key: _of_kind(path, key, value) for key, value in values.items() if value is not None}


def _of_kind(path: str, key: str, value: Any) -> Any:
    """Return a file's value as what a flag of that name would have given; ConfigError where it is something else."""
    if key == "set":
        return value
    kind = _KIND_OF.get(key, str)
    if kind is float and isinstance(value, str):  # YAML takes 1e-3 for a word
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise errors.ConfigError(f"--config {path}: {key} must be a {_KINDS[kind]}, got {value!r}")
    return value

"""`es-service compare`: flags to a comparison, progress on stderr, the result on stdout."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

from es_service import errors
from es_service.cli import output, text
from es_service.cli.parser import add_command
from es_service.cli.task_flags import DEFAULT_TASK, add_task_flags, derived_settings, option_settings
from es_service.cli.training_flags import add_training_flags, training_settings
from es_service.experiments.begin import check_extra, check_known
from es_service.experiments.compare.compare import compare
from es_service.experiments.compare.comparison import DEFAULT_METHODS, begin, method_labels, parse_candidates
from es_service.experiments.compare.folder import CompareFolder
from es_service.experiments.compare.progress import Progress
from es_service.experiments.compare.running import Slots
from es_service.experiments.compare.summary import summarize
from es_service.experiments.compare.verdicts import correction_in_words, difference_in_words, power_in_words
from es_service.experiments.progress import measured
from es_service.experiments.statistics import Difference
from es_service.selection.settings import as_integer

__all__ = ["add_parser", "subject_of"]

_DEFAULTS = {"seeds": 5, "seed_base": 0, "jobs": 1}


def add_parser(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "compare",
        compare_command,
        help="compare methods with full training and with shorter full runs",
        examples=(
            "compare --task fashion --methods es,loss --seeds 3 --out comparison",
            'compare --task images --data photos/ --methods "es:ratio=0.5,infobatch" --epochs 6 --out comparison',
        ),
    )
    add_task_flags(parser.add_argument_group("task and data").add_argument)
    flag = parser.add_argument_group("comparison").add_argument
    flag(
        "--methods",
        metavar="M,…",
        help="comma-separated, name or name:key=value:…, e.g. es:ratio=0.5; full, short_full and random are always "
        f"compared (default: {DEFAULT_METHODS}); with --summary those to show (default: all)",
    )
    flag(
        "--seeds",
        type=int,
        default=_DEFAULTS["seeds"],
        metavar="S",
        help="runs of each method (default: %(default)s; 1 gives no verdict)",
    )
    flag("--seed-base", type=int, default=_DEFAULTS["seed_base"], metavar="N", help="the first seed (default: 0)")
    flag(
        "--out",
        metavar="DIR",
        help="folder for runs, tables and the report, required; the same command continues there",
    )
    flag(
        "--summary",
        nargs="+",
        metavar="DIR",
        help="train nothing; show the verdicts of these finished comparisons, corrected for all of them",
    )
    flag(
        "--jobs",
        type=int,
        default=_DEFAULTS["jobs"],
        metavar="J",
        help="parallel runs, each on its own cores (default: 1)",
    )
    flag("--json", action="store_true", help="print the result as one JSON object and nothing else on stdout")
    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=int, metavar="E", help="epochs of a full run (default: the task's)")
    flag("--batch-size", type=int, metavar="B", help="meta-batch (default: the task's)")
    add_training_flags(flag)


def compare_command(options: argparse.Namespace) -> int:
    """Train a task with several methods on the same seeds, and report which of them pay.

    Each is compared with full training, and with a full run cut short to the same cost.
    """
    if options.summary is not None:
        return _summarize(options)
    if options.out is None:
        raise errors.ConfigError("--out is missing: name a folder for the runs, tables and the report")
    as_integer("seeds", options.seeds, least=1)
    as_integer("seed-base", options.seed_base, least=0, end=2**63 - options.seeds)
    candidates = parse_candidates(DEFAULT_METHODS if options.methods is None else options.methods)
    folder, slots = CompareFolder(options.out), Slots.of(options.jobs)
    subject = subject_of(options)
    folder.check_identity(check_known(**subject))
    check_extra("report", "comparing", "matplotlib", "jinja2", "scipy")
    progress = Progress(sys.stderr, options.jobs, quiet=options.json)
    progress.prepares("Loading data…")
    with output.warnings_on_stderr():
        comparison = begin(
            **subject,
            candidates=candidates,
            backward_cost=folder.backward_cost(),
            seeds=tuple(range(options.seed_base, options.seed_base + options.seeds)),
        )
    with contextlib.closing(progress):
        try:
            results = compare(comparison, folder, slots, progress)
        except KeyboardInterrupt:
            progress.say("es-service: stopped; finished runs are kept, and the same command continues")
            raise
    output.print_json(results) if options.json else output.print_text(_summary(results, folder))
    return 0


def subject_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is trained on, and how, as `check_known` and `begin` take it."""
    return {
        "task": options.task or DEFAULT_TASK,
        "data": options.data,
        "derived": derived_settings(vars(options)),
        "options": option_settings(vars(options)),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "training": training_settings(vars(options)),
    }


def _summarize(options: argparse.Namespace) -> int:
    own = ("command", "run_command", "summary", "methods", "json")
    given = [name for name, value in vars(options).items() if name not in own and value != _DEFAULTS.get(name)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise errors.ConfigError(f"--summary reads finished comparisons and trains nothing: leave {flags} out")
    check_extra("report", "comparing", "scipy")
    found = summarize(options.summary, None if options.methods is None else method_labels(options.methods))
    output.print_json(found) if options.json else output.print_text(_summary_in_words(found))
    return 0


def _summary_in_words(found: dict[str, Any]) -> str:
    header = ("comparison", "task", "method", "metric", "seeds", "cost", "against its short full run", "p",
              "corrected p", "would be seen", "verdict")  # fmt: skip
    lines = [(*_test(row), row["decision"]) for row in found["rows"]]
    counts = {
        method: ", ".join(f"{number} × {decision}" for decision, number in decisions.items())
        for method, decisions in found["methods"].items()
    }
    width = max(map(len, counts), default=0)
    totals = [f"{method.ljust(width)}  {words}" for method, words in counts.items()]
    notes = ["", correction_in_words(found["tests"])] * (found["tests"] > 0)
    return "\n".join([text.grid(header, lines), "", *totals, *notes])


def _test(row: dict[str, Any]) -> tuple[Any, ...]:
    cost = None if row["cost"] is None else f"{row['cost']:.3f}"
    names = (row["comparison"], row["task"], row["method"], row["metric"])
    short = row["difference_to_short_full"]
    if short is None:
        return (*names, None, cost, None, None, None, None)
    ps = (None if short[name] is None else f"{short[name]:.3f}" for name in ("p", "p_corrected"))
    seen = None if short["detectable"] is None else f"{100 * short['detectable']:.2f}"
    difference = Difference(**{field.name: short[field.name] for field in dataclasses.fields(Difference)})
    return (*names, short["pairs"], cost, difference_in_words(difference), *ps, seen)


def _summary(results: dict[str, Any], folder: Any) -> str:
    metric = results["metric"]
    header = (
        "method", metric.replace("_", " "), "± std", "scored", "trained", "seconds", "cost",
        f"saving at equal {'accuracy' if metric == 'balanced_accuracy' else metric.replace('_', ' ')}",
    )  # fmt: skip
    lines = [
        (
            row["method"],
            None if row[metric] is None else measured(metric, row[metric]["mean"]),
            None if row[metric] is None or row[metric]["std"] is None else measured(metric, row[metric]["std"]),
            None if row["samples"]["scored"] is None else f"{row['samples']['scored']:,}",
            None if row["samples"]["trained"] is None else f"{row['samples']['trained']:,}",
            None if row["seconds"] is None else f"{row['seconds']['mean']:.1f}",
            None if row["cost"] is None else f"{row['cost']:.3f}",
            _saving(row["saving_at_equal_accuracy"]),
        )
        for row in results["rows"]
    ]
    width = max(len(row["method"]) for row in results["rows"])
    verdicts = [f"{row['method'].ljust(width)}  {row['verdict']}" for row in results["rows"]]
    notes = []
    if results["tests"]:
        power = power_in_words(results["rows"], len(results["seeds"]))
        notes = ["", correction_in_words(results["tests"]), power]
    notes += ["", "seconds: left out where a run shared its cores; see the report"] * (results["timings"] == "shared")
    if results["backward_cost"] != 2:
        notes += ["", f"cost: a backward pass counted as {results['backward_cost']:.2f} forward passes"]
    return "\n".join([text.grid(header, lines), "", *verdicts, *notes, "", f"report: {folder.path / 'report.html'}"])


def _saving(saving: dict[str, Any] | None) -> str | None:
    if saving is None:
        return None
    words = text.percent(saving["value"])
    return f"{saving['kind']} {words}" if saving["bound"] else words

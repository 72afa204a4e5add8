"""`es-service tune`: flags to a search, progress on stderr, the result on stdout."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from es_service import errors
from es_service.cli import output, text
from es_service.cli.parser import add_command
from es_service.cli.task_flags import DEFAULT_TASK, add_task_flags, derived_settings, option_settings
from es_service.cli.training_flags import add_training_flags, training_settings
from es_service.cli.yaml_files import read_yaml
from es_service.experiments.progress import measured
from es_service.experiments.tune.domains import KINDS
from es_service.experiments.tune.objectives import OBJECTIVES, OF_THE_TASK
from es_service.experiments.tune.space import Space, default_space, parse_flags, read_space
from es_service.selection.methods.registry import preset_name
from es_service.selection.named import PRESETS
from es_service.selection.settings import as_integer
from es_service.storage.runs import DEFAULT_STORAGE, RunStorage

__all__ = ["add_parser"]

_DOMAINS = f"domains: {', '.join(KINDS.values())}; a plain value is the same in all trials"


def add_parser(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "tune",
        tune_command,
        help="search the settings of a method with Ray Tune",
        examples=(
            "tune --task fashion --method es --trials 16 --out search",
            'tune --method es --search "beta1=uniform(0,0.5)" --search ratio=0.5 --out search',
            "tune --out search --resume",
            'tune --from demo --search "beta1=grid(0, 0.2, 0.5)"',
        ),
        notes=_DOMAINS,
    )
    add_task_flags(parser.add_argument_group("task and data").add_argument)
    flag = parser.add_argument_group("search").add_argument
    flag(
        "--method",
        default="es",
        help=f"{', '.join(PRESETS)}, one of an installed package, or your own my_module:my_method (default: es)",
    )
    flag(
        "--search",
        action="append",
        default=[],
        metavar="NAME=DOMAIN",
        help='a setting and its domain, e.g. "beta1=uniform(0,0.5)"; repeatable (default: the usual ones)',
    )
    flag("--space", metavar="F.yaml", help="file with settings and their domains; --search overrides it")
    flag(
        "--trials",
        "--samples",
        dest="samples",
        type=int,
        default=16,
        metavar="N",
        help="number of settings to try, each a trial (default: %(default)s; a grid: all)",
    )
    flag("--out", metavar="DIR", help="folder for runs, tables and the report; required unless --from is given")
    flag("--resume", action="store_true", help="continue the search in --out")
    flag("--retry-failed", action="store_true", help="with --resume: retry the trials that failed")
    flag(
        "--from",
        dest="replayed",
        metavar="RUN",
        help="train nothing: rank settings by how differently they would have picked in this finished run; with --out, "
        "search, starting with those that pick most differently",
    )
    flag(
        "--storage",
        default=DEFAULT_STORAGE,
        metavar="DIR",
        help="folder or URI of the --from run (default: %(default)s)",
    )
    flag("--objective", default=OF_THE_TASK, help=f"{', '.join(OBJECTIVES)} (default: metric, the task's own)")
    flag("--target", type=float, metavar="A", help="value of the metric to reach, for the objectives cost and time")
    flag("--algorithm", help="grid, random, optuna or bohb (default: optuna, or grid if every setting is a grid)")
    flag("--seeds", type=int, default=1, metavar="S", help="training runs of each setting (default: 1)")
    flag(
        "--seed", type=int, default=0, metavar="N", help="seed of the search and of the first training run (default: 0)"
    )
    flag(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="stop trials that fall behind, with ASHA (default: yes, except for a grid and the objective front)",
    )
    flag(
        "--references",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also train full runs, whole and as short as the trials, for the report (default: yes)",
    )
    flag("--json", action="store_true", help="print the result as one JSON object and nothing else on stdout")
    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=int, metavar="E", help="epochs of every trial (default: the task's)")
    flag("--batch-size", type=int, metavar="B", help="meta-batch (default: the task's)")
    add_training_flags(flag)
    flag = parser.add_argument_group("where it runs").add_argument
    flag("--max-concurrent", type=int, metavar="M", help="parallel trials (default: as many as the CPUs allow)")
    flag("--cpus-per-trial", type=float, default=1.0, metavar="C", help="CPUs and threads per trial (default: 1)")
    flag(
        "--exchange",
        default="embedded",
        help="embedded: a trial trains in its own process; others: it is a Ray Train job (default: embedded)",
    )
    flag("--workers", type=int, default=1, metavar="W", help="Ray Train workers of a trial (default: 1)")


def tune_command(options: argparse.Namespace) -> int:
    """Search the settings of a method with Ray Tune. Each trial is a real training run. Report what the search cost."""
    options.method = preset_name(options.method)
    if options.replayed is not None and options.out is None:
        return _replay(options)
    if options.out is None:
        raise errors.ConfigError("--out DIR is required unless --from is given")
    from es_service.experiments.tune.objectives import Objective
    from es_service.experiments.tune.progress import Progress
    from es_service.experiments.tune.search import search
    from es_service.experiments.tune.search_spec import Places

    places = Places(
        exchange=options.exchange,
        workers=options.workers,
        cpus=options.cpus_per_trial,
        max_concurrent=options.max_concurrent,
    )
    Objective(name=options.objective, target=options.target, metric=OF_THE_TASK)
    space = _space(options)
    # Ray prints output of its daemons, and stdout is for the result alone.
    with (
        contextlib.closing(Progress(sys.stderr, quiet=options.json)) as progress,
        contextlib.redirect_stdout(sys.stderr),
    ):
        try:
            with output.warnings_on_stderr():
                results = search(
                    options.task or DEFAULT_TASK,
                    space,
                    out=options.out,
                    resume=options.resume,
                    retry_failed=options.retry_failed,
                    progress=progress,
                    references=options.references,
                    data=options.data,
                    derived=derived_settings(vars(options)),
                    options=option_settings(vars(options)),
                    objective=options.objective,
                    target=options.target,
                    algorithm=options.algorithm,
                    samples=options.samples,
                    num_seeds=options.seeds,
                    seed=options.seed,
                    early_stopping=options.early_stopping,
                    epochs=options.epochs,
                    batch_size=options.batch_size,
                    learning_rate=options.learning_rate,
                    training=training_settings(vars(options)),
                    places=places,
                    start_from=None if options.replayed is None else RunStorage(options.storage, options.replayed),
                )
        except KeyboardInterrupt:
            progress.say("es-service: stopped; the same command with --resume continues")
            raise
    output.print_json(results) if options.json else output.print_text(_summary(results, options.out))
    return 0


def _replay(options: argparse.Namespace) -> int:
    """Replay a finished run; needs neither Ray nor torch."""
    from es_service.experiments.tune.replay import replay

    if options.resume:
        raise errors.ConfigError(
            "--from without --out trains nothing: leave --resume out, or name the folder of the search with --out"
        )
    if not options.space and not options.search:
        raise errors.ConfigError('--from needs settings to replay, e.g. --search "beta1=grid(0, 0.2, 0.5)"')
    as_integer("samples", options.samples, least=1)
    as_integer("seed", options.seed, least=0, end=2**63)
    found = replay(
        RunStorage(options.storage, options.replayed), _space(options), samples=options.samples, seed=options.seed
    )
    if options.json:
        output.print_json(found)
        return 0
    names = list(found["rows"][0]["settings"])
    header = (*names, "other picks", "loss of the picked", "samples picked")
    rows = [
        (
            *(row["settings"][name] for name in names),
            text.percent(row["differs"]),
            f"{row['lift']:.3f}",
            text.percent(row["coverage"]),
        )
        for row in found["rows"]
    ]
    own = found["own"]
    output.print_text(text.grid(header, rows))
    output.print_text(
        f"\n{found['run']} itself: loss of the picked {own['lift']:.3f} of the mean, {text.percent(own['coverage'])} "
        f"of the samples picked, {found['picks']:,} picks; at random {text.percent(found['chance'])} would differ.\n"
        "Settings that pick alike do not need a trial each. Only trials show which of them trains better: the\n"
        "losses are those of this run's model."
    )
    return 0


def _space(options: argparse.Namespace) -> Space:
    """Return the space of the file and the flags together, the default where neither names one."""
    entries = {**(_read_file(options.space) if options.space else {}), **parse_flags(options.search)}
    if not options.space and not options.search:
        weighs_cost = options.objective in ("cost", "time", "front")
        entries = default_space(options.method, weighs_cost=weighs_cost)
    return read_space(options.method, entries)


def _read_file(path: str) -> dict[str, Any]:
    values = read_yaml("--space", path)
    if not values:
        raise errors.ConfigError(f"--space {path} contains no settings by name: write e.g. `beta1: uniform(0, 0.5)`")
    return values


def _summary(results: dict[str, Any], out: str) -> str:
    metric = results["objective"]["metric"]
    names = list(results["space"]["domains"])
    header = (*names, metric.replace("_", " "), "± std", "cost", "above full, points", "status")
    rows = [
        (
            *(row["settings"][name] for name in names),
            None if row[metric] is None else measured(metric, row[metric]["mean"]),
            None if row[metric] is None or row[metric]["std"] is None else measured(metric, row[metric]["std"]),
            None if row["cost"] is None else f"{row['cost']:.3f}",
            None if row["above_full"] is None else f"{100 * row['above_full']:+.2f}",
            row["status"] if row["reached"] in (None, True) else "target not reached",
        )
        for row in results["rows"]
    ]
    best = results["best"]
    found = "no setting finished with every seed"
    if best is not None:
        named = " ".join(f"{name}={value}" for name, value in best["settings"].items())
        reached = f"{metric.replace('_', ' ')} {measured(metric, best[metric])}"
        found = f"best for {results['objective']['words']}: {named} ({reached})"
    place = out.rstrip("/")
    return "\n".join(
        [text.grid(header, rows), "", found, results["cost_in_words"], f"report: {place}/report.html",
         f"train it: es-service train --config {place}/best.yaml"]
    )  # fmt: skip

"""`search`: from a space to a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from es_service import errors
from es_service.experiments.begin import USUAL, check_extra, check_known, check_run, costed, task_of
from es_service.experiments.tune.folder import SearchFolder
from es_service.experiments.tune.objectives import BALANCED, OF_THE_TASK, Objective
from es_service.experiments.tune.replay import starting_points
from es_service.experiments.tune.search_spec import Places, SearchSpec
from es_service.experiments.tune.space import Space, read_space
from es_service.experiments.tune.trials import FINISHED, RUNNING, Trial
from es_service.selection.settings import as_integer
from es_service.storage.runs import RunStorage
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.metrics import ACCURACY, metric_name

__all__ = ["begin", "search"]


def search(
    task: str,
    space: Space | Mapping[str, Any],
    *,
    out: str,
    method: str = "es",
    resume: bool = False,
    retry_failed: bool = False,
    progress: Any = None,
    references: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Search settings of a method on a task with Ray Tune; write the tables and the report, return results.json.

    Args:
        task: what to train, as `es-service train --task` names it.
        space: a `Space`, or setting -> domain, e.g. "uniform(0, 0.5)"; see `read_space`.
        out: folder for runs, tables and the report.
        method: of a space that is a mapping.
        resume: continue the search that is there.
        retry_failed: then train those trials and full runs again that failed.
        progress: a `Progress` to show how far it is, None shows nothing.
        references: also train in full, and for as long as the best trial costs, for the report.
        settings: see `begin`.

    Raises:
        ConfigError: a setting, a space or a folder that cannot be used; before Ray starts.
        TrainingError: every trial failed.

    Example:
        search("fashion", {"beta1": "uniform(0, 0.5)", "beta2": "uniform(0.5, 0.99)"}, samples=16, out="search")
    """
    if retry_failed and not resume:
        raise errors.ConfigError("--retry-failed is for a search that is there: give --resume too")
    whole_space = space if isinstance(space, Space) else read_space(method, space)
    folder = SearchFolder(out)
    folder.check(resume=resume)
    say = (lambda _: None) if progress is None else progress.prepares
    search_spec = begin(task, whole_space, name=folder.path.name, folder=folder, say=say, **settings)
    check_extra("tune", "tuning", "ray.tune", "matplotlib", "jinja2", "scipy")
    from es_service.actors.cluster import ensure_ray
    from es_service.experiments.tune import report, results

    with folder.open(search_spec):
        say("Starting Ray…")
        ensure_ray()
        trials = _trials(search_spec, folder, progress, retry_failed=retry_failed)
        if all(one.status != FINISHED for one in trials):
            first = next((one for one in trials if one.error is not None), trials[0])
            raise errors.TrainingError(f"no trial finished; {first.run}: {first.error or 'stopped early'}")
        full = _references(search_spec, folder, trials, progress, retry_failed=retry_failed) if references else []
        found = results.results(search_spec, trials, full)
        report.write(folder, search_spec, found, trials, full)
    return found


def begin(
    task: str,
    space: Space,
    *,
    name: str = "search",
    data: str | None = None,
    derived: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    objective: Objective | str = OF_THE_TASK,
    target: float | None = None,
    algorithm: str | None = None,
    samples: int = 16,
    num_seeds: int = 1,
    seed: int = 0,
    early_stopping: bool | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    training: Mapping[str, Any] | None = None,
    places: Places | None = None,
    start_from: RunStorage | None = None,
    folder: SearchFolder | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> SearchSpec:
    """Return the search with everything filled in that the task decides, having checked it.

    What can be checked without the task is checked first: building it takes torch and the data.

    Args:
        task: what to train; `data` is the path of its data.
        space: what to search.
        name: of the search.
        data: None for what comes with a package.
        derived: settings of `Derived`: label noise, a long tail, few samples.
        options: of a task from files, see `TaskOptions`.
        objective: an `Objective`, or its name; `target` belongs to the latter. "cost", "time" and "front" look at the
            task's metric too; at balanced accuracy where that is accuracy and, with a long tail, says little of the
            rare classes.
        target: accuracy to reach, or value of the task's metric.
        algorithm: "grid", "random", "optuna" or "bohb"; None takes a grid where every setting has one, else Optuna.
        samples: settings to try.
        num_seeds: training runs of each of them, with seeds from `seed` on.
        seed: of what is drawn.
        early_stopping: stop trials that fall behind; None for yes, but for a grid and a front.
        epochs, batch_size, learning_rate: of the trials; None takes the task's.
        training: further settings of every trial's `TrainingSpec`: the optimizer, the passes.
        places: where trials run.
        start_from: a finished run of this task, to begin with settings that pick differently; see `starting_points`.
        folder: where the search is to go; one that holds another search is refused.
        say: called with what is done next, where that takes a while.

    Raises:
        ConfigError: an unknown task, an objective that it cannot give, or a trial that could not begin.
        DataError: the task's data are missing or damaged.
    """
    as_integer("seeds", num_seeds, least=1)
    as_integer("seed", seed, least=0, end=2**32)
    wanted = Derived(**(derived or {}))
    if isinstance(objective, str):
        objective = Objective(name=objective, target=target, metric=OF_THE_TASK)
    algorithm = algorithm or ("grid" if space.is_grid else "optuna")
    if early_stopping is None:
        early_stopping = algorithm != "grid" and objective.name != "front"
    known = check_known(task, data, wanted.to_dict(), options, epochs, batch_size, learning_rate, training)
    chosen: dict[str, Any] = {
        "name": name,
        "space": space,
        "objective": objective,
        "algorithm": algorithm,
        "samples": samples,
        "seeds": tuple(range(seed, seed + num_seeds)),
        "seed": seed,
        "early_stopping": early_stopping,
        "places": places or Places(),
        "start": () if start_from is None else tuple(starting_points(start_from, space, seed=seed)),
    }
    unknown: dict[str, Any] = {
        name: 1 for name in ("num_samples", *USUAL) if name not in known
    }  # until the task is built
    as_far_as_known = SearchSpec(**known, **unknown, **chosen)
    if folder is not None:
        identity = as_far_as_known.identity()
        later = (*unknown, "backward_cost", *(["objective"] if objective.metric == OF_THE_TASK else []))
        folder.check_identity({key: value for key, value in identity.items() if key not in later})
    say("Loading data…")
    built, filled = task_of(known)
    metric = metric_name(built)
    balanced = metric == ACCURACY and wanted.long_tail is not None and objective.weighs_cost
    objective = chosen["objective"] = objective.of(BALANCED if balanced else metric)
    if objective.metric == "balanced_accuracy" and built.held_out_labels is None:
        raise errors.ConfigError(
            f"the task {task!r} has no labels, and so no balanced accuracy: take --objective accuracy"
        )
    if start_from is not None and start_from.config().num_samples != filled["num_samples"]:
        raise errors.ConfigError(
            f"run {start_from.run!r} has {start_from.config().num_samples} samples, the task {filled['num_samples']}: "
            "begin with a run of the same task"
        )
    search_spec = SearchSpec(**filled, **chosen)
    for extreme in _extremes(space):
        named = ", ".join(f"{name}={value}" for name, value in extreme.items())
        run = search_spec.run_with(extreme, seed, "trial")
        check_run(built, search_spec, run, what=f"a trial with {named}" if named else None)
    kept = None if folder is None else folder.backward_cost()
    return costed(built, search_spec, search_spec.run_with(extreme, seed, "trial"), kept)


def _extremes(space: Space) -> list[dict[str, Any]]:
    """Return settings with each of them at each of its extremes at least once."""
    extremes = {name: domain.extremes() for name, domain in space.domains.items()}
    longest = max(map(len, extremes.values()))
    return [{name: values[k % len(values)] for name, values in extremes.items()} for k in range(longest)]


def _trials(search_spec: SearchSpec, folder: SearchFolder, progress: Any, *, retry_failed: bool) -> list[Trial]:
    """Run the missing trials, and return all of them."""
    from es_service.experiments.tune.early_stopping import scheduler_for
    from es_service.experiments.tune.suggestions import proposals
    from es_service.experiments.tune.tuner import cluster, end_run

    end = end_run(folder.runs) if search_spec.places.on_ray_train else None
    scheduler = scheduler_for(search_spec, search_spec.places.room(cluster("CPU")), end)
    asked = {**proposals(search_spec), "spec": search_spec.spec, "retry_failed": retry_failed}
    return _run(search_spec, folder, "search", scheduler, progress, **asked)


def _references(
    search_spec: SearchSpec, folder: SearchFolder, trials: Sequence[Trial], progress: Any, *, retry_failed: bool
) -> list[Trial]:
    """Run the missing full runs, and return all of them: full itself, and as short as trials of two costs."""
    from es_service.experiments.tune.early_stopping import NoStopping
    from es_service.experiments.tune.suggestions import Listed

    lengths = folder.lengths()
    if lengths is None:
        costs = sorted(one.cost for one in trials if one.status == FINISHED)
        as_short = (math.ceil(search_spec.epochs * one - 1e-9) for one in (costs[0], costs[len(costs) // 2]))
        lengths = sorted(
            {search_spec.epochs, *(min(max(one, 1), search_spec.epochs) for one in as_short)}, reverse=True
        )
        folder.write_lengths(lengths)
    names = [
        f"{'full' if epochs == search_spec.epochs else 'short-full'}-{epochs}-s{seed}"
        for seed in search_spec.seeds
        for epochs in lengths
    ]

    def spec(trial: Trial) -> TrainingSpec:
        return search_spec.reference(trial.run, trial.settings["epochs"], trial.seed)

    return _run(
        search_spec,
        folder,
        "references",
        NoStopping(),
        progress,
        retry_failed=retry_failed,
        searcher=Listed([{"epochs": epochs} for epochs in lengths]),
        space=None,
        samples=len(lengths),
        seed_major=True,
        spec=spec,
        run_name=names.__getitem__,
    )


def _run(
    search_spec: SearchSpec, folder: SearchFolder, name: str, scheduler: Any, progress: Any, **asked: Any
) -> list[Trial]:
    from es_service.experiments.tune import tuner
    from es_service.experiments.tune.searcher import Trials
    from es_service.experiments.tune.trainable import Job

    trials = Trials(
        seeds=search_spec.seeds,
        objective=search_spec.objective,
        storage=folder.runs,
        room=search_spec.places.room(tuner.cluster("CPU")),
        seed=search_spec.seed,
        **asked,
    )

    def on_start() -> None:
        if progress is not None:
            ended = sum(one.status != RUNNING for one in trials.trials) - trials.num_to_retry
            progress.expect(asked["samples"] * len(search_spec.seeds), search_spec.objective, ended)

    job = Job(
        storage=str(folder.runs),
        whole=search_spec.whole,
        backward_cost=search_spec.backward_cost,
        metric=search_spec.objective.metric,
        places=search_spec.places,
        stop=folder.tune / "stop",
    )
    show = (lambda _: None) if progress is None else progress.show
    tuner.run_trials(trials, scheduler, name=name, folder=folder.tune, job=job, on_start=on_start, show=show)
    return trials.trials

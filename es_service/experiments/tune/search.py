"""`search`: from a space to a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from es_service import errors
from es_service.experiments.begin import check_subject
from es_service.experiments.experiment_spec import RunSpec
from es_service.experiments.tune.folder import Folder
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.replay import starting_points
from es_service.experiments.tune.search_spec import Places, Search
from es_service.experiments.tune.space import Space, read_space
from es_service.experiments.tune.trials import FINISHED, RUNNING, Trial
from es_service.selection.idle import warn_if_idle
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_integer
from es_service.storage.runs import RunStorage
from es_service.training.settings import TrainSettings
from es_service.training.tasks import build_task, check_signals
from es_service.training.tasks.derived import Derived

__all__ = ["begin", "search"]

_OPEN = {"num_samples": 1, "epochs": 1, "batch_size": 1, "learning_rate": 1.0}  # until the task is built


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
        space: a `Space`, or setting -> domain, "uniform(0, 0.5)" say; see `read_space`.
        out: folder for runs, tables and the report.
        method: of a space that is a mapping.
        resume: go on with the search that is there.
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
    folder = Folder(out)
    folder.check(resume=resume)
    described = begin(task, whole_space, name=folder.path.name, folder=folder, **settings)
    check_extras()
    from es_service.actors.cluster import ensure_ray
    from es_service.experiments.tune import report, results

    with folder.open(described):
        ensure_ray()
        trials = _trials(described, folder, progress, retry_failed=retry_failed)
        if all(one.status != FINISHED for one in trials):
            first = next((one for one in trials if one.error is not None), trials[0])
            raise errors.TrainingError(f"no trial finished; {first.run}: {first.error or 'stopped early'}")
        full = _references(described, folder, trials, progress, retry_failed=retry_failed) if references else []
        found = results.results(described, trials, full)
        report.write(folder, described, found, trials, full)
    return found


def begin(
    task: str,
    space: Space,
    *,
    name: str = "search",
    data: str | None = None,
    derived: Mapping[str, Any] | None = None,
    objective: Objective | str = "accuracy",
    target: float | None = None,
    algorithm: str | None = None,
    samples: int = 16,
    num_seeds: int = 1,
    seed: int = 0,
    early_stopping: bool | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    places: Places | None = None,
    start_from: RunStorage | None = None,
    folder: Folder | None = None,
) -> Search:
    """Return the search with everything filled in that the task decides, having checked it.

    What can be checked without the task is checked first: building it takes torch and the data.

    Args:
        task: what to train; `data` says where its data are.
        space: what to search.
        name: of the search.
        data: None for what comes with a package.
        derived: settings of `Derived`: label noise, a long tail, few samples.
        objective: an `Objective`, or its name; `target` belongs to the latter. With a long tail accuracy says little
            of the rare classes: "cost", "time" and "front" then look at balanced accuracy.
        target: accuracy to reach.
        algorithm: "grid", "random", "optuna" or "bohb"; None takes a grid where every setting has one, else Optuna.
        samples: settings to try.
        num_seeds: trainings of each of them, with seeds from `seed` on.
        seed: of what is drawn.
        early_stopping: stop trials that fall behind; None for yes, but for a grid and a front.
        epochs, batch_size, learning_rate: of the trials; None takes the task's.
        places: where trials run.
        start_from: a finished run of this task, to begin with settings that pick differently; see `starting_points`.
        folder: where the search is to go; one that holds another search is refused.

    Raises:
        ConfigError: an unknown task, an objective that it cannot give, or a trial that could not begin.
        DataError: the task's data are missing or damaged.
    """
    as_integer("seeds", num_seeds, least=1)
    as_integer("seed", seed, least=0, end=2**32)
    wanted = Derived(**(derived or {}))
    if isinstance(objective, str):
        balanced = wanted.long_tail is not None and objective in ("cost", "time", "front")
        metric = "balanced_accuracy" if balanced else "accuracy"
        objective = Objective(name=objective, target=target, metric=metric)
    algorithm = algorithm or ("grid" if space.is_grid else "optuna")
    if early_stopping is None:
        early_stopping = algorithm != "grid" and objective.name != "front"
    known = check_subject(
        task=task,
        data=data,
        derived=wanted.to_dict(),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    described = Search(
        **{**_OPEN, **known},
        name=name,
        space=space,
        objective=objective,
        algorithm=algorithm,
        samples=samples,
        seeds=tuple(range(seed, seed + num_seeds)),
        seed=seed,
        early_stopping=early_stopping,
        places=places or Places(),
        start=() if start_from is None else tuple(starting_points(start_from, space, seed=seed)),
    )
    if folder is not None:
        folder.check_identity(
            {key: value for key, value in described.identity().items() if key in known or key not in _OPEN}
        )
    built = build_task(task, described.data, wanted)
    if objective.metric == "balanced_accuracy" and built.held_out_labels is None:
        raise errors.ConfigError(
            f"the task {task!r} has no labels, and so no balanced accuracy: take --objective accuracy"
        )
    if start_from is not None and start_from.config().num_samples != len(built.train_set):
        raise errors.ConfigError(
            f"run {start_from.run!r} has {start_from.config().num_samples} samples, the task {len(built.train_set)}: "
            "begin with a run of the same task"
        )
    usual = {name: getattr(built.defaults, name) for name in _OPEN if name != "num_samples" and name not in known}
    described = dataclasses.replace(described, num_samples=len(built.train_set), **usual)
    for extreme in _extremes(space):
        selection = space.selection(extreme, 0)
        own = {**space.of_the_run(space.fixed), **space.of_the_run(extreme)}
        check_signals(built, selection)
        TrainSettings(learning_rate=own.get("learning_rate", described.learning_rate), seed=seed)
        config = RunConfig(
            selection=selection,
            num_samples=described.num_samples,
            num_epochs=described.epochs,
            batch_size=own.get("batch_size", described.batch_size),
        )
        config.check_world(described.places.workers)
        named = ", ".join(f"{name}={value}" for name, value in extreme.items())
        warn_if_idle(config, described.places.workers, what=f"a trial with {named}" if named else None)
    return described


def _extremes(space: Space) -> list[dict[str, Any]]:
    """Return settings with each of them at each of its extremes at least once."""
    extremes = {name: domain.extremes() for name, domain in space.domains.items()}
    longest = max(map(len, extremes.values()))
    return [{name: values[k % len(values)] for name, values in extremes.items()} for k in range(longest)]


def check_extras() -> None:
    """Raise ConfigError where Ray Tune, or what draws the report, is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(
            f"tuning needs Ray Tune, matplotlib and jinja2: pip install 'es-service[tune]' ({error})"
        ) from error


def _trials(described: Search, folder: Folder, progress: Any, *, retry_failed: bool) -> list[Trial]:
    """Run what is missing of the trials, and return all of them."""
    from es_service.experiments.tune.early_stopping import scheduler_for
    from es_service.experiments.tune.suggestions import proposals
    from es_service.experiments.tune.tuner import cluster, end_run

    end = end_run(folder.runs) if described.places.on_ray_train else None
    scheduler = scheduler_for(described, described.places.room(cluster("CPU")), end)
    asked = {**proposals(described), "spec": described.spec, "retry_failed": retry_failed}
    return _run(described, folder, "search", scheduler, progress, **asked)


def _references(
    described: Search, folder: Folder, trials: Sequence[Trial], progress: Any, *, retry_failed: bool
) -> list[Trial]:
    """Run what is missing of the full runs, and return them: full itself, and as short as trials of two costs."""
    from es_service.experiments.tune.early_stopping import NoStopping
    from es_service.experiments.tune.suggestions import Listed

    lengths = folder.lengths()
    if lengths is None:
        costs = sorted(one.cost for one in trials if one.status == FINISHED)
        as_short = (math.ceil(described.epochs * one - 1e-9) for one in (costs[0], costs[len(costs) // 2]))
        lengths = sorted({described.epochs, *(min(max(one, 1), described.epochs) for one in as_short)}, reverse=True)
        folder.write_lengths(lengths)
    names = [
        f"{'full' if epochs == described.epochs else 'short-full'}-{epochs}-s{seed}"
        for seed in described.seeds
        for epochs in lengths
    ]

    def spec(trial: Trial) -> RunSpec:
        return described.reference(trial.run, trial.settings["epochs"], trial.seed)

    return _run(
        described,
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


def _run(described: Search, folder: Folder, name: str, scheduler: Any, progress: Any, **asked: Any) -> list[Trial]:
    from es_service.experiments.tune import tuner
    from es_service.experiments.tune.searcher import Trials
    from es_service.experiments.tune.trainable import Job

    trials = Trials(
        seeds=described.seeds,
        objective=described.objective,
        storage=folder.runs,
        room=described.places.room(tuner.cluster("CPU")),
        seed=described.seed,
        **asked,
    )

    def begun() -> None:
        if progress is not None:
            ended = sum(one.status != RUNNING for one in trials.trials) - trials.num_to_retry
            progress.expect(asked["samples"] * len(described.seeds), described.objective, ended)

    job = Job(
        storage=str(folder.runs),
        search=described.name,
        whole=described.whole,
        places=described.places,
        stop=folder.tune / "stop",
    )
    show = (lambda _: None) if progress is None else progress.show
    tuner.run_trials(trials, scheduler, name=name, folder=folder.tune, job=job, begun=begun, show=show)
    return trials.trials

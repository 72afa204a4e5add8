"""What a search leaves for people and programs: report.html with its pictures, best.yaml, trials.parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from es_service import errors
from es_service.experiments import figures
from es_service.experiments.report import cost_in_words, draw, spread_in_words, write_page, write_table
from es_service.experiments.tune.folder import SearchFolder
from es_service.experiments.tune.objectives import BALANCED
from es_service.experiments.tune.pictures import PICTURES
from es_service.experiments.tune.search_spec import SearchSpec
from es_service.experiments.tune.space import OF_THE_RUN
from es_service.experiments.tune.trials import ENTRY, FAILED, Trial
from es_service.training.tasks.metrics import ACCURACY

__all__ = ["best_config", "history_table", "trials_table", "write"]

_F64, _I64, _TEXT = pa.float64(), pa.int64(), pa.string()
_TRIALS = [
    ("run", _TEXT), ("number", _I64), ("setting", _I64), ("seed", _I64), ("status", _TEXT), ("epochs", _I64),
    ("accuracy", _F64), ("balanced_accuracy", _F64), ("held_out_loss", _F64), ("cost", _F64), ("scored", _I64),
    ("trained", _I64), ("seconds", _F64), ("error", _TEXT), ("settings", _TEXT),
]  # fmt: skip
_EPOCHS = [
    ("run", _TEXT), ("number", _I64),
    *((name, _I64 if name in ("epoch", "scored", "trained") else _F64) for name in ENTRY),
]  # fmt: skip


def write(
    folder: SearchFolder,
    search: SearchSpec,
    results: Mapping[str, Any],
    trials: Sequence[Trial],
    references: Sequence[Trial],
) -> None:
    """Write all of it into the search's folder, results.json last."""
    write_table(folder.path / "trials.parquet", trials_table(search, results))
    write_table(folder.path / "history.parquet", history_table(search, [*trials, *references]))
    best = best_config(search, results)
    place = folder.path / "best.yaml"
    place.unlink(missing_ok=True)
    if best is not None:
        figures.write(place, best)
    pictures = draw(folder.path / "pictures", PICTURES, results)
    write_page(folder.path / "report.html", "tune.html.jinja", _context(results, pictures))
    folder.write("results.json", dict(results))


def trials_table(search: SearchSpec, results: Mapping[str, Any]) -> pa.Table:
    """Return a row for each trial; `settings` as JSON, and a column config/<name> for each that was searched."""
    rows, columns = [], _with_metric(_TRIALS, search)
    for name, domain in search.space.domains.items():
        kind = (_I64 if domain.is_integer else _F64) if domain.is_numeric else _TEXT
        columns.append((f"config/{name}", kind))
    for trial in results["trials"]:
        row = {**trial, "settings": json.dumps(trial["settings"], sort_keys=True)}
        for name, domain in search.space.domains.items():
            value = trial["settings"][name]
            row[f"config/{name}"] = value if domain.is_numeric else str(value)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=pa.schema(columns))


def history_table(search: SearchSpec, trials: Sequence[Trial]) -> pa.Table:
    """Return a row for each epoch of each trial and of each full run."""
    rows = [{"run": one.run, "number": one.number, **entry} for one in trials for entry in one.epochs]
    return pa.Table.from_pylist(rows, schema=pa.schema(_with_metric(_EPOCHS, search)))


def _with_metric(columns: Sequence[tuple[str, pa.DataType]], search: SearchSpec) -> list[tuple[str, pa.DataType]]:
    """Return the columns with one for the task's metric, where it has none yet."""
    metric = search.objective.metric
    return [*columns, *([] if metric in dict(columns) else [(metric, _F64)])]


def best_config(search: SearchSpec, results: Mapping[str, Any]) -> str | None:
    """Return best.yaml, which `es-service train --config` takes as it is; None where no setting finished."""
    try:
        import yaml
    except ImportError as error:
        raise errors.ConfigError("best.yaml needs PyYAML: pip install pyyaml") from error
    best = results["best"]
    if best is None:
        return None
    settings = {**search.space.fixed, **best["settings"]}
    own = {name: settings.pop(name) for name in OF_THE_RUN if name in settings}
    values = {
        "task": search.task,
        **({} if search.data is None else {"data": search.data}),
        **{name: value for name, value in search.derived.items() if name != "seed"},
        **search.options,
        "method": search.space.method,
        "epochs": search.epochs,
        "batch_size": own.get("batch_size", search.batch_size),
        "learning_rate": own.get("learning_rate", search.learning_rate),
        **search.training,
        "exchange": search.places.exchange,
        "workers": search.places.workers,
        "seed": search.seeds[0],
        "set": settings,
    }
    metric = search.objective.metric
    reached = f"{metric.replace('_', ' ')} {best[metric]:.4f} at {best['cost']:.3f} of a full training's cost"
    lines = [
        f"# Found by es-service tune for {search.objective.describe()}: {reached}, mean of {best['seeds']} seed(s).",
        "# The seeds that chose it flatter it: train it with others before you believe the figure.",
        f"# es-service train --config {search.name}/best.yaml",
    ]
    return "\n".join([*lines, yaml.safe_dump(values, sort_keys=False)])


def _context(results: Mapping[str, Any], pictures: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    metric = results["objective"]["metric"]
    return {
        "results": results,
        "metric": metric.replace("_", " "),
        "unit": _unit(metric, " in percent"),
        "cost": cost_in_words(results["backward_cost"]),
        "names": list(results["space"]["domains"]),
        "sentence": _sentence(results),
        "rows": [_cells(results, row) for row in _ranked(results)],
        "lines": [
            {
                "name": "full" if one["epochs"] == results["epochs"] else f"short_full ({one['epochs']} epochs)",
                "value": spread_in_words(one[metric]),
                "cost": f"{one['cost']:.3f}",
            }
            for one in results["references"]
        ],
        "errors": [f"{one['run']}: {one['error']}" for one in results["trials"] if one["status"] == FAILED],
        "notes": _notes(results),
        "pictures": pictures,
    }


def _ranked(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the settings, the best first, those without a whole result last."""
    sign = -1.0 if results["objective"]["name"] in ("cost", "time") else 1.0
    done = [row for row in results["rows"] if row["value"] is not None]
    rest = [row for row in results["rows"] if row["value"] is None]
    return sorted(done, key=lambda row: (not row["reached"], -sign * float(row["value"]))) + rest


def _cells(results: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    best = results["best"]
    return {
        "settings": [row["settings"][name] for name in results["space"]["domains"]],
        "value": spread_in_words(row[results["objective"]["metric"]]),
        "cost": "" if row["cost"] is None else f"{row['cost']:.3f}",
        "above": "" if row["above_full"] is None else f"{100 * row['above_full']:+.2f}",
        "status": row["status"] if row["reached"] in (None, True) else "target not reached",
        "is_best": best is not None and best["setting"] == row["setting"],
    }


def _sentence(results: Mapping[str, Any]) -> str:
    best, metric = results["best"], results["objective"]["metric"]
    if best is None:
        return "No setting finished with every seed."
    named = ", ".join(f"{name} = {value}" for name, value in best["settings"].items())
    words = f"Best for {results['objective']['words']}: {named}, with {metric.replace('_', ' ')} "
    words += f"{100 * best[metric]:.2f}{_unit(metric, ' %')} at {best['cost']:.3f} of a full training's cost"
    if best["reached"] is False:
        words += "; the target was not reached, this setting came nearest"
    usual = results["usual"]
    if usual is not None and usual["setting"] != best["setting"]:
        words += (
            f". The method's own settings reached {100 * usual[metric]:.2f}{_unit(metric, ' %')} at {usual['cost']:.3f}"
        )
    elif usual is not None:
        words += ". These are the method's own settings: the search found none that are better"
    return f"{words}."


def _unit(metric: str, of_shares: str) -> str:
    """Return the unit of a hundred times a metric."""
    return of_shares if metric in (ACCURACY, BALANCED) else " (times 100)"


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = ["The best of many is flattered by chance: train it with fresh seeds before believing its figure."]
    if len(results["seeds"]) == 1:
        notes.append("One seed: differences of a few tenths of a point are within what another seed changes.")
    if not results["references"]:
        notes.append("No full runs were made beside the trials, so nothing here says whether any setting pays.")
    return notes

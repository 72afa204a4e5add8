"""`compare`: from the methods to the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from es_service import errors
from es_service.experiments.compare import rows
from es_service.experiments.compare.comparison import Comparison, short_full
from es_service.experiments.compare.folder import CompareFolder
from es_service.experiments.compare.lengths import decide_lengths
from es_service.experiments.compare.outcomes import Measured, Outcome, history_table, results_table
from es_service.experiments.compare.progress import Progress
from es_service.experiments.compare.running import Slots, run_all
from es_service.training.spec import TrainingSpec

__all__ = ["compare"]


def compare(comparison: Comparison, folder: CompareFolder, slots: Slots, progress: Progress) -> dict[str, Any]:
    """Run the missing runs of a comparison, write its tables and reports, and return what results.json holds.

    First the methods run, then the full runs that are as long as each of them took.

    Raises:
        ConfigError: the folder cannot be used, or is another comparison's.
        TrainingError: every run failed.
    """
    from es_service.experiments.compare import report  # draws, with what is an extra
    from es_service.experiments.report import write_table

    with folder.open(comparison):
        specs = comparison.specs(comparison.candidates)
        outcomes = _run(specs, folder, slots, progress)
        lengths = _lengths(comparison, folder, outcomes)
        shorter = sorted({int(one["epochs"]) for one in lengths.values()} - {comparison.epochs})
        specs = comparison.specs(tuple(short_full(epochs) for epochs in shorter))
        outcomes.update(_run(specs, folder, slots, progress))
        if all(one.measured is None for one in outcomes.values()):
            first = next(iter(outcomes.values()))
            raise errors.TrainingError(f"every run failed; {first.spec.run}: {first.error}")
        ended = list(outcomes.values())
        results = rows.results(comparison, ended, lengths)
        runs, history = results_table(comparison, ended), history_table(comparison, ended)
        write_table(folder.path / "results.parquet", runs)
        write_table(folder.path / "history.parquet", history)
        report.write(folder.path, results, runs.to_pylist(), history.to_pylist())
        folder.write("results.json", results)
    return results


def _run(specs: Sequence[TrainingSpec], folder: CompareFolder, slots: Slots, progress: Progress) -> dict[str, Outcome]:
    """Return the outcomes of these runs, by name, having run those that have none yet."""
    kept = {spec.run: outcome for spec in specs if (outcome := folder.outcome(spec)) is not None}
    progress.expect(specs, list(kept.values()))
    missing = [spec for spec in specs if spec.run not in kept]
    return {**kept, **run_all(missing, folder, slots, progress.show, progress.watch)}


def _lengths(comparison: Comparison, folder: CompareFolder, outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Return the lengths of the short full runs of these methods; what was decided before stays."""
    measured: dict[str, list[Measured]] = defaultdict(list)
    for one in outcomes.values():
        if one.measured is not None:
            measured[one.spec.method].append(one.measured)
    lengths = {**decide_lengths(measured, comparison.epochs), **folder.lengths()}
    folder.write_lengths(lengths)
    return {label: lengths[label] for label in measured if label in lengths}

"""`compare`: from the methods to the report."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from es_service import errors
from es_service.evidence import rows, tables
from es_service.evidence.comparison import Comparison
from es_service.evidence.contenders import short_full
from es_service.evidence.folder import Folder
from es_service.evidence.lengths import decide_lengths
from es_service.evidence.outcomes import Measured, Outcome
from es_service.evidence.progress import Progress
from es_service.evidence.running import Slots, run_all

__all__ = ["check_report_extra", "compare"]


def compare(comparison: Comparison, folder: Folder, slots: Slots, progress: Progress) -> dict[str, Any]:
    """Run what is missing of a comparison, write its tables and reports, and return what results.json holds.

    First the methods run, then the full runs that are as long as each of them took.

    Raises:
        ConfigError: the folder cannot be used, or is another comparison's.
        TrainingError: every run failed.
    """
    with folder.open(comparison):
        specs = comparison.specs(comparison.contenders)
        progress.expect(specs)
        outcomes = run_all(specs, folder, slots, progress.show)
        lengths = _lengths(comparison, folder, outcomes)
        shorter = sorted({int(one["epochs"]) for one in lengths.values()} - {comparison.epochs})
        specs = comparison.specs(tuple(short_full(epochs) for epochs in shorter))
        progress.expect(specs)
        outcomes.update(run_all(specs, folder, slots, progress.show))
        if all(one.measured is None for one in outcomes.values()):
            first = next(iter(outcomes.values()))
            raise errors.TrainingError(f"every run failed; {first.spec.run}: {first.error}")
        results = rows.results(comparison, list(outcomes.values()), lengths)
        folder.write_results(results)
        tables.write(folder.path, comparison, list(outcomes.values()))
    return results


def _lengths(comparison: Comparison, folder: Folder, outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any]]:
    """Return the lengths of the short full runs of these methods; what was decided before stays."""
    measured: dict[str, list[Measured]] = defaultdict(list)
    for one in outcomes.values():
        if one.measured is not None:
            measured[one.spec.label].append(one.measured)
    lengths = {**decide_lengths(measured, comparison.epochs), **folder.lengths()}
    folder.write_lengths(lengths)
    return {label: lengths[label] for label in measured if label in lengths}


def check_report_extra() -> None:
    """Raise ConfigError where what draws the report is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(
            f"comparing needs matplotlib and jinja2: pip install 'es-service[report]' ({error})"
        ) from error

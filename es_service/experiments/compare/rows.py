"""The rows of a comparison: from the outcomes of its runs to each method's entry in results.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from es_service.experiments import statistics
from es_service.experiments.compare import verdicts
from es_service.experiments.compare.comparison import FULL, SHORT_FULL, Candidate, Comparison, short_full
from es_service.experiments.compare.lengths import matched_length
from es_service.experiments.compare.outcomes import SCORERS, Measured, Outcome, metric_names
from es_service.selection.idle import why_idle
from es_service.training.tasks.metrics import ACCURACY

__all__ = ["results"]

_LOSS = "held_out_loss"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Entry:
    """A row to be: a method, its runs by seed, and why it never selects, if so."""

    label: str
    epochs: int
    finished: dict[int, Measured]
    errors: list[str]
    idle: str | None

    @property
    def runs(self) -> int:
        return len(self.errors) + len(self.finished)

    def values(self, metric: str) -> dict[int, float]:
        return {seed: value for seed, one in self.finished.items() if (value := one.value(metric)) is not None}


def results(
    comparison: Comparison, outcomes: Sequence[Outcome], lengths: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what `compare --json` prints.

    Args:
        comparison: what was compared.
        outcomes: of all its runs, short full runs included.
        lengths: `decide_lengths`'s values.
    """
    own = {one.label: int(lengths[one.label]["epochs"]) for one in comparison.candidates if one.label in lengths}
    full = _entry(FULL, comparison.epochs, outcomes)
    by_length = {
        epochs: full if epochs == comparison.epochs else _entry(short_full(epochs).label, epochs, outcomes)
        for epochs in sorted({*own.values(), comparison.epochs})
    }
    measured = [one.measured for one in outcomes if one.measured is not None]
    metric = _metric(comparison, measured)
    named = metric_names(measured)
    table = _Table(comparison=comparison, metric=metric, named=named, full=full, by_length=by_length, own=own)
    rows = [table.reference_row(full, FULL, "the reference: every sample in every epoch")]
    matched = matched_length(own, comparison.epochs)
    others = sorted(set(own.values()) - {matched, comparison.epochs})
    rows += [table.short_row(epochs, is_matched=epochs == matched) for epochs in (matched, *others)]
    entries = [
        _entry(one.label, one.epochs or comparison.epochs, outcomes, idle=_idle(comparison, one))
        for one in comparison.candidates
        if one.label != FULL
    ]
    judged = {name: table.judge(entries, name) for name in (metric, *_others(metric, named))}
    for entry in entries:
        own_judged = {name: one[entry.label] for name, one in judged.items() if entry.label in one}
        rows.append(table.method_row(entry, lengths.get(entry.label, {}), own_judged))
    return {
        "task": comparison.task,
        "data": comparison.data,
        "derived": comparison.derived,
        "num_samples": comparison.num_samples,
        "epochs": comparison.epochs,
        "batch_size": comparison.batch_size,
        "learning_rate": comparison.learning_rate,
        "backward_cost": comparison.backward_cost,
        "seeds": list(comparison.seeds),
        "metric": metric,
        "metrics": named,
        "tests": len(judged[metric]),
        "timings": "exclusive" if measured and all(one.seconds is not None for one in measured) else "shared",
        "machines": sorted({one.machine for one in outcomes if one.machine}),
        "corrupted_share_of_set": next((one.corrupted_share_of_set for one in measured), None),
        "rows": rows,
    }


def _metric(comparison: Comparison, measured: Sequence[Measured]) -> str:
    """Return what methods are compared by: on a long tail, accuracy hardly reflects the rare classes."""
    metric = measured[0].metric if measured else ACCURACY
    balanced = bool(measured) and all(one.balanced_accuracy is not None for one in measured)
    is_tail = comparison.derived.get("long_tail") is not None
    return "balanced_accuracy" if metric == ACCURACY and balanced and is_tail else metric


def _others(metric: str, named: Sequence[str]) -> list[str]:
    """Return what methods could be compared by as well."""
    return [one for one in dict.fromkeys([*named, ACCURACY, "balanced_accuracy", _LOSS]) if one != metric]


def _idle(comparison: Comparison, candidate: Candidate) -> str | None:
    return why_idle(comparison.spec(candidate, comparison.seeds[0]).config(comparison.num_samples))


def _entry(label: str, epochs: int, outcomes: Sequence[Outcome], idle: str | None = None) -> _Entry:
    own = [one for one in outcomes if one.spec.method == label]
    return _Entry(
        label=label,
        epochs=epochs,
        finished={one.spec.seed: one.measured for one in own if one.measured is not None},
        errors=[f"seed {one.spec.seed}: {one.error}" for one in own if one.error is not None],
        idle=idle,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """What every row is compared with."""

    comparison: Comparison
    metric: str
    named: list[str]
    full: _Entry
    by_length: dict[int, _Entry]
    own: dict[str, int]

    def judge(self, entries: Sequence[_Entry], metric: str) -> dict[str, verdicts.Judged]:
        """Return what a metric says of these methods, by label; not of those that failed or never select."""
        differences = {
            one.label: difference
            for one in entries
            if one.label in self.own and one.idle is None and not one.errors
            if (difference := self._to(one, self.by_length[self.own[one.label]], metric)) is not None
        }
        return verdicts.judge(differences, lower_is_better=metric == _LOSS)

    def reference_row(self, entry: _Entry, method: str, sentence: str) -> dict[str, Any]:
        """Return the row of full itself, or of a short full run."""
        return {
            **self._measured(entry, method),
            "difference_to_full": None if entry is self.full else _difference(self._to(entry, self.full)),
            "difference_to_short_full": None,
            "saving_at_equal_accuracy": None,
            "by_metric": {},
            "decision": None,
            "verdict": sentence if entry.finished else f"failed: {'; '.join(entry.errors) or 'no run ended'}",
        }

    def short_row(self, epochs: int, *, is_matched: bool) -> dict[str, Any]:
        """Return the row of the full runs of one length."""
        entry = self.by_length[epochs]
        method = SHORT_FULL if is_matched else short_full(epochs).label
        if entry is self.full:
            sentence = "as long as full: no method here was cheaper than full"
        else:
            to_full = self._to(entry, self.full)
            words = "" if to_full is None else f": {verdicts.difference_in_words(to_full)} against full"
            sentence = f"what a method of this cost has to beat{words}"
        return self.reference_row(entry, method, sentence)

    def method_row(
        self, entry: _Entry, length: Mapping[str, Any], judged: Mapping[str, verdicts.Judged]
    ) -> dict[str, Any]:
        """Return the row of a method; `length` is that of its short full run, `judged` what each metric says."""
        epochs = self.own.get(entry.label)
        rival = None if epochs is None else self.by_length[epochs]
        to_full = self._to(entry, self.full)
        to_short = None if rival is None else self._to(entry, rival)
        by_metric = {name: one for name, one in judged.items() if name != self.metric}
        decision, sentence = verdicts.verdict(
            judged.get(self.metric),
            to_short,
            to_full,
            by_metric=by_metric,
            epochs=epochs,
            is_full=rival is self.full,
            num_failed=len(entry.errors),
            runs=entry.runs,
            rival_failed=0 if rival is None else len(rival.errors),
            rival_runs=0 if rival is None else rival.runs,
            idle=entry.idle,
        )
        short = None if to_short is None else {**_tested(to_short, judged.get(self.metric)), **length}
        return {
            **self._measured(entry, entry.label),
            "difference_to_full": _difference(to_full),
            "difference_to_short_full": short,
            "saving_at_equal_accuracy": self._saving(entry),
            "by_metric": {
                name: {**_tested(one.difference, one), "decision": one.decision} for name, one in by_metric.items()
            },
            "decision": decision,
            "verdict": sentence,
        }

    def _to(self, entry: _Entry, other: _Entry, metric: str = "") -> statistics.Difference | None:
        return statistics.paired_difference(entry.values(metric or self.metric), other.values(metric or self.metric))

    def _saving(self, entry: _Entry) -> dict[str, Any] | None:
        line = [
            (self._cost(one), statistics.spread(list(values.values())).mean)
            for one in self.by_length.values()
            if (values := one.values(self.metric))
        ]
        values = entry.values(self.metric)
        if not line or not values:
            return None
        saving = statistics.saving_at_equal(line, self._cost(entry), statistics.spread(list(values.values())).mean)
        return {"value": saving.value, "bound": saving.bound, "kind": saving.kind}

    def _cost(self, entry: _Entry) -> float:
        return _mean(entry, lambda one: one.passes / self.comparison.whole) or 0.0

    def _measured(self, entry: _Entry, method: str) -> dict[str, Any]:
        runs = entry.finished
        timed = {seed: one.seconds["total"] for seed, one in runs.items() if one.seconds is not None}
        return {
            "method": method,
            "label": entry.label,
            "epochs": entry.epochs,
            "seeds": len(runs),
            "failed": len(entry.errors),
            "errors": entry.errors,
            "accuracy": _spread(entry.values("accuracy")),
            "balanced_accuracy": _spread(entry.values("balanced_accuracy")),
            "held_out_loss": _spread(entry.values("held_out_loss")),
            **{name: _spread(entry.values(name)) for name in self.named},
            "samples": {"scored": _count(entry, "scored"), "trained": _count(entry, "trained")},
            "scorers": _scorers(entry),
            "seconds": _spread(timed) if len(timed) == len(runs) else None,
            "cost": self._cost(entry) if runs else None,
            "corrupted_share": _mean(entry, lambda one: one.corrupted_share),
        }


def _mean(entry: _Entry, of: Callable[[Measured], float | None]) -> float | None:
    values = [value for one in entry.finished.values() if (value := of(one)) is not None]
    return statistics.spread(values).mean if values else None


def _count(entry: _Entry, name: str) -> int | None:
    mean = _mean(entry, lambda one: float(getattr(one, name)))
    return None if mean is None else round(mean)


def _spread(values: Mapping[int, float]) -> dict[str, Any] | None:
    return dataclasses.asdict(statistics.spread(list(values.values()))) if values else None


def _difference(difference: statistics.Difference | None) -> dict[str, Any] | None:
    return None if difference is None else {"mean": difference.mean, "low": difference.low, "high": difference.high}


def _tested(difference: statistics.Difference, judged: verdicts.Judged | None) -> dict[str, Any]:
    return {
        **dataclasses.asdict(difference),
        "p_corrected": None if judged is None else judged.corrected,
        "detectable": None if judged is None else judged.detectable,
    }


def _scorers(entry: _Entry) -> dict[str, float] | None:
    found = [one.scorers for one in entry.finished.values() if one.scorers is not None]
    return {name: statistics.spread([one[name] for one in found]).mean for name in SCORERS} if found else None

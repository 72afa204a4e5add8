"""Prometheus metrics of the requests, the score servers, and the quality of the selection of live runs.

They come from the same cached stats and tables as other answers: a scrape costs a live run no more than a reader does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from starlette.types import Scope

from es_service import errors
from es_service.api.guard.problems import Problem
from es_service.api.runs.catalogue import Catalogue
from es_service.api.table import statistics

__all__ = ["CONTENT_TYPE", "NAMES", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_MOST_RUNS = 50
_MOST_LABELS = 50
_STREAMS = ("/v1/runs/{run}/events", "/v1/runs/{run}/export")

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "es_service_api_requests_total": "answers by route, method and status",
        "es_service_api_request_seconds": "seconds until an answer was complete, streams left out",
        "es_service_runs": "runs of the storage folder by status, pending those that were not read yet",
        "es_service_ray_up": "1 while the service is connected to a Ray cluster",
        "es_service_run_epochs": "epochs finished",
        "es_service_run_done_ratio": "share of the run that is done",
        "es_service_run_accuracy_ratio": "held-out accuracy at the last evaluation",
        "es_service_run_saved_ratio": "share of a full run that was saved, of samples, cost, seconds or tokens",
        "es_service_server_reports_total": "reports applied since the server began",
        "es_service_server_observed_samples_total": "samples observed since the server began",
        "es_service_server_selected_samples_total": "samples back-propagated since the server began",
        "es_service_server_overlaps_total": "samples that were in flight on two ranks",
        "es_service_server_table_bytes": "bytes of the score table",
        "es_service_server_restarts_total": "restarts of the server that this service saw",
        "es_service_server_call_seconds": "seconds of the server's calls, waiting for its table included",
        "es_service_server_queued_reports": "reports that ranks hold until the server has taken those before",
        "es_service_server_snapshot_age_seconds": "seconds since the newest snapshot was written",
        "es_service_server_journal_lag_records": "records of the journal that are not on storage yet",
        "es_service_server_storage_failing": "1 while the server cannot write its storage",
        "es_service_selection_effective_sample_ratio": "effective sample size of the weights / samples",
        "es_service_selection_seen_ratio": "share of the samples that were observed",
        "es_service_selection_picked_ratio": "share of the samples that were back-propagated",
        "es_service_selection_staleness_steps": "run steps since samples were last observed, by quantile",
        "es_service_selection_label_picked_ratio": "back-propagated / observed, by label",
    }
)
"""Every metric, and its help text."""


disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The service's metrics.

    Args:
        catalogue: of its runs.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "es_service_api_requests",
            NAMES["es_service_api_requests_total"],
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "es_service_api_request_seconds",
            NAMES["es_service_api_request_seconds"],
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer."""
        route = getattr(scope.get("route"), "path", None) or "none"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
        self._requests.labels(route, method, str(status)).inc()
        if route not in _STREAMS:
            self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return bytes(generate_latest(self._registry))

    def describe(self) -> list[Metric]:
        """Return nothing: what there is follows from the runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what is read off the runs when asked."""
        try:
            rows, num_pending = self._catalogue.rows().all()
        except errors.EsServiceError:
            rows, num_pending = [], 0
        states: dict[str, int] = {"pending": num_pending} if num_pending else {}
        for row in rows:
            states[row["status"]] = states.get(row["status"], 0) + 1
        up = self._catalogue.live.state()["state"] == "connected"
        yield _gauge("es_service_runs", ("status",), {(state,): num for state, num in states.items()})
        yield _gauge("es_service_ray_up", (), {(): float(up)})
        live = [row for row in rows if row["status"] == "live"][:_MOST_RUNS]
        yield from _of_runs(live)
        yield from self._of_servers()
        yield from self._of_selection([row["run"] for row in live])

    def _of_servers(self) -> Iterator[Metric]:
        live = self._catalogue.live
        stats = dict(list(live.runs().items())[:_MOST_RUNS])
        counters = {
            "es_service_server_reports_total": "num_reports",
            "es_service_server_observed_samples_total": "num_observed",
            "es_service_server_selected_samples_total": "num_selected",
            "es_service_server_overlaps_total": "num_overlaps",
        }
        for name, key in counters.items():
            yield _counter(name, ("run",), {(run,): one[key] for run, one in stats.items()})
        restarts = {(run,): live.restarts.get(run, 0) for run in stats}
        yield _counter("es_service_server_restarts_total", ("run",), restarts)
        table_bytes = {(run,): one["table_bytes"] for run, one in stats.items()}
        yield _gauge("es_service_server_table_bytes", ("run",), table_bytes)
        queued = {(run,): one["num_queued"] for run, one in stats.items()}
        yield _gauge("es_service_server_queued_reports", ("run",), queued)
        lags = {(run,): one["num_undurable"] for run, one in stats.items()}
        yield _gauge("es_service_server_journal_lag_records", ("run",), lags)
        failing = {(run,): float(one["storage_failure"] is not None) for run, one in stats.items()}
        yield _gauge("es_service_server_storage_failing", ("run",), failing)
        ages = {(run,): self._snapshot_age_s(run) for run in stats}
        yield _gauge(
            "es_service_server_snapshot_age_seconds",
            ("run",),
            {key: age for key, age in ages.items() if age is not None},
        )
        yield _calls({run: one.get("calls") or {} for run, one in stats.items()})

    def _snapshot_age_s(self, run: str) -> float | None:
        try:
            return self._catalogue.snapshot_age_s(run)
        except errors.EsServiceError:  # its folder is gone, or cannot be read any more
            return None

    def _of_selection(self, runs: list[str]) -> Iterator[Metric]:
        worth: dict[tuple[str, ...], float] = {}
        seen, picked, stale, labels = dict(worth), dict(worth), dict(worth), dict(worth)
        for run in runs:
            try:
                view = self._catalogue.view(run)
            except (Problem, errors.EsServiceError):
                continue
            effective = statistics.effective_sample_size(view)["share"]
            if effective is not None:
                worth[run,] = effective
            covered = statistics.coverage(view)
            seen[run,] = covered["seen"] / covered["num_samples"]
            picked[run,] = covered["picked"] / covered["num_samples"]
            for share, age in statistics.staleness(view, 50)["quantiles"].items():
                if age is not None and share in ("0.5", "0.95"):
                    stale[run, share] = age
            for one in (covered["labels"] or [])[:_MOST_LABELS]:
                if one["picked_share"] is not None:
                    labels[run, one["label"]] = one["picked_share"]
        yield _gauge("es_service_selection_effective_sample_ratio", ("run",), worth)
        yield _gauge("es_service_selection_seen_ratio", ("run",), seen)
        yield _gauge("es_service_selection_picked_ratio", ("run",), picked)
        yield _gauge("es_service_selection_staleness_steps", ("run", "quantile"), stale)
        yield _gauge("es_service_selection_label_picked_ratio", ("run", "label"), labels)


def _of_runs(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    for name, key in (
        ("es_service_run_epochs", "epoch"),
        ("es_service_run_done_ratio", "done"),
        ("es_service_run_accuracy_ratio", "accuracy"),
    ):
        yield _gauge(name, ("run",), {(row["run"],): row[key] for row in rows if row[key] is not None})
    saved = {
        (row["run"], of): share for row in rows for of, share in (row["saving"] or {}).items() if share is not None
    }
    yield _gauge("es_service_run_saved_ratio", ("run", "of"), saved)


def _gauge(name: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, NAMES[name], labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name.removesuffix("_total"), NAMES[name], labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _calls(calls_of: Mapping[str, Mapping[str, Any]]) -> Metric:
    """Return the histogram of the servers' calls, as `CallTimes.to_dict` gives them."""
    name = "es_service_server_call_seconds"
    family = HistogramMetricFamily(name, NAMES[name], labels=("run", "call"))
    for run, calls in calls_of.items():
        for call, found in calls.items():
            total, buckets = 0, []
            for edge, num in zip([*found["edges_s"], None], found["counts"], strict=True):
                total += num
                buckets.append(("+Inf" if edge is None else f"{edge:g}", total))
            family.add_metric((run, call), buckets, sum_value=found["total_s"])
    return family

"""Routes about the whole table: distributions, the data map, coverage, staleness, effective sample size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from es_service.api.models import table as models
from es_service.api.routes.answers import (
    Bins,
    Conditions,
    RunName,
    Scale,
    answer,
    catalogue_of,
    errors_of,
    not_modified,
    of_table,
)
from es_service.api.table import data_map as maps
from es_service.api.table import filters, past_epochs, statistics
from es_service.api.table.view import TableView

__all__ = ["router"]

router = APIRouter(tags=["table"])
_Column = Annotated[str, Query(pattern=filters.ORDER.replace("-?", ""), description="a column with numbers")]


def _from_table(request: Request, run: str, work: Callable[[TableView], dict[str, Any]]) -> Response:
    view = catalogue_of(request).view(run)
    tag = of_table(request, view)
    if (unchanged := not_modified(request, tag)) is not None:
        return unchanged
    return answer(request, {"run": run, "table": view.describe(), **work(view)}, tag)


@router.get("/v1/runs/{run}/distribution", response_model=models.Distribution, responses=errors_of(400, 404, 409))
def distribution(
    request: Request,
    run: RunName,
    column: _Column = "w",
    bins: Bins = 50,
    scale: Scale = "linear",
    where: Conditions = [],  # noqa: B006
) -> Response:
    """Return the histogram and the quantiles of a column."""
    return _from_table(
        request, run, lambda view: statistics.distribution(view, column, bins, scale=scale, conditions=where)
    )


@router.get(
    "/v1/runs/{run}/distribution/epochs",
    response_model=models.DistributionOverEpochs,
    responses=errors_of(400, 404, 409),
)
def distribution_over_epochs(
    request: Request, run: RunName, column: _Column = "w", bins: Bins = 50, scale: Scale = "linear"
) -> Response:
    """Return a column's distribution at each epoch's end, and now; approximate where the snapshot was deleted."""
    catalogue = catalogue_of(request)
    now = catalogue.view(run)
    views = [catalogue.view_at(run, epoch) for epoch in catalogue.snapshots(run)]
    if now not in views:
        views.append(now)
    tag = of_table(request, now, *(view.version for view in views))
    if (unchanged := not_modified(request, tag)) is not None:
        return unchanged
    now.check_column(column, numeric=True)
    is_log = scale == "log"
    before = past_epochs.spreads_before(catalogue.opened(run), column, min(view.epoch for view in views))
    range_now = statistics.common_range(views, column, is_log=is_log)
    outer = [*past_epochs.ends(list(before.values()), is_log=is_log), *range_now]
    between = (min(outer), max(outer))
    found = [statistics.distribution(view, column, bins, scale=scale, between=between) for view in views]
    names = ("counts", "below", "num_missing", "mean", "quantiles")
    return answer(
        request,
        {
            "run": run,
            "column": column,
            "scale": scale,
            "edges": found[0]["edges"],
            "epochs": [
                *past_epochs.rows(before, found[0]["edges"], is_log=is_log),
                *(
                    {"epoch": view.epoch, "source": view.source, **{name: one[name] for name in names}}
                    for view, one in zip(views, found, strict=True)
                ),
            ],
        },
        tag,
    )


@router.get("/v1/runs/{run}/map", response_model=models.DataMap, responses=errors_of(400, 404, 409))
def data_map(
    request: Request,
    run: RunName,
    points: Annotated[int, Query(ge=100, le=5000, description="at most so many bins")] = 4000,
    where: Conditions = [],  # noqa: B006
) -> Response:
    """Return the data map: mean loss against variability, binned."""
    return _from_table(request, run, lambda view: maps.data_map(view, points, where))


@router.get("/v1/runs/{run}/coverage", response_model=models.Coverage, responses=errors_of(404, 409))
def coverage(request: Request, run: RunName) -> Response:
    """Return how many samples were never observed or never picked, overall and by label."""
    return _from_table(request, run, statistics.coverage)


@router.get("/v1/runs/{run}/staleness", response_model=models.Staleness, responses=errors_of(404, 409))
def staleness(request: Request, run: RunName, bins: Bins = 50) -> Response:
    """Return how long ago samples were last observed, in run steps."""
    return _from_table(request, run, lambda view: statistics.staleness(view, bins))


@router.get(
    "/v1/runs/{run}/effective_sample_size",
    response_model=models.EffectiveSampleSize,
    responses=errors_of(404, 409),
)
def effective_sample_size(request: Request, run: RunName) -> Response:
    """Return the effective sample size of the weights."""
    return _from_table(request, run, statistics.effective_sample_size)

"""Routes about runs: the list, one run, its ledger, two runs compared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from es_service.api.models import runs as models
from es_service.api.routes.answers import RunName, answer, catalogue_of, errors_of, not_modified, of_table
from es_service.api.runs.rows import RunQuery
from es_service.api.table.comparison import compare

__all__ = ["router"]

router = APIRouter(tags=["runs"])
_ORDERS = [name for name in models.Run.model_fields if name not in ("detail", "saving")]
_RUN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


@router.get("/v1/runs", response_model=models.RunList, responses=errors_of())
def list_of_runs(
    request: Request,
    q: Annotated[str, Query(max_length=100, description="part of the run's, task's, method's or search's name")] = "",
    status: Annotated[list[Literal["live", "finished", "stale", "unreadable"]], Query(max_length=4)] = [],  # noqa: B006
    search: Annotated[str, Query(max_length=100, description="name of a search: return only its trials")] = "",
    order: Annotated[
        str, Query(pattern=rf"^-?({'|'.join(_ORDERS)})$", description="a field, - before it for descending")
    ] = ("-updated_at"),
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Response:
    """List the runs of the storage folder, live and stored."""
    catalogue = catalogue_of(request)
    page = catalogue.rows().page(
        RunQuery(
            words=q,
            statuses=status,
            search=search,
            order=order.removeprefix("-"),
            descending=order.startswith("-"),
            offset=offset,
            limit=limit,
        )
    )
    return answer(
        request,
        {
            "storage": catalogue.storage,
            "total": page.total,
            "pending": page.num_pending,
            "ray": catalogue.live.state(),
            "runs": page.rows,
        },
    )


@router.get("/v1/runs/{run}", response_model=models.RunDetail, responses=errors_of(404))
def one_run(request: Request, run: RunName) -> Response:
    """Return a run in detail, without its samples."""
    return answer(request, catalogue_of(request).detail(run))


@router.get("/v1/runs/{run}/ledger", response_model=models.Ledger, responses=errors_of(404))
def ledger(request: Request, run: RunName) -> Response:
    """Return the samples and seconds that a run spent, so far and per epoch."""
    return answer(request, catalogue_of(request).ledger(run))


@router.get("/v1/compare", tags=["table"], response_model=models.Comparison, responses=errors_of(400, 404, 409))
def compare_runs(
    request: Request,
    a: Annotated[str, Query(pattern=_RUN, description="a run")],
    b: Annotated[str, Query(pattern=_RUN, description="another run over the same samples")],
    column: Literal["w", "s", "loss_mean", "last_loss", "selected", "visits"] = "w",
    limit: Annotated[int, Query(ge=1, le=200, description="samples that moved most")] = 20,
) -> Response:
    """Compare two runs over the same samples: rank correlation, overlap of their tops, samples that moved most."""
    catalogue = catalogue_of(request)
    views = catalogue.view(a), catalogue.view(b)
    tag = of_table(request, views[0], views[1].version)
    if (unchanged := not_modified(request, tag)) is not None:
        return unchanged
    payload: dict[str, Any] = {
        "a": {"run": a, "table": views[0].describe()},
        "b": {"run": b, "table": views[1].describe()},
        **compare(*views, column, limit),
    }
    return answer(request, payload, tag)

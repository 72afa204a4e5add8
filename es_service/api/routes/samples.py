"""Routes about samples: pages of them, one of them, its history and preview, all of them as a file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from es_service.api.models import samples as models
from es_service.api.routes.answers import (
    Columns,
    Conditions,
    RunName,
    SampleId,
    answer,
    catalogue_of,
    check_id,
    errors_of,
    not_modified,
    of_table,
)
from es_service.api.runs.previews import Previews, Shown
from es_service.api.table import exports, filters, statistics
from es_service.api.table.history import history
from es_service.api.table.view import TableView

__all__ = ["router"]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SHOWN = {"image/png": _BINARY, "text/plain": {"schema": {"type": "string"}}}
_EXPORTED = dict.fromkeys(exports.MEDIA_TYPES.values(), _BINARY)

router = APIRouter(tags=["samples"])


@router.get("/v1/runs/{run}/samples", response_model=models.SamplePage, responses=errors_of(400, 404, 409))
def samples(
    request: Request,
    run: RunName,
    where: Conditions = [],  # noqa: B006
    order: Annotated[str, Query(pattern=filters.ORDER, description="a column, - before it for descending")] = "-w",
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    cursor: Annotated[str | None, Query(pattern="^[A-Za-z0-9_-]{1,200}$", description="`next` of a page")] = None,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    columns: Columns = None,
) -> Response:
    """Return a page of the samples that meet the conditions, sorted."""
    view = catalogue_of(request).view(run)
    tag = of_table(request, view)
    if (unchanged := not_modified(request, tag)) is not None:
        return unchanged
    names = filters.parse_columns(view, columns)
    by = filters.parse_order(view, order)
    page = filters.select_page(view, where, by, limit=limit, offset=offset, cursor=cursor)
    return answer(
        request,
        {
            "run": run,
            "table": view.describe(),
            "total": view.num_rows,
            "matching": page.matching,
            "samples": view.rows(page.ids, names),
            "next": page.next,
        },
        tag,
    )


@router.get("/v1/runs/{run}/samples/{id}", response_model=models.SampleDetail, responses=errors_of(404, 409))
def sample(request: Request, run: RunName, id: SampleId) -> Response:  # noqa: A002 - the path's own word
    """Return all columns of one sample, and the rank of its weight among all."""
    catalogue = catalogue_of(request)
    view = catalogue.view(run)
    check_id(view, run, id)
    tag = of_table(request, view)
    if (unchanged := not_modified(request, tag)) is not None:
        return unchanged
    [row] = view.rows(np.array([id]), view.columns)
    payload = {
        "run": run,
        "table": view.describe(),
        "sample": row,
        "rank": {"w": _rank(view, id)},
        "preview": catalogue.training(run)[1].preview,
    }
    return answer(request, payload, tag)


def _rank(view: TableView, sample_id: int) -> dict[str, Any] | None:
    weight = view.column("w")[sample_id]
    if not np.isfinite(weight):
        return None
    ordered = statistics.ordered(view, "w")
    above = ordered.size - int(np.searchsorted(ordered, weight, side="right"))
    return {"position": above + 1, "share": float(f"{(above + 1) / view.num_rows:.7g}")}


@router.get("/v1/runs/{run}/samples/{id}/history", response_model=models.History, responses=errors_of(404, 409))
def sample_history(request: Request, run: RunName, id: SampleId) -> Response:  # noqa: A002 - the path's own word
    """Return a sample's observations from the run's history, and its rows at the epochs' ends."""
    catalogue = catalogue_of(request)
    check_id(catalogue.view(run), run, id)
    return answer(request, history(catalogue, run, id))


@router.get(
    "/v1/runs/{run}/samples/{id}/preview",
    response_class=Response,
    responses={
        **errors_of(404, 409),
        200: {
            "description": "a picture or a text",
            "content": _SHOWN,
        },
    },
)
async def preview(request: Request, run: RunName, id: SampleId) -> Response:  # noqa: A002 - the path's own word
    """Return the picture or text of a sample, as its task renders it or its run kept it."""
    catalogue = catalogue_of(request)
    previews: Previews = request.app.state.previews

    def show() -> Shown:
        check_id(catalogue.view(run), run, id)
        training, notes = catalogue.training(run)
        if training.get("task") is None and notes.preview is not None:
            return previews.kept(catalogue.opened(run), id)
        return previews.show(run, training, id)

    media_type, content = await anyio.to_thread.run_sync(show, limiter=previews.threads)
    headers = {"Cache-Control": "private, max-age=3600"}  # a sample of an id is always the same
    return Response(content, media_type=media_type, headers=headers)


@router.get(
    "/v1/runs/{run}/export",
    response_class=Response,
    responses={
        **errors_of(400, 404, 409),
        200: {
            "description": "the rows, in order of id",
            "content": _EXPORTED,
        },
    },
)
def export(
    request: Request,
    run: RunName,
    format: Literal["parquet", "arrow", "csv"] = "parquet",  # noqa: A002 - the query's own word
    columns: Columns = None,
    where: Conditions = [],  # noqa: B006
) -> Response:
    """Stream the samples that meet the conditions as a file."""
    view = catalogue_of(request).view(run)
    names = filters.parse_columns(view, columns)
    mask = filters.select(view, where)
    headers = {"Content-Disposition": f'attachment; filename="{run}.{format}"', "ETag": of_table(request, view)}
    return StreamingResponse(
        exports.stream(view, format, names, mask), media_type=exports.MEDIA_TYPES[format], headers=headers
    )

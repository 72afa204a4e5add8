"""What routes share: parameters, error responses, and answers with an ETag."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, TypeAlias

from fastapi import Path, Query, Request
from starlette.responses import Response

from es_service.api.guard import problems
from es_service.api.guard.problems import Problem
from es_service.api.runs.catalogue import Catalogue
from es_service.api.table import filters
from es_service.api.table.view import TableView

__all__ = [
    "Bins",
    "Columns",
    "Conditions",
    "RunName",
    "SampleId",
    "Scale",
    "answer",
    "catalogue_of",
    "check_id",
    "errors_of",
    "not_modified",
    "of_table",
]

RunName: TypeAlias = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the run",
        openapi_examples={"demo": {"value": "demo"}},
    ),
]
SampleId: TypeAlias = Annotated[int, Path(ge=0, lt=2**40, description="sample id")]
Conditions: TypeAlias = Annotated[
    list[Annotated[str, Query(pattern=filters.CONDITION)]],
    Query(
        max_length=8,
        description="<column><op><value>, all must hold; op is one of >= <= != > < =; value may be null",
        openapi_examples={"never picked": {"value": ["selected=0"]}, "heavy": {"value": ["w>0.5", "visits>=2"]}},
    ),
]
Columns: TypeAlias = Annotated[
    str | None,
    Query(
        pattern=filters.SOME_COLUMNS,
        description="columns, separated by commas; all by default",
        openapi_examples={"some": {"value": "id,w,visits"}},
    ),
]
Bins: TypeAlias = Annotated[int, Query(ge=1, le=1000, description="number of bins")]
Scale: TypeAlias = Annotated[
    str, Query(pattern="^(linear|log)$", description="equal bins of the value, or of its logarithm")
]


def errors_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's problems, with those of all routes."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 401, 421, 422, 429, 500, 503}):
        slugs = [slug for slug, (of_slug, _) in problems.TITLES.items() if of_slug == status]
        schema = {"$ref": "#/components/schemas/ProblemBody"}
        found[status] = {"description": ", ".join(slugs), "content": {problems.MEDIA_TYPE: {"schema": schema}}}
    return found


def catalogue_of(request: Request) -> Catalogue:
    """Return the service's catalogue."""
    found: Catalogue = request.app.state.catalogue
    return found


def check_id(view: TableView, run: str, sample_id: int) -> int:
    """Return the id; Problem where the run has no such sample."""
    if sample_id >= view.num_rows:
        raise Problem(
            "no-such-sample", f"run {run!r} has no sample {sample_id}", f"ids lie between 0 and {view.num_rows - 1}"
        )
    return sample_id


def answer(request: Request, payload: dict[str, Any], tag: str | None = None) -> Response:
    """Return JSON with an ETag, or 304 where the reader has it already.

    Args:
        request: that is answered.
        payload: to be sent.
        tag: names its state; None derives it from the payload without ages.
    """
    content = json.dumps(payload, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
    if tag is None:
        tag = _tag(json.dumps(_ageless(payload), sort_keys=True))
    if _matches(request, tag):
        return Response(status_code=304, headers=_caching(tag))
    return Response(content, media_type="application/json", headers=_caching(tag))


def of_table(request: Request, view: TableView, *more: str) -> str:
    """Return the ETag of an answer that follows from a table and the request's path and query."""
    return _tag("\n".join([view.version, request.url.path, request.url.query, *more]))


def not_modified(request: Request, tag: str) -> Response | None:
    """Return 304 where the reader has this answer already: then nothing has to be worked out."""
    return Response(status_code=304, headers=_caching(tag)) if _matches(request, tag) else None


def _tag(state: str) -> str:
    return f'W/"{hashlib.sha256(state.encode()).hexdigest()[:24]}"'


def _matches(request: Request, tag: str) -> bool:
    shown = request.headers.get("if-none-match", "")
    return shown.strip() == "*" or tag in [one.strip() for one in shown.split(",")]


def _caching(tag: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": "no-cache, private"}


def _ageless(value: Any) -> Any:
    """Return the value without what changes by itself as time goes by."""
    if isinstance(value, dict):
        return {key: _ageless(one) for key, one in value.items() if key not in ("age_s", "as_of", "updated_at")}
    return [_ageless(one) for one in value] if isinstance(value, list) else value

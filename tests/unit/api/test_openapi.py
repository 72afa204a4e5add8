"""The OpenAPI document: schemathesis asks what it allows and what it forbids, and answers must be as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from es_service.api.app import create_app
from es_service.api.guard import problems
from es_service.api.settings import Limits, Settings

TOKEN = "a-token-of-enough-letters"
EXAMPLES = 12  # of each operation: half a minute in all


PATHS = list(create_app(Settings(storage=".", ray=False)).openapi()["paths"])


@pytest.fixture(scope="module")
def schema(storage: Path) -> Any:
    """The application's document, for a service that asks for a token and is in no hurry."""
    limits = Limits(per_second=1e6, burst=1_000_000, wrong_tokens_per_minute=1_000_000)
    app = create_app(Settings(storage=str(storage), ray=False, token=TOKEN, hosts=("*",), limits=limits))
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_the_document_says(path: str, mode: GenerationMode, schema: Any) -> None:
    operation = schema[path]["GET"]
    named = [one.name for one in operation.iter_parameters()]
    if mode is GenerationMode.NEGATIVE and not named:
        pytest.skip("takes nothing that could be wrong")
    # A condition, a cursor or a column may be well formed and yet name nothing that this run has: 400, not 2xx.
    may_refuse = {"where", "cursor", "order", "column", "columns"} & set(named)

    @hypothesis.settings(
        max_examples=8 if "{id}/preview" in path else EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode), run=st.sampled_from(["done", "half", None]))
    def ask(case: schemathesis.Case, run: str | None) -> None:
        if path.endswith("/events"):
            run = "done"  # that of a run under way has no end
        if mode is GenerationMode.POSITIVE and run is not None:  # names made up are hardly ever a run's
            for place, names in ((case.path_parameters, ["run"]), (case.query, ["a", "b"])):
                for name in names:
                    if name in (place or {}):
                        place[name] = run
        excluded = [positive_data_acceptance] if may_refuse else []
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, excluded_checks=excluded)

    ask()


def operations(client: TestClient) -> dict[str, Any]:
    document = client.get("/openapi.json").json()
    return {f"{verb} {path}": one for path, verbs in document["paths"].items() for verb, one in verbs.items()}


def test_the_document_says_units_errors_and_who_may_ask(client: TestClient) -> None:
    found = operations(client)
    assert len(found) >= 18
    assert all(name.startswith("get ") for name in found)  # nothing can be written
    for name, one in found.items():
        assert one["description"] or one["summary"], name
        for status in ("401", "422", "429", "500", "503"):
            assert list(one["responses"][status]["content"]) == [problems.MEDIA_TYPE], (name, status)
    document = client.get("/openapi.json").json()
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/-/healthz"]["get"]["security"] == []
    assert "seconds" in document["info"]["description"]
    described = document["components"]["schemas"]["Run"]["properties"]
    assert described["seconds"]["description"].endswith("in seconds")


def test_every_route_is_in_the_handbook(client: TestClient) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "http_api.md").read_text()
    for name in operations(client):
        assert name.removeprefix("get ") in page, f"docs/reference/http_api.md does not name {name}"
    for slug in problems.TITLES:
        assert f"`{slug}`" in page, f"docs/reference/http_api.md does not name {slug}"


def test_the_document_needs_the_token_too(storage: Path, make_client: Callable[..., TestClient]) -> None:
    assert make_client(storage, token=TOKEN).get("/openapi.json").status_code == 401

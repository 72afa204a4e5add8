"""Below a path that a proxy puts the service at: every link, redirect and cookie stays below it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from es_service import errors
from es_service.api.settings import Settings

TOKEN = "open-sesame-1234567890"
MakeClient = Callable[..., TestClient]


@pytest.fixture
def below(make_client: MakeClient, storage: Path) -> TestClient:
    return make_client(storage, token=TOKEN, root_path="/es/")


@pytest.mark.parametrize("prefix", ["/es", ""])
def test_a_proxy_may_leave_the_prefix_or_take_it_away(prefix: str, below: TestClient) -> None:
    shown = {"authorization": f"Bearer {TOKEN}"}
    assert below.get(f"{prefix}/v1/runs", headers=shown).json()["total"] > 0
    assert below.get(f"{prefix}/runs/done", headers=shown).status_code == 200
    assert below.get(f"{prefix}/-/healthz").status_code == 200
    assert below.get(f"{prefix}/v1/runs").status_code == 401
    assert below.get("/esx/v1/runs", headers=shown).status_code == 404


def test_a_reader_is_sent_to_the_login_and_back_below_the_root(below: TestClient) -> None:
    page = {"accept": "text/html"}
    assert below.get("/es", headers=page).headers["location"] == "/es/"
    sent = below.get("/es/runs/done?order=w", headers=page)
    assert (sent.status_code, sent.headers["location"]) == (303, "/es/login?next=/es/runs/done%3Forder%3Dw")
    failed = below.post("/es/login", data={"token": "wrong", "next": "/es/runs/done"})
    assert failed.headers["location"] == "/es/login?failed=1&next=/es/runs/done"
    done = below.post("/es/login", data={"token": TOKEN, "next": "/es/runs/done?order=w"})
    assert (done.status_code, done.headers["location"]) == (303, "/es/runs/done?order=w")
    assert "Path=/es;" in done.headers["set-cookie"]
    assert below.post("/es/login", data={"token": TOKEN, "next": ""}).headers["location"] == "/es/"
    for elsewhere in ("/", "/other", "/esx/", "//host/es/", "https://host/es/"):
        assert below.post("/es/login", data={"token": TOKEN, "next": elsewhere}).headers["location"] == "/es/"
    below.cookies.clear()
    name, _, value = done.headers["set-cookie"].partition(";")[0].partition("=")
    assert below.get("/es/runs/done", headers={**page, "cookie": f"{name}={value}"}).status_code == 200
    out = below.post("/es/logout", headers={"cookie": f"{name}={value}"})
    assert out.headers["location"] == "/es/login"
    assert "Path=/es;" in out.headers["set-cookie"]


def test_pages_name_nothing_from_the_top_of_the_host(make_client: MakeClient, storage: Path) -> None:
    client = make_client(storage)
    for path in ("/", "/runs/done", "/login", "/static/js/api.js", "/static/js/address.js", "/static/login.js"):
        text = client.get(path).text
        assert not re.findall(r"""(?:href|src|action)="/[^"]*"|["'`]/(?:v1|static|runs|login)\b""", text), path


def test_the_description_names_the_root(below: TestClient, make_client: MakeClient, storage: Path) -> None:
    shown = {"authorization": f"Bearer {TOKEN}"}
    assert below.get("/es/openapi.json", headers=shown).json()["servers"] == [{"url": "/es"}]
    assert "servers" not in make_client(storage).get("/openapi.json").json()


@pytest.mark.parametrize("root", ["es", "/es?x", "/a b", "/../es", "/es/./x", "//", "/v1", "/runs/x", "/é", "/static"])
def test_what_is_no_root_path_is_refused(root: str) -> None:
    if root == "//":  # nothing but slashes is no root at all
        assert Settings(storage="runs", root_path=root).root_path == ""
        return
    with pytest.raises(errors.ConfigError, match="root path"):
        Settings(storage="runs", root_path=root)

"""The application as environment variables describe it, for servers that make it themselves, Ray Serve say.

ES_SERVICE_STORAGE    folder or URI that every node sees
ES_SERVICE_TOKEN      what readers must show; needed, since such servers listen on the network
ES_SERVICE_HOSTS      names that readers use for it, separated by commas
ES_SERVICE_ROOT_PATH  path below which a proxy shows it, such as /es
"""

from __future__ import annotations

import os

from fastapi import FastAPI

from es_service import errors
from es_service.api.app import create_app
from es_service.api.settings import TOKEN_VARIABLE, Limits, Settings, read_token
from es_service.storage.runs import DEFAULT_STORAGE

__all__ = ["build_app"]


def build_app() -> FastAPI:
    """Return the application; ConfigError where there is no token, or no usable one."""
    token = read_token(None)
    if token is None:
        raise errors.ConfigError(
            f"set {TOKEN_VARIABLE}: this server listens on the network, and anyone there could read the runs"
        )
    hosts = [name.strip() for name in os.environ.get("ES_SERVICE_HOSTS", "").split(",") if name.strip()]
    return create_app(
        Settings(
            storage=os.environ.get("ES_SERVICE_STORAGE", DEFAULT_STORAGE),
            root_path=os.environ.get("ES_SERVICE_ROOT_PATH", ""),
            token=token,
            hosts=("127.0.0.1", "localhost", "::1", *hosts),
            limits=Limits(per_second=2000, burst=8000),  # all readers may come through one proxy
        )
    )

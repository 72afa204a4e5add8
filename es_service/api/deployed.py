"""The application as environment variables describe it, for servers that build it themselves, e.g. Ray Serve.

ES_SERVICE_STORAGE     folder or URI that every node sees
ES_SERVICE_TOKEN_FILE  file with what readers must show; only its owner may read it (chmod 600)
ES_SERVICE_TOKEN       the same itself, where there is no such file; one of the two is needed, since such servers listen
                       on the network
ES_SERVICE_HOSTS       names that readers use for it, separated by commas
ES_SERVICE_ROOT_PATH   path below which a proxy shows it, such as /es
"""

from __future__ import annotations

import os

from fastapi import FastAPI

from es_service import errors
from es_service.api.app import create_app
from es_service.api.settings import TOKEN_FILE_VARIABLE, Limits, Settings, read_token
from es_service.storage.runs import DEFAULT_STORAGE

__all__ = ["build_app"]


def build_app() -> FastAPI:
    """Return the application; ConfigError without a usable token."""
    token = read_token(os.environ.get(TOKEN_FILE_VARIABLE) or None)
    if token is None:
        raise errors.ConfigError(
            f"set {TOKEN_FILE_VARIABLE} to the name of a file with a token (chmod 600): this server listens on the "
            "network, and anyone there could read the runs"
        )
    hosts = [name.strip() for name in os.environ.get("ES_SERVICE_HOSTS", "").split(",") if name.strip()]
    return create_app(
        Settings(
            storage=os.environ.get("ES_SERVICE_STORAGE", DEFAULT_STORAGE),
            root_path=os.environ.get("ES_SERVICE_ROOT_PATH", ""),
            token=token,
            hosts=("127.0.0.1", "localhost", "::1", *hosts),
            limits=Limits(
                per_second=2000, burst=8000, wrong_tokens_per_minute=600
            ),  # all readers may come through one proxy
        )
    )

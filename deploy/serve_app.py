"""The HTTP service as a Ray Serve application, for many readers: the same application, in as many replicas as it takes.

    pip install 'es-service[api,ray]' 'ray[serve]'
    ES_SERVICE_STORAGE=/shared/runs ES_SERVICE_TOKEN=… ES_SERVICE_HOSTS=scores.example serve run deploy.serve_app:app

or in a Serve config (RayService on KubeRay): import_path `deploy.serve_app:app`, these three as env_vars. Every replica
copies a live run's table by itself, at most every 2 s. Through Serve's proxy an answer takes several milliseconds more
than from `es-service serve`, so take that unless one process is too few.

    ES_SERVICE_STORAGE    folder or URI that every node sees
    ES_SERVICE_TOKEN      what readers must show; needed, since Serve listens on the network
    ES_SERVICE_HOSTS      names that readers use for it, separated by commas
    ES_SERVICE_REPLICAS   how many, default 2
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from ray import serve

from es_service import errors
from es_service.api.app import create_app
from es_service.api.settings import TOKEN_VARIABLE, Limits, Settings, read_token
from es_service.storage.runs import DEFAULT_STORAGE

__all__ = ["app", "build_app"]


def build_app() -> FastAPI:
    """Return the application as the environment describes it; runs in each replica."""
    token = read_token(None)
    if token is None:
        raise errors.ConfigError(f"set {TOKEN_VARIABLE}: Serve listens on the network, and everybody there could read")
    hosts = [name.strip() for name in os.environ.get("ES_SERVICE_HOSTS", "").split(",") if name.strip()]
    return create_app(
        Settings(
            storage=DEFAULT_STORAGE,
            token=token,
            hosts=("127.0.0.1", "localhost", "::1", *hosts),
            limits=Limits(per_second=2000, burst=8000),  # all readers may come through one proxy
        )
    )


_passed_on = {name: value for name, value in os.environ.items() if name.startswith("ES_SERVICE_")}
app = serve.deployment(
    serve.ingress(build_app)(),
    name="es_service",
    num_replicas=int(os.environ.get("ES_SERVICE_REPLICAS", "2")),
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0.5, "runtime_env": {"env_vars": _passed_on}},
).bind()
"""What `serve run deploy.serve_app:app` deploys."""

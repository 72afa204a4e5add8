"""The HTTP service as a Ray Serve application, for many readers: the same application, in as many replicas as it takes.

    pip install 'es-service[serve,ray]'
    ES_SERVICE_STORAGE=/shared/runs ES_SERVICE_TOKEN_FILE=/etc/es/token ES_SERVICE_HOSTS=scores.example \\
        serve run deploy.serve_app:app

from the repository's folder, or this file beside a Serve config of one's own (RayService on KubeRay). The variables are
those of es_service/api/deployed.py, and ES_SERVICE_REPLICAS: how many, default 2.

Every node that replicas may run on needs the token file, readable only by the user that Ray runs as: a file on shared
storage, or a mounted secret. A token in ES_SERVICE_TOKEN is not handed to the replicas, for Ray writes the variables of
a deployment into logs that every user of the machine may read.

Every replica copies live tables by itself, at most every 2 s. Through Serve's proxy an answer takes some 10 ms more
than from `es-service serve`: take that unless one process is too few.
"""

from __future__ import annotations

import os

from ray import serve

from es_service.api.deployed import build_app
from es_service.api.settings import TOKEN_VARIABLE

__all__ = ["app"]

_passed_on = {
    name: value for name, value in os.environ.items() if name.startswith("ES_SERVICE_") and name != TOKEN_VARIABLE
}
app = serve.deployment(
    serve.ingress(build_app)(),
    name="es_service",
    num_replicas=int(os.environ.get("ES_SERVICE_REPLICAS", "2")),
    max_ongoing_requests=64,
    ray_actor_options={"num_cpus": 0.5, "runtime_env": {"env_vars": _passed_on}},
).bind()
"""What `serve run deploy.serve_app:app` deploys."""

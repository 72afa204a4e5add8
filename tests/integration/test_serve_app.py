"""The HTTP service under Ray Serve: the same application, the same guard. Needs ray[serve], which few machines have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import es_service as es

ROOT = Path(__file__).parents[2]
PROGRAM = """
    import json, sys, urllib.error, urllib.request
    import ray
    from ray import serve
    from deploy.serve_app import app

    def get(path, token):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), dict(error.headers)

    port, token = int(sys.argv[1]), sys.argv[2]
    ray.init(log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(app, name="es", route_prefix="/")
        refused, allowed = get("/v1/runs", None), get("/v1/runs", token)
        absent, session = get("/v1/runs/absent", token), ray._private.worker._global_node.get_session_dir_path()
        print(json.dumps({"refused": refused, "allowed": allowed, "absent": absent, "session": session}))
    finally:
        serve.shutdown()
"""


def test_it_serves_the_same_application(ray_head: subprocess.Popen[bytes], tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="ray[serve] is not installed")
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    import socket

    selection = es.Selection(es.methods.evolved(), ratio=0.5)
    from es_service.selection.run import RunConfig
    from es_service.storage.runs import RunStorage

    run = RunStorage(str(tmp_path), "shown")
    run.begin(RunConfig(selection=selection, num_samples=10, num_epochs=1, batch_size=5))
    token, of_the_environment = "a-token-of-enough-letters", "another-token-of-enough-letters"
    token_file = tmp_path / "token"
    token_file.write_text(token)
    token_file.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "ES_SERVICE_STORAGE": str(tmp_path),
        "ES_SERVICE_TOKEN_FILE": str(token_file),
        "ES_SERVICE_TOKEN": of_the_environment,
        "ES_SERVICE_REPLICAS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(port), token],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"refused"')]
    found = json.loads(line)
    assert found["refused"][0] == 401
    status, body, headers = found["allowed"]
    assert (status, [row["run"] for row in body["runs"]]) == (200, ["shown"])
    assert "default-src 'none'" in headers["content-security-policy"]
    assert found["absent"][1]["type"] == "urn:es-service:problem:no-such-run"
    written = [path for path in Path(found["session"]).rglob("*") if path.is_file()]
    assert len(written) > 5
    for path in written:  # every user of the machine may read some of them
        for secret in (token, of_the_environment):
            assert secret.encode() not in path.read_bytes(), path

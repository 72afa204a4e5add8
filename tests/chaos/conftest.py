"""The chaos suite has a Ray of its own whose workers know the filesystem that breaks on purpose."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # faulty_files and driving, here and in Ray's workers

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps all of Ray on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"
# No processes in stock: actors start their own; and these are no less urgent than other tests.
os.environ |= {"RAY_prestart_worker_first_driver": "0", "RAY_worker_niceness": "0"}
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray with 4 CPUs on paper, this process connected to it."""
    import faulty_files
    import ray

    faulty_files.register()
    paths = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    hook = {"env_vars": {"PYTHONPATH": paths}, "worker_process_setup_hook": "faulty_files.register"}
    with tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True) as folder:
        ray.init(
            "local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=100 << 20,
            _temp_dir=folder,
            log_to_driver=False,
            configure_logging=False,
            runtime_env=hook,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def run(ray_cluster: None) -> Iterator[str]:
    """A run name of the test's own, whose score server is gone afterwards."""
    from es_service import errors
    from es_service.actors import launch

    name = f"chaos-{uuid.uuid4().hex[:12]}"
    yield name
    with contextlib.suppress(errors.RunNotFoundError):
        launch.stop(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A storage folder whose operations can be made to fail, see `faulty_files`."""
    import faulty_files

    faulty_files.make_storage(tmp_path / "runs")
    return tmp_path / "runs"

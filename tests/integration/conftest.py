"""Integration tests share one Ray, started once on loopback, with more CPUs on paper than the machine has."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps all of Ray on 127.0.0.1
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with 4 CPUs on paper."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def run(ray_cluster: None) -> Iterator[str]:
    """A run name of the test's own, whose score server is gone afterwards."""
    from es_service import errors
    from es_service.actors import launch

    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    try:
        launch.stop(name)
    except errors.RunNotFoundError:
        pass


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """An empty storage folder."""
    return str(tmp_path / "runs")

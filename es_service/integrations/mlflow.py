"""MLflow: log `selector.metrics()` to a run.

with mlflow.start_run():
    ...
    es.integrations.mlflow.log(selector)        # in the loop, on rank 0, every so many steps
"""

from __future__ import annotations

from typing import Any

from es_service import errors
from es_service.selector import Selector

try:
    import mlflow
except ImportError as error:
    raise errors.ConfigError(f"logging to MLflow needs it: pip install mlflow, or mlflow-skinny ({error})") from error

__all__ = ["log"]


def log(selector: Selector, run: Any = None, *, step: int | None = None) -> None:
    """Log the metrics of now, in one request.

    Args:
        selector: see `Selector.metrics`.
        run: an MLflow run, or its id; the active one by default, which MLflow starts if there is none.
        step: where on the axis; the selector's own step by default, which counts over all epochs.
    """
    found = selector.metrics()
    at = int(found.get("selection/step", 0)) if step is None else step
    mlflow.log_metrics(found, step=at, run_id=run if run is None or isinstance(run, str) else run.info.run_id)

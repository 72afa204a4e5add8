"""TensorBoard, MLflow and W&B keep what `selector.metrics()` returns: the real packages, offline, their files read."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service import errors

STEPS = 5


def training() -> Iterator[es.Selector]:
    """Train for an epoch of five steps; yield the selector in each."""
    selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=1)
    selector = es.Selector(selection, num_samples=100, num_epochs=1, batch_size=20)
    for ids in selector.epoch(0):
        selector.select(ids, (1 + ids % 5).astype(np.float32))
        yield selector


def test_tensorboard_has_every_metric_of_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs")) as writer:
        logged = []
        for selector in training():
            es.integrations.tensorboard.log(selector, writer)
            logged.append(selector.metrics())
        es.integrations.tensorboard.log(selector, writer, step=77)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert set(events.Tags()["scalars"]) >= set(logged[0])
    for name in logged[0]:
        assert [one.step for one in events.Scalars(name)] == [*range(STEPS), 77]
        assert [one.value for one in events.Scalars(name)][:STEPS] == pytest.approx([one[name] for one in logged])


def test_a_thing_that_is_no_writer_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match=r"writer='logs' has no add_scalar: pass a torch\.utils"):
        es.integrations.tensorboard.log(next(training()), "logs")


def test_mlflow_has_every_metric_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        logged = []
        for selector in training():
            es.integrations.mlflow.log(selector)
            logged.append(selector.metrics())
    es.integrations.mlflow.log(selector, run, step=77)  # over, but it can be written to
    es.integrations.mlflow.log(selector, run.info.run_id, step=78)
    client = mlflow.MlflowClient()
    assert set(client.get_run(run.info.run_id).data.metrics) >= set(logged[0])
    for name in logged[0]:
        history = client.get_metric_history(run.info.run_id, name)
        assert [one.step for one in history] == [*range(STEPS), 77, 78]
        assert [one.value for one in history][:STEPS] == [one[name] for one in logged]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield what an offline run of W&B wrote: protocol buffers in a log of 32 KiB blocks, as LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := -at % 32768) and left < 7:  # too little for a header: the block is padded
            at += left
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_has_every_metric_of_every_step(tmp_path: Path) -> None:
    import wandb

    with pytest.raises(errors.ConfigError, match=r"no W&B run is active: call wandb\.init\(\) first"):
        es.integrations.wandb.log(next(training()))
    logged: list[dict[str, float]] = []
    with wandb.init(mode="offline", dir=str(tmp_path)) as run:
        for selector in training():
            run.log({"mine": 1.0})  # has a step of W&B of its own
            es.integrations.wandb.log(selector, *([run] if len(logged) % 2 else []))
            logged.append(selector.metrics())
        assert {name: run.summary[name] for name in logged[-1]} == logged[-1]
    wandb.teardown()  # waits for its process, which writes the file
    [path] = tmp_path.rglob("*.wandb")
    rows, axes = [], []
    for record in wandb_records(path):
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if "selection/step" in items:
            rows.append({name: value for name, value in items.items() if name.startswith("selection/")})
        if record.HasField("metric"):
            axes.append((record.metric.glob_name, record.metric.step_metric))
    assert rows == logged
    assert axes == [("selection/*", "selection/step")]


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_without_the_package_the_error_says_what_to_install(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import es_service as es\n"
        f"try: es.integrations.{package}.log\n"
        "except es.ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"pip install {package}" in done.stdout

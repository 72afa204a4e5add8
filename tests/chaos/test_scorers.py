"""Scorers that die, hang or fail in the middle of an epoch: the training scores itself, and ends as it should."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import es_service as es
from es_service.storage.table_files import encode_table

NUM, EPOCHS, SIZE = 320, 3, 32


def losses_at(ids: Any) -> Any:
    return np.abs(np.sin(ids)).astype(np.float32)


def make_of(folder: str, fault: str) -> Any:
    def make() -> Any:
        import os
        import threading
        from pathlib import Path

        import numpy as np

        pid = os.getpid()
        Path(folder, str(pid)).touch()

        def score(ids: Any, at: float) -> Any:
            if at >= 1.55 and fault == "hangs":
                threading.Event().wait()
            if at >= 1.55 and fault == "raises":
                raise MemoryError("out of memory")
            return np.abs(np.sin(ids)).astype(np.float32)

        return score

    return make


def trained(scorer: es.Scorer | None, disturb: Any) -> es.Selector:
    selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=5)
    selector = es.Selector(selection, num_samples=NUM, num_epochs=EPOCHS, batch_size=SIZE)
    for epoch in range(EPOCHS):
        for step, ids_B in enumerate(selector.epoch(epoch)):
            disturb(epoch, step)
            losses_B = None if scorer is None else scorer.losses(selector)
            if losses_B is None:
                selector.select(ids_B, losses_at(ids_B))
            else:
                selector.select(ids_B, losses_B, by_scorer=True)
    return selector


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("fault", "said"),
    [("is killed", "died"), ("hangs", "no answer within 1 s"), ("raises", "MemoryError: out of memory")],
)
def test_training_continues_and_scores_itself(
    fault: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = es.Scorer(make_of(str(tmp_path), fault), cost=0.5, ahead=2, deadline_s=1.0 if fault == "hangs" else 60.0)
    [pid] = [int(one.name) for one in tmp_path.iterdir()]

    def disturb(epoch: int, step: int) -> None:
        if fault == "is killed" and (epoch, step) == (1, 5):
            os.kill(pid, signal.SIGKILL)

    with caplog.at_level(logging.WARNING, logger="es_service"):
        selector = trained(scorer, disturb)
    assert scorer.num_lost == 1
    [record] = [one for one in caplog.records if one.name == "es_service.scorer"]  # once; Ray reports what it raised
    assert said in record.getMessage()
    ledger = selector.ledger
    assert ledger.scored > NUM  # the rest of epoch 1, and epoch 2
    assert ledger.scored + ledger.scorer_scored == NUM * EPOCHS
    assert ledger.scorer_passes == 0.5 * ledger.scorer_scored
    assert selector.table()["visits"].to_numpy().sum() == NUM * EPOCHS
    assert encode_table(selector.table()) == encode_table(trained(None, lambda *_: None).table())
    scorer.close()

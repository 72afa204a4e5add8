"""What a training is told: settings that do not belong together are refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

import es_service as es
from es_service.training.job import TrainJob

WHAT: dict[str, Any] = {
    "run": "r",
    "storage": "s",
    "task": "fashion",
    "method": "es",
    "selection": es.Selection(es.methods.evolved()),
}


def test_every_belongs_to_collective() -> None:
    assert TrainJob(**WHAT, exchange="collective", every=5, num_workers=2).every == 5
    for changes in ({"exchange": "leased", "every": 5}, {"exchange": "collective", "every": 0}):
        with pytest.raises(es.ConfigError, match="every"):
            TrainJob(**WHAT, **changes)

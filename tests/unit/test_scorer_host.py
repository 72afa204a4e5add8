"""What a scorer's process does with the proxy that it was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from es_service.actors.scorer_host import ScorerHost
from es_service.scorer import _checked


class Counting:
    """A proxy with a state: how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ids: Any, at: float) -> Any:
        self.calls += 1
        return ids * at + self.calls

    def state(self) -> int:
        return self.calls

    def load(self, state: int) -> None:
        self.calls = state


def hosted(make: Any) -> ScorerHost:
    host = ScorerHost()
    host.begin(cloudpickle.dumps(make))  # type: ignore[no-untyped-call]
    return host


def test_a_host_calls_its_proxy_in_order_and_hands_its_state_over() -> None:
    host = hosted(Counting)
    losses, seconds = host.score(np.arange(3), 2.0)
    assert (losses.tolist(), seconds >= 0, host.state()) == ([1.0, 3.0, 5.0], True, 1)
    other = hosted(Counting)
    other.load(host.state())
    assert other.score(np.arange(3), 2.0)[0].tolist() == host.score(np.arange(3), 2.0)[0].tolist() == [2.0, 4.0, 6.0]
    assert hosted(lambda: lambda ids, at: ids).state() is None  # a plain function keeps nothing
    with pytest.raises(ZeroDivisionError):
        hosted(lambda: 1 / 0)


def test_what_a_proxy_answers_is_a_number_for_each_sample() -> None:
    found = _checked({"loss": [1, 2], "correct": np.array([True, False])}, 2)
    assert {name: (values.dtype, values.tolist()) for name, values in found.items()} == {
        "loss": (np.float32, [1.0, 2.0]),
        "correct": (np.float32, [1.0, 0.0]),
    }
    for wrong in (np.ones((2, 1)), {"loss": [1.0, 2.0], "correct": [1.0]}):
        with pytest.raises(ValueError, match="for 2 samples"):
            _checked(wrong, 2)

"""A thread that does what it is told: in order, what it raises included."""

from __future__ import annotations

import threading

import pytest

from es_service.exchange.daemon_executor import Executor

LONG_S = 30.0


def test_results_come_in_order_and_an_error_ends_nothing() -> None:
    executor, done = Executor("executor"), []

    def fail() -> None:
        raise ValueError("no")

    first = executor.send(lambda: done.append(1))
    failed = executor.send(fail)
    last = executor.send(lambda: done.append(2) or len(done))
    assert last.result(LONG_S) == 2
    assert done == [1, 2]
    assert first.result(LONG_S) is None
    with pytest.raises(ValueError, match="no"):
        failed.result(LONG_S)
    executor.close()


def test_closing_waits_for_nothing_and_ends_the_thread() -> None:
    executor, go_on = Executor("executor-closing"), threading.Event()
    under_way = executor.send(lambda: go_on.wait(LONG_S))
    [thread] = [one for one in threading.enumerate() if one.name == "executor-closing"]
    executor.close()
    assert not under_way.done()
    go_on.set()
    assert under_way.result(LONG_S)
    thread.join(LONG_S)
    assert not thread.is_alive()

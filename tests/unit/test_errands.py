"""A thread that does what it is told: in order, what it raises included."""

from __future__ import annotations

import threading

import pytest

from es_service.exchange.errands import Errands

LONG_S = 30.0


def test_results_come_in_order_and_an_error_ends_nothing() -> None:
    errands, done = Errands("errands"), []

    def fail() -> None:
        raise ValueError("no")

    first = errands.send(lambda: done.append(1))
    failed = errands.send(fail)
    last = errands.send(lambda: done.append(2) or len(done))
    assert last.result(LONG_S) == 2
    assert done == [1, 2]
    assert first.result(LONG_S) is None
    with pytest.raises(ValueError, match="no"):
        failed.result(LONG_S)
    errands.close()


def test_closing_waits_for_nothing_and_ends_the_thread() -> None:
    errands, go_on = Errands("errands-closing"), threading.Event()
    under_way = errands.send(lambda: go_on.wait(LONG_S))
    [thread] = [one for one in threading.enumerate() if one.name == "errands-closing"]
    errands.close()
    assert not under_way.done()
    go_on.set()
    assert under_way.result(LONG_S)
    thread.join(LONG_S)
    assert not thread.is_alive()

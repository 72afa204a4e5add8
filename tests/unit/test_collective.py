"""Messages of an all-gather, and what can be said of replicas without other processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

import es_service as es
from es_service.exchange import peers
from es_service.exchange.collective import Collective
from es_service.exchange.peers import Peers, pack, unpack
from es_service.selection.run import RunConfig


@given(message=st.binary(max_size=200), room=st.integers(0, 50))
def test_a_message_comes_back_from_a_row_that_holds_it(message: bytes, room: int) -> None:
    row = pack(message, 8 + len(message) + room)
    assert row.dtype == np.uint8
    assert row.size == 8 + len(message) + room
    assert not row[8 + len(message) :].any()  # padding
    assert unpack(row) == (message, 8 + len(message))


@given(message=st.binary(min_size=1, max_size=200), data=st.data())
def test_a_row_too_small_says_how_much_it_takes(message: bytes, data: st.DataObject) -> None:
    capacity = data.draw(st.integers(8, 8 + len(message) - 1))
    part, needed = unpack(pack(message, capacity))
    assert part == message[: capacity - 8]
    assert needed == 8 + len(message) > capacity


def test_what_ends_in_zeros_keeps_them() -> None:
    ids = np.array([2**62 + 1, 0, 2**53 + 1, 0], dtype=np.int64)  # no float holds the odd ones
    message, _ = unpack(pack(ids.tobytes(), 100))
    assert np.frombuffer(message, dtype=np.int64).tolist() == ids.tolist()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_messages_of_any_size_are_gathered() -> None:
    group = Peers(deadline_s=30.0)
    for size in (0, 1, peers._CAPACITY - 8, peers._CAPACITY - 7, 10 * peers._CAPACITY, 3):
        message = np.arange(size, dtype=np.uint8).tobytes()
        assert group.gather(message, "to test") == [message]
    group.close()
    group.close()
    with pytest.raises(es.ServerUnavailableError, match="closed"):
        group.gather(b"", "to test")


@pytest.mark.usefixtures("alone")
def test_a_lone_replica_is_the_table_of_one_process(
    make_config: Callable[..., RunConfig], losses_of: Callable[..., Any]
) -> None:
    config = make_config()
    shape = {"num_samples": config.num_samples, "num_epochs": config.num_epochs, "batch_size": config.batch_size}
    exchange = Collective("run", config, Peers(30.0), every=2)
    selectors = [
        es.Selector(config.selection, **shape, exchange=exchange),
        es.Selector(config.selection, **shape),
    ]
    for epoch in range(config.num_epochs):
        for step, (ids, same_ids) in enumerate(zip(*(one.epoch(epoch) for one in selectors), strict=True)):
            draws = [one.select(same_ids, losses_of(same_ids, step)) for one in selectors]
            assert ids.tolist() == same_ids.tolist()
            assert draws[0].positions.tolist() == draws[1].positions.tolist()
    assert not exchange._reports  # nobody to tell
    assert not exchange._before
    tables = [one.table() for one in selectors]
    for name in tables[0].column_names:
        assert tables[0][name].to_numpy().tobytes() == tables[1][name].to_numpy().tobytes()
    selectors[0].log(accuracy=0.5)  # without a storage nobody looks
    selectors[0].close()


def connect(**changes: Any) -> es.Selector:
    sizes = {"num_samples": 24, "num_epochs": 2, "batch_size": 6}
    return es.connect("run", es.Selection(es.methods.evolved()), **sizes, **{"exchange": "collective", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"every": -3}, "every must be"),
        ({"every": 1.5}, "every must be"),
        ({"every": 2, "exchange": "leased"}, "every=2 is a setting of exchange 'collective'"),
        ({"exchange": "collectiv"}, "did you mean 'collective'"),
        ({"rank": 0}, "give both, or neither"),
        ({}, "init_process_group"),
    ],
)
def test_what_cannot_be_connected_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(es.ConfigError, match=message):
        connect(**changes)


def test_without_torch_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "es_service.exchange.collective", raising=False)
    monkeypatch.delitem(sys.modules, "es_service.exchange.peers", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(es.ConfigError, match=r"es-service\[torch\]"):
        connect()

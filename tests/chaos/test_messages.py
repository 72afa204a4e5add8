"""Messages that arrive twice, late and out of order: each report counts once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import driving
import pytest

_REPEATED = ("observe", "report", "settle", "open_epoch", "close_epoch")


class Unruly:
    """An actor's handle on a bad network: of what is sent through it, some arrives twice, and again much later."""

    def __init__(self, handle: Any, seed: int) -> None:
        self._handle, self._random = handle, random.Random(seed)
        self._sent: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.num_repeated = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._handle, name)
        return _Method(self, name, method) if name in _REPEATED else method

    def send(self, name: str, method: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        chance = self._random
        if self._sent and chance.random() < 0.5:  # an old one comes again, ahead of the new one
            self._again(*chance.choice(self._sent))
        reference = method.remote(*args, **named)
        if chance.random() < 0.5:
            self._again(name, args, named)
        self._sent.append((name, args, named))
        return reference

    def _again(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        getattr(self._handle, name).remote(*args, **named)
        self.num_repeated += 1


class _Method:
    def __init__(self, through: Unruly, name: str, method: Any) -> None:
        self._through, self._name, self._method = through, name, method

    def remote(self, *args: Any, **named: Any) -> Any:
        return self._through.send(self._name, self._method, args, named)

    def options(self, **options: Any) -> Any:
        return self._method.options(**options)


@pytest.mark.parametrize(
    "exchange", ["leased", *(pytest.param(one, marks=pytest.mark.thorough) for one in ("sync", "prefetch"))]
)
@pytest.mark.parametrize("kills", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_what_arrives_twice_late_and_out_of_order_counts_once(
    exchange: str, kills: bool, run: str, tmp_path: Path
) -> None:
    selection = driving.selection_of("eswp", seed=23)
    selectors = driving.connect(run, str(tmp_path / "runs"), selection, exchange, 2, shards=2)
    networks = []
    for rank, selector in enumerate(selectors):
        inner: Any = selector.exchange
        shards = inner.connection.shards
        inner.connection.shards = [Unruly(shard, 10 * rank + index) for index, shard in enumerate(shards)]
        networks += inner.connection.shards

    def disturb(epoch: int, step: int) -> None:
        if kills and (epoch, step) in ((1, 2), (2, 1)):
            driving.kill(run, epoch % 2)

    drawn = driving.train(selectors, hook=disturb)
    found = driving.outcome(selectors, drawn)
    assert sum(network.num_repeated for network in networks) > 20
    assert found == driving.undisturbed(selection, 2)

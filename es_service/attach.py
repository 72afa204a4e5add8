"""`attach`: the Selector that fits where this process is: in-process, among ranks, or with a score server."""

from __future__ import annotations

from typing import Any, Literal

from es_service import errors
from es_service.connect import ExchangeName, connect
from es_service.selection.config import Selection
from es_service.selector import Selector
from es_service.whereabouts import has_ray, num_ranks

__all__ = ["attach"]


def attach(
    selection: Selection,
    *,
    num_samples: int | None,
    num_epochs: int,
    batch_size: int,
    streamed: bool = False,
    run: str | None = None,
    exchange: ExchangeName | Literal["in-process"] | None = None,
    **options: Any,
) -> Selector:
    """Return a Selector: `es.connect` with a score server where there is a Ray and a run is named, "collective" where
    several ranks of torch.distributed have none, else an `es.Selector` in this process.

    Args:
        selection: what to select, and how.
        num_samples: n; None for streams.
        num_epochs: E.
        batch_size: B, of each rank.
        streamed: batches come from outside, though n may be known.
        run: names the run, which is then kept in the storage; several ranks need it.
        exchange: takes the decision over: "in-process", or one of `es.connect`.
        options: further arguments of `es.connect` or `es.Selector`; storage, resume, labels, label_names and preview
            are of a run with a name.

    Raises:
        ConfigError: several ranks, and no run is named; or as `es.Selector` and `es.connect` raise.
    """
    shape: dict[str, Any] = {"num_samples": num_samples, "num_epochs": num_epochs, "batch_size": batch_size}
    world_size = num_ranks()
    if exchange is None:
        if run is not None and has_ray():
            exchange = "prefetch" if streamed or num_samples is None else "leased"
        else:
            exchange = "collective" if world_size > 1 else "in-process"
    if exchange == "in-process":
        return Selector(selection, **shape, run=run, **options)
    if run is None:
        raise errors.ConfigError(
            f"exchange {exchange!r} shares one score table among {world_size} rank(s), under the name of a run: pass "
            "run='a name of your choice'"
        )
    return connect(run, selection, **shape, exchange=exchange, **options)

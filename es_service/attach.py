"""`attach`: the Selector that fits where this process is: in-process, among ranks, or with a score server."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

from es_service import errors
from es_service.connect import ExchangeName, connect
from es_service.selection.config import Selection
from es_service.selection.settings import check_names
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
    dataset: Any = None,
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
    options |= _columns(dataset, options.get("labels"), options.get("preview"))
    world_size = num_ranks()
    if exchange is None:
        if run is not None and has_ray():
            exchange = "prefetch" if streamed or num_samples is None else "leased"
        else:
            exchange = "collective" if world_size > 1 else "in-process"
    if exchange == "in-process":
        _check_options(Selector, exchange, options)
        return Selector(selection, **shape, run=run, **options)
    if run is None:
        raise errors.ConfigError(
            f"exchange {exchange!r} shares one score table among {world_size} rank(s), under the name of a run: pass "
            "run='a name of your choice'"
        )
    _check_options(connect, exchange, options)
    return connect(run, selection, **shape, exchange=exchange, **options)


def _check_options(maker: Callable[..., Selector], exchange: str, options: dict[str, Any]) -> None:
    """Raise ConfigError where `maker` does not take one of these, or has it from elsewhere."""
    here = ("selection", "num_samples", "num_epochs", "batch_size", "run", "exchange", "self")
    known = [name for name in inspect.signature(maker).parameters if name not in here]
    check_names(f"a selector with exchange {exchange!r}", options, known)


def _columns(dataset: Any, labels: Any, preview: Any) -> dict[str, Any]:
    """Return labels, their names and a preview, of those two that are names of columns."""
    found: dict[str, Any] = {}
    columns = getattr(dataset, "column_names", None)
    for setting, name in (("labels", labels), ("preview", preview)):
        if isinstance(name, str) and name not in (columns or ()):
            has = "has no columns" if columns is None else f"has the columns {', '.join(columns)}"
            raise errors.ConfigError(
                f"{setting}={name!r} is to be a column of the data set, a {type(dataset).__name__}, and it {has}"
            )
    if isinstance(labels, str):
        found["labels"] = list(dataset[labels])
        names = getattr(dataset.features[labels], "names", None)
        found |= {} if names is None else {"label_names": names}
    if isinstance(preview, str):
        found["preview"] = (dataset, preview)
    return found

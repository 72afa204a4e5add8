"""What the tests of the methods share: a prospect made of columns, without a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from es_service.selection.plans import Prospect


@pytest.fixture(scope="session")
def make_prospect() -> Callable[..., Prospect]:
    """A Prospect of these columns, of a set seen whole in step 0; keywords that are no column override its fields."""

    def make(**given: Any) -> Prospect:
        columns = {name: np.asarray(value) for name, value in given.items() if np.ndim(value) == 1}
        fields = {name: value for name, value in given.items() if name not in columns}
        [size] = {column.size for column in columns.values()}
        columns = {"visits": np.ones(size, np.uint32), "last_step": np.zeros(size, np.int32), **columns}
        epoch = fields.get("epoch", 1)
        defaults = {
            "epoch": epoch,
            "num_epochs": 10,
            "first_epoch": 0,
            "is_last": False,
            "epoch_starts": tuple(range(epoch + 1)),
            "num_samples": size,
            "num_kept": size,
            "max_age": None,
            "prune_unobserved": False,
            "seed": 0,
            "ids": np.arange(size),
            "column": lambda name: columns[name].copy(),
        }
        return Prospect(**{**defaults, **fields})

    return make

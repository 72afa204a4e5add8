"""What counts as the same batch but for padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

from es_service.training.recollating import first_difference

ROWS = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0]])
LEFT = ROWS.flip(1)


def packed(*lengths: int) -> rnn.PackedSequence:
    return rnn.pack_sequence([torch.arange(length) for length in lengths], enforce_sorted=False)


def nested(*lengths: int) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.arange(length) for length in lengths], layout=torch.jagged)


@pytest.mark.parametrize(
    "rows, again",
    [
        (ROWS, ROWS[:, :3]),
        (ROWS, ROWS),
        (LEFT, LEFT[:, 1:]),
        (ROWS.numpy(), ROWS.numpy()[:, :3]),
        ({"a": ROWS, "longest": 4}, {"a": ROWS[:, :3], "longest": 3}),
        ([["a", "b"], ROWS], [["a", "b"], ROWS[:, :3]]),
        (ROWS.unsqueeze(2) * ROWS.unsqueeze(1), (ROWS.unsqueeze(2) * ROWS.unsqueeze(1))[:, :3, :3]),
        (packed(2, 3), packed(2, 3)),
        (nested(2, 3), nested(2, 3)),
    ],
)
def test_padding_makes_no_difference(rows: Any, again: Any) -> None:
    assert first_difference(rows, again) is None


@pytest.mark.parametrize(
    "rows, again, path",
    [
        (ROWS, ROWS[:, :3] + 1, ""),
        (ROWS, LEFT[:, 1:], ""),
        (ROWS, ROWS[:1], ""),
        (ROWS, ROWS[:, 0], ""),
        (ROWS, ROWS.float(), ""),
        (ROWS, ROWS.numpy(), ""),
        (ROWS[:, :3], ROWS, ""),  # wider than what was scored
        ({"a": ROWS}, {"b": ROWS, "a": ROWS}, "b"),
        ({"a": ROWS, "b": ROWS}, {"a": ROWS}, "b"),
        ({"a": {"b": np.ones(2)}}, {"a": {"b": np.zeros(2)}}, "a.b"),
        ({"names": ["a", "b"]}, {"names": ["b", "a"]}, "names"),
        (packed(2, 3), packed(3, 3), ""),
        (nested(2, 3), nested(2, 4), ""),
    ],
)
def test_everything_else_does(rows: Any, again: Any, path: str) -> None:
    assert first_difference(rows, again) == path

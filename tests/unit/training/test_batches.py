"""Batches of any make: indexing, cutting and moving keeps every sample together and the make as it was."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from es_service import errors
from es_service.training import batches

B = 6


class Pair(NamedTuple):
    images: Any
    labels: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    ids: torch.Tensor
    texts: list[str]
    temperature: float
    derived: int = dataclasses.field(init=False, default=3)


class Encoding(collections.UserDict[str, Any]):
    """As transformers' BatchEncoding: a mapping that carries more than its items."""

    encodings = "none"


def rows(*shape: int) -> torch.Tensor:
    """Row i is full of i."""
    return torch.arange(B).reshape(B, *(1 for _ in shape)).expand(B, *shape).clone()


def everything() -> dict[str, Any]:
    return {
        "pair": Pair(rows(2, 2), rows().numpy()),
        "tokens": Tokens(rows(3), [str(i) for i in range(B)], 0.7),
        "nested": [rows(), (rows(1), {"deep": rows(2).double()})],
        "strings": tuple(f"s{i}" for i in range(B)),
        "class_weights": torch.arange(10),
        "scalar": torch.tensor(5.0),
        "name": "abcdef",
        "none": None,
        "number": 6,
    }


def check(batch: dict[str, Any], positions: list[int]) -> None:
    """Every leaf of the batch holds the samples of `everything` at these positions, and all else is there."""
    wanted = torch.tensor(positions)
    assert isinstance(batch["pair"], Pair)
    assert torch.equal(batch["pair"].images, wanted.reshape(-1, 1, 1).expand(-1, 2, 2))
    assert isinstance(batch["pair"].labels, np.ndarray)
    assert batch["pair"].labels.tolist() == positions
    tokens = batch["tokens"]
    assert isinstance(tokens, Tokens)
    assert torch.equal(tokens.ids, wanted.reshape(-1, 1).expand(-1, 3))
    assert tokens.texts == [str(i) for i in positions]
    assert (tokens.temperature, tokens.derived) == (0.7, 3)
    assert isinstance(batch["nested"], list)
    assert isinstance(batch["nested"][1], tuple)
    assert torch.equal(batch["nested"][0], wanted)
    assert torch.equal(batch["nested"][1][0], wanted.reshape(-1, 1))
    assert torch.equal(batch["nested"][1][1]["deep"], wanted.double().reshape(-1, 1).expand(-1, 2))
    assert batch["strings"] == tuple(f"s{i}" for i in positions)
    assert torch.equal(batch["class_weights"], torch.arange(10))
    assert batch["scalar"].item() == 5.0
    assert (batch["name"], batch["none"], batch["number"]) == ("abcdef", None, 6)


@pytest.mark.parametrize("positions", [[4, 0, 5], [2], [], [1, 1, 3], list(range(B))])
@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda p: np.array(p, dtype=np.int32)])
def test_take(positions: list[int], make: Any) -> None:
    if make in (np.array, torch.tensor) and not positions:
        make = list
    check(batches.take(everything(), make(positions)), positions)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 100])
def test_split(size: int) -> None:
    parts = list(batches.split(everything(), size))
    assert len(parts) == -(-B // size)
    for index, part in enumerate(parts):
        check(part, list(range(B))[index * size : (index + 1) * size])


def test_take_copies_and_split_shows() -> None:
    source = rows(2)
    taken = batches.take({"x": source}, list(range(B)))["x"]
    first, *_ = batches.split({"x": source}, 3)
    source.fill_(9)
    assert torch.equal(taken, rows(2))
    assert (first["x"] == 9).all()


def test_a_whole_batch_is_not_rebuilt() -> None:
    batch = everything()
    (only,) = batches.split(batch, B)
    assert only is batch


@pytest.mark.parametrize(
    "batch",
    [
        rows(),
        rows().numpy(),
        [rows(2), rows()],
        (rows(), None),
        {"a": 1, "x": rows()},
        ["a"] * B,
        Tokens(rows(), [], 0),
    ],
)
def test_batch_length(batch: Any) -> None:
    assert batches.batch_length(batch) == B


@pytest.mark.parametrize("batch", [None, 5, "text", torch.tensor(1.0), {}, {"a": "b"}, (None, torch.tensor(1))])
def test_no_length(batch: Any) -> None:
    with pytest.raises(errors.ShapeError, match="how many samples"):
        batches.batch_length(batch)
    with pytest.raises(errors.ShapeError, match=type(batch).__name__):
        batches.take(batch, [0])
    with pytest.raises(errors.ShapeError):
        next(batches.split(batch, 2))


def test_fields_of_as_many_entries_as_samples() -> None:
    """Two fields and two samples: fields they stay."""
    images, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    first, second = batches.take([images, labels], [1])
    assert first.tolist() == [[1.0]]
    assert second.tolist() == [1]


def test_one_tensor_per_sample() -> None:
    """Detection: images of different sizes, a dict of boxes each."""
    boxes = [{"boxes": torch.full((i, 4), i), "labels": torch.full((i,), i)} for i in range(B)]
    batch = {"ids": rows(), "images": [torch.full((3, i + 1), i) for i in range(B)], "boxes": boxes}
    taken = batches.take(batch, [5, 2])
    assert [image.shape for image in taken["images"]] == [(3, 6), (3, 3)]
    assert [len(target["boxes"]) for target in taken["boxes"]] == [5, 2]
    last = list(batches.split(batch, 4))[-1]
    assert [image.shape[1] for image in last["images"]] == [5, 6]


def test_a_namedtuple_of_plain_lists_is_fields() -> None:
    taken = batches.take(Pair(["a", "b", "c"], [0, 1, 2]), [2, 0])
    assert taken == Pair(["c", "a"], [2, 0])


def test_a_mapping_keeps_what_it_carries() -> None:
    batch = Encoding(x=rows())
    batch.encodings = "mine"
    taken = batches.take(batch, [3])
    assert isinstance(taken, Encoding)
    assert taken.encodings == "mine"
    assert taken["x"].tolist() == [3]
    assert batch["x"].tolist() == list(range(B))


@pytest.mark.parametrize("positions", [[0, 6], [-1], np.array([0, 2**40])])
def test_positions_outside(positions: Any) -> None:
    with pytest.raises(errors.InputError, match="outside the batch of 6"):
        batches.take(everything(), positions)


@pytest.mark.parametrize("positions", [[0.5], [[0, 1]], np.array([True, False]), np.int64(3)])
def test_positions_of_another_kind(positions: Any) -> None:
    with pytest.raises(errors.ShapeError, match="positions must be integers"):
        batches.take(everything(), positions)


def test_split_into_nothing() -> None:
    with pytest.raises(errors.ConfigError, match="at least 1"):
        next(batches.split(everything(), 0))
    assert list(batches.split(torch.empty(0, 3), 2)) == []


def test_to_device_moves_tensors_only() -> None:
    moved = batches.to_device(everything(), "meta")
    assert moved["pair"].images.device.type == "meta"
    assert moved["tokens"].ids.device.type == "meta"
    assert moved["nested"][1][1]["deep"].device.type == "meta"
    assert moved["scalar"].device.type == "meta"
    assert moved["pair"].labels.tolist() == list(range(B))
    assert moved["tokens"].texts == [str(i) for i in range(B)]
    check(batches.to_device(everything(), torch.device("cpu")), list(range(B)))

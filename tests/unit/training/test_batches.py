"""Batches of any make: indexing, cutting and moving keeps every sample together and the make as it was."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

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
    _encodings: Any = None


def rows(*shape: int) -> torch.Tensor:
    """Row i is full of i."""
    return torch.arange(B).reshape(B, *(1 for _ in shape)).expand(B, *shape).clone()


def everything() -> dict[str, Any]:
    return {
        "pair": Pair(rows(2, 2), rows().numpy()),
        "tokens": Tokens(rows(3), [str(i) for i in range(B)], 0.7),
        "nested": [rows(), (rows(1), {"deep": rows(2).double()})],
        "strings": tuple(f"s{i}" for i in range(B)),
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
        Tokens(rows(), [""] * B, 0),
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


# -- what has a row per sample ------------------------------------------------------------------------------------


def packed(lengths: list[int]) -> rnn.PackedSequence:
    """Sequence i is full of i."""
    return rnn.pack_sequence(
        [torch.full((length,), float(i)) for i, length in enumerate(lengths)], enforce_sorted=False
    )


NOT_OF_FOUR: dict[str, tuple[Any, str]] = {
    "three crops of each": (
        {"pixels": torch.zeros(12, 2), "y": torch.arange(4)},
        r"'pixels' .*12 rows.* 4.*3 for each",
    ),
    "two views": ([torch.zeros(8, 2), torch.arange(4)], r"'0' \(Tensor, shape \(8, 2\)\) has 8 rows.*2 for each"),
    "behind one that fits": ((torch.arange(4), torch.zeros(3, 2)), r"'1' .*3 rows .*per_sample=\['0'\]"),
    "packed": ({"y": torch.arange(4), "words": packed([2, 5, 1])}, "'words' .PackedSequence. has 3 rows"),
    "dataclass": (Tokens(torch.zeros(4, 2), ["a"] * 5, 1.0), r"'texts' .list. has 5 rows.*per_sample=\['ids'\]"),
    "named tuple": ({"deep": Pair(torch.zeros(8), torch.zeros(4))}, "'deep.images'"),
    "array": ({"a": {"b": np.zeros((7, 2))}, "y": torch.zeros(4)}, "'a.b' .ndarray"),
    "strings": ({"y": torch.zeros(4), "names": ["a", "b"]}, "'names' .list. has 2 rows"),
    "encoding": (Encoding(input_ids=torch.zeros(12, 9), labels=torch.zeros(4)), "'input_ids'"),
    "nested tensor": (
        {"y": torch.zeros(4), "n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)},
        "'n' .NestedTensor. has 2 rows",
    ),
    "one for all": ({"x": torch.zeros(4, 2), "weights": torch.zeros(10)}, "'weights'.* leave it out .*per_sample="),
    "all of another number": (torch.zeros(5, 4), "the batch .Tensor, shape .5, 4.. has 5 rows in a batch of 4"),
    "tensors of samples": ([torch.zeros(5, 4), torch.zeros(3, 4), torch.zeros(4, 4)], "'0'"),
    "unknown": ({"y": torch.zeros(4), "graphs": {1, 2, 3, 4}}, "'graphs' is a set, of which no samples can be taken"),
    "nothing": ({"a": "text", "b": None}, "has nothing with a row for each"),
}


@pytest.mark.parametrize("batch, message", NOT_OF_FOUR.values(), ids=NOT_OF_FOUR.keys())
def test_a_leaf_that_does_not_have_a_row_per_sample_is_refused(batch: Any, message: str) -> None:
    for use in (
        lambda: batches.check(batch, 4),
        lambda: batches.take(batch, [0, 3], 4),
        lambda: list(batches.split(batch, [2, 2])),
    ):
        with pytest.raises(errors.ShapeError, match=message):
            use()


def test_what_has_a_row_per_sample_may_be_named() -> None:
    batch = {**everything(), "position_ids": torch.arange(B), "weights": torch.ones(10)}
    names = ["pair", "tokens", "nested.0", "nested.1", "strings"]
    for taken in (batches.take(batch, [4, 1], B, names), batches.take(batch, [4, 1], per_sample=names)):
        check(taken, [4, 1])
        assert torch.equal(taken["position_ids"], torch.arange(B))
        assert torch.equal(taken["weights"], torch.ones(10))
    *_, last = batches.split(batch, 4, names)
    check(last, [4, 5])
    assert torch.equal(last["position_ids"], torch.arange(B))
    with pytest.raises(errors.ShapeError, match=r"names 'pairs', which .*'pair.images'"):
        batches.take(batch, [0], B, ["pairs"])
    with pytest.raises(errors.ShapeError, match=r"'weights' .* 10 rows"):
        batches.take(batch, [0], B, ["pair", "weights"])


def test_packed_sequences_are_taken_by_sample() -> None:
    batch = {"words": packed([2, 5, 1, 3]), "y": torch.arange(4)}
    taken = batches.take(batch, [3, 0], 4)
    assert [one.tolist() for one in rnn.unpack_sequence(taken["words"])] == [[3.0] * 3, [0.0] * 2]
    first, last = batches.split(batch, [1, 3])
    assert [one.tolist() for one in rnn.unpack_sequence(first["words"])] == [[0.0] * 2]
    assert [len(one) for one in rnn.unpack_sequence(last["words"])] == [5, 1, 3]
    assert batches.to_device(batch, "meta")["words"].data.device.type == "meta"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_are_taken_by_sample(layout: torch.layout) -> None:
    ragged = [torch.full((i + 1,), float(i)) for i in range(4)]
    batch = {"x": torch.nested.nested_tensor(ragged, layout=layout), "y": torch.arange(4)}
    assert [one.tolist() for one in batches.take(batch, [2, 0], 4)["x"].unbind()] == [[2.0] * 3, [0.0]]
    assert [len(one) for one in list(batches.split(batch, [3, 1]))[1]["x"].unbind()] == [4]


def test_two_lists_of_two_samples_are_two_fields() -> None:
    """Images of different sizes and their boxes: not one sample each."""
    batch = ([torch.ones(3, 1), torch.ones(3, 2)], [{"boxes": torch.ones(5, 4)}, {"boxes": torch.ones(1, 4)}])
    images, targets = batches.take(batch, [1], 2)
    assert [image.shape for image in images] == [(3, 2)]
    assert [len(target["boxes"]) for target in targets] == [1]


def test_a_list_of_tensors_is_one_of_samples_where_there_are_as_many() -> None:
    taken = batches.take([torch.full((i + 1,), i) for i in range(4)], [3, 1], 4)
    assert [one.tolist() for one in taken] == [[3] * 4, [1] * 2]


def test_what_an_encoding_keeps_of_each_text_is_taken_too() -> None:
    """The encodings of a fast tokenizer stand beside the items of its BatchEncoding."""
    batch = Encoding(x=rows())
    batch._encodings = [f"encoding {i}" for i in range(B)]
    assert batches.take(batch, [4, 0])._encodings == ["encoding 4", "encoding 0"]
    assert batch._encodings[0] == "encoding 0"


# -- its make -----------------------------------------------------------------------------------------------------


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

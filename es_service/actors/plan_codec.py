"""An epoch's plan as bytes, for the journal: its ids as a bitmap, an eighth of a byte for each sample."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import decisions
from es_service.selection.plans import Plan
from es_service.storage import arrow_files

__all__ = ["decode_plan", "encode_plan"]

_SCHEMA = pa.schema(
    [
        ("ids", pa.large_binary()),  # a bit for each id up to the highest
        ("hidden", pa.large_binary()),
        ("scale", pa.large_binary()),  # float32 of each id, or null
        ("ratio", pa.float64()),
        ("learning_rate_factor", pa.float64()),
        ("staleness", pa.large_binary()),  # uint8 of each id, or null
        ("decision", pa.string()),  # JSON, or null
    ]
)


def encode_plan(plan: Plan) -> bytes:
    """Pack a plan."""
    scale = None if plan.scale is None else plan.scale.astype("<f4").tobytes()
    staleness = None if plan.staleness is None else plan.staleness.tobytes()
    decision = None if plan.decision is None else json.dumps(plan.decision)
    values = [_bits(plan.ids), _bits(plan.hidden), scale, plan.ratio, plan.learning_rate_factor, staleness, decision]
    batch = pa.record_batch([pa.array([v], f.type) for v, f in zip(values, _SCHEMA, strict=True)], schema=_SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def decode_plan(data: bytes) -> Plan:
    """Unpack a plan; StorageError where the bytes are not one."""

    def check(schema: pa.Schema) -> None:
        if not schema.equals(_SCHEMA):
            raise errors.StorageError(f"the journal holds no plan, but {schema.names}")

    table = arrow_files.read_stream(data, "a plan in the journal", check)
    if table.num_rows != 1:
        raise errors.StorageError(f"the journal holds no plan, but {table.num_rows} rows of one")
    [row] = table.to_pylist()
    if row["ids"] is None or row["hidden"] is None or row["learning_rate_factor"] is None:
        raise errors.StorageError("the journal holds a plan without ids")
    ids = _ids(row["ids"])
    try:
        decision = None if row["decision"] is None else decisions.checked(json.loads(row["decision"]))
    except (KeyError, RecursionError, ValueError) as error:
        raise errors.StorageError(f"the journal holds a plan with a damaged decision: {error!r}") from error
    return Plan(
        ids=ids,
        scale=_per_id(row, "scale", "<f4", ids.size),
        ratio=row["ratio"],
        hidden=_ids(row["hidden"]),
        learning_rate_factor=row["learning_rate_factor"],
        staleness=_per_id(row, "staleness", "u1", ids.size),
        decision=decision,
    )


def _per_id(row: dict[str, Any], name: str, dtype: str, num: int) -> NDArray[Any] | None:
    data = row[name]
    if data is not None and len(data) != np.dtype(dtype).itemsize * num:
        raise errors.StorageError(f"the journal holds a plan of {num} ids with {len(data)} bytes of {name}")
    return None if data is None else np.frombuffer(data, dtype=dtype)


def _bits(ids: NDArray[np.int64]) -> bytes:
    mask = np.zeros(int(ids[-1]) + 1 if ids.size else 0, dtype=bool)
    mask[ids] = True
    return np.packbits(mask).tobytes()


def _ids(bits: bytes) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8)))

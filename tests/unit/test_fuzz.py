"""Input that lies: whatever bytes and names come, the answer is a typed error or sense, and costs little memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import string
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from es_service import errors
from es_service.actors import plan_codec, shard_journal, wire
from es_service.actors.report_ledger import ReportLedger
from es_service.cli import main
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.membership import Membership
from es_service.selection.plans import Plan
from es_service.selection.run import Caller, RunConfig, RunState
from es_service.selection.shards import WHOLE
from es_service.selection.table import ScoreTable
from es_service.selector import Selector
from es_service.storage import runs, sealed, segments, table_files
from es_service.storage.history import History
from es_service.storage.snapshots import Snapshots

LOCAL = fs.LocalFileSystem()
MANY = 10**12
CONFIG = RunConfig(selection=Selection(methods.evolved()), num_samples=64, num_epochs=3, batch_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def sense(act: Callable[[], Any]) -> Any:
    """Return what comes of it; only errors of our own may."""
    try:
        return act()
    except errors.EsServiceError:
        return None


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some of them changed, cut off, or doubled."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "set", "insert"]))
        if kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=16))
        elif data:
            data[place] = data[place] ^ (1 << draw(st.integers(0, 7))) if kind == "flip" else draw(st.integers(0, 255))
    return bytes(data)


def a_report() -> bytes:
    ids = np.arange(5)
    return wire.encode_report(wire.Report(Caller(1, "0a" * 16), 3, 7, ids, {"loss": np.ones(5, np.float32)}, ids[:2]))


@given(st.binary(max_size=300) | damaged(a_report()))
def test_messages(message: bytes) -> None:
    for decode in (
        lambda: list(wire.decode_reports(message)),
        lambda: wire.decode_weights(message),
        lambda: wire.decode_request(message),
        lambda: wire.decode_acknowledgement(message),
        lambda: wire.decode_rows(message, 3, {"w": np.dtype("<f4")}),
    ):
        sense(decode)


def a_plan() -> Plan:
    ids = np.array([1, 4, 9])
    more = {"hidden": np.array([2, 63]), "staleness": np.array([16, 47, 255], np.uint8)}
    return Plan(ids=ids, scale=np.ones(3, np.float32), ratio=0.5, learning_rate_factor=1.5, **more)


@given(st.binary(max_size=300) | damaged(plan_codec.encode_plan(a_plan())))
def test_plans(data: bytes) -> None:
    sense(lambda: plan_codec.decode_plan(data))


def test_a_plan_comes_back_as_it_was() -> None:
    back = plan_codec.decode_plan(plan_codec.encode_plan(a_plan()))
    assert (back.ids.tolist(), back.hidden.tolist()) == ([1, 4, 9], [2, 63])
    assert back.scale is not None
    assert (back.scale.tolist(), back.ratio, back.learning_rate_factor) == ([1.0, 1.0, 1.0], 0.5, 1.5)
    assert back.staleness is not None
    assert (back.staleness.tolist(), back.staleness.dtype) == ([16, 47, 255], np.uint8)
    bare = plan_codec.decode_plan(plan_codec.encode_plan(Plan(ids=np.arange(0))))
    assert (bare.ids.size, bare.scale, bare.ratio, bare.hidden.size, bare.staleness) == (0, None, None, 0, None)


@given(JSON)
def test_what_a_journal_says_of_ranks(values: Any) -> None:
    known = {"attempt": None, "steps": [0, 4], "seqs": {"0": 3}}
    for mixed in [values] if isinstance(values, dict) else [{**known, key: values} for key in known]:
        sense(lambda mixed=mixed: ReportLedger(errors.ServerRestartedError).take_up(mixed))
    membership = Membership(CONFIG, lambda epoch, starts: Plan(ids=np.arange(64)))
    for key in membership.to_dict():
        sense(
            lambda key=key: Membership(CONFIG, lambda *_: a_plan()).take_up(
                {**membership.to_dict(), key: values}, a_plan()
            )
        )
    sense(lambda: shard_journal.from_json(json.dumps(values).encode()))


def segment_bytes() -> bytes:
    return segments.encode_segment(["reports", "state"], [a_report(), b"{}"]).to_pybytes()


@given(data=st.binary(max_size=300) | damaged(segment_bytes()), says_so=st.booleans())
def test_journal_segments(data: bytes, says_so: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the checksum that belongs to the damage, too: as somebody who means it would write it."""
    crc = zlib.crc32(data) if says_so else 0
    path = tmp_path_factory.mktemp("fuzz") / f"{1:016d}-{crc:08x}.arrow"
    path.write_bytes(data)
    sense(lambda: segments.read_segment(LOCAL, segments.Segment(1, "", str(path))))


def history_bytes() -> bytes:
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int64()),
            "run_step": pa.array([0, 1], pa.int32()),
            "rank": pa.array([0, 0], pa.int32()),
            "loss": pa.array([0.5, 1.5], pa.float32()),
            "selected": [True, False],
        }
    )
    schema = table.schema.with_metadata({"format": "1", "first_ids": "[1]"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.cast(schema))
    return bytes(sink.getvalue().to_pybytes())


@given(data=st.binary(max_size=300) | damaged(history_bytes()))
def test_history_files(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "history" / "00000000"
    folder.mkdir(parents=True)
    (folder / f"0-of-1-{zlib.crc32(data):08x}.arrow").write_bytes(data)
    run = str(folder.parent.parent)
    sense(lambda: History(LOCAL, run, lambda: 64).sample(1))
    sense(lambda: History(LOCAL, run, lambda: 64).epoch(0))


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("snapshot")
    state = RunState(ScoreTable(11, 0.5).copy_records(), 1, (0, 4))
    Snapshots(LOCAL, str(run)).write(state)
    return run


@given(values=JSON, key=st.sampled_from(["format", "files", "epoch_starts", "num_samples", "finished_epochs", ""]))
def test_manifests(values: Any, key: str, snapshot: Path) -> None:
    path = next((snapshot / "snapshots").glob("00000001-*")) / "manifest.json"
    whole = path.read_text()
    try:
        known = json.loads(whole)
        del known["sha256"]
        path.write_text(json.dumps({**known, key: values} if key else values))
        for read in (Snapshots.read, Snapshots.table_sha256):
            sense(lambda read=read: read(Snapshots(LOCAL, str(snapshot)), 1))
        sense(lambda: Snapshots(LOCAL, str(snapshot)).note(1, WHOLE))
        sense(lambda: Snapshots(LOCAL, str(snapshot)).position())
    finally:
        path.write_text(whole)


@given(st.binary(max_size=200) | damaged(table_files.encode_table(pa.table({"id": [0, 1]}))))
def test_tables(data: bytes) -> None:
    sense(lambda: table_files.decode_table(data, "the table"))


@settings(max_examples=25)
@given(JSON)
def test_selector_states(values: Any) -> None:
    """Of the format before, which has no digest: what is in it reaches what reads it."""
    selector = Selector(CONFIG.selection, num_samples=64, num_epochs=3, batch_size=8)
    next(selector.epoch(0))
    known = {**selector.state_dict(), "format": 2}
    del known["sha256"]
    for state in (values, *({**known, key: values} for key in known)):
        sense(lambda state=state: selector.load_state_dict(state))
    for part in ("share", "ledger", "config"):
        for key in known[part]:
            sense(lambda part=part, key=key: selector.load_state_dict({**known, part: {**known[part], key: values}}))


@given(st.text(max_size=40) | st.text(alphabet="./\\~-_:%0aA \x00", max_size=12))
def test_run_names_stay_in_their_folder(name: str) -> None:
    try:
        accepted = runs.check_run_name(name)
    except errors.RunNameError:
        return
    assert set(accepted) <= set(string.ascii_letters + string.digits + "._-")
    assert os.path.dirname(os.path.normpath(os.path.join("/storage", accepted))) == "/storage"


@settings(max_examples=30)
@given(JSON)
def test_run_descriptions(values: Any) -> None:
    known = runs.config_to_dict(CONFIG)
    sense(lambda: runs.config_from_dict(values if isinstance(values, dict) else {"selection": values}))
    for key in known:
        sense(lambda key=key: runs.config_from_dict({**known, key: values}))


@settings(max_examples=30)
@given(
    text=st.text(max_size=60) | st.sampled_from(["!!python/object/apply:os.system [touch x]", "a: &a [*a]", "- - -"])
)
def test_settings_in_yaml(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    (folder / "settings.yaml").write_text(f"nonsense: 1\n{text}", encoding="utf-8", errors="replace")
    place = ["--storage", str(folder / "runs"), "--config", str(folder / "settings.yaml")]
    said, elsewhere = io.StringIO(), os.getcwd()
    os.chdir(folder)  # into the repository's other processes may write meanwhile
    try:
        with contextlib.redirect_stderr(said):
            assert main(["train", "--task", "fashion", "--exchange", "embedded", *place]) != 0
    finally:
        os.chdir(elsewhere)
    assert not [line for line in said.getvalue().splitlines() if line.startswith("Traceback")]  # it may quote the text
    assert os.listdir(folder) == ["settings.yaml"]


@pytest.mark.parametrize("claim", ["report", "manifest", "plan"])
def test_a_header_that_claims_a_trillion_rows_allocates_nothing(claim: str, snapshot: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if claim == "report":
        header = bytearray(a_report()[: wire._HEADER.size])
        header[-8:] = b"\xff" * 8
        with pytest.raises(errors.ShapeError, match="message claims"):
            list(wire.decode_reports(bytes(header)))
    elif claim == "manifest":
        path = next((snapshot / "snapshots").glob("00000001-*")) / "manifest.json"
        whole = path.read_text()
        try:
            path.write_text(json.dumps(sealed.seal({**json.loads(whole), "num_samples": MANY})))
            with pytest.raises(errors.StorageError, match="expected 1,000,000,000,000"):
                Snapshots(LOCAL, str(snapshot)).read(1)
            with pytest.raises(errors.StorageError, match="has 1,000,000,000,000 samples, its run has 11"):
                Snapshots(LOCAL, str(snapshot)).read(1, most_samples=11)
        finally:
            path.write_text(whole)
    else:
        data = plan_codec.encode_plan(a_plan())
        bits = data.index(np.packbits(np.isin(np.arange(10), [1, 4, 9])).tobytes())
        with pytest.raises(errors.StorageError):
            plan_codec.decode_plan(data[:bits] + data[bits + 8 :])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB

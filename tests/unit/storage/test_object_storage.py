"""The whole of storage on S3, as moto's server speaks it: no rename, and a folder is only part of a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.actors import wire
from es_service.actors.score_server import ScoreServer
from es_service.selection.run import Caller, RunConfig, Share
from es_service.storage import columns, files, labels, runs, segments
from es_service.storage.runs import RunStorage

GENERATION = "0a" * 16
Losses = Callable[[NDArray[np.int64], int], NDArray[np.float32]]


@pytest.fixture
def config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(prune_ratio=0.25)


def serve(storage: str, config: RunConfig) -> ScoreServer:
    server = ScoreServer(storage, "mine", runs.config_to_dict(config), actor="the server")
    failure, _, _ = server.identity()
    assert failure is None, failure
    return server


class Rank:
    def __init__(self, server: ScoreServer, config: RunConfig) -> None:
        self.server = server
        server.join(0, GENERATION, 1, runs.config_to_dict(config))
        self.seq = server.enter(0, GENERATION)

    def step(self, share: Share, step: int, losses_of: Losses) -> None:
        ids, run_step, self.seq = share.ids[6 * step : 6 * step + 6], share.first_step + step, self.seq + 1
        seen = {"loss": losses_of(ids, run_step)}
        self.server.report(
            wire.encode_report(wire.Report(Caller(0, GENERATION), self.seq, run_step, ids, seen, ids[:3]))
        )

    def train(self, epoch: int, losses_of: Losses) -> None:
        share = self.server.open_epoch(0, GENERATION, epoch)
        assert isinstance(share, Share)
        for step in range(-(-share.ids.size // 6)):
            self.step(share, step, losses_of)
        self.server.settle(0, GENERATION, self.seq)
        self.server.close_epoch(0, GENERATION, epoch)


def test_a_run_is_what_it_is_on_a_disk(s3_storage: str, tmp_path: Any, config: RunConfig, losses_of: Losses) -> None:
    """Snapshots, journal, history and spreads, of three epochs and a restart inside the second."""
    kept = []
    for storage in (s3_storage, str(tmp_path)):
        server = serve(storage, config)
        Rank(server, config).train(0, losses_of)
        server.stored_epochs()
        server = serve(storage, config)  # the same actor once more: the first one was killed, as far as it knows
        rank = Rank(server, config)
        share = server.open_epoch(0, GENERATION, 1)
        assert isinstance(share, Share)
        rank.step(share, 0, losses_of)
        server.settle(0, GENERATION, rank.seq)
        before = server.snapshot()
        server = serve(storage, config)  # inside an epoch: its journal has what the snapshot has not
        assert server.snapshot() == before
        rank.server = server
        for step in range(1, -(-share.ids.size // 6)):
            rank.step(share, step, losses_of)
        server.close_epoch(0, GENERATION, 1)
        rank.train(2, losses_of)
        rank.train(3, losses_of)
        server.finish()
        kept.append(RunStorage(storage, "mine"))
    remote, local = kept
    assert remote.snapshots.epochs() == local.snapshots.epochs() == [2, 3, 4]
    assert remote.table() == local.table()
    assert remote.history.epochs() == local.history.epochs() == [0, 1, 2, 3]
    for epoch in range(4):
        assert remote.history.epoch(epoch) == local.history.epoch(epoch)
    assert remote.spreads.epochs() == local.spreads.epochs() == [1, 2, 3, 4]
    assert list(runs.list_runs(s3_storage)) == ["mine"]
    opened = columns.open_snapshot(remote.filesystem, remote.path, 4)
    assert sum(shard.num_rows for shard in opened.shards) == 24
    assert list(columns.snapshot_times(remote.filesystem, remote.path)) == [2, 3, 4]


def test_a_snapshot_is_there_with_its_manifest_and_replaced_by_the_next_of_its_epoch(
    s3_storage: str, config: RunConfig, losses_of: Losses
) -> None:
    storage = RunStorage(s3_storage, "mine")
    storage.begin(config)
    server = serve(s3_storage, config)
    Rank(server, config).train(0, losses_of)
    server.finish()
    state = storage.snapshots.read(1)
    folder = storage.begin_snapshot(2)
    storage.snapshots.write_part(folder, state.records, runs.WHOLE)
    assert storage.snapshots.epochs() == [1]
    part = storage.snapshots.write_part(folder, state.records, runs.WHOLE)
    storage.finish_snapshot(folder, (0, 4, 8), state.records.size, [part])
    assert storage.snapshots.epochs() == [1, 2]
    state.records["w"] += 1
    storage.write_snapshot(state)  # the run went back
    assert storage.snapshots.epochs() == [1]
    assert storage.snapshots.read(1).records.tobytes() == state.records.tobytes()
    infos = storage.filesystem.get_file_info(fs.FileSelector(f"{storage.path}/snapshots", recursive=True))
    assert sum(info.base_name == "manifest.json" for info in infos) == 1
    assert sum(info.base_name == "shard-0.arrow" for info in infos) == 1


def test_a_damaged_segment_is_noticed_and_set_aside(s3_storage: str, config: RunConfig, losses_of: Losses) -> None:
    server = serve(s3_storage, config)
    Rank(server, config).train(0, losses_of)
    server.finish()
    storage = RunStorage(s3_storage, "mine")
    folder = f"{storage.path}/journal/0-of-1"
    last = segments.JournalFolder(storage.filesystem, folder).segments()[-1]
    data = files.read_bytes(storage.filesystem, last.path, 1 << 20)
    files.write_atomically(storage.filesystem, last.path, data[:-1])
    again = serve(s3_storage, config)
    infos = storage.filesystem.get_file_info(fs.FileSelector(folder))
    assert [info.path for info in infos if info.path.endswith(".damaged")] == [f"{last.path}.damaged"]
    assert again.snapshot() == storage.table()
    again.finish()


def test_labels_and_notes(s3_storage: str, config: RunConfig) -> None:
    storage = RunStorage(s3_storage, "mine")
    storage.begin(config, {"task": "fashion"})
    labels.write_notes(storage, np.arange(24) % 3, ["a", "b", "c"], None)
    storage.write_result({"accuracy": 0.5})
    assert storage.training() == {"task": "fashion"}
    assert storage.result() == {"accuracy": 0.5}
    with pytest.raises(errors.RunMismatchError):
        storage.begin(RunConfig(selection=config.selection, num_samples=25, num_epochs=4, batch_size=6))


def test_a_second_server_is_refused_and_one_that_was_taken_over_from_writes_no_more(
    s3_storage: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("es_service.storage.ownership._STALE_ON_OBJECT_STORES_S", 1.5)
    first, second = RunStorage(s3_storage, "mine"), RunStorage(s3_storage, "mine")
    first.begin(config)
    owner = first.claim("one")
    monkeypatch.setattr("socket.gethostname", lambda: "another")  # else it sees that the process is alive
    second.claim("two")  # the heartbeat of the first stood still
    with pytest.raises(errors.RunExistsError, match="another score server"):
        owner.renew()


def test_a_missing_bucket_is_named_with_what_to_do(s3_storage: str, config: RunConfig) -> None:
    missing = s3_storage.replace("s3://es-", "s3://none-")
    with pytest.raises(errors.StorageError, match="none-"):
        RunStorage(missing, "mine").begin(config)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:hush-hush@bucket/runs",
        "s3://bucket/runs?secret_key=hush-hush",
        "s3://bucket/runs?region=eu-west-1&access_key=AKIAKEY&secret_key=hush-hush",
        "abfs://container@account.dfs.core.windows.net/runs?sas_token=hush-hush",
        "gs://bucket/runs?access_token=hush-hush",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(errors.StorageError, match="leave it out, and give it by the environment") as raised:
        RunStorage(uri, "mine")
    assert "hush-hush" not in str(raised.value)


@pytest.mark.parametrize("uri", ["s3://bucket/runs?regoin=hush-hush", "nothing://bucket/runs?x=hush-hush"])
def test_a_query_is_not_repeated_where_it_is_not_understood(uri: str) -> None:
    with pytest.raises(errors.StorageError) as raised:
        RunStorage(uri, "mine")
    assert "hush-hush" not in str(raised.value)


def test_a_place_is_joined_before_the_query() -> None:
    assert files.join("s3://bucket/runs/?region=x", "demo", "a.arrow") == "s3://bucket/runs/demo/a.arrow?region=x"
    assert files.join("/folder/what?/", "demo") == "/folder/what?/demo"

"""A run that is kept: every epoch's ledger and what was measured, whoever trains it, over resumes and restarts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import es_service as es
from es_service.actors.score_server import ScoreServer
from es_service.api.runs import ledgers
from es_service.attach import attach
from es_service.cli import main
from es_service.ledger import Ledger
from es_service.selection.run import RunConfig
from es_service.storage.progress import Progress
from es_service.storage.runs import RunStorage, config_to_dict

SHAPE: dict[str, Any] = {"num_samples": 60, "num_epochs": 4, "batch_size": 10}
SELECTION = es.Selection(es.methods.evolved(), ratio=0.5, anneal=(0.25, 0), seed=3)


def losses_of(ids: Any, epoch: int) -> Any:
    return (1.0 + (ids * 37 % 101) / 25.0 + epoch).astype(np.float32)


def train(selector: es.Selector, epochs: Iterable[int], measure: bool = True) -> None:
    for epoch in epochs:
        for ids in selector.epoch(epoch):
            selector.select(ids, losses_of(ids, epoch) if selector.wants_scores else None)
            selector.observe(losses_of(ids, epoch))
        if measure:
            selector.log(accuracy=0.5 + epoch / 10, loss=1.0 / (1 + epoch))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., es.Selector]:
    return lambda **changes: es.Selector(SELECTION, **{**SHAPE, "run": "own", "storage": str(tmp_path), **changes})


def kept(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "own" / "progress.json").read_text())
    return found


def test_every_epoch_is_in_the_ledger_without_a_call(make: Callable[..., es.Selector], tmp_path: Path) -> None:
    selector = make()
    for epoch in range(4):
        train(selector, [epoch], measure=False)
        found = kept(tmp_path)
        assert [one["epoch"] for one in found["history"]] == list(range(epoch + 1))
        last = found["history"][-1]
        assert (last["scored"], last["trained"]) == (selector.ledger.scored, selector.ledger.trained)
        assert (found["epoch"], found["done"], found["num_epochs"]) == (epoch, 1.0, 4)
        assert found["samples"]["full"] == 60 * (epoch + 1)
        assert last["accuracy"] is None
        assert last["saving"]["samples"] == pytest.approx(selector.ledger.saving()["samples"])


def test_pruned_samples_are_in_the_ledger_of_the_epoch_that_left_them_out(tmp_path: Path) -> None:
    selection = es.Selection(es.methods.evolved(), ratio=0.5, prune_ratio=0.5, anneal=(0.25, 0), seed=3)
    train(es.Selector(selection, **SHAPE, run="own", storage=str(tmp_path)), range(2))
    assert [one["ledger"]["full"] for one in kept(tmp_path)["history"]] == [60, 120]


def test_what_is_logged_is_kept_with_its_epoch(make: Callable[..., es.Selector], tmp_path: Path) -> None:
    selector = make()
    train(selector, [0], measure=False)
    selector.log(accuracy=np.float32(0.5), loss=torch.tensor(2.0), recall=1, **{"f1/macro": 0.25})
    steps = selector.epoch(1)
    selector.select(ids := next(steps), losses_of(ids, 1))
    selector.log(train_loss=3)  # of the open epoch
    assert kept(tmp_path)["measured"] == {"1": {"train_loss": 3.0}}
    for ids in steps:
        selector.select(ids, losses_of(ids, 1))
    selector.log(balanced_accuracy=0.75)
    first, second = (ledgers.ledger(None, kept(tmp_path))["history"][epoch] for epoch in range(2))
    assert (first["accuracy"], first["held_out_loss"], first["train_loss"]) == (0.5, 2.0, None)
    assert first["metrics"] == {"recall": 1.0, "f1/macro": 0.25}
    assert (second["balanced_accuracy"], second["train_loss"]) == (0.75, 3.0)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": "high"}, "accuracy must be a number, got 'high'"),
        ({"accuracy": None}, "accuracy must be a number, got None"),
        ({"accuracy": True}, "accuracy must be a number, got True"),
        ({"loss": float("nan")}, "loss must be finite, got nan"),
        ({"loss": np.ones(2)}, "loss must be one number"),
        ({"": 1.0}, "the name of a metric is 1 to 100 printable characters, got ''"),
        ({"a\nb": 1.0}, "the name of a metric is 1 to 100 printable characters"),
        ({"x" * 101: 1.0}, "the name of a metric is 1 to 100 printable characters"),
        ({str(number): 1.0 for number in range(101)}, "log takes at most 100 metrics, got 102"),
    ],
)
def test_what_cannot_be_logged_is_named_and_changes_nothing(
    metrics: dict[str, Any], message: str, make: Callable[..., es.Selector], tmp_path: Path
) -> None:
    selector = make()
    train(selector, [0])
    before = kept(tmp_path)
    with pytest.raises(es.ConfigError, match=message):
        selector.log(**{"recall": 0.5, **metrics})
    assert kept(tmp_path) == before


def test_nothing_can_be_logged_before_the_first_epoch(make: Callable[..., es.Selector]) -> None:
    with pytest.raises(es.EpochOrderError, match="none was opened yet"):
        make().log(accuracy=0.5)


def test_what_is_logged_in_the_first_epoch_is_progress_that_watchers_can_read(
    make: Callable[..., es.Selector], tmp_path: Path
) -> None:
    selector = make()
    next(selector.epoch(0))
    selector.log(accuracy=0.5)
    selector.close()
    found = kept(tmp_path)
    assert (found["epoch"], found["done"], found["history"]) == (0, 0.0, [])
    selector.reset()
    assert kept(tmp_path) == {}


def test_a_second_process_continues_the_run_and_its_ledger(make: Callable[..., es.Selector], tmp_path: Path) -> None:
    whole = es.Selector(SELECTION, **SHAPE)
    train(whole, range(4))
    train(make(), range(2))
    second = make()
    assert second.next_epoch == 2
    train(second, range(2, 4))
    history = kept(tmp_path)["history"]
    assert [one["accuracy"] for one in history] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert (history[-1]["scored"], history[-1]["trained"]) == (whole.ledger.scored, whole.ledger.trained)
    assert history[-1]["seconds"] >= history[1]["seconds"]
    assert second.table().equals(whole.table())


def test_going_back_drops_what_came_later(make: Callable[..., es.Selector], tmp_path: Path) -> None:
    selector = make()
    train(selector, range(1))
    state = selector.state_dict()
    train(selector, range(1, 3))
    selector.load_state_dict(state)
    assert [one["epoch"] for one in kept(tmp_path)["history"]] == [0]
    train(selector, [1], measure=False)
    history = kept(tmp_path)["history"]
    assert [(one["epoch"], one["accuracy"]) for one in history] == [(0, 0.5), (1, None)]
    assert history[1]["trained"] == selector.ledger.trained
    selector.reset()
    assert kept(tmp_path).get("history", []) == []
    assert ledgers.ledger(None, kept(tmp_path))["available"] is False
    train(selector, [0])
    assert kept(tmp_path)["history"][0]["trained"] == 60


def test_a_state_of_the_middle_of_an_epoch_keeps_the_epochs_before(
    make: Callable[..., es.Selector], tmp_path: Path
) -> None:
    selector = make()
    train(selector, range(2))
    steps = selector.epoch(2)
    for _ in range(2):
        ids = next(steps)
        selector.select(ids, losses_of(ids, 2))
    state = selector.state_dict()
    second = make()
    second.load_state_dict(state)
    assert [one["accuracy"] for one in kept(tmp_path)["history"]] == [0.5, 0.6]
    train(second, [2])
    assert kept(tmp_path)["history"][2]["trained"] == 60 + 30 + 30


@pytest.mark.parametrize(
    ("resume", "begun", "error"),
    [("never", True, es.RunExistsError), ("must", False, es.RunNotFoundError), ("sometimes", False, es.ConfigError)],
)
def test_resume_is_what_connect_documents(
    resume: str, begun: bool, error: type[Exception], make: Callable[..., es.Selector], tmp_path: Path
) -> None:
    if begun:
        train(make(), range(1))
    with pytest.raises(error):
        make(resume=resume)
    assert (tmp_path / "own").exists() is begun


def test_another_run_of_the_name_is_refused(make: Callable[..., es.Selector]) -> None:
    make()
    with pytest.raises(es.RunMismatchError, match="num_epochs: run 4, yours 5"):
        make(num_epochs=5)


@pytest.mark.parametrize(
    "option", [{"storage": "here"}, {"resume": "must"}, {"labels": np.zeros(60, dtype=int)}, {"preview": str}]
)
def test_what_is_about_a_kept_run_needs_its_name(option: dict[str, Any]) -> None:
    with pytest.raises(es.ConfigError, match="name it with run="):
        es.Selector(SELECTION, **SHAPE, **option)


def test_a_run_without_a_name_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(es.Selector(SELECTION, **SHAPE), range(2))
    assert list(tmp_path.iterdir()) == []


def test_run_json_says_who_trains_it(make: Callable[..., es.Selector], tmp_path: Path) -> None:
    make()
    expected = {"task": None, "method": "evolved", "exchange": "embedded", "workers": 1}
    assert RunStorage(str(tmp_path), "own").training() == expected


def test_a_damaged_file_costs_the_past_and_not_the_training(
    make: Callable[..., es.Selector], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    selector = make()
    train(selector, range(1))
    for content in ("{", '{"history": [{"epoch": 0}]}', '{"measured": {"x": 1}}'):
        selector.close()  # what is written in the background
        (tmp_path / "own" / "progress.json").write_text(content)
        selector = make()
        train(selector, [selector.next_epoch])
        assert "cannot be used" in caplog.text
        caplog.clear()
        assert [one["epoch"] for one in kept(tmp_path)["history"]] == [selector.next_epoch - 1]


def test_the_shares_of_a_ledger_add_up_to_it() -> None:
    ledger = Ledger(scored=7, trained=5, full=11, skipped=1, measured_s=0.5, measured_steps=3, total_s=2.0, steps=4)
    for world_size in (1, 2, 3, 4):
        merged = Ledger.merge([ledger.share(rank, world_size) for rank in range(world_size)])
        assert dataclasses.replace(merged, measured_s=round(merged.measured_s, 9)) == ledger


def test_progress_of_the_open_epoch_gives_way_to_its_end(tmp_path: Path) -> None:
    storage = RunStorage(str(tmp_path), "own")
    progress = Progress(storage.filesystem, storage.path, lambda: 4)
    assert progress.to_dict() == {}
    progress.show(0, 0.5, Ledger(trained=3), 2)
    assert (progress.to_dict()["epoch"], progress.to_dict()["done"]) == (0, 0.5)
    assert progress.to_dict()["samples"]["trained"] == 6
    progress.finish(0, [Ledger(trained=5), Ledger(trained=6)])
    progress.show(0, 0.9, Ledger(trained=4), 2)  # it came late
    assert (progress.to_dict()["done"], progress.to_dict()["samples"]["trained"]) == (1.0, 11)


def test_attach_keeps_a_run_that_has_a_name(tmp_path: Path) -> None:
    where: dict[str, Any] = {"exchange": "in-process", "storage": str(tmp_path), "labels": [0, 1, 2] * 20}
    train(attach(SELECTION, **SHAPE, run="own", **where), range(1))
    assert len(kept(tmp_path)["history"]) == 1
    with pytest.raises(es.RunExistsError):
        attach(SELECTION, **SHAPE, run="own", **where, resume="never")
    with pytest.raises(es.ConfigError, match="name it with run="):
        attach(SELECTION, **SHAPE, **where)


# -- by a score server, as a plain class -----------------------------------------------------------------------------

FIRST, SECOND = "0a" * 16, "0b" * 16
CONFIG = RunConfig(selection=SELECTION, **SHAPE)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], ScoreServer]]:
    """Starts the run's score server, or starts it again after it died."""
    servers: list[ScoreServer] = []

    def start() -> ScoreServer:
        servers.append(ScoreServer(str(tmp_path), "own", config_to_dict(CONFIG), actor="the same"))
        return servers[-1]

    yield start
    for server in reversed(servers):
        server.finish()


def close(server: ScoreServer, rank: int, epoch: int, trained: int) -> bool:
    return server.close_epoch(rank, FIRST, epoch, 3, ledger=Ledger(trained=trained, full=60).to_dict())


def history(server: ScoreServer) -> list[tuple[int, int, float | None]]:
    entries = server.stats()["progress"].get("history", [])
    return [(one["epoch"], one["trained"], one["accuracy"]) for one in entries]


def begin(server: ScoreServer, epoch: int) -> None:
    for rank in range(2):
        server.join(rank, FIRST, 2, config_to_dict(CONFIG))
        assert not isinstance(server.open_epoch(rank, FIRST, epoch), list)


def test_a_server_that_restarts_between_two_closes_merges_both_ledgers(
    serve: Callable[[], ScoreServer], tmp_path: Path
) -> None:
    server = serve()
    begin(server, 0)
    assert close(server, 0, 0, 5) is False
    server.log(0, FIRST, 0, {"accuracy": 0.5})
    assert history(server) == []
    server = serve()
    assert close(server, 1, 0, 7) is True
    assert history(server) == [(0, 12, 0.5)]
    assert history(serve()) == [(0, 12, 0.5)]
    (tmp_path / "own" / "progress.json").unlink()  # as if it had died before this was written
    server = serve()
    assert history(server) == [(0, 12, None)]
    begin(server, 1)
    assert close(server, 0, 1, 10) is False
    server.publish(1, FIRST, 0, 1.0, Ledger(trained=99).to_dict())  # late, when rank 0 has closed the next one
    server.publish(0, FIRST, 1, 1.0, Ledger(trained=11).to_dict())  # with the training of the last step
    assert close(server, 1, 1, 20) is True
    assert history(server) == [(0, 12, None), (1, 31, None)]
    server.publish(1, FIRST, 1, 1.0, Ledger(trained=21).to_dict())
    assert history(server)[1] == (1, 32, None)


def test_a_rank_that_is_fenced_logs_and_publishes_nothing(serve: Callable[[], ScoreServer]) -> None:
    server = serve()
    begin(server, 0)
    for rank in range(2):
        close(server, rank, 0, 5)
    server.log(0, FIRST, 0, {"accuracy": 0.5})
    server.join(0, SECOND, 1, config_to_dict(CONFIG))
    server.publish(0, FIRST, 0, 1.0, Ledger(trained=99).to_dict())
    server.publish(0, FIRST, 1, 0.5, Ledger(trained=99).to_dict())
    with pytest.raises(es.EpochOrderError, match="fenced"):
        server.log(0, FIRST, 0, {"accuracy": 0.75})
    assert history(server) == [(0, 10, 0.5)]
    assert server.stats()["progress"]["done"] == 1.0
    assert server.spent(0) == Ledger(trained=10, full=120).to_dict()
    assert server.spent(1) is None


def test_a_rewind_drops_what_came_later_from_the_server_too(serve: Callable[[], ScoreServer], tmp_path: Path) -> None:
    server = serve()
    begin(server, 0)
    for epoch in range(2):
        for rank in range(2):
            if epoch:
                server.open_epoch(rank, FIRST, epoch)
        for rank in range(2):
            close(server, rank, epoch, 5 * (epoch + 1))
    server.stored_epochs()
    assert server.rewind(0, FIRST, 1, 0, (0,), "", None)
    assert history(server) == []
    assert kept(tmp_path).get("history", []) == []


def test_a_storage_that_cannot_be_written_costs_no_training_and_no_ledger(
    serve: Callable[[], ScoreServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    begin(server, 0)
    (tmp_path / "own" / "progress.json").mkdir()  # what is in the way of the file
    for rank in range(2):
        close(server, rank, 0, 5)
    assert "the ledger of the run is not on storage" in caplog.text
    (tmp_path / "own" / "progress.json").rmdir()
    server.log(0, FIRST, 0, {"accuracy": 0.5})
    assert [one["trained"] for one in kept(tmp_path)["history"]] == [10]


def test_the_command_lists_a_run_of_ones_own_as_any_other(
    make: Callable[..., es.Selector], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    selector = make()
    train(selector, range(2))
    for epochs, state, accuracy in ((range(0), "2 of 4 epochs", 0.6), (range(2, 4), "done", 0.8)):
        train(selector, epochs)
        assert main(["runs", "--storage", str(tmp_path), "--json"]) == 0
        [row] = json.loads(capsys.readouterr().out)["runs"]
        assert (row["run"], row["method"], row["state"]) == ("own", "evolved", state)
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["saving"]["samples"] == pytest.approx(selector.ledger.saving()["samples"])
    assert main(["top", "own", "--storage", str(tmp_path), "--json"]) == 0

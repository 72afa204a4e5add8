"""Progress of a training: a bar on a terminal, a line per finished epoch elsewhere."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

import pytest

from es_service.cli.progress import Progress
from es_service.selection.decisions import filled


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def saving(samples: float | None, seconds: float | None) -> dict[str, float | None]:
    return {"samples": samples, "cost": samples, "seconds": seconds}


def stats(epoch: int, done: float, history: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What a score server says, of a run of 4 epochs."""
    progress = {
        "epoch": epoch,
        "done": done,
        "num_epochs": 4,
        "samples": {"scored": 12345, "trained": 6789, "full": 24000},
        "saving": saving(0.717, 0.421),
        "history": history,
        **changes,
    }
    return {"config": {}, "progress": progress}


def finished(num: int) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "accuracy": 0.5 + epoch / 10, "saving": saving(0.75, 0.5)} for epoch in range(num)]


@pytest.fixture
def terminal() -> Iterator[tuple[Terminal, Progress]]:
    stream = Terminal()
    progress = Progress(stream)
    yield stream, progress
    progress.close()


def last_bar(stream: io.StringIO) -> str:
    """What a terminal would show now."""
    return stream.getvalue().rsplit("\r", 1)[-1]


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
@pytest.mark.parametrize("empty", [{}, None])
def test_without_progress_nothing_is_printed(make: type[io.StringIO], empty: Any) -> None:
    stream = make()
    progress = Progress(stream)
    progress.show({"progress": empty})
    progress.close()
    assert stream.getvalue() == ""


def test_a_file_gets_one_line_per_finished_epoch_and_none_twice() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.show(stats(0, 0.5, []))
    assert stream.getvalue() == ""
    for done in (0.0, 0.3, 0.6):  # asked again and again within an epoch
        progress.show(stats(1, done, finished(1)))
    assert stream.getvalue().splitlines() == [
        "epoch 1/4: accuracy 50.00 %, backward passes saved 75.0 %, time saved 50.0 % so far"
    ]
    progress.show(stats(3, 0.5, finished(3)))  # two more since the last look
    progress.show(stats(3, 1.0, finished(4)))
    progress.show(stats(3, 1.0, finished(4)))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"epoch {epoch + 1}/4: accuracy {5 + epoch}0.00 %" for epoch in range(4)
    ]
    assert stream.getvalue().endswith("\n")
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize(
    "of_epoch, words",
    [
        (saving(0.0, 0.0), "trained on everything so far"),
        (saving(None, None), "trained on everything so far"),
        (saving(0.5, None), "backward passes saved 50.0 % so far"),
        (saving(0.5, -0.25), "backward passes saved 50.0 %, 25.0 % slower so far"),
    ],
)
def test_a_line_says_what_was_saved(of_epoch: dict[str, float | None], words: str) -> None:
    stream = io.StringIO()
    Progress(stream).show(stats(0, 1.0, [{"epoch": 0, "accuracy": 0.5, "saving": of_epoch}]))
    assert stream.getvalue() == f"epoch 1/4: accuracy 50.00 %, {words}\n"


def test_a_terminal_gets_a_bar(terminal: tuple[Terminal, Progress]) -> None:
    stream, progress = terminal
    progress.show(stats(1, 0.5, finished(1)))
    bar = last_bar(stream)
    assert "1.5/4 epochs" in bar
    assert "38%" in bar
    assert "accuracy 50.00 %" in bar
    assert "scored 12,345" in bar
    assert "trained 6,789" in bar
    assert "time saved 42.1 %" in bar
    assert "\n" not in stream.getvalue()


def test_the_bar_moves_on_and_stays_one(terminal: tuple[Terminal, Progress]) -> None:
    stream, progress = terminal
    progress.show(stats(0, 0.25, []))
    assert "0.2/4 epochs" in last_bar(stream)
    assert "accuracy" not in last_bar(stream)  # nothing measured yet
    progress.show(stats(3, 1.0, finished(4), saving=saving(0.7, None)))
    bar = last_bar(stream)
    assert "4.0/4 epochs" in bar
    assert "100%" in bar
    assert "accuracy 80.00 %" in bar
    assert "time saved" not in bar
    assert "\n" not in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith("\n")
    assert stream.getvalue().count("\n") == 1


def test_closing_what_never_began_prints_nothing() -> None:
    stream = Terminal()
    Progress(stream).close()
    assert stream.getvalue() == ""


def test_what_begins_is_said_unless_the_result_is_for_a_program() -> None:
    for quiet in (False, True):
        stream = io.StringIO()
        Progress(stream, quiet=quiet).say("Loading data…")
        assert stream.getvalue() == ("" if quiet else "Loading data…\n")


def test_a_long_epoch_gets_a_line_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(stream, clock=lambda: now[0])
    for second in range(0, 100, 5):
        now[0] = float(second)
        progress.show(stats(1, second / 100, finished(1)))
    first, *inside = stream.getvalue().splitlines()
    assert first.startswith("epoch 1/4: ")
    assert inside == [f"  {percent} % of epoch 2/4" for percent in (30, 60, 90)]


def test_the_seconds_on_the_bar_move_while_no_news_comes(terminal: tuple[Terminal, Progress]) -> None:
    stream, progress = terminal
    progress.show(stats(1, 0.5, finished(1)))
    drawn, give_up = stream.getvalue(), time.monotonic() + 30
    while stream.getvalue() == drawn:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert "1.5/4 epochs" in last_bar(stream)


def test_a_decision_is_a_line_of_its_own_where_it_changes() -> None:
    made = [filled({"ratio": ratio, "share": 0.35}, epoch, 0.33) for epoch, ratio in enumerate((0.35, 0.35, 1.0))]
    made[2] |= {"reason": "losses_stay", "progress": 0.123}
    stream = io.StringIO()
    progress = Progress(stream)
    history = [{**one, "decision": decision} for one, decision in zip(finished(3), made, strict=True)]
    progress.show(stats(2, 1.0, history))
    lines = [line for line in stream.getvalue().splitlines() if "trains on" in line]
    assert lines == [
        "epoch 1: trains on 35 % of each meta-batch (weights concentrate: r = 0.35; scoring costs 33 % of a step)",
        "epoch 3: trains on everything (losses hardly fall: r = 0.35; p = 0.12; scoring costs 33 % of a step)",
    ]

"""What the command tells while it runs, and where runs go."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service import errors
from es_service.experiments.compare.comparison import short_full
from es_service.experiments.compare.progress import Progress, seconds_left
from es_service.experiments.compare.running import Slots
from es_service.storage.runs import RunStorage

Make = Callable[..., Any]


def test_the_time_left_goes_by_method_and_by_epochs(make_comparison: Make, make_outcome: Make) -> None:
    comparison = make_comparison("es:epochs=4", seeds=2)
    full, _, es = comparison.candidates
    done = make_outcome(comparison, full, 0, 0.9, seconds=13.0)  # 16 s in all
    waiting = [comparison.spec(full, 1), comparison.spec(es, 0)]
    assert seconds_left(waiting, [done], 1) == pytest.approx(16 + 4 * 2)
    assert seconds_left(waiting, [done], 2) == pytest.approx(12)
    assert seconds_left(waiting, [], 1) is None


def test_lines_where_there_is_no_terminal(make_comparison: Make, make_outcome: Make) -> None:
    comparison = make_comparison("es", seeds=1)
    stream = io.StringIO()
    progress = Progress(stream, 1)
    full, random, es = comparison.candidates
    kept = make_outcome(comparison, full, 0, 0.9, seconds=117.0)
    progress.expect(comparison.specs(comparison.candidates), [kept])
    progress.show(make_outcome(comparison, random, 0, 0.8, seconds=57.0))
    progress.show(make_outcome(comparison, es, 0, 0.0, error="loss nan"))
    progress.close()
    assert stream.getvalue().splitlines() == [
        "1 run finished before",
        "2/3 random seed 0: accuracy 80.00 %, took 60 s, about 2 min left before the short full runs",
        "3/3 es seed 0 failed: loss nan",
    ]


def test_the_short_full_runs_are_not_in_the_time_left_until_they_are_known(
    make_comparison: Make, make_outcome: Make
) -> None:
    comparison = make_comparison("es", seeds=2)
    stream = io.StringIO()
    progress = Progress(stream, 1)
    methods = comparison.specs(comparison.candidates)
    progress.expect(methods)
    for spec in methods:
        candidate = next(one for one in comparison.candidates if one.label == spec.method)
        progress.show(make_outcome(comparison, candidate, spec.seed, 0.9, seconds=117.0))
    progress.expect(comparison.specs((short_full(4),)))
    progress.show(make_outcome(comparison, short_full(4), 0, 0.9, seconds=57.0))
    progress.close()
    first, *_, last_of_methods, short = stream.getvalue().splitlines()
    assert first.endswith("about 10 min left before the short full runs")
    assert last_of_methods.endswith("took 2 min")
    assert short.endswith("about 60 s left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(make_comparison: Make, make_outcome: Make) -> None:
    comparison = make_comparison("es", seeds=1)
    stream = Terminal()
    progress = Progress(stream, 1)
    progress.expect(comparison.specs(comparison.candidates))
    progress.show(make_outcome(comparison, comparison.candidates[0], 0, 0.9))
    progress.say("stopped")
    progress.close()
    assert "1/3 runs" in stream.getvalue()
    assert "full seed 0: accuracy 90.00 %, took 13 s, about 26 s left before the short full runs" in stream.getvalue()
    assert "stopped" in stream.getvalue()


def test_the_runs_at_work_are_shown(make_comparison: Make, make_outcome: Make, tmp_path: Path) -> None:
    comparison = make_comparison("es", seeds=1)
    specs = comparison.specs(comparison.candidates)
    (tmp_path / specs[0].run).mkdir()
    RunStorage(str(tmp_path), specs[0].run).write_note("progress", {"epoch": 1, "done": 0.5, "num_epochs": 8})
    now, lines, bar = [0.0], io.StringIO(), Terminal()
    for stream in (lines, bar):
        progress = Progress(stream, 2, clock=lambda: now[0])
        progress.expect(specs)
        for _ in range(100):  # many times a second
            progress.watch(specs[:2], str(tmp_path))
        now[0] += 1.0
        progress.watch(specs[:2], str(tmp_path))
        progress.close()
    assert lines.getvalue().splitlines() == ["full seed 0 begins", "random seed 0 begins"]
    shown = "full seed 0: 1.5/8 epochs; random seed 0: starting"
    assert shown in bar.getvalue()
    assert bar.getvalue().count(shown) <= 3  # and not a hundred times


def test_slots_share_no_core() -> None:
    cores = sorted(os.sched_getaffinity(0))
    for jobs in range(1, len(cores) + 1):
        slots = Slots.of(jobs).cores
        dealt = [core for slot in slots for core in slot]
        assert len(slots) == jobs
        assert len(set(dealt)) == len(dealt)
        assert {len(slot) for slot in slots} == {len(cores) // jobs}
    with pytest.raises(errors.ConfigError, match="core"):
        Slots.of(len(cores) + 1)
    with pytest.raises(errors.ConfigError, match="jobs"):
        Slots.of(0)

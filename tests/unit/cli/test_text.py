"""Numbers, tables and results in words."""

from __future__ import annotations

from typing import Any

import pytest

from es_service.cli import text
from es_service.selection.decisions import filled


@pytest.mark.parametrize(
    "share, words",
    [(None, "unknown"), (0.0, "0.0 %"), (0.5, "50.0 %"), (1.0, "100.0 %"), (-0.125, "-12.5 %"), (0.12345, "12.3 %")],
)
def test_a_share_is_a_percentage(share: float | None, words: str) -> None:
    assert text.percent(share) == words


@pytest.mark.parametrize(
    "value, words",
    [(0.0, "0.0 s"), (0.04, "0.0 s"), (59.96, "60.0 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (900, "15.0 min")],
)
def test_a_duration_has_the_unit_that_suits_it(value: float, words: str) -> None:
    assert text.seconds(value) == words


def test_a_grid_aligns_words_left_and_numbers_right() -> None:
    rows = [("a", 7, "1,000", "-3.5 %", "done"), ("long name", 1234, None, "12.0 %", None)]
    assert text.grid(("run", "n", "samples", "saved", "state"), rows).splitlines() == [
        "run           n  samples   saved  state",
        "a             7    1,000  -3.5 %  done",
        "long name  1234           12.0 %",
    ]


def test_one_word_makes_a_column_of_words() -> None:
    assert text.grid(("saved",), [("12.5 %",), ("unknown",)]).splitlines() == ["saved", "12.5 %", "unknown"]
    assert text.grid(("saved", "x"), [("1 %", 1), ("unknown", 2)]).splitlines() == [
        "saved    x",
        "1 %      1",
        "unknown  2",
    ]


def test_a_grid_without_rows_is_its_header() -> None:
    assert text.grid(("run", "state"), []) == "run  state"


def result(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "run": "try-1",
        "method": "es",
        "task": "fashion",
        "exchange": "leased",
        "workers": 2,
        "epochs": 12,
        "seed": 0,
        "metric": "accuracy",
        "metrics": {"accuracy": 0.91234},
        "accuracy": 0.91234,
        "balanced_accuracy": 0.91234,
        "corrupted": None,
        "left_out": None,
        "prepared": {"scored": 0, "trained": 0, "seconds": 0.0},
        "tokens": None,
        "backward_cost": 2.0,
        "backward_cost_measured": False,
        "samples": {"scored": 600000, "trained": 150000, "full": 720000},
        "seconds": {"total": 300.0, "score": 90.0, "train": 180.0, "exchange": 1.5, "data": 8.5, "wall": 360.0},
        "saving": {"samples": 0.7917, "cost": 0.5139, "seconds": 0.421},
        "skipped": 0,
        "memory": {"peak_bytes": 1_234_567_890, "kind": "rss"},
        "history": [],
        "decisions": [],
        "storage": "/data/runs/",
    }
    return {**values, **changes}


def lines_of(**changes: Any) -> dict[str, str]:
    """The summary's lines by their names, the title under ''."""
    title, *lines = text.summary(result(**changes)).splitlines()
    named = {line[2:26].split("  ")[0].strip(): line for line in lines}
    assert len(named) == len(lines)
    return {"": title, **named}


def test_what_was_left_out_of_the_files_has_a_line() -> None:
    assert "data" not in lines_of(left_out={"rows": 0, "files": 0, "truncated": 0})
    line = lines_of(left_out={"rows": 3, "files": 1, "truncated": 0})["data"]
    assert line.endswith("  3 rows left out, 1 file left out as a whole")
    assert lines_of(left_out={"rows": 0, "files": 0, "truncated": 1})["data"].endswith("  1 sequence truncated")


def test_a_summary_says_it_all() -> None:
    assert text.summary(result()).splitlines() == [
        "try-1: es on fashion, 12 epochs, 2 workers, exchange leased",
        "  accuracy               91.23 % on held-out samples",
        "  back-propagated        150,000 samples; a full run: 720,000",
        "  scored                 600,000 samples by a forward pass of their own",
        "  backward passes saved  79.2 %",
        "  compute saved          51.4 % of a full run's passes",
        "  time saved             42.1 % against the full steps of this run",
        "  steps took             5.0 min: training 3.0 min, scoring 90.0 s, exchange 1.5 s, data 8.5 s, rest 20.0 s",
        "  memory                 1.23 GB at most, of the worker's process",
        "  whole run              6.0 min with start-up, evaluation and checkpoints",
        "  scores                 /data/runs/try-1 (es-service top try-1 --storage /data/runs)",
        "  dashboard              es-service serve --storage /data/runs --open try-1",
    ]


def test_memory_of_a_gpu_is_that_of_its_tensors() -> None:
    assert "0.50 GB at most, of tensors on the GPU" in lines_of(memory={"peak_bytes": 5e8, "kind": "cuda"})["memory"]


def test_one_is_no_plural() -> None:
    assert "1 epoch, 2 workers" in lines_of(epochs=1)[""]
    assert "1 worker, exchange embedded" in lines_of(workers=1, exchange="embedded")[""]


def test_a_run_that_cost_more_time_says_so() -> None:
    line = lines_of(saving={"samples": 0.5, "cost": 0.2, "seconds": -0.25})["time saved"]
    assert "none" in line
    assert "25.0 % slower" in line
    assert "-25" not in line


def test_a_run_without_a_measure_says_so() -> None:
    line = lines_of(saving={"samples": 0.5, "cost": 0.2, "seconds": None})["time saved"]
    assert "unknown" in line
    assert "anneal" in line


@pytest.mark.parametrize("seconds", [0.003, -0.003, None])
def test_a_full_run_claims_no_saving(seconds: float | None) -> None:
    lines = lines_of(
        method="full",
        samples={"scored": 0, "trained": 720000, "full": 720000},
        saving={"samples": 0.0, "cost": 0.0, "seconds": seconds},
    )
    assert lines["time saved"].endswith("nothing: every step trained on everything")
    assert lines["backward passes saved"].endswith("  0.0 %")
    assert lines["compute saved"].endswith("  0.0 % of a full run's passes")


def test_a_run_whose_passes_come_out_even_was_no_full_run() -> None:
    """ratio 2/3: the forward passes of scoring cost what the spared third would have."""
    lines = lines_of(
        samples={"scored": 720000, "trained": 480000, "full": 720000},
        saving={"samples": 1 / 3, "cost": 0.0, "seconds": -0.04},
    )
    assert "trained on everything" not in lines["time saved"]
    assert "4.0 % slower" in lines["time saved"]


def test_rounding_leaves_no_negative_rest() -> None:
    spent = {"total": 10.0, "score": 4.0, "train": 6.0, "exchange": 0.1, "data": 0.0, "wall": 12.0}
    assert lines_of(seconds=spent)["steps took"].endswith("rest 0.0 s")


@pytest.mark.parametrize(
    "saving, words",
    [
        ({"samples": 0.0, "seconds": 0.3}, "trained on everything so far"),
        ({"samples": 0.5, "seconds": 0.25}, "backward passes saved 50.0 %, time saved 25.0 % so far"),
    ],
)
def test_what_was_saved_so_far(saving: dict[str, float | None], words: str) -> None:
    assert text.saved_so_far(saving) == words


def test_a_run_that_decides_says_in_which_epochs_it_selected() -> None:
    even = filled({"ratio": 1.0, "share": 0.8}, 2, 0.35)
    made = [filled({"ratio": ratio, "share": ratio}, epoch, 0.35) for epoch, ratio in enumerate((0.5, 0.25))]
    words = "2 of 3 epochs selected, 25.0 % to 50.0 % of each meta-batch"
    assert lines_of(decisions=[None, *made, even])["decided"].endswith(f"  {words}")
    assert lines_of(decisions=[even, even])["decided"].endswith("  it trained on everything: weights are even")
    assert "decided" not in lines_of(decisions=[None])


def test_what_only_some_runs_have_to_say() -> None:
    lines = text.summary(
        result(
            balanced_accuracy=0.8,
            corrupted={"share_of_set": 0.2, "share_of_trained": 0.315},
            prepared={"scored": 10000, "trained": 40000, "seconds": 12.3},
        )
    ).splitlines()
    assert "  accuracy               91.23 % on held-out samples, 80.00 % balanced over the labels" in lines
    assert "  wrong labels           31.5 % of the back-propagated samples had one, 20.0 % of the set have" in lines
    # 1 - (600,000 + 3·150,000 + 10,000 + 3·40,000)/(3·720,000)
    assert "  compute saved          45.4 % of a full run's passes, preparing included" in lines
    [prepared] = [line for line in lines if "prepared" in line]
    assert "40,000 samples trained and 10,000 scored, 12.3 s" in prepared


def test_a_summary_names_the_metric_of_the_task() -> None:
    regression = text.summary(result(balanced_accuracy=None, metric="r2", metrics={"r2": 0.91234})).splitlines()
    assert regression[1] == "  r2                     0.9123 on held-out samples"
    assert "accuracy" not in regression[2]
    metrics = {"matthews": 0.4, "exact_match": 0.25}
    lines = text.summary(result(metric="matthews", metrics=metrics, balanced_accuracy=0.8)).splitlines()
    assert lines[1:4] == [
        "  matthews               0.4000 on held-out samples",
        "  accuracy               91.23 % on held-out samples, 80.00 % balanced over the labels",
        "  exact match            0.2500 on held-out samples",
    ]


@pytest.mark.parametrize(
    ("share", "of_time", "of_compute"),
    [
        (0.013, "time saved 1.3 %", "1.3 %"),
        (-0.013, "1.3 % slower", "1.3 % more"),
        (-0.0004, "time saved 0.0 %", "0.0 %"),
        (0.0, "time saved 0.0 %", "0.0 %"),
    ],
)
def test_what_was_lost_is_not_called_saved(share: float, of_time: str, of_compute: str) -> None:
    assert text.time_saved(share) == of_time
    assert text.saved(share, "more") == of_compute
    assert text.saved(None, "more") == "unknown"
    lines = lines_of(saving={"samples": 0.5, "cost": share, "seconds": share})
    assert lines["compute saved"].endswith(f"  {of_compute} of a full run's passes")
    assert "-" not in lines["time saved"] + lines["compute saved"]


def test_what_scorers_cost_is_part_of_what_was_saved() -> None:
    scorers = {"scored": 9000, "trained": 9000, "seconds": 12.3, "passes": 1080.4, "lost": 0}
    lines = text.summary(result(proxy="small", scorers=scorers)).splitlines()
    assert any(line.endswith("51.4 % of a full run's passes, scorers included") for line in lines)
    [time] = [line for line in lines if "time saved" in line]
    assert time.endswith(", with scorers at work beside it")
    [own] = [line for line in lines if line.startswith("  scorers")]
    assert own.endswith(
        "9,000 samples scored and 9,000 trained on by 'small': 1,080 passes, 12.3 s beside the training"
    )
    prepared = {"scored": 0, "trained": 40, "seconds": 1.0}
    lines = text.summary(result(proxy="small", scorers={**scorers, "lost": 1}, prepared=prepared)).splitlines()
    assert any(line.endswith("passes, preparing and scorers included") for line in lines)
    assert any(line.endswith("beside the training; 1 lost") for line in lines)

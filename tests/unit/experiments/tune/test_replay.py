"""Replays: the recorded losses through other settings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from es_service import errors
from es_service.cli import main
from es_service.experiments.tune.replay import replay, starting_points
from es_service.experiments.tune.search import begin
from es_service.experiments.tune.space import read_space
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.engine import Engine
from es_service.selection.run import RunConfig
from es_service.selection.shards import WHOLE
from es_service.storage.runs import RunStorage

N, EPOCHS, B = 240, 4, 40


def recorded(folder: Path, *, epochs: int = EPOCHS, **settings: Any) -> RunStorage:
    """A run of two ranks whose losses depend on the sample and fall by the epoch, as its server would keep it."""
    selection = Selection(methods.evolved(beta1=0.2, beta2=0.9), ratio=0.25, anneal=(0.25, 0.0), seed=5, **settings)
    storage = RunStorage(str(folder), "run")
    storage.begin(RunConfig(selection=selection, num_samples=N, num_epochs=EPOCHS, batch_size=B))
    engine = Engine(selection, N)
    random = np.random.default_rng(0)
    base = random.exponential(size=N).astype(np.float32)
    step = 0
    for epoch in range(epochs):
        parts = []
        order = random.permutation(N)
        for k in range(0, N, 2 * B):
            for rank in (0, 1):
                ids = np.sort(order[k + rank * B : k + (rank + 1) * B])
                losses = (base[ids] * 0.8**epoch * random.uniform(0.5, 1.5, ids.size)).astype(np.float32)
                num = B if epoch == 0 else selection.num_selected(ids.size)
                picked = np.zeros(ids.size, dtype=bool)
                picked[engine.step(ids, {"loss": losses}, num, step).positions] = True
                parts.append(
                    pa.table(
                        {
                            "id": ids,
                            "run_step": np.full(ids.size, step, dtype=np.int32),
                            "rank": np.full(ids.size, rank, dtype=np.int32),
                            "loss": losses,
                            "selected": picked,
                        }
                    )
                )
            step += 1
        storage.history.write(epoch, WHOLE, pa.concat_tables(parts))
    return storage


def test_the_runs_own_settings_pick_what_it_picked(tmp_path: Path) -> None:
    found = replay(recorded(tmp_path), read_space("es", {"beta1": "grid(0.2)", "beta2": "grid(0.9)"}), samples=1)
    assert found["reproduced"] == 1.0
    assert found["rows"] == [{"settings": {"beta1": 0.2, "beta2": 0.9}, "differs": 0.0, **found["own"]}]
    assert found["picks"] == 3 * N // 4  # not those of the annealing epoch
    assert found["chance"] == pytest.approx(0.75)
    assert found["own"]["lift"] > 1.2


def test_settings_are_ranked_by_how_differently_they_pick(tmp_path: Path) -> None:
    space = read_space("es", {"beta1": "grid(0.2, 0.6, 0.9)", "beta2": 0.9})
    rows = replay(recorded(tmp_path), space, samples=1)["rows"]
    assert [row["settings"]["beta1"] for row in rows] == [0.2, 0.6, 0.9]
    assert 0.0 == rows[0]["differs"] < rows[1]["differs"] < rows[2]["differs"] < 0.75
    flat = replay(RunStorage(str(tmp_path), "run"), read_space("es", {"power": "grid(0.0, 1.0, 4.0)"}), samples=1)
    lift = {row["settings"]["power"]: row["lift"] for row in flat["rows"]}
    assert lift[0.0] == pytest.approx(1.0, abs=0.1)
    assert lift[0.0] < lift[1.0] < lift[4.0]


def test_another_method_of_the_same_losses_can_be_replayed_and_a_range_is_drawn_from(tmp_path: Path) -> None:
    storage = recorded(tmp_path)
    found = replay(storage, read_space("ema", {"beta": "uniform(0.1, 0.9)"}), samples=5, seed=1)
    assert len({row["settings"]["beta"] for row in found["rows"]}) == 5
    again = replay(storage, read_space("ema", {"beta": "uniform(0.1, 0.9)"}), samples=5, seed=1)
    assert again == found


def test_a_search_begins_with_settings_that_pick_differently(by_hand: Any, tmp_path: Path) -> None:
    storage = recorded(tmp_path)
    grid = {"beta1": "grid(0.2, 0.201, 0.5, 0.7, 0.9)", "beta2": "grid(0.9)"}
    starts = starting_points(storage, read_space("es", {**grid, "ratio": 0.25, "anneal": [0.25, 0.0]}))
    assert starts[0] == {"beta1": 0.9, "beta2": 0.9}  # it picks least like the run's own
    assert [one["beta1"] for one in starts[1:]] == [0.7, 0.5]  # but 0.2 and 0.201 pick like the run's own
    assert starting_points(storage, read_space("es", {"draw": "grid(race)"})) == []  # and so does this

    space = read_space("es", {"beta1": "choice(0.1, 0.2, 0.6, 0.9)", "beta2": 0.9})
    found = begin(
        "fashion", space, derived={"limit": N}, start_from=storage, algorithm="random", samples=9, epochs=2
    )  # fmt: skip
    assert [one["beta1"] for one in found.start][:2] == [0.9, 0.6]
    for algorithm in ("random", "optuna"):
        search = dataclasses.replace(found, algorithm=algorithm, samples=4, seeds=(0,), early_stopping=False)
        loop = by_hand["loop"](search, tmp_path).run(steps=12)
        assert [one.settings for one in loop.trials[:3]] == [{"beta1": 0.2}, *found.start[:2]]  # the usual come first
    assert found.identity()["start"] == list(found.start)


@pytest.mark.parametrize(
    "method, entries, words",
    [
        ("es", {"ratio": "grid(0.25, 0.5)"}, "a replay cannot vary ratio"),
        ("es", {"beta1": "grid(0.1)", "prune_ratio": 0.2}, "a replay cannot vary prune_ratio"),
        ("es", {"learning_rate": "uniform(0.01, 0.1)"}, "cannot vary learning_rate"),
        ("infobatch", {"r": "grid(0.5)"}, "does not pick by the losses"),
        ("selective_backprop", {"beta": "grid(1.0)"}, "does not pick by the losses"),
        ("rho", {"cap": "grid(1.0)"}, "which the run did not observe"),
    ],
)
def test_what_a_replay_cannot_vary_is_refused(method: str, entries: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        replay(recorded(tmp_path), read_space(method, entries), samples=2)


def test_a_run_that_scored_a_part_of_its_meta_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"score_share=0\.5.*cannot be replayed"):
        replay(recorded(tmp_path, score_share=0.5), read_space("es", {"beta1": "grid(0.1)"}), samples=1)


def test_a_run_without_its_whole_history_is_refused(tmp_path: Path) -> None:
    space = read_space("es", {"beta1": "grid(0.1)"})
    with pytest.raises(errors.StorageError, match="has 2 of 4 epochs"):
        replay(recorded(tmp_path / "half", epochs=2), space, samples=1)
    with pytest.raises(errors.StorageError, match="has no history"):
        replay(recorded(tmp_path / "none", epochs=0), space, samples=1)
    with pytest.raises(errors.RunNotFoundError):
        replay(RunStorage(str(tmp_path), "nowhere"), space, samples=1)


def test_the_command_prints_a_table_or_json_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    recorded(tmp_path)
    words = ["tune", "--from", "run", "--storage", str(tmp_path), "--search", "beta1=grid(0.2, 0.9)"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["settings"] for row in found["rows"]] == [{"beta1": 0.2}, {"beta1": 0.9}]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["beta1", "other", "picks", "loss", "of", "the", "picked", "samples", "picked"]
    assert lines[1].split()[:3] == ["0.2", "0.0", "%"]
    assert "at random 75.0 % would differ" in "\n".join(lines)
    out = ["--out", str(tmp_path / "x")]
    for more, message in (
        (["--resume"], "leave --resume out"), (["--samples", "0"], "samples must be"),
        ([*out, "--limit", "100", "--algorithm", "random"], "run 'run' has 240 samples, the task 100"),
        ([*out, "--limit", str(N)], "a grid tries every setting"),
    ):  # fmt: skip
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(words[:-2]) == 2
    assert "needs settings to replay" in capsys.readouterr().err
    assert main(["tune"]) == 2
    assert "--out DIR is required" in capsys.readouterr().err

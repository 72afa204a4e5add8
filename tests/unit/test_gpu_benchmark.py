"""The plan of the benchmark for a GPU, its data and its table; tests/integration/test_gpu_benchmark.py runs it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import gpu, gpu_data, gpu_plan, gpu_runs, gpu_table
from benchmarks.gpu_plan import Job, Part
from benchmarks.gpu_runs import Finished
from es_service import errors
from es_service.experiments.compare.comparison import Comparison

N, EPOCHS = 1000, 10
COST = {"full": (0, 1.0), "probe": (0, 1.0), "es": (0.8, 0.4), "random": (0, 0.4)}
"""Method -> samples scored and trained on, as shares of a full run's."""


def part_of(methods: str = "full,es,random", seeds: int = 3, **changes: Any) -> Part:
    comparison = Comparison(
        task="fashion",
        data=None,
        derived={},
        num_samples=N,
        epochs=EPOCHS,
        batch_size=50,
        learning_rate=0.1,
        candidates=gpu._candidates(methods),
        seeds=tuple(range(seeds)),
    )
    return Part(name="images", comparison=comparison, **changes)


def end(job: Job, total_s: float = 40.0, accuracy: float = 0.8) -> Finished:
    """The line of a run that took so many seconds of steps, and 12 more."""
    epochs = job.spec.epochs or 1
    scored, trained = (int(share * N * epochs) for share in COST.get(job.spec.method, (0, 1.0)))
    spent = {"total": total_s, "score": 0.0, "train": total_s, "exchange": 0.1, "data": 0.0, "wall": total_s + 10}
    result = {
        **dict.fromkeys(("accuracy", "balanced_accuracy"), accuracy),
        "metric": "accuracy",
        "metrics": {"accuracy": accuracy, "exact_match": accuracy / 2},
        "backward_cost": 1.5 if job.spec.backward_cost is None else job.spec.backward_cost,
        "held_out_loss": 1.0,
        "samples": {"scored": scored, "trained": trained, "full": N * epochs},
        "prepared": {"scored": 0, "trained": 0, "seconds": 0.0},
        "seconds": spent,
        "memory": {"peak_bytes": 3 << 30, "kind": "cuda"},
        "corrupted": None,
        **dict.fromkeys(("accuracy_by_label", "trained_by_label", "label_shares", "label_names")),
        "history": [],
    }
    values = {"spec": job.spec.to_dict(), "result": result, "error": None, "wall_s": total_s + 11, "exclusive": True}
    return Finished(job.part, job.alone, {**values, "waited_share": 0.0, "machine": "a GPU", "process_s": total_s + 12})


def probed(part: Part) -> list[Finished]:
    return [end(job, total_s=4.0) for job in gpu_plan.jobs([part], [])]


def names(jobs: list[Job]) -> list[tuple[str, int, bool]]:
    return [(one.spec.method, one.spec.seed, one.alone) for one in jobs]


def test_the_plan_begins_with_what_is_worth_most_and_adds_short_runs_once_their_length_is_known() -> None:
    part = part_of(exchanges=True)
    [probe] = gpu_plan.jobs([part], [])
    assert names([probe]) == [("probe", 0, True)]
    assert probe.spec.backward_cost is None
    finished = [end(probe)]
    left = gpu_plan.jobs([part], finished)
    assert names(left)[:4] == [("full", 0, True), ("es", 0, True), ("embedded", 0, True), ("leased", 0, True)]
    assert names(left)[4:7] == [("full", 1, False), ("es", 1, False), ("random", 1, False)]
    assert [one.spec.exchange for one in left[2:4]] == ["embedded", "leased"]
    assert {one.spec.backward_cost for one in left} == {1.5}  # what the probe measured
    finished += [end(one) for one in left[:2]]
    left = gpu_plan.jobs([part], finished)
    assert names(left)[0] == ("short_full:epochs=8", 0, True)  # 0.8/2.5 + 0.4 of ten epochs
    assert ("short_full:epochs=8", 2, False) in names(left)
    assert not {one.key for one in finished} & {one.key for one in left}
    while left := gpu_plan.jobs([part], finished):
        finished.append(end(left[0]))
    assert len({one.key for one in finished}) == len(finished)
    assert {one.spec.method for one in finished} >= {"random", "short_full:epochs=4", "short_full:epochs=8"}


def test_parts_take_turns_and_their_runs_have_folders_of_their_own() -> None:
    parts = [part_of(), dataclasses.replace(part_of(), name="maths, long")]
    probes = gpu_plan.jobs(parts, [])
    assert names(probes) == [("probe", 0, True)] * 2
    assert len({(one.folder, one.spec.run) for one in probes}) == 2
    left = gpu_plan.jobs(parts, [end(one) for one in probes])
    assert [one.part for one in left[:4]] == ["images", "images", "maths, long", "maths, long"]
    assert len({(one.folder, one.spec.run) for one in left}) == len(left)


def test_lengths_stay_where_later_seeds_cost_more() -> None:
    part = part_of()
    finished = probed(part)
    finished += [end(one) for one in gpu_plan.jobs([part], finished)[:2]]
    later = end(next(one for one in gpu_plan.jobs([part], finished) if one.spec.method == "es"))
    later.values["result"]["samples"]["trained"] = N * EPOCHS
    assert gpu_plan.lengths(part, [*finished, later]) == {"es": {"epochs": 8, "basis": "cost"}}


def test_the_time_of_a_run_is_estimated_from_what_has_finished() -> None:
    part = part_of()
    finished = probed(part)
    full, *_ = left = gpu_plan.jobs([part], finished)
    beside = next(one for one in left if not one.alone)
    assert gpu_plan.estimate(full, [], 4) == 0.0
    assert gpu_plan.estimate(full, finished, 4) == pytest.approx(
        1.05 * (12 + 1.25 * 4.0 * EPOCHS)
    )  # 12 s around the steps
    alone = [*finished, end(full, total_s=40.0)]
    assert gpu_plan.estimate(full, alone, 4) == pytest.approx(1.05 * 52)
    assert gpu_plan.estimate(beside, alone, 4) == pytest.approx(4 * 1.05 * 52)
    assert gpu_plan.estimate(beside, [*alone, end(beside, total_s=100.0)], 4) == pytest.approx(1.05 * 112)
    short = dataclasses.replace(full, spec=dataclasses.replace(full.spec, epochs=5, method="short_full:epochs=5"))
    assert gpu_plan.estimate(short, alone, 4) == pytest.approx(1.05 * (12 + 1.25 * 4.0 * 5))


def test_the_next_run_is_the_first_that_fits_and_one_alone_waits_for_the_others() -> None:
    left = gpu_plan.jobs([part_of()], probed(part_of()))
    alone, beside = left[0], [one for one in left if not one.alone]
    assert gpu_plan.choose(left, [], lambda _: True, 2) is alone
    assert gpu_plan.choose(left, [], lambda job: not job.alone, 2) is beside[0]
    assert gpu_plan.choose(left, [], lambda _: False, 2) is None
    assert gpu_plan.choose(left, [beside[0]], lambda _: True, 2) is None
    assert gpu_plan.choose(beside, [alone], lambda _: True, 2) is None
    assert gpu_plan.choose(beside[1:], beside[:1], lambda _: True, 2) is beside[1]
    assert gpu_plan.choose(beside[2:], beside[:2], lambda _: True, 2) is None


def test_finished_runs_are_read_back_without_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert gpu_runs.read(path) == []
    [first] = probed(part_of())
    second = end(gpu_plan.jobs([part_of()], [first])[0])
    gpu_runs.append(path, first)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert gpu_runs.read(path) == [first]
    gpu_runs.append(path, second)
    assert gpu_runs.read(path) == [first, second]
    path.write_text("{}\n")
    with pytest.raises(errors.DataError, match="no finished run"):
        gpu_runs.read(path)


def test_runs_of_other_settings_are_refused() -> None:
    finished = probed(part_of())
    finished.append(end(gpu_plan.jobs([part_of()], finished)[0]))
    gpu_plan.check([part_of("full,es", seeds=5)], finished)
    other = part_of()
    other = dataclasses.replace(other, comparison=dataclasses.replace(other.comparison, epochs=EPOCHS + 1))
    with pytest.raises(errors.ConfigError, match="epochs: there 10, here 11"):
        gpu_plan.check([other], finished)


def test_the_table_has_what_finished_and_names_what_is_missing() -> None:
    part, finished = part_of(exchanges=True), []
    for accuracy in (0.5, 0.8, 0.7, 0.6, 0.1, 0.1):
        finished.append(end(gpu_plan.jobs([part], finished)[0], accuracy=accuracy))
    text = gpu_table.table([part], finished, ["GSM8K: no --model names a folder"])
    assert "| `full` | 1 | 80.00 | 40.00 | 1.000 | 1.00 | 40.0 | 3.00 GiB |" in text
    assert "| `es` | 1 | 70.00 | 35.00 | 1.000 | 0.72 | 40.0 | 3.00 GiB |" in text
    assert "| +10.00, 8 ep. | undecided |" in text
    assert "| `leased` | 1000.00 | 2.50 |" in text
    assert "batches of 50; a GPU; a scoring pass takes 0.40 of a full step's time." in text
    assert "| method | seeds | accuracy % | exact match % | held-out loss | cost |" in text
    assert "random" not in text
    assert text.endswith("Not run:\n\n- GSM8K: no --model names a folder\n")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the names of the real files; the images do not compress."""
    folder = tmp_path / "data"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, rows in zip((*gpu_data.IMAGES, *gpu_data.MATHS), (400, 20, 30, 10), strict=True):
        images = [{"bytes": draw.bytes(4000), "path": None} for _ in range(rows)]
        table = pa.table({"img": images, "label": list(range(rows))})
        pq.write_table(table.replace_schema_metadata({"huggingface": "{}"}), folder / name)
    return folder


def test_data_are_packed_whole_or_in_part(data: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.tar"
    whole = dict(zip((*gpu_data.IMAGES, *gpu_data.MATHS), (400, 20, 30, 10), strict=True))
    assert gpu_data.pack(data, packed) == whole
    with gpu_data.opened(packed, {}) as folder:
        assert folder is not None
        assert pq.read_table(folder / gpu_data.IMAGES[0]).equals(pq.read_table(data / gpu_data.IMAGES[0]))
    kept = gpu_data.pack(data, packed, limit_mib=1)
    assert packed.stat().st_size < 2**20
    assert kept == {**whole, gpu_data.IMAGES[0]: kept[gpu_data.IMAGES[0]]}
    assert 150 < kept[gpu_data.IMAGES[0]] < 250
    with gpu_data.opened(packed, {}) as folder, gpu_data.opened(data, dict.fromkeys(whole, 10)) as few:
        assert folder is not None
        labels = pq.read_table(folder / gpu_data.IMAGES[0])["label"].to_pylist()
        assert labels == sorted(labels)
        assert max(labels) > 300  # from the whole of it
        assert few is not None
        assert {gpu_data.num_rows(path) for path in few.iterdir()} == {10}


def test_data_that_cannot_be_packed_or_opened_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match=r"still needs 1\.8 MiB: raise --mib, now 0\.1"):
        gpu_data.pack(data, tmp_path / "packed.tar", limit_mib=0.1)
    with pytest.raises(errors.DataError, match="there is none of cifar10_train"):
        gpu_data.pack(tmp_path, tmp_path / "packed.tar")
    with (
        pytest.raises(errors.DataError, match="neither a folder nor a tar"),
        gpu_data.opened(tmp_path / "nothing.tar", {}),
    ):
        pass


def test_without_a_gpu_the_command_asks_for_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert "--tiny" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_pack_is_a_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["pack", "--data", str(data), "--packed", str(tmp_path / "packed.tar")]) == 0
    assert json.dumps(400) in capsys.readouterr().out

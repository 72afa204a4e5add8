"""Figures of a table against what numpy and scipy say of the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from es_service import errors
from es_service.api.table import statistics
from es_service.api.table.comparison import compare
from es_service.api.table.data_map import data_map
from es_service.api.table.view import TableView

MakeView = Callable[..., TableView]


def values(view: TableView, name: str) -> np.ndarray:
    """The values that samples have in a column, as they are shown."""
    rows = view.rows(np.arange(view.num_rows), [name])
    return np.array([row[name] for row in rows if row[name] is not None], dtype=np.float64)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("column", ["w", "s", "last_loss", "loss_mean", "visits", "age", "suspicion"])
def test_a_distribution_is_numpys(column: str, shards: int, make_view: MakeView) -> None:
    view = make_view(500, shards=shards)
    found = statistics.distribution(view, column, 7)
    there = values(view, column)
    counts, edges = np.histogram(there, bins=7)
    assert np.allclose(found["edges"], edges, rtol=1e-6, atol=1e-6)
    assert np.abs(np.array(found["counts"]) - counts).sum() <= 4  # values on an edge, rounded otherwise
    assert sum(found["counts"]) == found["num_values"] == there.size
    assert found["num_missing"] == 500 - there.size
    assert found["mean"] == pytest.approx(there.mean(), rel=1e-5, abs=1e-6)
    assert found["std"] == pytest.approx(there.std(), rel=1e-5)
    for share, value in found["quantiles"].items():
        assert value == pytest.approx(np.quantile(there, float(share), method="lower"), rel=1e-5, abs=1e-6)


def test_a_logarithmic_one_counts_what_has_no_logarithm(make_view: MakeView) -> None:
    view = make_view(500)
    found = statistics.distribution(view, "w", 5, scale="log", conditions=["visits>0"])
    there = view.column("w")[view.column("visits") > 0]
    assert found["below"] == (there <= 0).sum() > 0
    assert sum(found["counts"]) + found["below"] == there.size
    assert found["edges"][0] == pytest.approx(0.25)
    assert found["edges"][-1] == pytest.approx(1.5)
    ratios = np.array(found["edges"][1:]) / np.array(found["edges"][:-1])
    assert np.allclose(ratios, ratios[0], rtol=1e-6)


def test_equal_values_and_no_values_have_a_distribution_too(make_view: MakeView) -> None:
    view = make_view(50)
    same = statistics.distribution(view, "w", 3, conditions=["w=1"])
    assert same["counts"][1] == same["num_values"] > 0
    assert same["edges"][0] == pytest.approx(0.5)
    none = statistics.distribution(view, "last_loss", 3, conditions=["visits=0"])
    assert (none["counts"], none["mean"], none["quantiles"]["0.5"]) == ([0, 0, 0], None, None)
    with pytest.raises(errors.ConfigError, match="no column 'label'"):
        statistics.distribution(view, "label", 3)


def test_the_data_map_bins_every_sample_that_was_seen(make_view: MakeView) -> None:
    view = make_view(3000)
    found = data_map(view, 400)
    points, seen = found["points"], view.column("visits") > 0
    assert found["binned"]
    assert len(points["count"]) <= 400
    assert sum(points["count"]) == seen.sum() == 3000 - found["num_unseen"]
    mean, std, share = (view.column(name)[seen] for name in ("loss_mean", "loss_std", "picked_share"))
    count = np.array(points["count"])
    for name, column in (("loss_mean", mean), ("loss_std", std), ("picked_share", share)):
        assert (np.array(points[name]) * count).sum() == pytest.approx(column.sum(dtype=np.float64), rel=1e-5)
    ids = np.array(points["id"])
    assert len(set(points["id"])) == ids.size
    # Each example lies in its bin, and none in it is heavier.
    x, y = found["x"], found["y"]
    edges_x, edges_y = (np.linspace(one["min"] ** 0.5, one["max"] ** 0.5, one["bins"] + 1) ** 2 for one in (x, y))

    def cell(rows: np.ndarray) -> np.ndarray:
        across = np.clip(np.digitize(view.column("loss_mean")[rows], edges_x) - 1, 0, x["bins"] - 1)
        up = np.clip(np.digitize(view.column("loss_std")[rows], edges_y) - 1, 0, y["bins"] - 1)
        return across * y["bins"] + up

    everyone = np.flatnonzero(seen)
    cells, heaviest = cell(everyone), {}
    for one, where in zip(everyone, cells, strict=True):
        heaviest[where] = max(heaviest.get(where, -np.inf), view.column("w")[one])
    wrong = sum(view.column("w")[one] != heaviest[where] for one, where in zip(ids, cell(ids), strict=True))
    assert wrong <= 2  # rounding at an edge
    assert points["label"] == [view.labels.name(int(view.labels.codes_n[one])) for one in ids]  # type: ignore[union-attr]


def test_few_samples_are_each_a_point(make_view: MakeView) -> None:
    view = make_view(100)
    found = data_map(view, 100, ["label=hat"])
    assert not found["binned"]
    assert set(found["points"]["count"]) == {1}
    expected = [row["id"] for row in view.rows(np.arange(100), ["id", "label", "visits"]) if row["label"] == "hat"]
    assert found["num_samples"] == len(expected)
    assert set(found["points"]["id"]) == {one for one in expected if view.column("visits")[one]}
    nothing = data_map(view, 100, ["visits=0"])
    assert nothing["points"]["id"] == []
    assert nothing["num_unseen"] == nothing["num_samples"] > 0


@pytest.mark.parametrize("shards", [1, 3])
def test_coverage_counts_overall_and_by_label(shards: int, make_view: MakeView) -> None:
    view = make_view(400, shards=shards)
    found = statistics.coverage(view)
    rows = view.rows(np.arange(400), ["visits", "selected", "label", "w"])
    assert found["never_seen"] == sum(row["visits"] == 0 for row in rows) == 400 - found["seen"]
    assert found["never_picked"] == sum(row["selected"] == 0 for row in rows)
    assert found["total_selected"] == sum(row["selected"] for row in rows)
    for name in ("visits", "selected"):
        assert sum(found[name].values()) == 400
        assert found[name]["2-3"] == sum(2 <= row[name] <= 3 for row in rows)
    assert found["visits"]["8-15"] == sum(row["visits"] == 8 for row in rows)
    for one in found["labels"]:
        mine = [row for row in rows if row["label"] == one["label"]]
        assert one["num_samples"] == len(mine)
        assert one["never_picked"] == sum(row["selected"] == 0 for row in mine)
        picked = sum(row["selected"] for row in mine)
        assert one["picked_share"] == pytest.approx(picked / sum(row["visits"] for row in mine), rel=1e-6)
        assert one["share_of_selected"] == pytest.approx(picked / found["total_selected"], rel=1e-6)
        assert one["mean_weight"] == pytest.approx(np.mean([row["w"] for row in mine]), rel=1e-6)
    assert statistics.coverage(make_view(10, labels=False))["labels"] is None


def test_staleness_is_told_in_run_steps(make_view: MakeView) -> None:
    view = make_view(300)
    found = statistics.staleness(view, 10)
    last = view.column("last_step")
    assert found["step"] == last.max()
    ages = found["step"] - last[last >= 0]
    assert found["mean"] == pytest.approx(ages.mean(), rel=1e-6)
    assert found["max"] == ages.max()
    assert found["never_seen"] == (last < 0).sum()
    assert found["older_than_epoch"] == ((last >= 0) & (last < 20)).sum()  # the third epoch began at 20


def test_the_effective_sample_size_is_kishs(make_view: MakeView) -> None:
    view = make_view(300)
    weights = view.column("w").astype(np.float64)
    found = statistics.effective_sample_size(view)
    assert found["effective"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-6)
    assert found["share"] == pytest.approx(found["effective"] / 300, rel=1e-6)
    heaviest = np.sort(weights)[::-1]
    assert found["top_share"]["0.1"] == pytest.approx(heaviest[:30].sum() / weights.sum(), rel=1e-6)


def test_weights_that_are_negative_are_worth_nothing_we_could_say(make_view: MakeView) -> None:
    view = make_view(50)
    view._kept[("column", "w")] = -view.column("w")
    assert statistics.effective_sample_size(view)["effective"] is None


def test_a_comparison_ranks_as_scipy_does(make_view: MakeView) -> None:
    a, b = make_view(400, seed=1), make_view(400, seed=2)
    for column in ("w", "last_loss", "s"):
        found = compare(a, b, column, 10)
        x, y = a.column(column), b.column(column)
        both = np.isfinite(x) & np.isfinite(y)
        assert found["num_common"] == both.sum()
        assert found["rank_correlation"] == pytest.approx(stats.spearmanr(x[both], y[both]).statistic, rel=1e-5)
        ranks = [(stats.rankdata(one[both]) - 1) / (both.sum() - 1) for one in (x, y)]
        shifts = np.abs(ranks[1] - ranks[0])
        assert [abs(one["shift"]) for one in found["moved"]] == pytest.approx(np.sort(shifts)[::-1][:10], abs=1e-5)
        first = found["moved"][0]
        place = np.flatnonzero(both).tolist().index(first["id"])
        assert first["a_rank"] == pytest.approx(ranks[0][place], abs=1e-5)
    assert compare(a, a, "s", 5)["overlap"] == {"0.01": 1.0, "0.1": 1.0}
    assert compare(a, a, "s", 5)["rank_correlation"] == pytest.approx(1.0)


def test_what_is_worked_out_once_is_worked_out_once(make_view: MakeView) -> None:
    import threading

    view, calls = make_view(10), []
    inside, go = threading.Event(), threading.Event()

    def work() -> int:
        calls.append(1)
        inside.set()
        go.wait(10)
        return 5

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(view.once("key", work))) for _ in range(8)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    go.set()
    for thread in threads:
        thread.join()
    assert found == [5] * 8
    assert len(calls) == 1

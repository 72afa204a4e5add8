"""The benchmarks still run: at a size where their figures mean nothing."""

from __future__ import annotations

import pytest

from benchmarks import draws, selector


def test_the_kernel_is_timed() -> None:
    figures = selector.kernel(5_000, 64, num_steps=20)
    assert figures["us_per_step"] > 0
    assert figures["bytes_per_sample"] == 32


@pytest.mark.parametrize("name", ["systematic", "pivotal"])
def test_a_draw_is_measured_against_its_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "ROUNDS", 400)
    small = draws.make_batches()[0]
    figures = draws.measure_draw(name, small, draws.draws.inclusion_targets(small.weights, small.num))
    assert figures["rounds"] == 400
    assert figures["max_deviation"] < 0.1
    assert figures["unbiased_mean"][0] == pytest.approx(1.0, abs=0.1)

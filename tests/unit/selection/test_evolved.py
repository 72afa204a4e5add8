"""Evolved Sampling: the two lines of the paper, its identities, its special cases."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import methods
from es_service.selection.methods.evolved import Evolved
from es_service.selection.named import preset

F32 = NDArray[np.float32]

betas = st.floats(0.0, 1.0)
ordered_betas = st.tuples(betas, betas).map(lambda pair: (min(pair), max(pair)))
losses = hnp.arrays(np.float32, 12, elements=st.floats(0.0, 100.0, width=32))


def update(method: methods.Method, s_old: F32, loss: F32) -> tuple[F32, F32]:
    """s and w after one observation."""
    new = method.update({"s": s_old}, loss, {"loss": loss})
    assert set(new) == {"s", "w"}
    return new["s"], new["w"]


def run(method: methods.Method, inputs: Iterable[float], start: float) -> list[float]:
    """The weights that a method gives one sample, in its own float32."""
    s_1, weights = np.array([start], dtype=np.float32), []
    for value in inputs:
        s_1, w_1 = update(method, s_1, np.array([value], dtype=np.float32))
        weights.append(float(w_1[0]))
    return weights


def reference(beta1: float, beta2: float, inputs: Iterable[float], start: float) -> list[float]:
    """The same from the paper's two lines, in float64."""
    s, weights = start, []
    for value in inputs:
        w = beta1 * s + (1 - beta1) * value
        s = beta2 * s + (1 - beta2) * value
        weights.append(w)
    return weights


@given(ordered_betas, losses, losses)
def test_update_is_the_two_lines_of_the_paper(pair: tuple[float, float], s_old: F32, loss: F32) -> None:
    beta1, beta2 = pair
    s_new, w_new = update(methods.evolved(beta1, beta2), s_old, loss)
    assert s_new.dtype == np.float32
    assert w_new.dtype == np.float32
    s64, l64 = s_old.astype(np.float64), loss.astype(np.float64)
    assert s_new == pytest.approx(beta2 * s64 + (1 - beta2) * l64, rel=1e-5, abs=1e-5)
    assert w_new == pytest.approx(beta1 * s64 + (1 - beta1) * l64, rel=1e-5, abs=1e-5)


@given(ordered_betas, losses, losses)
def test_weight_is_the_score_plus_a_share_of_the_loss_difference(
    pair: tuple[float, float], s_old: F32, loss: F32
) -> None:
    beta1, beta2 = pair
    s_new, w_new = update(methods.evolved(beta1, beta2), s_old, loss)
    assert w_new == pytest.approx(s_new + (beta2 - beta1) * (loss.astype(np.float64) - s_old), rel=1e-4, abs=1e-4)


@given(losses, losses, betas)
def test_loss_and_ema_are_special_cases_bit_for_bit(s_old: F32, loss: F32, beta: float) -> None:
    for special, general in ((methods.loss(), methods.evolved(0, 0)), (methods.ema(beta), methods.evolved(beta, beta))):
        for mine, theirs in zip(update(special, s_old, loss), update(general, s_old, loss), strict=True):
            assert mine.tolist() == theirs.tolist()
    assert update(methods.loss(), s_old, loss)[1].tolist() == loss.tolist()


@given(ordered_betas, losses, losses)
def test_update_is_elementwise_and_leaves_its_arguments_alone(pair: tuple[float, float], s_old: F32, loss: F32) -> None:
    method = methods.evolved(*pair)
    before = s_old.copy(), loss.copy()
    s_new, w_new = update(method, s_old, loss)
    assert (s_old.tolist(), loss.tolist()) == (before[0].tolist(), before[1].tolist())
    for i in range(loss.size):
        s_one, w_one = update(method, s_old[i : i + 1], loss[i : i + 1])
        assert (s_one[0], w_one[0]) == (s_new[i], w_new[i])


@pytest.mark.parametrize("pair", [(0.2, 0.9), (0.2, 0.8), (0.0, 0.5), (0.9, 0.9), (0.0, 0.0)])
def test_a_constant_loss_passes_with_gain_one(pair: tuple[float, float]) -> None:
    assert run(methods.evolved(*pair), [2.5] * 400, start=1e-4)[-1] == pytest.approx(2.5, rel=1e-5)


@pytest.mark.parametrize(("pair", "gain"), [((0.2, 0.9), 0.7895), ((0.2, 0.8), 0.7778)])
def test_an_alternating_loss_passes_with_the_gain_of_the_z_transform(pair: tuple[float, float], gain: float) -> None:
    inputs = [2.0 + (-1.0) ** t for t in range(400)]
    for weights in (run(methods.evolved(*pair), inputs, start=1e-4), reference(*pair, inputs, start=1e-4)):
        assert abs(weights[-1] - weights[-2]) / 2 == pytest.approx(gain, abs=5e-5)
        assert (weights[-1] + weights[-2]) / 2 == pytest.approx(2.0, rel=1e-4)


@given(ordered_betas, st.floats(0.05, math.pi - 0.05))
def test_no_frequency_is_amplified_while_beta1_is_at_most_beta2(pair: tuple[float, float], omega: float) -> None:
    beta1, beta2 = pair[0], min(pair[1], 0.95)
    beta1 = min(beta1, beta2)
    inputs = [5.0 + math.cos(omega * t) for t in range(700)]
    settled = np.array(run(methods.evolved(beta1, beta2), inputs, start=5.0)[400:]) - 5.0
    assert np.max(np.abs(settled)) <= 1.0 + 1e-4
    delay = np.exp(-1j * omega)
    gain = abs(((1 - beta1) - (beta2 - beta1) * delay) / (1 - beta2 * delay))
    assert np.max(np.abs(settled)) <= gain + 1e-4


@given(ordered_betas, st.lists(st.floats(0, 50), min_size=1, max_size=40))
def test_float32_follows_the_float64_recursion(pair: tuple[float, float], inputs: list[float]) -> None:
    got = run(methods.evolved(*pair), inputs, start=0.01)
    assert got == pytest.approx(reference(*pair, inputs, start=0.01), rel=1e-4, abs=1e-4)


def test_initial_scores() -> None:
    assert methods.evolved().initial_score(500) == 1 / 500
    assert methods.loss().initial_score(4) == 0.25
    assert methods.ema().initial_score(4) == 0.25


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), float("inf"), -1e-9])
def test_beta_outside_the_unit_interval_is_refused_by_name_and_value(bad: float) -> None:
    with pytest.raises(errors.ConfigError, match=rf"beta1 must lie in \[0, 1\], got {bad}"):
        methods.evolved(beta1=bad)
    with pytest.raises(errors.ConfigError, match=rf"beta2 must lie in \[0, 1\], got {bad}"):
        methods.evolved(beta2=bad)
    with pytest.raises(errors.ConfigError, match=rf"beta must lie in \[0, 1\], got {bad}"):
        methods.ema(bad)


def test_prune_by_is_w_or_s() -> None:
    assert methods.evolved().pruning_column() == "w"
    assert methods.evolved(prune_by="s").pruning_column() == "s"
    assert methods.ema(prune_by="s").pruning_column() == "s"
    assert methods.loss(prune_by="s").pruning_column() == "s"
    with pytest.raises(errors.ConfigError, match="prune_by must be 'w' or 's', got 'visits'"):
        methods.evolved(prune_by="visits")  # type: ignore[arg-type]


def test_beta1_above_beta2_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"beta1=0\.9 > beta2=0\.2"):
        methods.evolved(0.9, 0.2)


def test_equal_betas_warn_of_nothing() -> None:
    methods.evolved(0.5, 0.5)


def test_presets_have_the_settings_of_the_paper() -> None:
    es, eswp = preset("es"), preset("eswp")
    assert isinstance(es.method, Evolved)
    assert isinstance(eswp.method, Evolved)
    assert (es.method.beta1, es.method.beta2, es.ratio, es.prune_ratio) == (0.2, 0.9, 0.25, 0.0)
    assert (eswp.method.beta1, eswp.method.beta2, eswp.ratio, eswp.prune_ratio) == (0.2, 0.8, 0.25, 0.2)
    assert preset("es").draw == "race"
    assert preset("es").reweight == "none"

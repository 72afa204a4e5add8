"""RHO-LOSS: the largest reducible loss, by rank alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import draws, engine, methods
from es_service.selection.config import Selection
from es_service.selection.named import preset

F32 = NDArray[np.float32]

columns = hnp.arrays(np.float32, 16, elements=st.floats(0, 20, width=32))


@given(columns, columns, st.integers(1, 15))
def test_the_largest_reducible_losses_are_taken(loss: F32, irreducible: F32, num: int) -> None:
    made = engine.Engine(preset("rho", anneal=(0, 0)), 16)
    draw = made.step(np.arange(16), {"loss": loss, "irreducible_loss": irreducible}, num, 0)
    reducible = loss - irreducible
    assert sorted(reducible[draw.positions].tolist()) == sorted(reducible.tolist())[16 - num :]
    assert made.table.column("w").tolist() == reducible.tolist()
    assert made.table.column("last_loss").tolist() == loss.tolist()


def test_mislabelled_samples_are_left_alone_where_the_loss_alone_would_chase_them() -> None:
    mislabelled = np.arange(16) < 4
    loss = np.where(mislabelled, 8.0, np.linspace(0.5, 2.0, 16)).astype(np.float32)
    irreducible = np.where(mislabelled, 8.5, 0.2).astype(np.float32)
    seen = {"loss": loss, "irreducible_loss": irreducible}
    drawn = {
        name: set(engine.Engine(preset(name, draw="topk"), 16).step(np.arange(16), seen, 4, 0).ids.tolist())
        for name in ("rho", "loss")
    }
    assert drawn == {"rho": {12, 13, 14, 15}, "loss": {0, 1, 2, 3}}


@pytest.mark.parametrize("draw", sorted(set(draws.DRAWS) - {"topk"}))
def test_no_other_draw_can_go_by_weights_below_zero(draw: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"weights below 0.*take draw='topk'"):
        Selection(methods.rho(), draw=draw)


@pytest.mark.parametrize("settings", [{"power": 0.5}, {"cap": 0.9}], ids=str)
def test_weights_below_zero_cannot_be_capped_or_raised(settings: dict[str, float]) -> None:
    with pytest.raises(errors.ConfigError, match="power and cap do nothing"):
        Selection(methods.rho(), draw="topk", **settings)  # type: ignore[arg-type]


def test_the_published_share_is_a_tenth() -> None:
    assert preset("rho").num_selected(320) == 32
    assert preset("rho").signals == ("loss", "irreducible_loss")

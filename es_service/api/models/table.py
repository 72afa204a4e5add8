"""Response models of a whole table."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from es_service.api.models.base import Model

__all__ = ["Coverage", "DataMap", "Distribution", "DistributionOverEpochs", "EffectiveSampleSize", "Staleness", "Table"]


class Table(Model):
    """The table that an answer is made from."""

    source: Literal["live", "storage"]
    version: str = Field(description="changes whenever the table does")
    epoch: int = Field(description="epochs finished")
    open_epoch: int | None = Field(description="epoch under way")
    step: int | None = Field(description="highest run step that a sample was observed at")
    as_of: str = Field(description="ISO 8601, UTC")
    age_s: float = Field(description="seconds since as_of")
    num_rows: int
    columns: list[str]


class Distribution(Model):
    """Distribution of a column's values."""

    run: str
    table: Table
    column: str
    scale: Literal["linear", "log"]
    edges: list[float] = Field(description="ascending, one more than counts")
    counts: list[int]
    below: int = Field(description="values of 0 or less, which have no logarithm")
    num_values: int
    num_missing: int = Field(description="samples without a value")
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    quantiles: dict[str, float | None]


class AtEpoch(Model):
    """A column's distribution at one epoch's end, or now."""

    epoch: int = Field(description="epochs finished")
    source: Literal["live", "storage", "summary"] = Field(
        description="summary: approximate, for an epoch whose snapshot was deleted"
    )
    counts: list[int]
    below: int
    num_missing: int
    mean: float | None
    quantiles: dict[str, float | None]


class DistributionOverEpochs(Model):
    """A column's distribution over the epochs, with the same edges."""

    run: str
    column: str
    scale: Literal["linear", "log"]
    edges: list[float]
    epochs: list[AtEpoch]


class Axis(Model):
    """An axis of the data map."""

    column: str
    min: float
    max: float
    bins: int = Field(description="0 where samples are not binned")
    clipped: int = Field(description="samples beyond max, drawn there")


class MapPoints(Model):
    """Bins of the data map; lists of one length."""

    loss_mean: list[float | None]
    loss_std: list[float | None]
    picked_share: list[float | None]
    count: list[int]
    id: list[int] = Field(description="the heaviest sample of the bin")
    label: list[str | None] = Field(description="that sample's")


class DataMap(Model):
    """Mean loss against variability of the loss."""

    run: str
    table: Table
    binned: bool
    num_samples: int
    num_unseen: int
    x: Axis
    y: Axis
    points: MapPoints


class LabelCoverage(Model):
    """Coverage of one label."""

    label: str
    num_samples: int
    never_seen: int
    never_picked: int
    visits: int
    selected: int
    picked_share: float | None = Field(description="selected / visits")
    share_of_selected: float | None
    mean_weight: float | None


class Coverage(Model):
    """Samples that were never observed or never picked."""

    run: str
    table: Table
    num_samples: int
    seen: int
    never_seen: int
    picked: int
    never_picked: int
    total_visits: int
    total_selected: int
    visits: dict[str, int] = Field(description="samples by how often they were observed, in doubling classes")
    selected: dict[str, int] = Field(description="samples by how often they were back-propagated")
    labels: list[LabelCoverage] | None


class Staleness(Model):
    """How long ago samples were last observed, in run steps."""

    run: str
    table: Table
    step: int | None
    never_seen: int
    mean: float | None
    max: float | None
    quantiles: dict[str, float | None]
    edges: list[float]
    counts: list[int]
    older_than_epoch: int | None = Field(description="not observed since the last finished epoch began")


class EffectiveSampleSize(Model):
    """Effective sample size of the weights."""

    run: str
    table: Table
    num_samples: int
    effective: float | None = Field(description="(Σw)²/Σw²")
    share: float | None
    top_share: dict[str, float | None] = Field(description="share of all weight that the heaviest 1 % and 10 % hold")

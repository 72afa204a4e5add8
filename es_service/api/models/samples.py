"""Response models of samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from es_service.api.models.base import Model
from es_service.api.models.table import Table

__all__ = ["History", "SampleDetail", "SamplePage"]


class Sample(Model):
    """A row of the table: the columns that were asked for."""

    id: int = Field(None, description="sample id")  # type: ignore[assignment]
    s: float | None = Field(None, description="score, the slow average of the loss")
    w: float | None = Field(None, description="weight used by draws and pruning")
    last_loss: float | None = Field(None, description="loss last observed; null before the first")
    loss_mean: float | None = Field(None, description="running mean of the observed losses")
    loss_std: float | None = Field(None, description="their population standard deviation")
    visits: int = Field(None, description="observations")  # type: ignore[assignment]
    selected: int = Field(None, description="times back-propagated")  # type: ignore[assignment]
    picked_share: float | None = Field(None, description="selected / visits")
    last_step: int | None = Field(None, description="run step of the last observation")
    age: int | None = Field(None, description="run steps since then")
    suspicion: float | None = Field(None, description="loss_mean - loss_std, from two visits on")
    label: str | None = Field(None, description="name of its label")
    correct: float | None = Field(None, description="1 where the last prediction was right, 0 where wrong")
    confidence: float | None = Field(None, description="largest class probability of the last prediction, 0..1")
    variance: float | None = Field(None, description="moving variance of the loss")


class SamplePage(Model):
    """A page of samples."""

    run: str
    table: Table
    total: int = Field(description="samples of the run")
    matching: int = Field(description="samples that meet the conditions")
    samples: list[Sample]
    next: str | None = Field(description="cursor of the next page")


class Rank(Model):
    """Rank of a sample among all."""

    position: int = Field(description="from 1, the highest")
    share: float = Field(description="position / n, 0..1")


class SampleDetail(Model):
    """One sample."""

    run: str
    table: Table
    sample: Sample
    rank: dict[Literal["w"], Rank | None]
    preview: Literal["image/png", "text/plain"] | None


class Points(Model):
    """Observations of a sample, oldest first; lists of one length."""

    run_step: list[int]
    epoch: list[int]
    loss: list[float | None]
    selected: list[bool]


class AtSnapshot(Model):
    """A sample at an epoch's end."""

    epoch: int = Field(description="epochs finished")
    s: float | None
    w: float | None
    last_loss: float | None
    loss_mean: float | None
    loss_std: float | None
    visits: int
    selected: int


class History(Model):
    """History of a sample."""

    run: str
    id: int
    source: Literal["journal", "snapshots"]
    points: Points
    truncated: bool
    snapshots: list[AtSnapshot]

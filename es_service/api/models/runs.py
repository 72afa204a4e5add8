"""Response models of runs: lists, one run, its ledger, two runs compared."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from es_service.api.models.base import Model
from es_service.api.models.table import Table

__all__ = ["Comparison", "Ledger", "Run", "RunDetail", "RunList"]


class Saving(Model):
    """Shares of a full run that were saved; negative where selection cost more, null where unknown."""

    samples: float | None = Field(description="of back-propagated samples", examples=[0.56])
    cost: float | None = Field(
        description="of passes, a backward one counted as `backward_cost` forward ones", examples=[0.31]
    )
    seconds: float | None = Field(
        description="of time in steps, warm-up left out; null until something was selected", examples=[0.23]
    )
    tokens: float | None = Field(description="of back-propagated tokens; null where they are not counted")


class Run(Model):
    """Summary of a run."""

    run: str = Field(examples=["demo"])
    status: Literal["live", "finished", "stale", "unreadable"]
    detail: str | None = Field(description="why it is unreadable")
    task: str | None = Field(examples=["fashion"])
    method: str | None = Field(examples=["es"])
    search: str | None = Field(description="the search (`es-service tune`) that the run is a trial of")
    num_samples: int | None = Field(examples=[8000])
    epoch: int | None = Field(description="epochs finished")
    epochs: int | None = Field(description="epochs planned")
    done: float | None = Field(description="share of the whole run, 0..1")
    workers: int | None
    exchange: str | None = Field(examples=["leased"])
    accuracy: float | None = Field(description="on held-out samples, at the last evaluation; R² of a regression")
    saving: Saving | None
    seconds: float | None = Field(description="spent in steps so far, in seconds")
    begun_at: str | None = Field(description="ISO 8601, UTC", examples=["2026-03-01T10:00:00.000Z"])
    updated_at: str | None = Field(description="last write to the run's files, or now for a live run; ISO 8601, UTC")
    age_s: float | None = Field(description="seconds since updated_at")


class RayState(Model):
    """Whether score servers can be asked."""

    state: Literal["connected", "connecting", "absent", "away"]
    detail: str | None


class RunList(Model):
    """The runs of the storage folder."""

    storage: str
    total: int = Field(description="runs that match, of which this page shows some")
    pending: int = Field(description="runs not read yet, which may match too: retry; 0 once all are read")
    ray: RayState
    runs: list[Run]


class Server(Model):
    """Stats of the score server; counts since its process began."""

    pid: int
    shards: int
    world_size: int | None
    num_reports: int
    num_observed: int = Field(description="samples observed")
    num_selected: int = Field(description="samples back-propagated")
    num_queued: int = Field(description="reports that ranks hold until those before are taken")
    table_bytes: int
    restarts: int = Field(description="seen by this service")


class RunDetail(Run):
    """A run in detail, without its samples."""

    config: dict[str, Any]
    training: dict[str, Any] | None
    table: Table | None
    server: Server | None
    labels: list[str] | None
    preview: Literal["image/png", "text/plain"] | None
    snapshots: list[int] = Field(description="epochs for which the storage holds a snapshot")


class LedgerSamples(Model):
    """Counts from the run's beginning, of samples or of tokens."""

    scored: int | None = Field(description="forward passes only to be scored")
    trained: int | None = Field(description="back-propagated")
    full: int | None = Field(description="what a full run would have back-propagated by now")


class LedgerSeconds(Model):
    """Seconds from the run's beginning, mean over the ranks."""

    total: float | None = Field(description="inside steps")
    score: float | None
    train: float | None
    exchange: float | None
    data: float | None
    wall: float | None = Field(description="whole run with start-up, evaluation and checkpoints")


class Decision(Model):
    """What a run decided for an epoch, and by which figures."""

    share: float | None = Field(description="of a meta-batch that the weights ask for", examples=[0.35])
    progress: float | None = Field(description="by which losses are below the earlier ones", examples=[0.5])
    ratio: float | None = Field(description="of a meta-batch that steps train on; 1: everything", examples=[0.35])
    scoring_cost: float | None = Field(description="of a meta-batch, as a share of a full step", examples=[0.35])
    cost: float | None = Field(description="of the epoch's steps, as a share of full training", examples=[0.7])
    cost_otherwise: float | None = Field(description="the same of the other choice", examples=[1.0])
    reason: str = Field(examples=["weights_concentrate"])


class LedgerEpoch(Model):
    """The ledger at an epoch's end; counts from the run's beginning."""

    epoch: int | None = Field(description="from 0")
    accuracy: float | None
    balanced_accuracy: float | None
    held_out_loss: float | None
    train_loss: float | None
    decision: Decision | None = Field(description="what was decided for the epoch; null where nothing was")
    metrics: dict[str, float] = Field(description="what else the training loop measured", examples=[{"recall": 0.7}])
    scored: int | None
    trained: int | None
    seconds: float | None
    saving: Saving | None


class Ledger(Model):
    """Samples and seconds that a run spent."""

    run: str
    available: bool
    samples: LedgerSamples | None
    tokens: LedgerSamples | None = Field(description="the same of tokens; null where they are not counted")
    backward_cost: float | None = Field(description="forward passes that a backward pass counts as", examples=[2.0])
    seconds: LedgerSeconds | None
    saving: Saving | None
    history: list[LedgerEpoch]


class Compared(Model):
    """One of two runs."""

    run: str
    table: Table


class Moved(Model):
    """A sample that two runs rank differently; ranks are shares in 0..1, 1 the highest."""

    id: int
    label: str | None
    a: float | None
    b: float | None
    a_rank: float
    b_rank: float
    shift: float


class Comparison(Model):
    """Two runs over the same samples."""

    a: Compared
    b: Compared
    column: str
    num_common: int
    rank_correlation: float | None = Field(description="Spearman's")
    overlap: dict[str, float | None] = Field(description="share of a's top 1 % and 10 % that is in b's")
    moved: list[Moved]

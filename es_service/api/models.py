"""The shapes of answers, for OpenAPI and for the tests that hold answers against them; units are in it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Comparison",
    "Coverage",
    "DataMap",
    "Distribution",
    "DistributionOverEpochs",
    "EffectiveSampleSize",
    "Health",
    "History",
    "Ledger",
    "ProblemBody",
    "Run",
    "RunDetail",
    "RunList",
    "SampleDetail",
    "SamplePage",
    "Session",
    "Staleness",
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProblemBody(_Model):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:es-service:problem:no-such-run"])
    title: str
    status: int
    detail: str = Field(description="what is wrong, and which value")
    hint: str | None = Field(description="what to change")
    errors: list[dict[str, str]] | None = Field(None, description="each parameter that is wrong: where, message")


class Health(_Model):
    """Whether the service lives, or can answer."""

    status: Literal["ok", "ready"]


class Session(_Model):
    """What the page has to know of the service."""

    needs_token: bool
    logged_in: bool
    version: str
    storage: str


class Saving(_Model):
    """Shares of a full run that were saved; negative where selection cost more, null where unknown."""

    samples: float | None = Field(description="of back-propagated samples", examples=[0.56])
    cost: float | None = Field(description="of passes, a backward counted as two forward ones", examples=[0.31])
    seconds: float | None = Field(description="of time in steps", examples=[0.23])


class Run(_Model):
    """A run in a line."""

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
    updated_at: str | None = Field(description="last sign of life, ISO 8601, UTC")
    age_s: float | None = Field(description="seconds since updated_at")


class RayState(_Model):
    """Whether score servers can be asked."""

    state: Literal["connected", "connecting", "absent", "away"]
    detail: str | None


class RunList(_Model):
    """The runs of the storage folder."""

    storage: str
    total: int = Field(description="runs that match, of which this page shows some")
    ray: RayState
    runs: list[Run]


class Table(_Model):
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


class Server(_Model):
    """What the score server says of itself; counts since its process began."""

    pid: int
    shards: int
    world_size: int | None
    num_reports: int
    num_observed: int = Field(description="samples observed")
    num_selected: int = Field(description="samples back-propagated")
    table_bytes: int
    restarts: int = Field(description="seen by this service")


class RunDetail(Run):
    """All there is to say of a run but its samples."""

    config: dict[str, Any]
    training: dict[str, Any] | None
    table: Table | None
    server: Server | None
    labels: list[str] | None
    preview: Literal["image/png", "text/plain"] | None
    snapshots: list[int] = Field(description="epochs for which the storage holds a snapshot")


class Sample(_Model):
    """A row of the table: the columns that were asked for."""

    id: int = Field(None, description="sample id")  # type: ignore[assignment]
    s: float | None = Field(None, description="score, the slow average of the loss")
    w: float | None = Field(None, description="weight: what draws and pruning go by")
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


class SamplePage(_Model):
    """A page of samples."""

    run: str
    table: Table
    total: int = Field(description="samples of the run")
    matching: int = Field(description="samples that meet the conditions")
    samples: list[Sample]
    next: str | None = Field(description="cursor of the next page")


class Rank(_Model):
    """Where a sample stands among all."""

    position: int = Field(description="from 1, the highest")
    share: float = Field(description="position / n, 0..1")


class SampleDetail(_Model):
    """One sample."""

    run: str
    table: Table
    sample: Sample
    rank: dict[Literal["w"], Rank | None]
    preview: Literal["image/png", "text/plain"] | None


class Points(_Model):
    """Observations of a sample, oldest first; lists of one length."""

    run_step: list[int]
    epoch: list[int]
    loss: list[float | None]
    selected: list[bool]


class AtSnapshot(_Model):
    """A sample at an epoch's end."""

    epoch: int = Field(description="epochs finished")
    s: float | None
    w: float | None
    last_loss: float | None
    loss_mean: float | None
    loss_std: float | None
    visits: int
    selected: int


class History(_Model):
    """What happened to a sample."""

    run: str
    id: int
    source: Literal["journal", "snapshots"]
    points: Points
    truncated: bool
    snapshots: list[AtSnapshot]


class Distribution(_Model):
    """How the values of a column spread."""

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


class AtEpoch(_Model):
    """A column's spread at one epoch's end, or now."""

    epoch: int = Field(description="epochs finished")
    source: Literal["live", "storage", "summary"] = Field(
        description="summary: about right, from what is kept of an epoch whose snapshot is gone"
    )
    counts: list[int]
    below: int
    num_missing: int
    mean: float | None
    quantiles: dict[str, float | None]


class DistributionOverEpochs(_Model):
    """How a column's spread moved; all over the same edges."""

    run: str
    column: str
    scale: Literal["linear", "log"]
    edges: list[float]
    epochs: list[AtEpoch]


class Axis(_Model):
    """An axis of the data map."""

    column: str
    min: float
    max: float
    bins: int = Field(description="0 where samples are not binned")
    clipped: int = Field(description="samples beyond max, drawn there")


class MapPoints(_Model):
    """Bins of the data map; lists of one length."""

    loss_mean: list[float | None]
    loss_std: list[float | None]
    picked_share: list[float | None]
    count: list[int]
    id: list[int] = Field(description="the heaviest sample of the bin")
    label: list[str | None] = Field(description="that sample's")


class DataMap(_Model):
    """Mean loss against variability of the loss."""

    run: str
    table: Table
    binned: bool
    num_samples: int
    num_unseen: int
    x: Axis
    y: Axis
    points: MapPoints


class LabelCoverage(_Model):
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


class Coverage(_Model):
    """What was never seen and never picked."""

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


class Staleness(_Model):
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


class EffectiveSampleSize(_Model):
    """How many equally weighted samples the weights are worth."""

    run: str
    table: Table
    num_samples: int
    effective: float | None = Field(description="(Σw)²/Σw²")
    share: float | None
    top_share: dict[str, float | None] = Field(description="share of all weight that the heaviest 1 % and 10 % hold")


class LedgerSamples(_Model):
    """Counts from the run's beginning."""

    scored: int | None = Field(description="forward passes only to be scored")
    trained: int | None = Field(description="back-propagated")
    full: int | None = Field(description="what a full run would have back-propagated by now")


class LedgerSeconds(_Model):
    """Seconds from the run's beginning, mean over the ranks."""

    total: float | None = Field(description="inside steps")
    score: float | None
    train: float | None
    exchange: float | None
    data: float | None
    wall: float | None = Field(description="whole run with start-up, evaluation and checkpoints")


class LedgerEpoch(_Model):
    """The ledger at an epoch's end; counts from the run's beginning."""

    epoch: int | None = Field(description="from 0")
    accuracy: float | None
    balanced_accuracy: float | None
    held_out_loss: float | None
    train_loss: float | None
    scored: int | None
    trained: int | None
    seconds: float | None
    saving: Saving | None


class Ledger(_Model):
    """Where the samples and the seconds of a run went."""

    run: str
    available: bool
    samples: LedgerSamples | None
    seconds: LedgerSeconds | None
    saving: Saving | None
    history: list[LedgerEpoch]


class Compared(_Model):
    """One of two runs."""

    run: str
    table: Table


class Moved(_Model):
    """A sample that two runs rank differently; ranks are shares in 0..1, 1 the highest."""

    id: int
    label: str | None
    a: float | None
    b: float | None
    a_rank: float
    b_rank: float
    shift: float


class Comparison(_Model):
    """Two runs over the same samples."""

    a: Compared
    b: Compared
    column: str
    num_common: int
    rank_correlation: float | None = Field(description="Spearman's")
    overlap: dict[str, float | None] = Field(description="share of a's top 1 % and 10 % that is in b's")
    moved: list[Moved]

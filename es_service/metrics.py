"""What a rank can tell of its selection right now, as flat numbers for a logger; see `Selector.metrics`.

It comes from what the rank counts anyway and from the measures of its epoch: no call to a server, no look at the table.
"""

from __future__ import annotations

from es_service.epoch import Epoch
from es_service.exchange.base import Position
from es_service.ledger import Ledger
from es_service.measures import effective_ratio
from es_service.selection import decisions
from es_service.selection.run import RunConfig

__all__ = ["collect"]


def collect(config: RunConfig, position: Position, here: Epoch | None, ledger: Ledger) -> dict[str, float]:
    """Return the metrics by name, "selection/…"; those that are not known are left out.

    Args:
        config: of the run.
        position: of the rank.
        here: the epoch that was opened last, None where none was.
        ledger: of the rank.
    """
    found: dict[str, float | None] = {"num_skipped": ledger.skipped}
    counted = ledger.copy()
    if here is not None:
        if not here.is_closed:
            here.position(counted)
        found |= _of_epoch(config, position, here, ledger.most_seen)
    if counted.full:
        found["selected_ratio_run"] = counted.trained / counted.full
    saved = {**counted.saving(), "seconds": ledger.saving()["seconds"]}  # the step at hand has not trained yet
    found |= {f"saved_ratio_{of}": share for of, share in saved.items()}
    tokens = counted.token_counts() or {}
    found |= {f"num_tokens_{what}": num for what, num in tokens.items()}
    seconds = {**ledger.seconds, "total": ledger.total_s}
    found |= {f"seconds_{section}": spent or None for section, spent in seconds.items()}
    return {f"selection/{name}": float(value) for name, value in found.items() if value is not None}


def _of_epoch(config: RunConfig, position: Position, here: Epoch, most_seen: int) -> dict[str, float | None]:
    measures = here.measures
    found: dict[str, float | None] = {
        "epoch": here.number,
        "loss_all": measures.all_losses.last,
        "loss_all_epoch": measures.all_losses.value(),
        "loss_selected": measures.selected_losses.last,
        "loss_selected_epoch": measures.selected_losses.value(),
    }
    if not here.streamed:  # there, an epoch may hold a sample many times
        share, num_ranks = here.share, position.world_size
        found["seen_ratio"] = num_ranks * max(most_seen, measures.num_seen) / config.num_samples
        found["seen_ratio_epoch"] = num_ranks * measures.num_seen / config.num_samples
        found["seen_ratio_plan"] = measures.num_seen / (share.ids.size + share.hidden.size)
    decision = here.share.decision
    if decision is not None:
        found |= {f"decision_{name}": decision[name] for name in decisions.FIGURES}
    draw = measures.draw
    if draw is not None:
        found |= {
            "step": here.share.first_step + measures.step,
            "num_candidates": measures.num_candidates,
            "num_selected": draw.positions.size,
            "selected_ratio": draw.positions.size / measures.num_candidates,
            "effective_sample_ratio": effective_ratio(draw.weights),
            "effective_scale_ratio": effective_ratio(draw.scale),
        }
        selection = config.selection
        if draw.weights is not None and selection.method.needs_losses:
            since = selection.annealing(config.num_epochs).since_scoring(here.number, selection.score_every)
            found["staleness_epochs"] = 0 if measures.is_scored else since
    return found

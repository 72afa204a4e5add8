"""`Selection`: everything that decides which samples are trained on, as one value."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from es_service import errors
from es_service.selection import annealing, draws, methods, staleness
from es_service.selection.methods import registry
from es_service.selection.settings import as_flag, as_integer, as_number, ceil_share, exact_share, suggest
from es_service.selection.signals import SIGNALS, WeightSignal

__all__ = ["Selection"]

Reweight = Literal["none", "unbiased"]
OnBadLoss = Literal["raise", "skip"]
_RATIO = 0.25


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What to select, and how.

    Args:
        method: from `es.methods`; turns losses into weights.
        ratio: b/B in (0, 1], the share of a meta-batch that is back-propagated: b = ⌈ratio·B⌉.
        prune_ratio: share of the whole set in [0, 1) that an epoch leaves out: a plan holds n - ⌊r·n⌋ ids.
        anneal: (first, last) shares of the training at both ends that select and prune nothing.
        anneal_by: "epochs" rounds them up to whole epochs; "steps" counts steps, and prunes every epoch that does not
            anneal as a whole; "auto" takes "epochs" in runs of at least 4 epochs, else "steps".
        draw: "race", "systematic", "pivotal", "conditional_poisson", "priority", "topk" or "replacement".
        reweight: "unbiased" scales each drawn loss by b/(B·π), so that the mean over the b estimates the mean over
            the B; "none" leaves the bias towards heavy samples, as the paper of Evolved Sampling intends.
        signal: what the method goes by: "loss", or "grad_norm", an upper bound of its gradient's norm.
        power: α at least 0; a meta-batch is drawn from by w^α. Below 1 it evens the weights out, 0 makes them equal.
        cap: q in (0, 1]; no weight counts for more than the q-quantile of its meta-batch. 1 caps nothing.
        score_every: epochs between two scoring passes; in those between, draws go by the weights there are (StaleSB).
        score_share: in (0, 1], the share of each meta-batch that a scoring pass goes over: never observed samples, then
            the stalest scores, see `staleness`; the others are drawn by the weights there are. Not for streams.
        interrupt: every so many steps one trains on everything, unscored; None never.
        guard: stop selecting where the run's own figures say that it does not pay, and look again now and then; None
            does so for `auto` alone.
        max_age: epochs after which a pruned sample is put back into the plan once; None never does.
        prune_unobserved: let pruning drop samples whose loss was never seen.
        drop_last: every meta-batch of an epoch is full; the samples left over sit it out, others each time. Otherwise
            the last one may be smaller, though never of a single sample.
        on_bad_loss: "skip" leaves NaN and infinite losses out of the step and counts them, instead of raising.
        seed: in [0, 2**63); the same seed gives the same selection on any topology.

    Raises:
        ConfigError: a setting outside its domain, or two that exclude each other.

    Example:
        >>> Selection(methods.evolved(), ratio=0.25).num_selected(256)
        64
    """

    method: methods.Method
    _: dataclasses.KW_ONLY
    ratio: float = _RATIO
    prune_ratio: float = 0.0
    anneal: tuple[float, float] = (0.05, 0.05)
    anneal_by: annealing.AnnealBy = "auto"
    draw: str = "race"
    reweight: Reweight = "none"
    signal: WeightSignal = "loss"
    power: float = 1.0
    cap: float = 1.0
    score_every: int = 1
    score_share: float = 1.0
    interrupt: int | None = None
    guard: bool | None = None
    max_age: int | None = 5
    prune_unobserved: bool = False
    drop_last: bool = False
    on_bad_loss: OnBadLoss = "raise"
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.method, methods.Method):
            raise errors.ConfigError(
                f"method must come from es.methods, e.g. es.methods.evolved(); got {self.method!r}"
            )
        registry.check_class(self.method)
        for name in ("ratio", "prune_ratio", "score_share"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        if not 0.0 < self.ratio <= 1.0:
            raise errors.ConfigError(
                f"ratio must lie in (0, 1], got {self.ratio}: it is b/B, the share of a meta-batch to train on"
            )
        if not 0.0 <= self.prune_ratio < 1.0:
            raise errors.ConfigError(
                f"prune_ratio must lie in [0, 1), got {self.prune_ratio}: it is the share that an epoch leaves out"
            )
        staleness.check_share(self.score_share, skips=self.on_bad_loss == "skip")
        object.__setattr__(self, "anneal", annealing.check_anneal(self.anneal))
        if self.draw not in draws.DRAWS:
            raise errors.ConfigError(f"unknown draw {self.draw!r}; {suggest(self.draw, draws.DRAWS)}")
        for name, value, allowed in (
            ("anneal_by", self.anneal_by, get_args(annealing.AnnealBy)),
            ("reweight", self.reweight, get_args(Reweight)),
            ("signal", self.signal, get_args(WeightSignal)),
            ("on_bad_loss", self.on_bad_loss, get_args(OnBadLoss)),
        ):
            if value not in allowed:
                raise errors.ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        for name in ("prune_unobserved", "drop_last"):
            object.__setattr__(self, name, as_flag(name, getattr(self, name)))
        self._check_weights()
        object.__setattr__(self, "score_every", as_integer("score_every", self.score_every, least=1))
        if self.interrupt is not None:
            object.__setattr__(self, "interrupt", as_integer("interrupt", self.interrupt, least=2))
        if self.guard is not None:
            object.__setattr__(self, "guard", as_flag("guard", self.guard))
        if self.guard and not (self.method.selects and self.method.needs_losses):
            raise errors.ConfigError(
                f"method {self.method.name!r} never scores, so guard=True would have nothing to stop: leave it out"
            )
        if self.method.decides and self.ratio != _RATIO:
            raise errors.ConfigError(
                f"method {self.method.name!r} decides what share of a meta-batch to train on, so ratio={self.ratio:g} "
                "would change nothing: leave it out, or take es.methods.evolved() for a fixed one"
            )
        if self.max_age is not None:
            object.__setattr__(self, "max_age", as_integer("max_age", self.max_age, least=1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, least=0, end=2**63))
        if self.prune_ratio > 0 and not self.method.prunes:
            raise errors.ConfigError(
                f"method {self.method.name!r} itself decides what an epoch trains on, so "
                f"prune_ratio={self.prune_ratio} contradicts it: set it to 0, or take "
                "es.methods.random_subset() or es.methods.evolved()"
            )

    def _check_weights(self) -> None:
        for name in ("power", "cap"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        if not 0.0 <= self.power < math.inf:
            raise errors.ConfigError(f"power must be at least 0 and finite, got {self.power}: weights become w^power")
        if not 0.0 < self.cap <= 1.0:
            raise errors.ConfigError(f"cap must lie in (0, 1], got {self.cap}: it is a quantile of the meta-batch")
        if self.draw == "topk" and self.reweight == "unbiased":
            raise errors.ConfigError(
                "draw='topk' is deterministic and has no inclusion probabilities, so reweight='unbiased' cannot work: "
                "take draw='race', or reweight='none'"
            )
        if self.method.signed and self.draw != "topk":
            raise errors.ConfigError(
                f"method {self.method.name!r} has weights below 0, by which draw={self.draw!r} cannot draw: "
                "take draw='topk'"
            )
        if self.method.signed and (self.power != 1.0 or self.cap != 1.0):
            raise errors.ConfigError(
                f"method {self.method.name!r} has weights below 0: power and cap do nothing for it, leave them out"
            )

        if "irreducible_loss" in self.method.observes and self.signal != "loss":
            raise errors.ConfigError(
                f"method {self.method.name!r} takes the irreducible loss away from the loss, not from "
                f"signal={self.signal!r}: leave signal out"
            )

    @property
    def draws_by_known(self) -> bool:
        """Whether draws go by weights from before, of samples that their step does not score."""
        return self.method.needs_losses and (self.score_every > 1 or self.score_share < 1)

    @property
    def is_guarded(self) -> bool:
        """Whether the guard is on, see `guard`."""
        return self.method.decides if self.guard is None else self.guard

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that an observation must carry, in the order of `SIGNALS`."""
        return _signals(self.signal, self.method.observes)

    @property
    def non_negative(self) -> bool:
        """Whether losses become sampling weights, so that none may be below 0."""
        return self.method.needs_losses and not self.method.signed

    def num_selected(self, batch_size: int, ratio: float | None = None) -> int:
        """Return b = ⌈ratio·B⌉ for a meta-batch of B, outside annealing; a plan may name another ratio."""
        if not self.method.selects:
            return batch_size
        return ceil_share(self.ratio if ratio is None else ratio, batch_size)

    def num_kept(self, num_samples: int) -> int:
        """Return n - ⌊r·n⌋, the ids of a pruned plan."""
        return num_samples - math.floor(exact_share(self.prune_ratio, num_samples))

    def annealing(self, num_epochs: int) -> annealing.Annealing:
        """Return which part of a run of E epochs selects nothing."""
        return annealing.Annealing.of(self.anneal, num_epochs, self.anneal_by)

    def is_annealing(self, epoch: int, num_epochs: int) -> bool:
        """Return whether all of this epoch selects and prunes nothing."""
        return self.annealing(num_epochs).is_whole(epoch)

    def is_scoring(self, epoch: int, num_epochs: int) -> bool:
        """Return whether draws of this epoch need losses from a scoring pass."""
        return self.method.needs_losses and self.annealing(num_epochs).is_scoring(epoch, self.score_every)

    def settled(self, num_epochs: int) -> Selection:
        """Return the same selection with `anneal_by` resolved for a run of E epochs, for what is kept."""
        return dataclasses.replace(self, anneal_by=annealing.settled(self.anneal_by, num_epochs))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, JSON-ready; `from_dict` makes the same Selection of them.

        A method of another package is named as its entry point, else as module:class.
        """
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "method"}
        own["anneal"] = list(self.anneal)
        return {"method": registry.reference(self.method), "settings": self.method.settings(), **own}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, load: bool = True) -> Selection:
        """Make a Selection from `to_dict`'s values.

        Values from before there was `anneal_by` annealed whole epochs, and still do.

        Args:
            values: by name.
            load: import a method of another package. False only records its name and settings, for readers of files;
                `loaded` imports it later.

        Raises:
            ConfigError: they are not a selection's, or its method cannot be found or made.
        """
        try:
            own = {"anneal_by": "epochs", **values}
            name, settings = own.pop("method"), own.pop("settings", {})
            if load or name in methods.METHODS:
                return cls(registry.make(name, settings), **own)
            return cls(registry.record(name, settings), **own)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, errors.ConfigError):
                raise
            raise errors.ConfigError(f"not the settings of a selection: {error!r}") from error

    def loaded(self) -> Selection:
        """Return the same selection with its method imported, see `from_dict`; ConfigError where that is impossible."""
        if not isinstance(self.method, registry.Recorded):
            return self
        return dataclasses.replace(self, method=registry.make(self.method.name, self.method.settings()))


@functools.lru_cache(maxsize=64)
def _signals(signal: str, observes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in SIGNALS if name in {"loss", signal, *observes})

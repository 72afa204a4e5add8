"""What loaders of selected batches have in common: epochs in turn, the draw at hand, its losses, the state."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.engine import Draw
from es_service.selection.settings import as_integer
from es_service.selector import Selector
from es_service.training import batches
from es_service.training.losses import check_per_sample
from es_service.training.observed import Signals, losses_in

if TYPE_CHECKING:
    from es_service.scorer import Scorer

__all__ = ["SelectedBatches"]


class SelectedBatches(abc.ABC):
    """(batch, scale) of every step; iterated once per epoch.

    Args:
        selector: draws.
        score: batch -> losses[B], or signals by name, without touching the model.
        reuse_losses: `observe`, or `mean`, is called after every step; steps that draw without losses then take them
            from there instead of from a separate scoring pass.
        device: moves every batch there; of a module, to where its parameters are.
        scorer: computes losses of the steps to come; `score` is called only where it has none.
    """

    def __init__(
        self,
        selector: Selector,
        score: Callable[[Any], Any],
        *,
        reuse_losses: bool,
        device: torch.device | str | torch.nn.Module,
        scorer: Scorer | None = None,
    ) -> None:
        self.selector, self._scorer = selector, scorer
        self._score = score
        self._reuse_losses = reuse_losses
        self._device = device if isinstance(device, torch.nn.Module) else torch.device(device)
        self._observed = True
        self._wanted: int | None = None  # epoch, by set_epoch
        self._iterated: int | None = None  # epoch
        self._scale: torch.Tensor | None = None
        self.draw: Draw | None = None
        """The last draw: which ids the batch just yielded holds."""
        self.weight = 0
        """How many samples the mean of losses·scale represents: b, or all that were scored where the scale is unbiased.

        The weight of this rank's mean beside that of other ranks; see `step.rank_factor`.
        """

    # -- epochs -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def epoch(self, epoch: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield (batch of b samples, scale float32[b]) for every step of an epoch."""

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """Iterate the epoch of `set_epoch`, else the next one; after `load_state_dict` in its middle, the rest of it.

        An epoch that was left early is closed first, see `finish_epoch`.

        Raises:
            ConfigError: all epochs of the run are made.
            ShapeError, LossError, DataError: as `epoch` raises them.
        """
        self.finish_epoch()
        self._iterated = None  # who left it early may still hold its iterator, as a notebook does after an interrupt
        epoch, self._wanted = self._at_hand(), None
        num_epochs = self.selector.config.num_epochs
        if epoch >= num_epochs:
            raise errors.ConfigError(
                f"all epochs={num_epochs} of this run are made, and another one is iterated: give as many epochs as "
                "the loop makes, for annealing and pruning go by their number"
            )
        self._iterated = epoch
        try:
            yield from self.epoch(epoch)
        finally:
            if self._iterated == epoch:
                self._iterated = None

    def _at_hand(self) -> int:
        """Return the epoch that `set_epoch` named, else the one being iterated, else the next."""
        for epoch in (self._wanted, self._iterated):
            if epoch is not None:
                return epoch
        return self.selector.next_epoch

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is iterated next; needed only where another one than the next is meant.

        Raises:
            ConfigError: an epoch past the last.
        """
        self._wanted = as_integer("epoch", epoch, least=0, end=self.selector.config.num_epochs)

    def finish_epoch(self) -> None:
        """Close the open epoch at the current step; nothing where it is closed already. Every rank calls it.

        For loops that never ask for a batch behind the last one, and for an epoch that is cut short; see
        `Selector.finish_epoch`.
        """
        self.selector.finish_epoch()

    # -- steps ------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        if isinstance(self._device, torch.device):
            return self._device
        first = next(itertools.chain(self._device.parameters(), self._device.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def to_device(self, batch: Any) -> Any:
        """Move a batch to where this loader's batches go."""
        return batches.to_device(batch, self.device)

    def _is_blind(self) -> bool:
        """Whether this step draws without any losses of its own, and `observe` brings them later."""
        self._check_observed()
        return self._reuse_losses and not self.selector.wants_scores

    def _losses_ahead(self) -> Any:
        """Return what a scorer computed for this step; None where it needs no losses, or has to be scored here."""
        return None if self._scorer is None else self._scorer.losses(self.selector)

    def _select(
        self,
        ids_B: NDArray[np.int64],
        batch: Any = None,
        part: Callable[[NDArray[np.int64]], Any] | None = None,
        ahead_B: Any = None,
    ) -> Draw:
        """Draw by the losses that a scorer computed ahead, else those of the batch, if given.

        Only the part of the batch at these positions is scored where the step scores no more.
        """
        selector, timing = self.selector, self.selector.ledger.timing
        skipped, losses, scored = selector.ledger.skipped, ahead_B, None
        if ahead_B is None and batch is not None:
            if part is not None and selector.wants_scores:
                scored = selector.to_score(ids_B)
                with timing("data"):
                    batch = part(scored)
            with timing("score"):
                losses = self._score(batch)
        draw = self.draw = selector.select(ids_B, losses, scored=scored, by_scorer=ahead_B is not None)
        is_whole = scored is None or scored.size == len(ids_B)
        self._observed = losses is not None and (is_whole or not self._reuse_losses)
        if not is_whole and not self._reuse_losses:
            selector.observe(None)
        num_scored = len(ids_B) - (selector.ledger.skipped - skipped)
        self.weight = num_scored if selector.config.selection.reweight == "unbiased" else draw.ids.size
        self._scale = batches.moved(torch.from_numpy(draw.scale), self.device)
        return draw

    def _yielded(self, batch: Any) -> Iterator[tuple[Any, torch.Tensor]]:
        assert self._scale is not None
        with self.selector.ledger.timing("train"):
            yield batch, self._scale

    @property
    def awaits_losses(self) -> bool:
        """Whether `observe`, or `mean`, is still to be called for the batch just yielded: not all of it was scored."""
        return not self._observed

    def _check_observed(self) -> None:
        if not self._observed:
            raise errors.ShapeError(
                "reuse_losses=True needs loader.observe(losses), or loader.mean(losses), after every step"
            )

    def observe(self, losses: Any) -> None:
        """Hand over the training losses [b], or signals, of the batch just yielded; ignored where it was scored."""
        self.selector.observe(losses)
        self._observed = True

    def mean(self, losses: Signals) -> torch.Tensor:
        """Observe the training losses of the batch just yielded; return the mean of losses·scale, to be minimised.

        Args:
            losses: float[b], differentiable; or signals by name, "loss" among them.

        Returns:
            float32[], to call `backward()` on.

        Raises:
            ShapeError: the losses are not one per sample, or no batch was yielded yet.
            LossError: they cannot be used, see `Selector.observe`.
        """
        if self._scale is None:
            raise errors.ShapeError("loader.mean(losses) is for the batch just yielded, and none was yet")
        values = losses_in(losses)
        check_per_sample(values, self._scale.numel())
        self.observe(losses)
        return (values.float() * self._scale.to(values.device)).mean()

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: in-process at any step, else between epochs; see `Selector.state_dict`."""
        return self.selector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Continue from `state_dict`'s return; every rank calls it. Return the epoch that is iterated next.

        Raises:
            RunMismatchError: the state is of a run with another config.
            ConfigError: it was taken inside an epoch, in one process, and is loaded by several ranks.
            StorageError: it is damaged, or of another version.
        """
        epoch = self.selector.load_state_dict(state)
        self._wanted = self._iterated = self.draw = self._scale = None
        self._observed = True
        return epoch

"""The Selector: what a training loop holds.

    for epoch in range(num_epochs):
        for ids_B in selector.epoch(epoch):
            losses_B = ...                            # fetch, forward without gradient
            draw = selector.select(ids_B, losses_B)
            ...                                       # train on draw.positions, with loss * draw.scale

Shapes: B ids in a meta-batch, b drawn from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.epoch import Epoch
from es_service.exchange.base import Exchange
from es_service.exchange.embedded import Embedded
from es_service.exchange.resume import Resume
from es_service.kept_samples import KeptSamples, Preview
from es_service.ledger import Ledger
from es_service.selection import idle, observations
from es_service.selection.config import Selection
from es_service.selection.engine import Draw
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_integer
from es_service.selector_state import Restorable
from es_service.storage import runs
from es_service.streamed import ids_of, num_batches
from es_service.whereabouts import check_alone

__all__ = ["Selector"]

T = TypeVar("T")
_I64 = NDArray[np.int64]


class Selector(Restorable):
    """Hands out meta-batches and draws mini-batches from them. One thread uses it.

    Args:
        selection: what to select, and how.
        num_samples: n; ids number the samples of the data set from 0. None where they are not known beforehand: the
            table grows with the ids that `stream` brings.
        num_epochs: E, which annealing counts from.
        batch_size: B, the meta-batch of this rank.
        irreducible_losses: float[n], one per sample, for the method `rho`; observations need not bring them then.
        exchange: how to reach the score table; by default it lives in this process. `es.connect` makes the others.
        run: names the run, which is then kept in the storage: its table, its ledger, what `log` is given. None keeps
            nothing.
        storage: folder or URI that holds the runs; ~/es_service_runs, or the environment variable ES_SERVICE_STORAGE.
        resume: what to do with a run of this name that has finished an epoch, see `es.connect`.
        tokens: integers [n], the tokens of each sample; the ledger then counts them beside the samples.
        labels: integers [n] from 0, the class of each sample, for the run's dashboard.
        label_names: what they mean, in their order.
        preview: what the dashboard shows of a sample: a function id -> PNG file as bytes, text, PIL image, or array
            uint8[h, w] or [h, w, 3]; or (data set, name of its column). Rank 0 calls it at the ends of epochs for
            0.2 to 2 s, and the run keeps 64 MiB of them: those that the dashboard lists first, then all if they fit.
        world_size: 1 lets a process that belongs to a group of several select by itself, in-process: one that selects
            for all, or ranks that train on the same samples (tensor parallel). None refuses that.
        clock: seconds, for the ledger.

    Raises:
        ConfigError: a count below 1, or a batch_size larger than a rank's share of the plan; or an in-process selector
            under torch.distributed or Ray Train with several ranks, which would train all of them on the same samples.
        ShapeError, LossError: irreducible losses that are not one finite number per sample; tokens that are not one
            number per sample.
        RunNameError, RunNotFoundError, RunExistsError, RunMismatchError: the run is not what `run` and `resume` say.
        StorageError: the storage cannot be written.

    Example:
        >>> import numpy as np, es_service as es
        >>> selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=7)
        >>> selector = es.Selector(selection, num_samples=1000, num_epochs=1, batch_size=100)
        >>> for ids_B in selector.epoch(0):
        ...     draw = selector.select(ids_B, np.ones(100, dtype=np.float32))
        >>> draw.ids.shape, selector.ledger.trained
        ((25,), 250)
    """

    def __init__(
        self,
        selection: Selection,
        *,
        num_samples: int | None,
        num_epochs: int,
        batch_size: int,
        irreducible_losses: Any = None,
        tokens: Any = None,
        exchange: Exchange | None = None,
        run: str | None = None,
        storage: str | None = None,
        resume: Resume = "auto",
        labels: Any = None,
        label_names: Sequence[str] | None = None,
        preview: Preview | None = None,
        world_size: Literal[1] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        config = RunConfig.of(selection, num_samples, num_epochs, batch_size)
        if world_size is not None:
            as_integer("world_size", world_size, least=1)
        if world_size not in (None, 1):
            raise errors.ConfigError(f"world_size={world_size}: an es.Selector is one rank; es.connect is for several")
        self._is_alone = exchange is None and world_size is None  # unless a group shows that it is not
        if self._is_alone:
            check_alone()
        kept, describes = None, any(one is not None for one in (labels, label_names, preview))
        if describes and (exchange is None or exchange.position.rank == 0):
            kept = KeptSamples(None if config.grows else config.num_samples, labels, label_names, preview)
        if exchange is None:
            config.check_world(1)
            exchange = Embedded.start(config, run, storage, resume)
        runs.check_same("of the exchange", exchange.config, config)
        idle.warn_if_idle(config, exchange.position.world_size)
        super().__init__(config, exchange, Ledger(clock=clock, tokens=observations.check_tokens(tokens, num_samples)))
        self._irreducible = observations.check_known(irreducible_losses, num_samples)
        self._closed: Callable[[], None] = lambda: None  # what is done behind each epoch
        if kept is not None:
            kept.begin(runs.RunStorage.named(run, storage), exchange)
            self._closed = kept.refresh

    # -- the loop ---------------------------------------------------------------------------------------------------

    def epoch(self, epoch: int) -> Iterator[_I64]:
        """Yield this rank's meta-batches, int64[B] (the last may be smaller).

        The epoch is closed once its last step is selected, and its losses are observed where they come later; a loop
        need not ask for what follows. `finish_epoch` closes one left early, as does opening the next; `hidden_batches`
        one with hidden samples.

        Raises:
            ConfigError: an epoch past num_epochs.
            EpochOrderError: not the next epoch of the run.
        """
        here = self._open(epoch, streamed=False)
        here.share.ids.flags.writeable = False  # what is yielded comes back to `select` as it was
        first, self._resume_step = self._resume_step, 0
        for step, ids_B in enumerate(here.batches()[first:], first):
            here.begin_step(step, ids_B)
            yield ids_B
            if here is not self._here or not here.end_step():  # reset() or load_state_dict(), or it is closed
                return
        here.awaits_hidden = here.share.hidden.size > 0
        if not here.awaits_hidden:
            here.finish()

    def stream(self, epoch: int, batches: Iterable[T], ids: Callable[[T], Any] | str = "id") -> Iterator[T]:
        """Yield batches whose ids are not known in advance, each a meta-batch.

        For an iterable data set, a Ray Data pipeline, or a custom sampler. Ranks make as many epochs, of any number
        of steps. The last batch closes an epoch: as in `epoch` where `len(batches)` is known, else when the loop asks
        for what follows; a loop that does not ask calls `finish_epoch`.

        Args:
            epoch: in [0, num_epochs), rising by one.
            batches: of any size; ids may repeat in one (sampling with replacement): observed once, by the mean of their
                copies' losses; every copy may be drawn.
            ids: where a batch keeps its ids, int64[B]: a key of it, or a function of it. Samples that go by names
                need a number each, the same on every rank: `ids=lambda batch: [numbers[key] for key in batch["url"]]`.

        Raises:
            ConfigError: an epoch past num_epochs, or a selection that plans which ids an epoch holds.
            IdError, ShapeError: a batch's ids cannot be used.
            EpochOrderError: not the next epoch of the run, or more batches than their length.
        """
        here = self._open(epoch, streamed=True, num_steps=num_batches(batches))
        for step, batch in enumerate(batches):
            if here.is_closed:
                raise errors.EpochOrderError(
                    f"more batches come than len(batches)={step} says, and epoch {epoch} was closed behind that many: "
                    "stream iter(batches), whose end shows when it is there"
                )
            ids_B = here.checked(ids_of(batch, ids)).copy()  # the batch is the caller's to change
            here.begin_step(step, ids_B)
            yield batch
            if here is not self._here or (not here.end_step() and step + 1 != here.num_steps):
                return
        here.finish()

    def finish_epoch(self) -> None:
        """Close the open epoch at the current step; nothing where it is closed already. Every rank calls it.

        For loops that stop without asking for another batch and whose last step is unknown: a stream without a
        length, draws whose losses are never observed, an epoch that is cut short. Such an epoch counts as finished:
        what was observed is in the table, the ids of the steps that were not made keep their scores, and the next epoch
        is planned by that. Hidden samples stay unseen. Ranks may stop at different steps.

        Raises:
            StorageError: the epoch is finished, but its snapshot could not be written.
            ServerUnavailableError: the score server, or with "collective" another rank, did not answer in time.
        """
        if self._here is not None:
            self._here.raise_held()
            self._here.finish()

    def _open(self, epoch: int, *, streamed: bool, num_steps: int | None = None) -> Epoch:
        number = as_integer("epoch", epoch, least=0, end=self.config.num_epochs)
        if self._is_alone:
            check_alone()  # a group may have come into being since
        self.finish_epoch()
        with self.ledger.timing_overhead():
            share = self.exchange.open_epoch(number, streamed=streamed)
        self._count_on_from(number)
        about = self.exchange, self.ledger, self._irreducible, number, share
        self._here = Epoch(*about, streamed=streamed, num_steps=num_steps, closed=self._closed)
        self._warn_if_stopped(share)
        return self._here

    def _opened(self, doing: str) -> Epoch:
        """Return the open epoch, or raise EpochOrderError: there is none."""
        if self._here is None or self._here.is_closed:
            over = "" if self._here is None else f"; epoch {self._here.number} is over"
            raise errors.EpochOrderError(f"no epoch is open: call {doing}{over}")
        return self._here

    def hidden_batches(self) -> Iterator[_I64]:
        """Yield what the open epoch hid and its method wants to see again, int64[B] at a time, and close the epoch.

        To be asked after the epoch's last step: fetch, forward without gradient, `refresh`. Most methods hide nothing
        (of those here, kakurenbo does). Without it the epoch is closed all the same when the next one opens.
        """
        here = self._here
        if here is None or here.is_closed:
            return
        for ids_B in here.hidden():
            yield ids_B
            if self._here is not here or here.is_closed:
                return
        here.finish()

    def refresh(self, ids_B: Any, observed: Any) -> None:
        """Observe samples that the open epoch left out: nothing is drawn.

        Args:
            ids_B: int64[B], what `hidden_batches` yielded.
            observed: their signals, as in `select`.

        Raises:
            ShapeError, IdError, LossError: the arrays cannot be used; nothing was written.
            EpochOrderError: no epoch is open.
        """
        self._opened("refresh inside `for ids_B in selector.hidden_batches()`").refresh(ids_B, observed)

    def to_score(self, ids_B: Any) -> _I64:
        """Return the positions int64[k], ascending, of the samples whose losses this step's draw needs.

        None where `wants_scores` is False; all B where it is True, unless `score_share` is below 1. Raises as `select`.
        """
        here = self._opened("to_score inside `for ids_B in selector.epoch(e)`")
        return here.to_score(here.checked(ids_B))

    def select(self, ids_B: Any, losses_B: Any = None, *, scored: Any = None, by_scorer: bool = False) -> Draw:
        """Observe the losses of a meta-batch and draw what to train on.

        Args:
            ids_B: int64[B], normally what `epoch` yielded.
            losses_B: float[B], one loss per id at the current model parameters; numpy or torch, any device. A method
                that observes more takes a mapping of such arrays by name: {"loss": …, "correct": …}, see
                `selection.signals`. May be None where `wants_scores` is False; `observe` then takes the losses that
                training computes anyway.
            scored: int[k], ascending positions that the losses are of: those of `to_score`, or more; None for all B.
                The others are drawn by the weights there are; those that are drawn `observe` takes the losses of.
            by_scorer: the losses come from an `es.Scorer`, which counts what they cost: no pass is counted here.

        Returns:
            b = ⌈ratio·B⌉ of them; all B in an annealing step. draw.scale is 1 unless the method or `reweight` weighs.

        Raises:
            ShapeError, IdError, LossError: the arrays cannot be used; nothing was written.
            EpochOrderError: no epoch is open.
        """
        here = self._opened("select inside `for ids_B in selector.epoch(e)`")
        return here.select(here.checked(ids_B), losses_B, scored, by_scorer=by_scorer)

    def observe(self, losses_b: Any) -> None:
        """Hand over the losses of the last draw, where it was made without any: training computed them anyway.

        Args:
            losses_b: float[b], in the order of the draw's positions, or signals by name, as in `select`; ignored where
                the draw was scored. None: there will be none, and the draw counts without.

        Raises:
            ShapeError, LossError: the losses cannot be used; nothing was written.
        """
        if self._here is not None:
            self._here.observe(losses_b)

"""Where a rank is in the epochs of its run, and how a restarted score server gets there again.

    open ──► reports ──► ends, close ──► (all of it on storage) stored ──► forgotten

A server opens and closes epochs whether or not it can write so: training continues while storage fails. Until all an
epoch was is on storage, the rank keeps it. Where the server goes down meanwhile it comes back inside an epoch that the
rank has left; every rank then closes it again, behind its reports, and opens the next one, which gets the same plan.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from es_service import errors
from es_service.exchange.server_calls import NewPatience, ServerCalls
from es_service.ledger import Ledger
from es_service.selection.run import Share

__all__ = ["Epochs", "LostError"]

_POLL_S = (0.005, 0.1)  # first and longest pause while other ranks close their epoch


class LostError(errors.ServerRestartedError):
    """The server cannot be brought to where the rank is; retries are useless."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Epoch:
    """An epoch that a rank has opened.

    Attributes:
        number: of the epoch.
        streamed: its ids come from outside.
        num_steps: that the rank made of it; where it is not over yet, 0.
        seqs: of the rank's last report to each shard when it ended; where it is not over yet, none.
        ledger: of the rank when it ended, as plain values; where it is not over yet, None.
    """

    number: int
    streamed: bool
    num_steps: int = 0
    seqs: tuple[int, ...] = ()
    ledger: dict[str, Any] | None = None


class Epochs:
    """See the module's text. One thread at a time uses it.

    Args:
        calls: of the rank; other ranks are waited for as long as one may take.
        num_shards: S.

    `new_patience` is that of the thread that waits; without one it is a training thread.
    """

    def __init__(self, calls: ServerCalls, num_shards: int) -> None:
        self._calls, self._num_shards = calls, num_shards
        self._turns: dict[tuple[str, int], str] = {}
        self._over: list[_Epoch] = []  # ended, and not known to be on storage
        self._current: _Epoch | None = None
        self._first_step = 0  # of the current one
        self.num_closed: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the rank is inside an epoch."""
        return self._current is not None

    def stand_at(self, num_closed: int | None) -> None:
        """Forget all of it: the run is at the end of so many epochs, None where that is not known."""
        self._turns.clear()
        self._over.clear()
        self._current, self.num_closed = None, num_closed

    def open(self, epoch: int, *, streamed: bool) -> Share:
        """Open an epoch, once all ranks have closed the one before; return the rank's share.

        Raises:
            ServerUnavailableError: some did not within the deadline; the message names them.
            EpochOrderError: see `Membership.open_epoch`; also where the server came back from before, see `is_behind`.
        """
        if self._over and self.is_behind():
            with contextlib.suppress(errors.StorageError):  # it is over all the same
                self.close()
        share = self._open(_Epoch(epoch, streamed))
        self._current, self.num_closed, self._first_step = _Epoch(epoch, streamed), epoch, share.first_step
        return share

    def _open(self, epoch: _Epoch, new_patience: NewPatience | None = None) -> Share:
        share: Share = self.wait_for_ranks(
            lambda: self._once("open_epoch", epoch.number, epoch.streamed, new_patience=new_patience),
            f"to open epoch {epoch.number}",
            f"have not finished epoch {epoch.number - 1}",
        )
        return share

    def wait_for_ranks(self, ask: Callable[[], Any], purpose: str, lack: str) -> Any:
        """Ask until the answer is not a list of ranks any more.

        Raises:
            ServerUnavailableError: it still was at the deadline.
        """
        give_up, pause_s = time.monotonic() + self._calls.deadline_s, _POLL_S[0]
        while isinstance(answer := ask(), list):
            if time.monotonic() > give_up:
                raise errors.ServerUnavailableError(
                    f"rank {self._calls.caller.rank} waited {self._calls.deadline_s:g} s {purpose}: "
                    f"rank(s) {answer} {lack}; did they leave their loop early, or die?"
                )
            time.sleep(pause_s)  # polling: the server has one thread for all ranks, which none may keep
            pause_s = min(2 * pause_s, _POLL_S[1])
        return answer

    def ends(self, epoch: int, num_steps: int, seqs: Sequence[int], ledger: Ledger) -> None:
        """Note that the rank has sent all its reports of an epoch."""
        if self._current is not None and self._current.number == epoch:
            now = dataclasses.replace(self._current, num_steps=num_steps, seqs=tuple(seqs), ledger=ledger.to_dict())
            self._over.append(now)
            self._current, self.num_closed = None, epoch + 1

    def close(self) -> None:
        """Close the epoch that has ended last; idempotent.

        Raises:
            ServerRestartedError: a shard lacks reports of this rank.
            StorageError: see `ScoreServer.close_epoch`.
        """
        self._close(self._over[-1])

    def _close(self, epoch: _Epoch, new_patience: NewPatience | None = None) -> None:
        self._once("close_epoch", epoch.number, epoch.num_steps, epoch.seqs, epoch.ledger, new_patience=new_patience)

    def stored(self) -> None:
        """Forget what has ended: all of it is on storage."""
        self._turns.clear()
        self._over.clear()

    def is_behind(self, new_patience: NewPatience | None = None) -> bool:
        """Return whether the server is behind this rank: it restarted, and could not write all its state.

        Raises:
            EpochOrderError: the rank is fenced.
        """
        return self.num_closed is not None and self._place(new_patience) < (self.num_closed, self.is_open)

    def _place(self, new_patience: NewPatience | None) -> tuple[int, bool]:
        """Return where the server has this rank: epochs closed, and whether one is open."""
        closed, is_open = self._calls.call("whereabouts", new_patience=new_patience)
        return closed, is_open

    def again(self, bring: Callable[[int], None], new_patience: NewPatience) -> None:
        """Bring a server that is behind to where this rank is.

        Args:
            bring: sends what is kept of the reports up to a seq.
            new_patience: of the thread that waits.

        Raises:
            LostError: it cannot be brought there.
            ServerError: it went down meanwhile.
        """
        if not self.is_behind(new_patience):
            return
        if self._current is None and self._over and self._place(new_patience) == (self._over[-1].number, True):
            return  # it lacks but the end of that epoch, which comes once all shards have the reports
        if self._num_shards > 1:  # the others may stand elsewhere, and plans are made of all
            raise self._lost("with several shards that cannot be made up for")
        for epoch in self._over:
            closed, is_open = self._place(new_patience)
            if closed <= epoch.number:
                if not is_open:
                    self._open(epoch, new_patience)
                bring(epoch.seqs[0])
                self._close(epoch, new_patience)
        if self._current is not None:
            if self._open(self._current, new_patience).first_step != self._first_step:
                raise self._lost(f"epoch {self._current.number} would be planned otherwise now")
        elif self.is_behind(new_patience):
            raise self._lost("this rank does not know any more what came between")

    def _lost(self, why: str) -> LostError:
        return LostError(
            f"the score server restarted and stands before the end of epoch {(self.num_closed or 1) - 1}, since its "
            f"storage could not be written; {why}: connect again and continue from the last checkpoint"
        )

    def _once(self, method: str, epoch: int, *args: Any, new_patience: NewPatience | None) -> Any:
        """Let the score server change the membership, exactly once over retries."""
        turn = self._turns.setdefault((method, epoch), uuid.uuid4().hex)
        answer = self._calls.call(method, epoch, *args, turn, new_patience=new_patience)
        if isinstance(answer, Share):  # a rank that opens an epoch a second time is to be refused
            del self._turns[method, epoch]
        return answer

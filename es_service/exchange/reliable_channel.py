"""Reports from a rank to a shard: in order, each applied exactly once, across restarts of the shard.

    post ──► under way ── answer ──► applied ── acknowledgement ──► durable, and dropped here

What is not known to be on storage is kept, past the end of its epoch too. When the shard comes back from a crash the
rank asks which of its reports it has, and sends the rest again; what it has already it takes no second time. Where it
came back inside an epoch that is over, that one is ended again on the way, see `epochs`.
"""

from __future__ import annotations

import collections
import dataclasses
import warnings
from typing import Any

import ray

from es_service import errors
from es_service.actors import wire
from es_service.actors.calls import AwayError, GoneError
from es_service.exchange.epochs import Epochs, LostError
from es_service.exchange.server_calls import NewPatience, ServerCalls

__all__ = ["Channel", "Posted"]

_MAX_KEPT_BYTES = 64 << 20
_LEAST_S = 1.0  # that an answer is waited for, also where bringing the shard back took the time there was


@dataclasses.dataclass(slots=True)
class Posted:
    """Reports under way or applied, of one call.

    Attributes:
        first: seq of its first report.
        last: seq of its last one.
        method: "observe" or "report".
        messages: packed reports, an argument each, so that Ray sends them along with the call.
        more: further arguments of the method, by name.
        reference: of the call that is to bring it there.
        wanted: a caller waits for the answer; without one, a retry only has to arrive.
    """

    first: int
    last: int
    method: str
    messages: tuple[bytes, ...]
    more: dict[str, Any]
    reference: ray.ObjectRef[Any]
    wanted: bool = True

    @property
    def num_bytes(self) -> int:
        """What its messages take."""
        return sum(map(len, self.messages))


class Channel:
    """See the module's text. One thread uses it.

    Args:
        calls: of the rank.
        shard: to which the reports go.
        epochs: of the rank, to which a server that comes back from before is brought.
    """

    def __init__(self, calls: ServerCalls, shard: int, epochs: Epochs) -> None:
        self._calls, self._shard, self._epochs = calls, shard, epochs
        self._name = f"shard {shard} of run {calls.run!r}"
        self._kept: collections.deque[Posted] = collections.deque()
        self._num_bytes = 0
        self._waiting: list[Posted] = []  # for their answers
        self._warned = False

    def post(self, first: int, last: int, method: str, *messages: bytes, **more: Any) -> Posted:
        """Send the reports with these seqs; `answer` has to be called for each call, in order."""
        reference = self._calls.connection.ask(self._shard, method, *messages, **more)
        posted = Posted(first, last, method, messages, more, reference)
        self._waiting.append(posted)
        self._kept.append(posted)
        self._num_bytes += posted.num_bytes
        while self._num_bytes > _MAX_KEPT_BYTES and self._kept[0] not in self._waiting:
            self._num_bytes -= self._kept.popleft().num_bytes  # a crash now takes the run back to an epoch's end
        return posted

    def answer(self, posted: Posted, new_patience: NewPatience) -> bytes:
        """Return what the shard answers behind its acknowledgement, once the reports are applied.

        Args:
            posted: of the call.
            new_patience: of the thread that waits.

        Raises:
            ServerUnavailableError: the shard did not come back in time.
            ServerRestartedError: it came back without reports that this rank does not have any more either.
            EsServiceError: they were refused, and changed nothing.
        """
        patience = new_patience()
        try:
            while True:
                try:
                    answer = self._calls.wait(posted.reference, max(patience.left_s, _LEAST_S), posted.method)
                    break
                except (AwayError, GoneError, errors.ServerRestartedError) as error:
                    cause: errors.EsServiceError = error
                except errors.ServerUnavailableError as error:
                    patience.overrun(error)
                    continue
                except errors.EsServiceError as error:
                    if not isinstance(error, errors.EpochOrderError) or not self._epochs.is_behind(new_patience):
                        self._kept.remove(posted)
                        self._num_bytes -= posted.num_bytes
                        raise
                    cause = error
                patience.pause(cause)
                if self._send_again(cause, new_patience) >= posted.last and not posted.wanted:
                    return b""
        finally:
            posted.wanted = False
            self._waiting.remove(posted)
        acknowledgement, rest = wire.decode_acknowledgement(answer)
        self.received(acknowledgement)
        return rest

    def received(self, acknowledgement: wire.Acknowledgement) -> None:
        """Drop what is on storage by now."""
        while self._kept and self._kept[0].last <= acknowledgement.durable and self._kept[0] not in self._waiting:
            self._num_bytes -= self._kept.popleft().num_bytes
        if acknowledgement.failing and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._name} cannot write its storage (for the reason see es-service runs or the server's stats): "
                "training continues, and reports are kept here and at the server until they can be written. "
                "This warning comes once",
                stacklevel=2,
            )

    def send_again(self, cause: errors.EsServiceError, new_patience: NewPatience) -> None:
        """Bring back to the shard what it has lost of this rank's reports; all of them have been answered before.

        Raises:
            As `answer`.
        """
        has = self._send_again(cause, new_patience)
        again = [posted for posted in self._kept if posted.last > has]
        self._waiting += again
        for posted in again:
            self.answer(posted, new_patience)

    def _send_again(self, cause: errors.EsServiceError, new_patience: NewPatience) -> int:
        """Post again what the shard lacks or a caller waits for; return up to where the shard has all."""
        self._bring_back(cause, new_patience)
        has = self._has(cause, new_patience)
        for posted in self._kept:
            if posted.last > has or posted.wanted:
                self._post(posted)
        return has

    def _bring_back(self, cause: errors.EsServiceError, new_patience: NewPatience) -> None:
        """Bring the shard to the epoch that this rank is in, retrying where it restarts."""

        def bring(upto: int) -> None:
            has = self._has(cause, new_patience)
            for posted in self._kept:
                if has < posted.last <= upto:
                    self._post(posted)
                    self._calls.wait(posted.reference, new_patience().left_s, posted.method)

        patience = new_patience()
        while True:
            self._has(cause, new_patience)
            try:
                self._epochs.again(bring, new_patience)
                return
            except LostError:
                raise
            except (AwayError, errors.ServerRestartedError) as error:  # it went down again
                patience.pause(error)

    def _has(self, cause: errors.EsServiceError, new_patience: NewPatience) -> int:
        """Return up to which seq the shard has this rank's reports; ServerRestartedError where some are lost."""
        has: int = self._calls.call("enter", shard=self._shard, new_patience=new_patience)
        if self._kept and self._kept[0].first > has + 1:
            raise errors.ServerRestartedError(
                f"{self._name} came back with {has} of this rank's reports, of which those from "
                f"{self._kept[0].first} on are kept here: connect again and continue from the last checkpoint"
            ) from cause
        return has

    def _post(self, posted: Posted) -> None:
        posted.reference = self._calls.connection.ask(self._shard, posted.method, *posted.messages, **posted.more)

"""What the ranks of a process group have to agree on, by all-gathers: what they do, their settings, a fresh start."""

from __future__ import annotations

import json
from typing import Any

from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.peers import Peers
from es_service.exchange.resume import Resume, check_begun
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage, by_user, flat

__all__ = ["RankGroup"]


class RankGroup:
    """See the module's text. All ranks call the same methods in the same order."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self.position: Position = peers.position

    def gather(self, doing: str, message: bytes) -> list[bytes]:
        """Return every rank's message; EpochOrderError on every rank where one of them is doing something else."""
        messages = self._peers.gather(doing.encode() + b"\n" + message, f"to {doing}")
        parts = [one.split(b"\n", 1) for one in messages]
        for rank, (theirs, _) in enumerate(parts):
            if theirs != parts[0][0]:
                raise errors.EpochOrderError(
                    f"rank {rank} wants to {theirs.decode()} while rank 0 wants to {parts[0][0].decode()}: every rank "
                    "must open and finish the same epochs, and load or reset when the others do"
                )
        return [rest for _, rest in parts]

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raise RunMismatchError where a rank's settings are not those of rank 0, or its place is another one."""
        found = [json.loads(one) for one in self.gather("start", json.dumps(flat(settings)).encode())]
        for rank, theirs in enumerate(found):
            expected = {**found[0], "rank": rank, "world_size": self.position.world_size}
            differing = [
                f"{key}: {theirs.get(key)!r}, expected {expected.get(key)!r}"
                for key in sorted(expected.keys() | theirs.keys())
                if theirs.get(key) != expected.get(key)
            ]
            if differing:
                raise errors.RunMismatchError(
                    f"rank {rank} came with other settings than rank 0 or the process group ({'; '.join(differing)}): "
                    "start every rank with the same"
                )

    def begin(self, storage: RunStorage | None, config: RunConfig, resume: Resume) -> int:
        """Begin the run in rank 0's storage; return how many finished epochs it holds. See `Collective` for errors."""
        outcome, failure = {"stored": 0, "failure": "", "kind": ""}, None
        if storage is not None:
            try:
                outcome["stored"] = storage.snapshots.newest()
                check_begun(resume, bool(outcome["stored"]), storage.run, storage.storage)
                storage.begin(config, by_user(config, "collective", self.position.world_size))
            except errors.EsServiceError as error:
                outcome["failure"], outcome["kind"], failure = str(error), type(error).__name__, error
        of_rank_0 = json.loads(self.gather("begin the run", json.dumps(outcome).encode())[0])
        if failure is not None:
            raise failure
        if of_rank_0["failure"]:
            raise getattr(errors, of_rank_0["kind"])(f"rank 0 cannot keep the run: {of_rank_0['failure']}")
        return int(of_rank_0["stored"])

    def close(self) -> None:
        """Leave the group."""
        self._peers.close()

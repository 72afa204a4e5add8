"""A run as the process of a shard serves it: its storage, its config, and whether the process may still do so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from es_service import errors
from es_service.storage import runs
from es_service.storage.ownership import Ownership

__all__ = ["ServedRun"]


class ServedRun:
    """See the module's text.

    Args:
        place: folder or URI that holds the runs.
        run: name of the run.
        config: `runs.config_to_dict` of the run.

    A constructor that raised would kill a restarting actor for good, so the error is kept, and `check` raises it.

    Attributes:
        failure: why the run cannot be served; None while it can.
    """

    def __init__(self, place: str, run: str, config: dict[str, Any]) -> None:
        self.place = place
        self.failure: errors.EsServiceError | None = None
        self._ownership: Ownership | None = None
        with self.failure_kept():
            self.storage = runs.RunStorage(place, run)
            self.config = runs.config_from_dict(config).loaded()

    @contextlib.contextmanager
    def failure_kept(self) -> Iterator[None]:
        """Keep an error of this package that the block raises."""
        try:
            yield
        except errors.EsServiceError as error:
            self.failure = error

    def begin(self, num_shards: int, actor: str | None, training: dict[str, Any] | None) -> None:
        """Begin the run on storage, or take it over there.

        Args:
            num_shards: S.
            actor: names the owner over restarts of its process, so that no two write the run; None does not look.
            training: see `RunStorage.begin`.
        """
        with self.failure_kept():
            self.check()
            self.storage.begin(self.config, training)
            if actor is not None:
                self._ownership = self.storage.claim(actor)
            self.storage.begin_journals(num_shards)

    def check(self) -> None:
        """Raise what keeps this process from serving the run: the failure, or that another one has taken it over."""
        if self.failure is not None:
            raise self.failure.with_traceback(None)  # which would grow with each call
        if self._ownership is not None:
            try:
                self._ownership.check()
            except errors.RunExistsError as error:
                if self.storage.exists():
                    raise
                raise self._gone() from error  # no other owner: its file went with the folder

    def check_write(self) -> None:
        """Raise StorageError where this process may not write the run: it is another's, or was deleted meanwhile.

        What was deleted is not to be made again in part. The owner's heartbeat comes with it.
        """
        if not self.storage.exists():
            raise self._gone()
        if self._ownership is not None:
            try:
                self._ownership.renew()
            except errors.RunExistsError as error:
                raise errors.StorageError(str(error)) from error

    def release(self) -> None:
        """Own the run no longer."""
        if self._ownership is not None:
            self._ownership.release()

    def _gone(self) -> errors.StorageError:
        return errors.StorageError(
            f"the run's folder {self.storage.path} is gone, or its run.json: it was deleted or moved while the run is "
            "trained. Put it back, or stop the run's score server (es_service.actors.launch.stop) and start again from "
            "a checkpoint"
        )

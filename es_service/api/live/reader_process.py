"""The service's end of `live_reader`: starts the process, sends it requests, returns its answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from es_service import errors

__all__ = ["ReaderProcess"]


class ReaderProcess:
    """A process connected to a Ray cluster; `ask` may be called from many threads.

    Args:
        address: of the cluster.
        auth_mode: RAY_AUTH_MODE to connect with, None for the environment's.

    Raises:
        ServerUnavailableError: it cannot connect.
    """

    def __init__(self, address: str, auth_mode: str | None) -> None:
        environment = {
            **os.environ,
            "RAY_ADDRESS": address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"),
        }
        if auth_mode is not None:
            environment["RAY_AUTH_MODE"] = auth_mode
        self.address = address
        self._process = subprocess.Popen(
            [sys.executable, "-m", "es_service.api.live.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._listener: threading.Thread | None = None
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        said = json.loads(first) if first else {"failed": "the process that asks Ray ended at once"}
        if "ready" not in said:
            self.close()
            raise errors.ServerUnavailableError(f"cannot connect to the Ray cluster at {address}: {said['failed']}")
        self._listener = threading.Thread(target=self._listen, name="es-service-ray", daemon=True)
        self._listener.start()

    @property
    def is_up(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, op: str, deadline_s: float, **values: Any) -> dict[str, Any]:
        """Return the answer to a request, see `live_reader`.

        Raises:
            ServerUnavailableError: none came in time, the process ended, or it could not answer.
        """
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            self._last_id += 1
            number = self._last_id
            self._waiting[number] = future
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps({"id": number, "op": op, **values}) + "\n")
                self._process.stdin.flush()
            except (OSError, ValueError) as error:
                raise errors.ServerUnavailableError("the connection to the Ray cluster is lost") from error
        try:
            answer = future.result(deadline_s)
        except FutureTimeoutError as error:
            raise errors.ServerUnavailableError(f"the score server did not answer within {deadline_s:g} s") from error
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if "error" in answer:
            raise errors.ServerUnavailableError(f"the score server did not answer: {answer['error']}")
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed
            for line in self._process.stdout:
                answer = json.loads(line)
                with self._lock:
                    future = self._waiting.pop(answer.pop("id"), None)
                if future is not None:
                    future.set_result(answer)
        with self._lock:
            left, self._waiting = list(self._waiting.values()), {}
        for future in left:
            future.set_result({"error": "the connection to the Ray cluster is lost"})

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._listener is not None:
            self._listener.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

"""A plain Redis sorted set on a server of our own: one pipeline a step.

ZADD scores {id: value}          what is known of everybody
ZADD step {id: -log(u)/value}    the candidates, by arrival in an exponential race
ZRANGE step 0 b-1                whose first b are drawn by weight
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from benchmarks.peer_work import Step, do_work


@contextmanager
def served(rows: int, batch_size: int, num: int) -> Iterator[Step]:
    """A server that keeps nothing on disk, behind a Unix socket."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("no redis-server on this machine")
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "redis.sock")
        words = [program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder]
        server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            client = redis.Redis(unix_socket_path=socket)
            _await(client)
            for start in range(0, rows, 50_000):
                client.zadd("scores", dict.fromkeys(range(start, min(start + 50_000, rows)), 1.0))
            rng = np.random.default_rng(0)

            def step(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
                arrivals = -np.log(rng.random(ids.size)) / values
                names = ids.tolist()
                pipeline = client.pipeline(transaction=False)
                pipeline.zadd("scores", dict(zip(names, values.tolist(), strict=True)))
                pipeline.zadd("step", dict(zip(names, arrivals.tolist(), strict=True)))
                pipeline.zrange("step", 0, num - 1)
                pipeline.delete("step")
                return np.array(pipeline.execute()[2], dtype=np.int64)

            yield step
            client.close()
        finally:
            server.terminate()
            server.wait(timeout=30)


def _await(client: redis.Redis) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    do_work({"Redis sorted set": served}, {"redis (client)": version("redis")})

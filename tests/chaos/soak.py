"""A seeded random soak: training runs disturbed at random, each held against one that nobody disturbed.

    python tests/chaos/soak.py --minutes 10 [--seed N] [--s3]

With --s3 runs are kept in a bucket of moto's server; processes are killed and frozen there, at no named point.

Prints its seed, every training with what was done to it, and what held: of the points where a server is killed those
that were reached. Ends with 1 at the first difference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # of messages that come twice nobody waits for the second answer
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import driving
import faulty_files
import moto_s3
import ray
from test_messages import Unruly
from test_write_path import POINTS

from es_service import errors
from es_service.actors import launch
from es_service.actors.calls import call


class Training:
    """One training with disturbances drawn from a random generator."""

    def __init__(self, number: int, chance: random.Random, folder: Path, s3: str | None = None) -> None:
        self._chance, self._folder = chance, folder / f"{number:04d}"
        self._s3 = s3  # address of the server whose bucket is used
        self.run = f"soak-{os.getpid()}-{number}"
        self.kind = chance.choice(["es", "eswp", "infobatch"])
        self.exchange = chance.choice(["sync", "leased", "prefetch"])
        self.world_size, self.shards = chance.choice([1, 1, 2]), chance.choice([1, 1, 2, 3])
        self.is_unruly = chance.random() < 0.3
        self.done: Counter[str] = Counter()
        self._armed: str | None = None  # the point at which a server is to be killed, until it was
        self._frozen: list[threading.Timer] = []

    def __str__(self) -> str:
        broken = ", ".join(f"{num} × {what}" for what, num in sorted(self.done.items())) or "nothing"
        network = ", unruly network" if self.is_unruly else ""
        return f"{self.kind} {self.exchange} ranks={self.world_size} shards={self.shards}{network}: {broken}"

    def _disturb(self, epoch: int, step: int) -> None:
        chance = self._chance.random()
        shard = self._chance.randrange(self.shards)
        if chance < 0.04:
            driving.kill(self.run, shard)
            self.done["shard killed"] += 1
        elif chance < 0.06:
            pid = driving.pid_of(self.run, shard)
            os.kill(pid, signal.SIGSTOP)
            timer = threading.Timer(self._chance.uniform(0.1, 3.0), _go_on, (pid,))
            timer.start()
            self._frozen.append(timer)
            self.done["shard frozen"] += 1
        elif chance < 0.10 and self._s3 is None:
            point, count = self._chance.choice(list(POINTS)), self._chance.randint(1, 3)
            if self._has_fired():
                operation, path, when = POINTS[point]
                faulty_files.break_at(self._folder, operation, path, when, count=count)
                self._armed = point

    def _has_fired(self) -> bool:
        """Count the point that was set once a server was killed there; return whether another may be."""
        if self._armed is not None and faulty_files.is_broken(self._folder):
            self.done[f"killed {self._armed}"] += 1
            self._armed = None
        return self._armed is None

    def holds(self) -> bool:
        """Train; return whether it came to what an undisturbed training comes to."""
        storage = moto_s3.new_storage(self._s3) if self._s3 else faulty_files.make_storage(self._folder)
        selection = driving.selection_of(self.kind, self._chance.randrange(1000))
        selectors = driving.connect(
            self.run, storage, selection, self.exchange, self.world_size, shards=self.shards, on_unavailable="wait"
        )
        if self.is_unruly:
            for rank, selector in enumerate(selectors):
                inner: Any = selector.exchange
                shards = inner.connection.shards
                inner.connection.shards = [Unruly(one, 10 * rank + index) for index, one in enumerate(shards)]
        try:
            found = driving.outcome(selectors, driving.train(selectors, hook=self._disturb))
            return found == driving.undisturbed(selection, self.world_size)
        finally:
            for timer in self._frozen:
                timer.join()
            self._has_fired()
            (self._folder / "fault.json").unlink(missing_ok=True)
            with contextlib.suppress(errors.RunNotFoundError):
                launch.stop(self.run)


def _go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def main() -> int:
    """Soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--s3", action="store_true")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**9) if arguments.seed is None else arguments.seed
    print(f"seed {seed} (--seed {seed} does the same again)", flush=True)
    logging.getLogger("es_service").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    faulty_files.register()
    hook = {"env_vars": {"PYTHONPATH": str(HERE)}, "worker_process_setup_hook": "faulty_files.register"}
    broken: Counter[str] = Counter()
    num, end = 0, time.monotonic() + 60 * arguments.minutes
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="es-", ignore_cleanup_errors=True))
        s3 = stack.enter_context(moto_s3.serving()) if arguments.s3 else None
        ray.init(
            "local", num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
            _temp_dir=folder, runtime_env=hook, configure_logging=False,
        )  # fmt: skip
        while time.monotonic() < end:
            training = Training(num, random.Random(f"{seed}:{num}"), Path(folder) / "runs", s3)
            held = training.holds()
            print(f"{num:4d} {'held  ' if held else 'BROKEN'} {training}", flush=True)
            broken += training.done
            num += 1
            if not held:
                return 1
        call(ray.remote(lambda: None).remote(), 30.0, "see that Ray is still there")
        ray.shutdown()
    print(json.dumps({"seed": seed, "trainings": num, "held": num, "broken": dict(sorted(broken.items()))}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A process that shares its core notices."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from es_service.experiments.compare.worker import seconds_waited

BUSY = "import os, time\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
MEASURE = """
import os, time
from es_service.experiments.compare.worker import seconds_waited
os.sched_setaffinity(0, [{core}])
before, end = seconds_waited(), time.monotonic() + 1.0
while time.monotonic() < end: pass
print(seconds_waited() - before)
"""


@pytest.mark.skipif(seconds_waited() is None, reason="this system does not tell for how long a process waited")
def test_a_process_that_shares_its_core_waits() -> None:
    core = max(os.sched_getaffinity(0))
    neighbours = [
        subprocess.Popen([sys.executable, "-c", BUSY.format(core=core)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for neighbour in neighbours:
            assert neighbour.stdout is not None
            neighbour.stdout.readline()  # it is busy now
        done = subprocess.run(
            [sys.executable, "-c", MEASURE.format(core=core)], capture_output=True, text=True, check=True, timeout=60
        )
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.communicate()
    assert float(done.stdout) > 0.3  # two thirds of the second, were they all alike

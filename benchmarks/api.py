"""The HTTP service at 10⁷ samples, and what 50 readers cost a live run, each figure beside its target.

    python -m benchmarks.api [--json] [--out FILE] [--rows 1e7] [--no-live | --only-live]

Writes a finished run of that many samples into a folder of its own (10⁷: 500 MB), starts `es-service serve` on it as a
user would, and asks over loopback. The live part trains on Ray with readers and without, in turns. About two minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import api_live
from benchmarks.figures import Figure, Progress, percentiles
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig, RunState
from es_service.selection.table import RECORD
from es_service.storage.labels import write_notes
from es_service.storage.runs import RunStorage

__all__ = ["Service", "measure"]

_RUN = "large"
_STEPS_AN_EPOCH = 10_000
_PAGE = (
    "/v1/session", "/v1/runs", f"/v1/runs/{_RUN}", f"/v1/runs/{_RUN}/ledger", f"/v1/runs/{_RUN}/distribution",
    f"/v1/runs/{_RUN}/map", f"/v1/runs/{_RUN}/coverage", f"/v1/runs/{_RUN}/samples?limit=24",
)  # fmt: skip
"""What a page asks for when it opens."""


class Service:
    """`es-service serve` as a process of its own, on a free port of loopback.

    Args:
        storage: that it serves.
        more: further words of its command.
    """

    def __init__(self, storage: str, *more: str) -> None:
        words = [sys.executable, "-m", "es_service.cli", "serve", "--storage", storage, "--port", "0", *more]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stderr.readline())
        assert found is not None, self.process.stderr.read()
        self.port = int(found[1])

    def connect(self) -> HTTPConnection:
        """Return a connection that stays open."""
        return HTTPConnection("127.0.0.1", self.port, timeout=120)

    def memory_bytes(self) -> dict[str, int]:
        """Return the process's resident bytes: all, and those that are no file's pages."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return {
            name: 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)[1])  # type: ignore[index]
            for name, key in (("resident", "Rss"), ("anonymous", "Anonymous"))
        }

    def close(self) -> None:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()


def get(connection: HTTPConnection, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, float]:
    """Return the status, the body and the seconds that an answer took."""
    begin = time.perf_counter()
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    return answer.status, body, time.perf_counter() - begin


def write_run(storage: str, num_rows: int) -> None:
    """Write a finished run of random but plausible rows, with ten labels."""
    random = np.random.default_rng(0)
    selection = Selection(methods.evolved(), ratio=0.25)
    config = RunConfig(selection=selection, num_samples=num_rows, num_epochs=3, batch_size=min(1024, num_rows))
    run = RunStorage(storage, _RUN)
    run.begin(config, {"task": "made up", "method": "es"})
    write_notes(run, random.integers(0, 10, num_rows), tuple(f"label {code}" for code in range(10)), None)
    records = np.zeros(num_rows, dtype=RECORD)
    for epoch in (2, 3):
        records["loss_mean"] = random.exponential(1.0, num_rows)
        records["loss_var"] = (records["loss_mean"] * random.random(num_rows)) ** 2
        records["s"] = records["loss_mean"] * random.uniform(0.5, 1.0, num_rows)
        records["w"] = records["last_loss"] = records["loss_mean"] * random.uniform(0.2, 1.0, num_rows)
        records["visits"] = epoch
        records["selected"] = random.integers(0, epoch + 1, num_rows)
        records["last_step"] = (epoch - 1) * _STEPS_AN_EPOCH + random.integers(0, _STEPS_AN_EPOCH, num_rows)
        run.write_snapshot(RunState(records, epoch, tuple(_STEPS_AN_EPOCH * one for one in range(epoch + 1))))


@contextlib.contextmanager
def watched(service: Service) -> Iterator[dict[str, int]]:
    """Fill in, while the block runs, by how much the service's memory rose above what it was before."""
    before, rise, stop = service.memory_bytes(), {"resident": 0, "anonymous": 0}, threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            now = service.memory_bytes()
            for name in rise:
                rise[name] = max(rise[name], now[name] - before[name])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield rise
    finally:
        stop.set()
        thread.join()


def measure(num_rows: int, *, live: bool = True, finished: bool = True) -> dict[str, Any]:
    """Measure all of it, or one of the two parts."""
    found: dict[str, Any] = {"rows": num_rows, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    if finished:
        with tempfile.TemporaryDirectory(prefix="es-bench-") as storage:
            with Progress(f"writing a run of {num_rows:,} samples"):
                write_run(storage, num_rows)
            service = Service(storage, "--no-ray")
            try:
                found |= _finished(service, num_rows)
            finally:
                service.close()
    if live:
        with Progress("a live run, with readers and without, in turns"):
            found["live"] = api_live.measure(Service, get)
    found["figures"] = [one.to_dict() for one in _figures(found)]
    return found


def _finished(service: Service, num_rows: int) -> dict[str, Any]:
    connection, random = service.connect(), np.random.default_rng(1)
    run = f"/v1/runs/{_RUN}"
    with Progress("the first page"):
        first = {path: _seconds(connection, path) for path in _PAGE}
        again = {path: _seconds(connection, path) for path in _PAGE}
    with Progress("single samples"):
        points = [_seconds(connection, f"{run}/samples/{one}") for one in random.integers(0, num_rows, 1001)]
    with Progress("the top 100"):
        orders = ["-w", "w", "-s", "-loss_mean", "-suspicion", "last_loss", "-loss_std", "-age"]
        firsts = [_seconds(connection, f"{run}/samples?limit=100&order={order}") for order in orders]
        tops = [
            _seconds(connection, f"{run}/samples?limit=100&order={orders[one % 8]}&offset={one}") for one in range(400)
        ]
        filtered = [
            _seconds(connection, f"{run}/samples?limit=100&where=label=label%20{one % 10}&where=s%3E{edge:.3f}")
            for one, edge in enumerate(random.uniform(0.2, 1.0, 40))
        ]
    exports = {}
    for file_format in ("arrow", "parquet", "csv"):
        with Progress(f"an export to {file_format}"):
            exports[file_format] = _export(service, connection, f"{run}/export?format={file_format}")
    connection.close()
    return {
        "first_s": first,
        "again_s": again,
        "point": percentiles(points[1:]) | {"first_ms": 1e3 * points[0]},
        "top_100": percentiles(tops) | {"first_ms": 1e3 * max(firsts)},
        "top_100_filtered": percentiles(filtered),
        "export": exports,
    }


def _seconds(connection: HTTPConnection, path: str) -> float:
    status, body, seconds = get(connection, path)
    assert status == 200, (path, body)
    return seconds


def _export(service: Service, connection: HTTPConnection, path: str) -> dict[str, Any]:
    with watched(service) as rise:
        connection.request("GET", path)
        answer, size, begin = connection.getresponse(), 0, time.perf_counter()
        while piece := answer.read(1 << 20):
            size += len(piece)
    return {"bytes": size, "seconds": time.perf_counter() - begin, "rise_bytes": dict(rise)}


def _figures(found: dict[str, Any]) -> list[Figure]:
    note, figures = f"{found['rows']:,} samples", []
    if "point" in found:
        figures = [
            Figure("a sample, p99", found["point"]["p99_ms"], "ms", 20.0, note=note),
            Figure("the top 100, p99", found["top_100"]["p99_ms"], "ms", 250.0, note=note),
        ]
        for file_format, one in found["export"].items():
            rise = one["rise_bytes"]["anonymous"] / 1e6
            figures.append(Figure(f"memory of an export to {file_format}, above rest", rise, "MB", 300.0, note=note))
        pages = sum(found["again_s"].values())
        figures.append(Figure("what a page asks for when it opens, again", pages, "s", 1.0, note=note))
    live = found.get("live")
    for exchange, one in (live or {}).get("exchanges", {}).items():
        note = f"{exchange}, {live['readers']} readers"
        figures.append(Figure("exchange seconds a step, with readers to without", one["ratio"], "x", 1.05, note=note))
    return figures


def readable(found: dict[str, Any]) -> str:
    """Return the measurement as text."""
    lines = [f"{found['rows']:,} samples, {found['machine']}", ""]
    if "first_s" in found:
        lines.append("  first ms  again ms  route")
        for path, seconds in found["first_s"].items():
            lines.append(f"  {1e3 * seconds:8.1f}  {1e3 * found['again_s'][path]:8.1f}  {path}")
    for name in (name for name in ("point", "top_100", "top_100_filtered") if name in found):
        one = found[name]
        first = f", the first {one['first_ms']:.0f} ms" if "first_ms" in one else ""
        lines.append(f"{name}: p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms{first}")
    for file_format, one in found.get("export", {}).items():
        rise = one["rise_bytes"]
        lines.append(
            f"export {file_format}: {one['bytes'] / 1e6:,.0f} MB in {one['seconds']:.1f} s; memory rose by "
            f"{rise['anonymous'] / 1e6:.0f} MB, with pages of the mapped file by {rise['resident'] / 1e6:.0f} MB"
        )
    for exchange, one in (found.get("live") or {}).get("exchanges", {}).items():
        lines.append(
            f"live, {exchange}: {one['without_ms']:.3f} ms of exchange a step without readers, {one['with_ms']:.3f} ms "
            f"with; {one['answers']:,} answers"
        )
    lines.append("")
    for one in found["figures"]:
        verdict = {True: "reached", False: "MISSED", None: "not measured"}[one["reached"]]
        lines.append(
            f"{verdict:12} {one['name']}: {one['value']:.3g} {one['unit']} (≤ {one['target']:g}; {one['note']})"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e7)
    parser.add_argument("--no-live", action="store_true", help="leave out the part that needs Ray")
    parser.add_argument("--only-live", action="store_true", help="leave out all but that")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", metavar="FILE", help="write the results there as JSON")
    options = parser.parse_args()
    found = measure(int(options.rows), live=not options.no_live, finished=not options.only_live)
    if options.out:
        Path(options.out).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found) if options.json else readable(found))


if __name__ == "__main__":
    main()

"""What selection costs, in-process and over Ray, each figure beside its target, all of them in one run.

    python -m benchmarks.service [--json] [--out DIR] [--quick] [--rows 1e6,1e7]

Machines differ and are noisy, so costs come as ratios wherever they can: to numpy moving the same bytes, to an empty
actor call, to the same step at rest. Takes about four minutes and 9 GiB (tables that do not fit are left out and
named).
`--out` writes results.json and picture.png there (needs matplotlib).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import service_kernel
from benchmarks.figures import Figure, Progress
from es_service.selection import compiled

__all__ = ["FULL", "QUICK", "Sizes", "measure", "readable"]


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """How large and how long everything is."""

    rows: tuple[int, ...] = (10**6, 10**7, 10**8)
    batch_sizes: tuple[int, ...] = (128, 1024, 4096)
    fastest_batch: int = service_kernel.FASTEST_BATCH
    kernel_steps: int = 300
    paced_kernel_steps: int = 40
    large_draw: tuple[int, int] = (62_500, 250_000)
    call_samples: int = 1 << 20
    call_steps: int = 300
    paced_call_steps: int = 80
    client_steps: int = 256
    flood_steps: int = 1024
    reading_steps: int = 200
    reading_pause_s: float = 0.05
    reading_every_s: float = 2.0
    memory_clients: int = 64
    memory_steps: int = 16
    memory_epochs: int = 9

    @property
    def large_rows(self) -> int:
        """Of the plan and of the table that is read: 10 million, or the largest table below."""
        return max((rows for rows in self.rows if rows <= 10**7), default=min(self.rows))


FULL = Sizes()
QUICK = Sizes(
    rows=(10**4, 10**5),
    batch_sizes=(128, 1024),
    kernel_steps=30,
    paced_kernel_steps=4,
    call_samples=1 << 15,
    call_steps=20,
    paced_call_steps=5,
    client_steps=4,
    flood_steps=8,
    reading_steps=10,
    reading_pause_s=0.02,
    reading_every_s=0.1,
    memory_clients=8,
    memory_steps=2,
    memory_epochs=3,
)


def main() -> int:
    """Run the benchmark and print tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json and picture.png there")
    parser.add_argument("--quick", action="store_true", help="at sizes where the figures mean little")
    parser.add_argument("--rows", type=_rows, metavar="N,N", help="table sizes, such as 1e6,1e7")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    if options.rows:
        sizes = dataclasses.replace(sizes, rows=options.rows)
    results = measure(sizes)
    if options.out is not None:
        from benchmarks import service_picture

        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        service_picture.write(options.out / "picture.png", results)
    print(json.dumps(results) if options.json else readable(results))
    return 0


def _rows(text: str) -> tuple[int, ...]:
    try:
        rows = tuple(sorted({int(float(part)) for part in text.split(",")}))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1e6,1e7") from error
    if rows[0] < 2 * FULL.fastest_batch:
        raise argparse.ArgumentTypeError(
            f"a table of {rows[0]:,} rows is too small: {2 * FULL.fastest_batch:,} at least"
        )
    return rows


def measure(sizes: Sizes) -> dict[str, Any]:
    """Measure everything; return plain values."""
    began = time.monotonic()
    results: dict[str, Any] = {"machine": _machine(), "sizes": dataclasses.asdict(sizes)}
    with Progress("in-process"):
        figures = _in_process(sizes, results)
    figures += _over_ray(sizes, results)
    results["figures"] = [figure.to_dict() for figure in figures]
    results["seconds"] = time.monotonic() - began
    return results


def _in_process(sizes: Sizes, results: dict[str, Any]) -> list[Figure]:
    paced = {sizes.large_rows: sizes.paced_kernel_steps}
    kernel = results["kernel"] = []
    for rows in sizes.rows:
        kernel += service_kernel.measure_kernel(rows, sizes.batch_sizes, sizes.kernel_steps, paced.get(rows, 0), 0.05)
    [fastest] = service_kernel.measure_kernel(sizes.large_rows, (sizes.fastest_batch,), sizes.kernel_steps, 0, 0.0)
    results["kernel"] = [*kernel, fastest]
    figures = service_kernel.figures_of(kernel, fastest, sizes.batch_sizes)
    num, size = sizes.large_draw
    draw_s, plan_s = service_kernel.large_draw(num, size, 20), service_kernel.plan_epoch(sizes.large_rows)
    figures.append(Figure("one draw", 1e3 * draw_s, "ms", 50.0, note=f"{num:,} of {size:,}"))
    figures.append(Figure("plan with pruning, shuffled, dealt", plan_s, "s", 1.5, note=f"{sizes.large_rows:,} rows"))
    return figures


def _over_ray(sizes: Sizes, results: dict[str, Any]) -> list[Figure]:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # keeps all of Ray on 127.0.0.1
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    from benchmarks import service_load, service_ray

    largest = max(sizes.batch_sizes)
    ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        with tempfile.TemporaryDirectory() as storage:
            with Progress("calls"):
                calls = results["calls"] = service_ray.measure_calls(
                    storage, sizes.batch_sizes, sizes.call_samples, sizes.call_steps, sizes.paced_call_steps
                )
            with Progress("clients"):
                clients = results["clients"] = service_load.concurrent_clients(storage, largest, sizes.client_steps)
            with Progress("flood"):
                flood = results["flood"] = service_load.flood(storage, largest, sizes.flood_steps)
            with Progress("reading"):
                reading = results["reading"] = service_load.reading_beside_training(
                    storage,
                    sizes.large_rows,
                    1024,
                    sizes.reading_steps,
                    sizes.reading_pause_s,
                    sizes.reading_every_s,
                )
            with Progress("memory"):
                memory = results["memory"] = service_load.memory_growth(
                    storage, sizes.memory_clients, 1024, sizes.memory_steps, sizes.memory_epochs
                )
    finally:
        ray.shutdown()
    at = f"B = {largest:,}"
    rate, flooded = clients["samples_per_s"] / 1e6, flood["samples_per_s"] / 1e6
    return [
        *service_ray.figures_of(calls),
        Figure("4 processes in sync, together", rate, "M samples/s", 3.5, at_most=False, note=at),
        Figure("observations in the background", flooded, "M samples/s", 5.0, at_most=False, note=f"{at}, one shard"),
        Figure(
            "p99 of a sync step while a table is read",
            reading["p99_ratio"],
            "x",
            3.0,
            note=f"{reading['rows']:,} rows, to p99 at rest",
        ),
        Figure(
            "growth of the server's memory",
            100 * memory["growth"],
            "%",
            2.0,
            note=f"{memory['num_clients']} clients, {memory['num_reports']:,} reports",
        ),
    ]


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "processor": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "loops": "numpy" if compiled.loops() is None else "machine code",
    }


def readable(results: dict[str, Any]) -> str:
    """Return the results as text."""
    loops = results["machine"]["loops"]
    lines = [f"in-process, loops in {loops}: checks + step, and numpy moving the same bytes", ""]
    lines.append("       rows      B  pace          kernel p50  p99 µs   bare p50  p99 µs  to bare  M samples/s")
    for one in results["kernel"]:
        if "skipped" in one:
            lines.append(f"{one['rows']:>11,}  not run: {one['skipped']}")
            continue
        kernel, bare = one["kernel"], one["bare"]
        lines.append(
            f"{one['rows']:>11,}  {one['batch_size']:>5,}  {one['pace']:12}  {1e3 * kernel['p50_ms']:10.0f}  "
            f"{1e3 * kernel['p99_ms']:6.0f}   {1e3 * bare['p50_ms']:8.0f}  {1e3 * bare['p99_ms']:6.0f}  "
            f"{one['to_bare']:7.2f}  {one['samples_per_s'] / 1e6:11.1f}"
        )
    lines += ["", "over Ray: what the training thread waits for in a step", ""]
    lines.append("      B  pace          exchange  p50 ms  p99 ms  to empty")
    lines += [
        f"{one['batch_size']:>7,}  {one['pace']:12}  {one['kind']:8}  {one['p50_ms']:6.2f}  {one['p99_ms']:6.2f}  "
        f"{one['to_empty']:8.2f}"
        for one in results["calls"]
    ]
    lines += ["", "against the targets", ""]
    lines += [
        _line(Figure(**{key: value for key, value in one.items() if key != "reached"})) for one in results["figures"]
    ]
    return "\n".join(lines)


def _line(figure: Figure) -> str:
    value = "   not run" if figure.value is None else f"{figure.value:10.2f}"
    bound = f"{'<=' if figure.at_most else '>='} {figure.target:g}"
    verdict = {True: "reached", False: "MISSED", None: ""}[figure.reached]
    return f"  {figure.name:44} {value} {figure.unit:12} {bound:8} {verdict:8} {figure.note}".rstrip()


if __name__ == "__main__":
    sys.exit(main())

"""What each exchange costs a training, and what it should cost with up to 512 workers and 10^9 samples.

    python -m benchmarks.exchanges [--json] [--out DIR] [--quick] [--workers 2,4] [--turns N]
                                   [--simulate-only | --train-only]

Measures what a call, a plan and an all-gather take here, extrapolates by a model, and checks the model with as many
clients as fit here; trains with every exchange in turns. `--out` writes exchanges.json and the picture
exchanges.png there (needs matplotlib); the halves may be run apart: the file keeps the other one's figures. All of it
takes about 10 minutes on 2 cores, the simulation alone 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks import exchange_check, exchange_model, exchange_services, exchange_training

RATE = 20.0
_STEPS = {"back_to_back": 500, "paced": 80}
_QUICK_STEPS = {"back_to_back": 40}


def main() -> int:
    """Run the benchmark and print tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write exchanges.json and exchanges.png there")
    parser.add_argument("--quick", action="store_true", help="so small that the figures mean nothing: to see it work")
    parser.add_argument(
        "--workers", default="2,4", metavar="W,…", help="numbers of workers to train with (default: 2,4)"
    )
    parser.add_argument(
        "--turns", type=int, default=1, metavar="N", help="training runs with each exchange (default: 1)"
    )
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--simulate-only", action="store_true", help="measure services and extrapolate, train nothing")
    half.add_argument("--train-only", action="store_true", help="train, extrapolate nothing")
    options = parser.parse_args()
    workers = [int(word) for word in options.workers.split(",")]
    figures: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]}
    if not options.train_only:
        figures |= simulate(quick=options.quick)
    if not options.simulate_only:
        figures["training"] = train(workers, options.turns, quick=options.quick)
    if options.out is not None:
        figures = written(options.out, figures)
    print(json.dumps(figures) if options.json else readable(figures))
    return 0


def train(workers: list[int], turns: int, *, quick: bool) -> dict[str, Any]:
    """Train with one worker and with these numbers of them."""
    if quick:
        return exchange_training.measure(exchange_training.QUICK, workers, ["leased", "collective(8)"])
    return exchange_training.measure(exchange_training.Shape(turns=turns), [1, *workers])


def simulate(*, quick: bool) -> dict[str, Any]:
    """Measure services, extrapolate, and check."""
    cores = len(os.sched_getaffinity(0))
    clients = exchange_check.measure_clients((1, 2) if quick else (1, 2, 4, 8), _QUICK_STEPS if quick else _STEPS)
    services, made_from = exchange_services.measure(exchange_check.one_call(clients), quick=quick)
    return {
        "services": services.to_dict(),
        "measured": {**made_from, "clients": clients},
        "model": exchange_model.grid(services, RATE),
        "check": exchange_check.compare(clients, cores),
        "planning_check": exchange_services.check_planning(services, 10**6 if quick else 5 * 10**7),
    }


def written(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Put the figures beside those of the other half in this folder, draw what there is, and return all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "exchanges.json"
    if file.exists():
        figures = {**json.loads(file.read_text()), **figures}
    file.write_text(json.dumps(figures))
    if "training" in figures and "model" in figures:
        from benchmarks import exchange_picture

        exchange_picture.write(folder / "exchanges.png", figures)
    return figures


def readable(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    parts = [f"{figures['cores']} cores, load average before {figures['load_before']:.1f}"]
    if "training" in figures:
        parts.append(exchange_training.readable(figures["training"]))
    if "model" in figures:
        services = exchange_model.Services.from_dict(figures["services"])
        parts += [
            exchange_services.readable(services, figures["measured"], figures["planning_check"]),
            exchange_model.readable(figures["model"], RATE),
            exchange_check.readable(figures["check"]),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

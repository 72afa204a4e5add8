"""What the draws do: inclusion probabilities against the target, variance of the estimate, time per draw.

    python -m benchmarks.draws [--json] [--out DIR]

A batch has losses (what is to be estimated) and weights (what is drawn by), which know the losses but roughly: they are
loss times a lognormal factor. Each draw is repeated with fresh uniforms; figures come with their standard errors.
`--out` writes the picture `draws.png` there (needs matplotlib). Takes a minute or two of processor time.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.selection import draws

F64 = NDArray[np.float64]

ROUNDS, SLOW_ROUNDS = 20_000, 600
SLOW = {"conditional_poisson"}
STALENESS = 0.5  # standard deviation of log(weight / loss)
TIMED_BATCH, TIMED_NUM, TIMED_CALLS, SLOW_CALLS = 1024, 256, 1000, 10


@dataclasses.dataclass(frozen=True)
class Batch:
    """Losses and weights of B candidates, b of which are drawn."""

    name: str
    losses: F64
    weights: F64
    num: int


def make_batches(size: int = 256, num: int = 64) -> list[Batch]:
    """Return the enumeration case, and two batches with losses as at the start and near the end of a training."""
    rng = np.random.default_rng(0)
    batches = [Batch("small", np.array([6.0, 6.0, 2.0, 1.0, 1.0]), np.array([8.0, 4.0, 2.0, 1.0, 1.0]), 2)]
    for name, losses in (
        ("exponential", rng.exponential(size=size)),
        ("lognormal", rng.lognormal(sigma=2.0, size=size)),
    ):
        batches.append(Batch(name, losses, losses * rng.lognormal(sigma=STALENESS, size=size), num))
    return batches


def main() -> int:
    """Run the benchmark and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write draws.png there")
    options = parser.parse_args()
    batches = make_batches()
    figures: dict[str, Any] = {
        "batches": [measure_batch(batch) for batch in batches],
        "us_per_draw": {name: microseconds(name) for name in draws.DRAWS},
    }
    if options.out is not None:
        from benchmarks import draws_picture

        options.out.mkdir(parents=True, exist_ok=True)
        draws_picture.write(options.out / "draws.png", figures)
    print(json.dumps(figures) if options.json else readable(figures))
    return 0


def measure_batch(batch: Batch) -> dict[str, Any]:
    """Return the target and, for every draw, what repeating it shows."""
    target = draws.inclusion_targets(batch.weights, batch.num)
    exact = {"race": race_inclusions(batch.weights, batch.num)} if batch.name == "small" else {}
    return {
        "name": batch.name,
        "size": batch.weights.size,
        "num": batch.num,
        "num_certain": int(np.sum(target == 1.0)),
        "target": target.tolist(),
        "exact": {name: values.tolist() for name, values in exact.items()},
        "draws": {name: measure_draw(name, batch, target) for name in draws.DRAWS},
    }


def measure_draw(name: str, batch: Batch, target: F64) -> dict[str, Any]:
    """Repeat one draw of one batch; estimates are in units of the mean loss over the B."""
    rounds = SLOW_ROUNDS if name in SLOW else ROUNDS
    size, num, losses = batch.weights.size, batch.num, batch.losses / batch.losses.mean()
    shares = batch.weights / batch.weights.sum()
    draw, rng = draws.DRAWS[name], np.random.default_rng(1)
    taken_in = np.zeros((rounds, size), dtype=np.bool_)
    plain, unbiased, inverse_share = np.empty((3, rounds))
    for i in range(rounds):
        drawn = draw(batch.weights, num, rng.random(size))
        taken, times = drawn.positions_b, drawn.times_b
        taken_in[i, taken] = True
        plain[i] = np.dot(times, losses[taken]) / num
        inverse_share[i] = np.dot(times, losses[taken] / shares[taken]) / (num * size)
        if name != "topk":
            unbiased[i] = np.mean(drawn.scale(size, unbiased=True) * losses[taken])
    seen = taken_in.mean(axis=0)
    uniform_variance = (1.0 - num / size) * losses.var(ddof=1) / num
    figures = {
        "rounds": rounds,
        "inclusion": seen.tolist(),
        "mean_deviation": float(np.mean(np.abs(seen - target))),
        "max_deviation": float(np.max(np.abs(seen - target))),
        "error": float(np.mean(np.sqrt(target * (1.0 - target) / rounds))),
        "distinct": float(seen.sum() / num),
        "plain_mean": mean_and_error(plain),
        "inverse_share_mean": mean_and_error(inverse_share),
    }
    if name != "topk":
        figures["unbiased_mean"] = mean_and_error(unbiased)
        figures["variance"] = variance_and_error(unbiased, uniform_variance)
    if name in ("race", "priority"):  # as if their unconditional probabilities were known
        by_seen = taken_in @ (losses / (size * np.maximum(seen, 1.0 / rounds)))
        figures["variance_by_seen"] = variance_and_error(by_seen, uniform_variance)
    return figures


def mean_and_error(values: F64) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std() / np.sqrt(values.size))


def variance_and_error(values: F64, unit: float) -> tuple[float, float]:
    """Return the variance in this unit, and its standard error."""
    return mean_and_error((values - values.mean()) ** 2 / unit)


def race_inclusions(weights: F64, num: int) -> F64:
    """Return the exact inclusion probabilities of successive draws, over all their orders: small cases only."""
    inclusions = np.zeros(weights.size)
    for order in itertools.permutations(range(weights.size), num):
        left = weights.sum() - np.concatenate([[0.0], np.cumsum(weights[list(order[:-1])])])
        inclusions[list(order)] += np.prod(weights[list(order)] / left)
    return inclusions


def microseconds(name: str) -> float:
    """Median processor time of a draw, without its probabilities, on exponential float32 weights."""
    rng = np.random.default_rng(2)
    weights = rng.exponential(size=TIMED_BATCH).astype(np.float32)
    taken = []
    for _ in range(SLOW_CALLS if name in SLOW else TIMED_CALLS):
        uniforms = rng.random(TIMED_BATCH)
        begin = time.process_time()
        draws.DRAWS[name](weights, TIMED_NUM, uniforms)
        taken.append(time.process_time() - begin)
    return 1e6 * float(np.median(taken))


def readable(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines: list[str] = []
    for batch in figures["batches"]:
        lines += [
            f"{batch['name']}: b = {batch['num']} of B = {batch['size']}, {batch['num_certain']} of them certain",
            "                       |seen - target|         b'/b   variance, unbiased   unbiased estimate   "
            "1/(B·p) estimate  mean of",
            "                       mean     max    error            over uniform       over mean of all    "
            "over mean of all  drawn",
        ]
        for name, one in batch["draws"].items():
            lines.append(
                f"  {name:19} {one['mean_deviation']:6.4f}  {one['max_deviation']:6.4f}  {one['error']:6.4f}  "
                f"{one['distinct']:5.3f}    {pair(one.get('variance')):>15}    {pair(one.get('unbiased_mean')):>15}   "
                f"{pair(one['inverse_share_mean']):>15}  {one['plain_mean'][0]:7.3f}"
            )
        lines += [
            f"  variance of {name} with its unconditional π, as seen: {pair(one['variance_by_seen'])}"
            for name, one in batch["draws"].items()
            if "variance_by_seen" in one
        ]
        lines.append("")
        if batch["exact"]:
            lines.append("  probability of each  " + "  ".join(f"{w:>6}" for w in "abcde"))
            rows = {"target": batch["target"], "race, exact": batch["exact"]["race"]}
            rows |= {f"{name}, seen": one["inclusion"] for name, one in batch["draws"].items()}
            lines += [f"  {name:26} " + "  ".join(f"{p:.4f}" for p in values) for name, values in rows.items()]
            lines.append("")
    lines.append(f"µs of processor time per draw, b = {TIMED_NUM} of B = {TIMED_BATCH:,}")
    lines += [f"  {name:20} {value:10,.0f}" for name, value in figures["us_per_draw"].items()]
    return "\n".join(lines)


def pair(value: tuple[float, float] | None) -> str:
    """Return a figure with its standard error; a dash where there is none."""
    return "-" if value is None else f"{value[0]:.4f} ± {value[1]:.4f}"


if __name__ == "__main__":
    sys.exit(main())

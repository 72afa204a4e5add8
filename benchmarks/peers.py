"""es_service beside its peers, on the same work: report B values for B ids, get b = B/4 of them drawn by weight.

    python -m benchmarks.peers [--json] [--python NAME=PATH] [--install DIR]

Each runs in a process of its own, one after the other and all of them twice, under the interpreter named for it
(`--python torchrl=PATH`), or under one that `--install` makes, or else under this one. What cannot be installed or does
not run is named with the reason. `pip install 'es-service[peers]'` has them all, where their pins agree.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

__all__ = ["PEERS", "measure", "readable"]

ROOT = Path(__file__).parents[1]
BATCH_SIZES, ROWS, STEPS = (128, 1024, 4096), (10**5, 10**6), 200
PEERS: dict[str, tuple[str, ...]] = {  # what each needs from a package index
    "ours": (),
    "cpprb": ("cpprb >=11", "numpy >=1.26"),
    "torchrl": ("torchrl >=0.14", "ray >=2.52", "numpy >=1.26"),
    "transferqueue": ("TransferQueue >=0.1.11", "numpy >=1.26"),
    "redis": ("redis >=5", "numpy >=1.26"),
}
DEADLINE_S = 900.0


def main() -> int:
    """Measure everybody and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a peer")
    parser.add_argument("--install", type=Path, metavar="DIR", help="make an environment for each peer there")
    parser.add_argument("--only", type=_names, default=list(PEERS), metavar="NAME,NAME", help="which to measure")
    parser.add_argument("--batch-sizes", default=",".join(map(str, BATCH_SIZES)), metavar="B,B")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), metavar="N,N", help="table sizes")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="at each size, or as many as 4 s hold")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="through all peers; the best median counts")
    options = parser.parse_args()
    pythons = {name: Path(path) for name, _, path in (entry.partition("=") for entry in options.python)}
    if unknown := set(pythons) - set(PEERS):
        parser.error(f"no peer is called {', '.join(sorted(unknown))}: there are {', '.join(PEERS)}")
    work = ["--batch-sizes", options.batch_sizes, "--rows", options.rows, "--steps", str(options.steps)]
    results = measure(options.only, work, pythons, options.install, options.rounds)
    print(json.dumps(results) if options.json else readable(results))
    return 0


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(
            f"no peer is called {', '.join(sorted(unknown))}: there are {', '.join(PEERS)}"
        )
    return names


def measure(
    names: list[str], work: list[str], pythons: dict[str, Path], install: Path | None, rounds: int = 1
) -> dict[str, Any]:
    """Let each peer do the work; return plain values.

    Args:
        names: of `PEERS`.
        work: what every peer's module is told of it.
        pythons: interpreters, by name.
        install: where to make environments for those that have none; None makes none.
        rounds: how often everybody has a turn, so that a noisy moment of the machine hits nobody alone.
    """
    results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "versions": {}, "not_run": {}}
    best: dict[tuple[str, int, int], dict[str, Any]] = {}
    used = {name: pythons.get(name, Path(sys.executable)) for name in names}
    for name in names:
        if install is not None and name not in pythons and PEERS[name]:
            python, reason = _environment(install / name, PEERS[name])
            if python is None:
                results["not_run"][name] = reason
            else:
                used[name] = python
    for turn in range(rounds):
        for name in [name for name in names if name not in results["not_run"]]:
            print(f"{name}, round {turn + 1} of {rounds} …", file=sys.stderr)
            found = _run(used[name], name, work)
            if isinstance(found, str):
                results["not_run"][name] = found
                continue
            results["versions"] |= found["versions"]
            for one in found["measured"]:
                size = (one["peer"], one["rows"], one["batch_size"])
                if "error" not in one and one["p50_ms"] < best.get(size, {"p50_ms": float("inf")})["p50_ms"]:
                    best[size] = one
                elif "error" in one:
                    at = f"{one['peer']}, {one['rows']:,} rows, B = {one['batch_size']:,}, round {turn + 1}"
                    results["not_run"][at] = one["error"]
    results["measured"] = list(best.values())
    return results


def _environment(folder: Path, requirements: tuple[str, ...]) -> tuple[Path | None, str]:
    """Return the interpreter of an environment that holds these, made if absent; or None and why not."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run([*pip, *requirements], capture_output=True, text=True)
    return (python, "") if done.returncode == 0 else (None, f"pip: {_reason(done.stderr)}")


def _run(python: Path, name: str, work: list[str]) -> dict[str, Any] | str:
    """Return what the peer's module printed, or why there is nothing."""
    module = f"benchmarks.peer_{name}"
    if importlib.util.find_spec(module) is None:
        return f"no module {module}"
    try:
        done = subprocess.run(
            [str(python), "-m", module, *work], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"versions"'):
            found: dict[str, Any] = json.loads(line)
            return found
    return _reason(done.stderr) or f"it ended with status {done.returncode} and said nothing"


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("ERROR")]
    return (errors or lines or [""])[-1][:300]


def readable(results: dict[str, Any]) -> str:
    """Return the results as text: for each size the fastest first, and what it costs in steps of ours."""
    lines = [", ".join(f"{name} {version}" for name, version in results["versions"].items())]
    sizes = sorted({(one["rows"], one["batch_size"]) for one in results["measured"]})
    for rows, batch_size in sizes:
        here = [one for one in results["measured"] if (one["rows"], one["batch_size"]) == (rows, batch_size)]
        ours = {one["peer"]: one["p50_ms"] for one in here if one["peer"].startswith("es_service")}
        lines += ["", f"{rows:,} rows, {batch_size:,} reported, {batch_size // 4:,} drawn"]
        lines.append(f"  {'':34}  p50 ms   p99 ms  M samples/s" + "".join(f"  to {name}" for name in ours))
        for one in sorted(here, key=lambda one: one["p50_ms"]):
            rate = batch_size / one["p50_ms"] / 1e3
            ratios = "".join(f"  {one['p50_ms'] / value:{3 + len(name)}.2f}" for name, value in ours.items())
            lines.append(f"  {one['peer']:34} {one['p50_ms']:7.3f}  {one['p99_ms']:7.2f}  {rate:11.2f}{ratios}")
    if results["not_run"]:
        lines += ["", "not run"]
        lines += [f"  {name}: {reason}" for name, reason in results["not_run"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""What selection is worth on an accelerator: one command for a machine that is there for minutes.

    python -m benchmarks.gpu pack --data DIR [--packed FILE] [--mib M]       # there: a tar of the data, to take along
    python -m benchmarks.gpu --minutes 8 --out DIR [--data DIR_OR_TAR] [--model FOLDER [--lora]]
    python -m benchmarks.gpu --tiny --minutes 5 --out DIR      # on a CPU, at sizes where the figures mean nothing

CIFAR-10 with ResNet-18 (without data: the Fashion-MNIST images of the package), a language model on GSM8K with gradient
accumulation, and the cost of the exchanges. DIR gets a line in runs.jsonl for each run as it ends, and table.md. A
second call with the same DIR continues; a run that the end of the time interrupts starts over then.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import gpu_data, gpu_plan, gpu_runs, gpu_table
from benchmarks.gpu_plan import Job, Part
from es_service import errors
from es_service.experiments.begin import check_extra
from es_service.experiments.compare.comparison import Candidate, Comparison, parse_candidates
from es_service.experiments.compare.running import Slots

__all__ = ["main"]

METHODS = "full,es,eswp,infobatch,random"
_POLL_S = 0.05
_END_S = 10.0  # for the table, and for processes that have to end
_IMAGES, _ANSWERED, _TINY = 20_000, 256, 32
"""Images to train on; problems whose answers are generated, which takes longer than training; samples of a try."""


def main(words: Sequence[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Run the command and return its exit status; `clock` gives seconds."""
    begin = clock()
    options = _parser().parse_args(words)
    try:
        if options.what == "pack":
            rows = gpu_data.pack(options.data or Path(), options.packed, options.mib)
            print(f"{options.packed}: {options.packed.stat().st_size / 2**20:.1f} MiB, {rows}")
            return 0
        on_gpu = _on_gpu()
        if not on_gpu and not options.tiny:
            print("there is no GPU here: --tiny runs on the CPU, at sizes where the figures mean nothing")
            return 2
        check_extra("report", "the table", "scipy")  # before the time is spent
        options.out.mkdir(parents=True, exist_ok=True)
        most = {gpu_data.IMAGES[0]: options.images or _IMAGES, gpu_data.MATHS[1]: _ANSWERED}
        if options.tiny:
            most = dict.fromkeys((*gpu_data.IMAGES, *gpu_data.MATHS), _TINY)
        with gpu_data.opened(options.data, most) as data:
            parts, left_out = _parts(options, data)
            work = _Work(parts, options.out / "runs.jsonl", options.jobs or (4 if on_gpu else 1))

            def show() -> str:
                table = gpu_table.table(parts, work.finished, [*left_out, *work.missing()])
                (options.out / "table.md").write_text(table)
                return table

            try:
                work.run(lambda: begin + 60 * options.minutes - _END_S * (not options.tiny) - clock(), show)
            finally:
                print(show())
    except errors.EsServiceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flag = parser.add_argument
    flag("what", nargs="?", choices=("run", "pack"), default="run", help="pack writes the data to a file to carry")
    flag("--minutes", type=float, default=8.0, help="all that the command may take (default: %(default)s)")
    flag("--out", type=Path, default=Path("gpu"), metavar="DIR", help="for runs.jsonl and table.md (default: gpu)")
    flag("--data", type=Path, metavar="PATH", help="folder of the Parquet files, or what pack made of them")
    flag("--packed", type=Path, default=Path("gpu-data.tar"), metavar="FILE", help="of pack (default: %(default)s)")
    flag("--mib", type=float, default=gpu_data.LIMIT_MIB, help="most MiB that pack writes (default: %(default)s)")
    flag("--model", metavar="FOLDER", help="of a language model for GSM8K; without one that part is left out")
    flag("--lora", action="store_true", help="train adapters of it, instead of all weights")
    flag("--methods", default=METHODS, metavar="M,…", help="the most valuable first (default: %(default)s)")
    flag("--seeds", type=int, default=5, metavar="S", help="runs of each method (default: %(default)s)")
    flag("--seed-base", type=int, default=0, metavar="N", help="the first seed (default: %(default)s)")
    flag("--images", type=int, metavar="N", help="images to train on (default: 20000)")
    flag("--epochs", type=int, metavar="E", help="epochs of a full run on images (default: 30)")
    flag("--jobs", type=int, metavar="J", help="runs side by side (default: 4, on a CPU 1)")
    flag("--no-exchanges", action="store_true", help="leave out what the exchanges cost, which needs Ray")
    flag("--tiny", action="store_true", help="sizes for a try on the CPU")
    return parser


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parts(options: argparse.Namespace, data: Path | None) -> tuple[list[Part], list[str]]:
    """Return the parts, and what is left out with the reason."""
    seeds = tuple(range(options.seed_base, options.seed_base + options.seeds))
    left_out = []
    has_ray = importlib.util.find_spec("ray") is not None
    if not has_ray:
        left_out.append("exchanges: Ray is not installed")
    exchanges = has_ray and not options.no_exchanges
    parts = [_images(options, data, seeds, exchanges=exchanges)]
    if parts[0].comparison.task != "images":
        left_out.append(f"CIFAR-10: --data has no {' and '.join(gpu_data.IMAGES)}, so Fashion-MNIST took its place")
    missing = [name for name in gpu_data.MATHS if data is None or not (data / name).is_file()]
    if options.model is None or missing:
        reason = f"--data has no {' and '.join(missing)}" if missing else "no --model names a folder"
        left_out.append(f"GSM8K: {reason}")
    else:
        parts.append(_maths(options, data or Path(), seeds))
    return parts, left_out


def _images(options: argparse.Namespace, data: Path | None, seeds: tuple[int, ...], *, exchanges: bool) -> Part:
    found = data is not None and all((data / name).is_file() for name in gpu_data.IMAGES)
    train = str((data or Path()) / gpu_data.IMAGES[0])
    rows = gpu_data.num_rows(Path(train)) if found else 8_000
    small = {"image_size": 8} if options.tiny else {}
    num = min(options.images or (_TINY if options.tiny else _IMAGES), rows)
    return Part(
        name="CIFAR-10, ResNet-18" if found else "Fashion-MNIST",
        comparison=Comparison(
            task="images" if found else "fashion",
            data=train if found else None,
            derived={"limit": num},
            options={"model": "resnet18", "augment": "crop,flip", **small} if found else {},
            num_samples=num,
            epochs=options.epochs or (3 if options.tiny else 30),
            batch_size=8 if options.tiny else 512,
            learning_rate=0.1,
            candidates=_candidates(options.methods),
            seeds=seeds,
            training={"channels_last": True} if found else {},
        ),
        exchanges=exchanges,
    )


def _maths(options: argparse.Namespace, data: Path, seeds: tuple[int, ...]) -> Part:
    train = data / gpu_data.MATHS[0]
    num = min(_TINY if options.tiny else 2_000, gpu_data.num_rows(train))
    columns = {"prompt_column": "question", "answer_column": "answer", "max_length": 512}
    return Part(
        name="GSM8K, language model",
        comparison=Comparison(
            task="sft",
            data=str(train),
            derived={"limit": num},
            options={"model": options.model, **columns, **({"lora": 8} if options.lora else {})},
            num_samples=num,
            epochs=3,
            batch_size=16 if options.tiny else 32,
            learning_rate=2e-4 if options.lora else 2e-5,
            candidates=_candidates(options.methods),
            seeds=seeds[:3],
            training={"micro_batch_size": 4},
        ),
    )


def _candidates(methods: str) -> tuple[Candidate, ...]:
    """Return full, then the others in the order in which they were named; random only where it was."""
    parsed = {one.label: one for one in parse_candidates(methods)}
    named = [label for label in parsed if label not in ("full", "random")]
    return tuple(parsed[label] for label in ["full", *named, *(["random"] if "random" in methods.split(",") else [])])


class _Work:
    """Runs of a plan, started while there is time.

    Args:
        parts: what to run.
        path: of the file with the finished runs.
        side_by_side: runs at a time where they are not alone.
    """

    def __init__(self, parts: Sequence[Part], path: Path, side_by_side: int) -> None:
        self.parts, self.path, self.side_by_side = parts, path, side_by_side
        self.finished = gpu_runs.read(path)
        self.failed: dict[tuple[str, str], str] = {}
        self._cores = {True: Slots.of(1).cores, False: Slots.of(side_by_side).cores}
        self._interrupted: set[tuple[str, str]] = set()
        gpu_plan.check(parts, self.finished)

    def run(self, left_s: Callable[[], float], show: Callable[[], object]) -> None:
        """Run what fits into the seconds that `left_s` returns, and `show` after each; what runs then is ended."""
        running: dict[int, tuple[Job, gpu_runs.Process, float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            try:
                while left_s() > 0:
                    busy = [job for job, _, _ in running.values()]
                    job = gpu_plan.choose(self._waiting(busy), busy, self._fits(left_s()), self.side_by_side)
                    if job is not None:
                        slot = min(set(range(self.side_by_side)) - set(running))
                        print(f"{left_s():.0f} s left: {job.part}, {job.spec.run}", file=sys.stderr, flush=True)
                        cores, place = self._cores[job.alone][slot], Path(folder) / job.folder
                        process = gpu_runs.Process(job.spec, place, cores, alone=job.alone)
                        running[slot] = (job, process, left_s())
                        continue
                    if not running:
                        break
                    while left_s() > 0 and not any(process.ended for _, process, _ in running.values()):
                        time.sleep(_POLL_S)
                    for slot, (job, process, begun) in list(running.items()):
                        if process.ended:
                            del running[slot]
                            self._end(job, process, begun - left_s())
                            show()
            finally:
                for job, process, _ in running.values():
                    process.stop()
                    self._interrupted.add(job.key)

    def missing(self) -> list[str]:
        """Return what did not run, with the reason."""
        reasons = {job.key: "not run yet" for job in gpu_plan.jobs(self.parts, self.finished)}
        reasons |= dict.fromkeys(self._interrupted, "interrupted at the end of the time")
        return [f"{part}, {run}: {reason}" for (part, run), reason in (reasons | self.failed).items()]

    def _waiting(self, running: Sequence[Job]) -> list[Job]:
        begun = {job.key for job in running} | set(self.failed)
        return [job for job in gpu_plan.jobs(self.parts, self.finished) if job.key not in begun]

    def _fits(self, left_s: float) -> Callable[[Job], bool]:
        return lambda job: gpu_plan.estimate(job, self.finished, self.side_by_side) < left_s

    def _end(self, job: Job, process: gpu_runs.Process, seconds: float) -> None:
        outcome = process.outcome()
        if isinstance(outcome, str):
            self.failed[job.key] = outcome
            return
        one = gpu_runs.Finished(job.part, job.alone, {**outcome, "process_s": seconds})
        gpu_runs.append(self.path, one)
        self.finished.append(one)


if __name__ == "__main__":
    sys.exit(main())

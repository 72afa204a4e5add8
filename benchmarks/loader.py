"""What selection costs a loop that waits for its data: JPEG files decoded by worker processes, with and without it.

    python -m benchmarks.loader [--json] [--quick] [--wait MS]

The packaged Fashion-MNIST images are written as JPEG files of 224 x 224 pixels. Three loops train a small convolutional
network on the same meta-batches: a plain one over a torch DataLoader; one over `es.wrap` of it that draws everything
and scores nothing ("full": the loader alone); and one that scores every meta-batch and trains on a quarter of it. All
have workers that persist. In every round each loop makes an epoch, in turns. Needs pillow and torch.

With --wait the workers sleep so many milliseconds per image instead of decoding it: where other work shares the
processor, that shows better whether a loop keeps its workers busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils import data

import es_service as es
from benchmarks.figures import Figure
from es_service.selection import plans
from es_service.training import losses
from es_service.training.tasks import fashion

__all__ = ["measure"]

BATCH_SIZE, PIXELS, WORKERS, SEED = 64, 224, 2, 0
SELECTIONS = {
    "full": es.Selection(es.methods.full(), seed=SEED),
    "selective": es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=SEED),
}


class Jpegs(data.Dataset[tuple[torch.Tensor, int]]):
    """Images uint8[3, pixels, pixels], decoded when asked for, and labels."""

    def __init__(self, folder: Path, num: int, pixels: int, wait_s: float) -> None:
        source = fashion.build().train_set
        self.labels = source.targets_n[:num].tolist()
        self.wait_s, self.blank = wait_s, torch.zeros(3, pixels, pixels, dtype=torch.uint8)
        self.paths = [folder / f"{index}.jpg" for index in range(num)]
        for path, image in zip(self.paths, source.images_n, strict=False):
            Image.fromarray(image).convert("RGB").resize((pixels, pixels), Image.Resampling.BICUBIC).save(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self.wait_s:
            time.sleep(self.wait_s)
            return self.blank, self.labels[index]
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1), self.labels[index]


class Small(torch.nn.Module):
    """Two convolutions over every fourth pixel: cheap, as a model on a GPU is for the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 4, stride=4),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 2, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.LazyLinear(10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float[B, 10]."""
        logits: torch.Tensor = self.layers(images[:, :, ::4, ::4].float() / 255)
        return logits


def losses_of(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Return the loss of every sample."""
    return losses.cross_entropy(model(batch[0]), batch[1])


def measure(num: int, rounds: int, pixels: int = PIXELS, wait_s: float = 0.0) -> dict[str, Any]:
    """Return milliseconds per meta-batch of each loop by round, on the clock and of this process's CPU time.

    A first round warms up and is not counted.
    """
    torch.manual_seed(SEED)
    model = Small()
    model(torch.zeros(2, 3, pixels, pixels))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    plan: list[list[int]] = []
    found: dict[str, list[tuple[float, float]]] = {"plain": [], **{name: [] for name in SELECTIONS}}
    with tempfile.TemporaryDirectory() as folder:
        dataset = Jpegs(Path(folder), num, pixels, wait_s)
        settings: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True}
        plain = data.DataLoader(dataset, batch_sampler=plan, **settings)
        loaders = {
            name: es.wrap(
                data.DataLoader(dataset, BATCH_SIZE, shuffle=True, **settings),
                selection,
                epochs=rounds + 1,
                model=model,
                losses=losses_of,
            )
            for name, selection in SELECTIONS.items()
        }

        def epoch(name: str) -> tuple[float, float]:
            begin, begin_cpu, steps = time.perf_counter(), time.process_time(), 0
            for batch in plain if name == "plain" else loaders[name]:
                optimizer.zero_grad()
                if name == "plain":
                    losses_of(model, batch).mean().backward()
                else:
                    loaders[name].mean(losses_of(model, batch[0])).backward()
                optimizer.step()
                steps += 1
            assert steps == len(plan)
            return 1e3 * (time.perf_counter() - begin) / steps, 1e3 * (time.process_time() - begin_cpu) / steps

        for turn in range(rounds + 1):
            ids = plans.shuffle(np.arange(num), seed=SEED, epoch=turn)  # what the selectors plan
            plan[:] = [ids[start : start + BATCH_SIZE].tolist() for start in range(0, num, BATCH_SIZE)]
            names = list(found)
            for name in names[turn % 3 :] + names[: turn % 3]:
                found[name].append(epoch(name))
    timed = {name: values[1:] for name, values in found.items()}
    figures = []
    for name in SELECTIONS:
        ratios = [ours[0] / bare[0] for ours, bare in zip(timed[name], timed["plain"], strict=True)]
        figures.append(Figure(f"{name} to plain", statistics.median(ratios), "x", 1.05).to_dict())
    return {"ms": timed, "figures": figures}


def main() -> int:
    """Measure and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="sizes at which the figures mean little")
    parser.add_argument("--wait", type=float, default=0.0, metavar="MS", help="sleep so long instead of decoding")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the other cores decode
    found = measure(*((256, 1) if options.quick else (2048, 7)), wait_s=options.wait / 1e3)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{PIXELS} x {PIXELS} JPEG, B = {BATCH_SIZE}, {WORKERS} workers, {os.cpu_count()} cores")
    print("ms per meta-batch, median of the rounds (and CPU time of the training process)\n")
    for name, values in found["ms"].items():
        clock, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"  {name:10} {clock:7.1f}   ({cpu:5.1f})")
    print()
    for figure in found["figures"]:
        reached = "reached" if figure["reached"] else "MISSED"
        print(f"  {figure['name']:20} {figure['value']:.3f} x   <= {figure['target']}   {reached}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

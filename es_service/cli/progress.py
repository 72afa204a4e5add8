"""Progress of a training run: a bar that ticks on a terminal, lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from es_service.cli import text
from es_service.experiments.progress import measured
from es_service.selection.decisions import in_words

__all__ = ["Progress"]

_TICK_S = 1.0
_LINE_EVERY_S = 30.0


class Progress:
    """Shows the progress of a training run; safe to use from many threads.

    Args:
        stream: where to.
        quiet: print the epochs alone.
        clock: seconds, for the lines inside an epoch.
    """

    def __init__(self, stream: Any, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._quiet, self._clock = stream, quiet, clock
        self._bar: Any = None
        self._num_shown = 0
        self._decided: str | None = None
        self._last_line = clock()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def say(self, doing: str) -> None:
        """Print what begins."""
        if not self._quiet:
            self._line(doing)

    def show(self, stats: dict[str, Any]) -> None:
        """Take the score server's stats, or the same from a training in this process."""
        progress = stats["progress"]
        if not progress:
            return
        evaluated = [one for one in progress["history"] if one["accuracy"] is not None]
        if self._stream.isatty():
            self._move_bar(progress, evaluated)
            return
        for one in evaluated[self._num_shown :]:
            decided = None if one.get("decision") is None else in_words(one["decision"])
            if decided not in (None, self._decided):
                self._line(f"epoch {one['epoch'] + 1}: {decided}")
            self._decided = decided
            line = (
                f"epoch {one['epoch'] + 1}/{progress['num_epochs']}: accuracy {measured('accuracy', one['accuracy'])}, "
            )
            self._line(line + text.saved_so_far(one["saving"]))
            self._num_shown += 1
        if not self._quiet and progress["done"] < 1 and self._clock() - self._last_line >= _LINE_EVERY_S:
            self._line(f"  {100 * progress['done']:.0f} % of epoch {progress['epoch'] + 1}/{progress['num_epochs']}")

    def _line(self, words: str) -> None:
        print(words, file=self._stream, flush=True)
        self._last_line = self._clock()

    def _move_bar(self, progress: dict[str, Any], evaluated: list[dict[str, Any]]) -> None:
        with self._lock:
            if self._bar is None:
                from tqdm import tqdm

                layout = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} epochs [{elapsed}<{remaining}]{postfix}"
                self._bar = tqdm(total=progress["num_epochs"], desc="training", bar_format=layout, file=self._stream)
                threading.Thread(target=self._tick, daemon=True).start()
            self._bar.n = progress["epoch"] + progress["done"]
            accuracy = f"accuracy {measured('accuracy', evaluated[-1]['accuracy'])}, " if evaluated else ""
            samples, seconds = progress["samples"], progress["saving"]["seconds"]
            net = "" if seconds is None else f", {text.time_saved(seconds)}"
            self._bar.set_postfix_str(f"{accuracy}scored {samples['scored']:,}, trained {samples['trained']:,}{net}")

    def _tick(self) -> None:
        """Let the seconds on the bar move while no news comes."""
        while not self._ended.wait(_TICK_S):
            with self._lock:
                self._bar.refresh()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._ended.set()
        with self._lock:
            if self._bar is not None:
                self._bar.close()

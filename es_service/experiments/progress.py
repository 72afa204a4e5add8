"""Progress of many training runs: a bar on a terminal, else one line per finished run; and what they reached."""

from __future__ import annotations

from typing import Any

from es_service.training.tasks.metrics import ACCURACY

__all__ = ["Bar", "measured"]

_IN_PERCENT = (ACCURACY, "balanced_accuracy")


def measured(metric: str, value: float) -> str:
    """Return what a metric is, in words: accuracies in percent."""
    return f"{100 * value:.2f} %" if metric in _IN_PERCENT else f"{value:.4f}"


class Bar:
    """Counts what has ended.

    Args:
        stream: where to write.
        doing: what the bar shows, e.g. "comparing".
        unit: what is counted, one of them.
        quiet: do not print what is prepared.
    """

    def __init__(self, stream: Any, doing: str, unit: str, *, quiet: bool = False) -> None:
        self._stream, self._doing, self._unit, self._quiet = stream, doing, unit, quiet
        self._total = self._counted = 0
        self._bar: Any = None

    def expect_some(self, number: int, ended: int, before: str) -> None:
        """Add some to the total, of which `ended` ended before this command; `before` words that."""
        self._total += number
        self._counted += ended
        if self._stream.isatty():
            from tqdm import tqdm

            if self._bar is None:
                counted = f"{{n_fmt}}/{{total_fmt}} {self._unit}s"
                layout = f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {counted} [{{elapsed}}{{postfix}}]"
                self._bar = tqdm(total=0, desc=self._doing, bar_format=layout, file=self._stream)
            self._bar.total = self._total
            self._bar.update(ended)
            self._bar.refresh()
        elif ended:
            self.say(f"{ended} {self._unit}{'s' if ended != 1 else ''} {before}")

    def prepares(self, words: str) -> None:
        """Print what is done before the first of them."""
        if not self._quiet:
            print(words, file=self._stream, flush=True)

    @property
    def has_bar(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def begins(self, words: str) -> None:
        """Print that one begins, where no bar shows it."""
        if not self.has_bar:
            print(f"{words} begins", file=self._stream, flush=True)

    def beside(self, words: str) -> None:
        """Show words beside the bar, if there is one."""
        if self._bar is not None:
            self._bar.set_postfix_str(words)

    def ended(self, words: str, beside: str = "") -> None:
        """Count one that ended; `beside` is for the bar only."""
        self._counted += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{words}{beside}", refresh=False)
            self._bar.update(1)
        else:
            print(f"{self._counted}/{self._total} {words}", file=self._stream, flush=True)

    def say(self, message: str) -> None:
        """Print a line that stays."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.close()

"""The parser of a command: what is mistyped is answered with the nearest word, and help ends with examples."""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

__all__ = ["Parser", "add_command"]

_WIDTH = 110


class Parser(argparse.ArgumentParser):
    """A parser that takes flags as they are spelt, not abbreviated: a new flag never changes what a script means."""

    commands: Any = None
    """The action of the commands, where the parser has some."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **settings, "allow_abbrev": False})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an unknown flag or command with the nearest known one, then parse."""
        words = sys.argv[1:] if args is None else list(args)
        self._check_words(words)
        return super().parse_known_args(words, namespace)

    def _check_words(self, words: Sequence[str]) -> None:
        for word in words:
            flag = word.partition("=")[0]
            if self.commands is not None and not word.startswith("-"):
                if word not in self.commands.choices:
                    self.error(f"unknown command {word!r}{_nearest(word, self.commands.choices)}")
                return  # what follows is the command's
            if word == "--":
                return
            if word.startswith("--") and " " not in flag and flag not in self._option_string_actions:
                self.error(f"unknown flag {flag}{_nearest(flag, self._option_string_actions)}")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line, and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help)\n")


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ""


def add_command(commands: Any, name: str, run: Any, *, help: str, examples: Sequence[str], notes: str = "") -> Parser:  # noqa: A002
    """Return the parser of a new command.

    Args:
        commands: of the whole parser.
        name: of the command.
        run: what it does; its docstring is the description.
        help: one line, for the list of commands.
        examples: commands to copy, without "es-service".
        notes: shown in front of them.
    """
    shown = "\n".join(f"  es-service {example}" for example in examples)
    parser: Parser = commands.add_parser(
        name,
        help=help,
        description=inspect.cleandoc(run.__doc__ or ""),
        epilog=textwrap.fill(notes, _WIDTH) + "\n\n" * bool(notes) + f"examples:\n{shown}",
    )
    parser.set_defaults(run_command=run)
    return parser

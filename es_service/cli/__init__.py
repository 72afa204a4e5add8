"""The command `es-service`.

Exit status: 0 done, 1 failed, 2 bad usage, 130 or 143 stopped by Ctrl-C or SIGTERM, which leaves no process behind; a
second one ends it at once. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import es_service
from es_service import errors
from es_service.cli import comparing, completing, inspecting, output, serving, training, tuning
from es_service.cli.parser import Parser
from es_service.stopping import Stops

__all__ = ["command", "main"]

_ENDS = {int(signal.SIGINT): "interrupted", int(signal.SIGTERM): "terminated"}


def build_parser() -> Parser:
    """Return the parser of the whole command."""
    parser = Parser(
        prog="es-service",
        description="Data selection for training: which samples still teach the model something.",
        epilog="es-service COMMAND --help shows a command's flags, and examples of it",
    )
    parser.add_argument("--version", action="version", version=f"es-service {es_service.__version__}")
    commands = parser.commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    training.add_parser(commands)
    comparing.add_parser(commands)
    tuning.add_parser(commands)
    inspecting.add_parsers(commands)
    serving.add_parser(commands)
    completing.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    with Stops() as stops:
        try:
            status = _run(arguments)
        except BaseException as error:
            stopped = _signal_of(error)
            if stops.asked is None and stopped is not None:
                stops.asked = stopped
            if stops.asked is None:  # else it is what Stopped became on its way
                raise
        if stops.asked is None:
            return status
        print(f"es-service: {_ENDS[stops.asked]}", file=sys.stderr)
        stops.end_children()
        return 128 + stops.asked


def command() -> NoReturn:
    """Run the command as a program of its own, and end with its status."""
    status = main()
    if status > 128:  # by a signal: what is still loaded has nothing left to do
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _signal_of(error: BaseException) -> int | None:
    """Return the signal that an exception stands for, None where it is another one."""
    if isinstance(error, KeyboardInterrupt):
        return int(getattr(error, "number", signal.SIGINT))
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # Ray's handler, while it starts
        return int(signal.SIGTERM)
    return None


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        output.check_streams()
        _check_words(options)
        status: int = options.run_command(options)
        return status
    except (errors.ConfigError, errors.RunNameError) as error:
        print(f"es-service: {error}", file=sys.stderr)
        return 2
    except errors.EsServiceError as error:
        print(f"es-service: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe, e.g. `head`, has ended
        return 0


def _check_words(options: argparse.Namespace) -> None:
    """Raise ConfigError where an argument, or a default from the environment, is not UTF-8."""
    for name, value in vars(options).items():
        for word in value if isinstance(value, list) else [value]:
            try:
                word.encode() if isinstance(word, str) else None
            except UnicodeEncodeError as error:
                raise errors.ConfigError(f"{name.replace('_', '-')}: {word!r} is not valid UTF-8") from error

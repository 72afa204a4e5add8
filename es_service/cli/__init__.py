"""The command `es-service`.

Exit status: 0 done, 1 failed, 2 bad usage. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import es_service
from es_service import errors
from es_service.cli import comparing, inspecting, serving, training, tuning

__all__ = ["main"]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="es-service", description="Data selection for training: which samples still teach the model something."
    )
    parser.add_argument("--version", action="version", version=f"es-service {es_service.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    training.add_parser(commands)
    comparing.add_parser(commands)
    tuning.add_parser(commands)
    inspecting.add_parsers(commands)
    serving.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run_command(options)
        sys.stdout.flush()
        return status
    except (errors.ConfigError, errors.RunNameError) as error:
        print(f"es-service: {error}", file=sys.stderr)
        return 2
    except errors.EsServiceError as error:
        print(f"es-service: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("es-service: interrupted", file=sys.stderr)
        return 130

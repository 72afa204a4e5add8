"""`es-service completion`: a script for the shell that completes commands, flags and their values."""

from __future__ import annotations

import argparse
from typing import Any

from es_service.cli import output
from es_service.cli.parser import Parser, add_command
from es_service.experiments.tune.objectives import OBJECTIVES
from es_service.selection.named import PRESETS
from es_service.training.spec import EXCHANGES
from es_service.training.tasks import TASKS

__all__ = ["add_parser"]

_VALUES = {"--exchange": EXCHANGES, "--method": PRESETS, "--objective": OBJECTIVES, "--task": TASKS}
"""What flags may be followed by that take other words, too."""
_SCRIPT = """\
_es_service() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}} $prev" in
{values}
    *)
      case "${{COMP_WORDS[1]}} $cur" in
{flags}
      esac ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _es_service es-service
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def add_parser(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = add_command(
        commands,
        "completion",
        completion_command,
        help="print a script that completes commands in the shell",
        examples=(
            "completion bash > ~/.local/share/bash-completion/completions/es-service",
            "completion zsh >> ~/.zshrc",
        ),
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.set_defaults(parsers=commands.choices)


def completion_command(options: argparse.Namespace) -> int:
    """Print a script that completes commands, flags and their values; names of files are the shell's own."""
    values, flags = [], []
    parsers: dict[str, Parser] = options.parsers
    for name, parser in parsers.items():
        known = " ".join(sorted(parser._option_string_actions))
        flags.append(f'      "{name} -"*) words="{known}" ;;')
        for action in parser._actions:
            words = next((_VALUES[flag] for flag in action.option_strings if flag in _VALUES), action.choices or ())
            patterns = [f'"{name} {flag}"' for flag in action.option_strings or [name]]
            if words:
                values.append(f'    {"|".join(patterns)}) words="{" ".join(map(str, words))}" ;;')
    script = _SCRIPT.format(commands=" ".join(parsers), values="\n".join(values), flags="\n".join(flags))
    output.print_text((_ZSH if options.shell == "zsh" else "") + script.rstrip("\n"))
    return 0

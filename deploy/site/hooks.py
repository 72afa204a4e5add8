"""Pages of the site that have their source elsewhere, and the check that no page asks another host for anything.

README, CONTRIBUTING, SECURITY, CHANGELOG and the README of examples/ and deploy/ stand where readers of the repository
look for them; the page of the examples gets their code, and the command-line reference is made from the parser. Links
between them and docs/ are rewritten for the site.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from es_service.cli import build_parser

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "how-to/contributing.md",
    "deploy/README.md": "how-to/deploying.md",
    "examples/README.md": "tutorials/examples.md",
    "SECURITY.md": "explanation/reporting.md",
    "CHANGELOG.md": "reference/changelog.md",
}
"""File of the repository -> page of the site."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
_EXAMPLE = re.compile(r"^\[(\w+\.py)\]\(\1\)\. .*$", re.MULTILINE)  # a paragraph that begins with a link to it
_ASKS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b(?![^>]*\brel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_with_code((ROOT / source).read_text(), ROOT / source)))
    files.append(File.generated(config, "reference/cli.md", content=cli_page()))
    return files


def _with_code(text: str, path: Path) -> str:
    """Return a page with the code of each example below the paragraph that describes it."""
    return _EXAMPLE.sub(lambda found: f"{found[0]}\n\n```python\n{path.with_name(found[1]).read_text()}```", text)


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """Point a page's links at pages of the site; of a link to another file of the repository only the text stays."""
    target: str = page.file.src_uri  # type: ignore[attr-defined]
    sources = {page: source for source, page in PAGES.items()}
    source = sources.get(target, f"docs/{target}")

    def rewritten(link: re.Match[str]) -> str:
        mark, label, path, anchor = link.groups()
        path = os.path.normpath(os.path.join(os.path.dirname(source), path))
        there = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if there is None:
            return label
        return f"{mark}[{label}]({os.path.relpath(there, os.path.dirname(target) or '.')}{anchor or ''})"

    return _LINK.sub(rewritten, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError where a page or style would be fetched in part from another host."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in {".html", ".css"} and (found := _ASKS.search(path.read_text())):
            raise PluginError(f"{path.name} asks another host: {found[0]}")


def cli_page() -> str:
    """Return the reference of the command, from its parser."""
    parser = build_parser()
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts = [f"# Command line\n\n{parser.description}\n\n```text\n{parser.format_usage()}```\n"]
    parts.append(
        "Results go to stdout; progress and errors go to stderr. Exit status: 0 done, 1 failed, 2 bad usage, 130 or "
        "143 stopped by Ctrl-C or SIGTERM.\n"
    )
    for name, command in commands.choices.items():
        parts.append(f"## es-service {name}\n\n{command.description}\n")
        shown = [action for action in command._actions if action.dest != "help"]
        rows = "\n".join(_row(action) for action in shown)
        parts.append(f"| argument | meaning |\n|---|---|\n{rows}\n")
        if command.epilog:
            parts.append(f"{command.epilog}\n")
    return "\n".join(parts)


def _row(action: argparse.Action) -> str:
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = "" if action.nargs == 0 else str(action.metavar or choices or action.dest.upper())
    name = f"{', '.join(action.option_strings)} {value}".strip() if action.option_strings else value.lower()
    text = (action.help or "the run's name") % {**vars(action), "prog": "es-service"}
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{name}`", text)) + " |"

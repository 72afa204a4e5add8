"""README and docs do what they say: every command runs, every Python block runs, every setting is documented."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import es_service as es
from es_service.cli import build_parser
from es_service.selection import draws, methods
from es_service.selection.config import PRESETS, Selection

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md")
PAGES = sorted([*(ROOT / name for name in NAMES), *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command in README: the lines behind a `$` in its console blocks."""
    found = [
        line[2:] for block in blocks(ROOT / "README.md", "console") for line in block.splitlines() if line[:2] == "$ "
    ]
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    """The blocks of a page run one after the other, as a reader would paste them."""
    program = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", program],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_demo_reaches_its_accuracy_and_the_other_commands_show_it(tmp_path: Path) -> None:
    """README's commands, as they stand there, in a folder of their own; `make demo` is what the Makefile says it is."""
    plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [demo] = [line for line in plan.replace("\\\n", "").splitlines() if "es-service train" in line]
    words = [word.replace(".venv/bin/", "") for word in shlex.split(demo)]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    result = json.loads(run(*words, "--json"))
    assert result["accuracy"] >= 0.86
    assert result["workers"] == 2
    assert result["exchange"] == "leased"
    assert result["samples"] == {"scored": 48_000, "trained": 28_000, "full": 64_000}
    for command in commands():
        if command.startswith("es-service"):
            assert run(*shlex.split(command)).strip()


def test_every_readme_command_is_one_of_ours() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in commands():
        program, *words = shlex.split(command)
        if program == "make":
            assert set(words) <= targets
        elif program == "es-service":
            build_parser().parse_args(words)
        else:
            assert (program, words[:2]) in {
                ("pip", ["install", "es-service[all]"]),
                ("python", ["-m", "benchmarks.service"]),
            }


def test_every_setting_method_draw_and_command_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    named = {field.name for field in dataclasses.fields(Selection)} | set(PRESETS) | set(draws.DRAWS)
    for factory in methods.METHODS.values():
        named |= set(factory().settings())
    [commands_of] = [action for action in build_parser()._actions if hasattr(action, "choices") and action.choices]
    missing = [name for name in sorted(named) if f"`{name}" not in text]
    missing += [name for name in commands_of.choices or () if f"`es-service {name}" not in text]
    assert not missing, f"documented nowhere in README or docs/: {missing}"


def test_every_public_name_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in es.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", text)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_waits_for_a_figure(page: Path) -> None:
    assert not re.findall(r"\b[A-Z]+_(?:OUTPUT|TABLE|COUNT|SECONDS)\b", page.read_text())


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {es.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

"""README and docs do what they say: every command runs, every Python block runs, every setting is documented."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import es_service as es
from es_service.cli import build_parser
from es_service.selection import draws, methods
from es_service.selection.config import Selection
from es_service.selection.named import PRESETS

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "examples/README.md")
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


WITH_EXAMPLES = (
    "accelerate.md", "lightning.md", "ray_train.md", "scorers.md", "streams.md", "tracking.md", "transformers.md",
)  # fmt: skip
"""Pages whose framework, logger, scorers or streams other tests run."""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.thorough] if page.name in WITH_EXAMPLES else [])
        for page in PAGES
        if blocks(page, "python")
    ],
)
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
    full, demo = (line for line in plan.splitlines() if "es-service train" in line)
    assert full.replace("--run demo-full --method full", "") == demo.replace(
        "--run demo --method es --set anneal=[0,0]", ""
    )
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
    assert result["samples"] == {"scored": 64_000, "trained": 16_000, "full": 64_000}
    for command in commands():
        if command.startswith("es-service"):
            assert run(*shlex.split(command)).strip()


def test_after_the_demo_the_commands_are_on_the_path() -> None:
    """README says how, and so does `make demo`, before the first command that needs it."""
    text = (ROOT / "README.md").read_text()
    line = 'export PATH="$PWD/.venv/bin:$PATH"'
    behind_the_demo = text[text.index("$ make demo") :]
    behind_the_demo = behind_the_demo[behind_the_demo.index("```\n\n") :]  # what it prints names commands, too
    outputs = re.compile(r"^```text\n(?:epoch|full:).*?^```\n", flags=re.MULTILINE | re.DOTALL)
    first = re.search(r"^(\$ )?es-service ", outputs.sub("", behind_the_demo), flags=re.MULTILINE)
    assert first is not None
    assert line in outputs.sub("", behind_the_demo)[: first.start()]
    plan = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert line in [one for one in plan.splitlines() if not one.startswith("make")][-1]


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


def test_tests_that_documents_name_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", "\n".join(page.read_text() for page in PAGES))
    assert len(named) > 20
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).is_file() or (name and f"def {name}(" not in (ROOT / path).read_text())
    ]
    assert not missing


def test_every_public_name_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in es.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_the_python_reference_has_every_public_object() -> None:
    """As mkdocstrings' directive; errors stand together."""
    shown = re.findall(
        r"^::: es_service\.([\w.]+)$", (ROOT / "docs/reference/python.md").read_text(), flags=re.MULTILINE
    )
    names = {path.split(".")[-1] for path in shown}
    errors = {name for name in es.__all__ if name.endswith(("Error", "Warning"))} if "errors" in shown else set()
    assert set(es.__all__) - {"__version__", "methods"} - errors <= names
    assert set(methods.__all__) - {"METHODS"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_waits_for_a_figure(page: Path) -> None:
    assert not re.findall(r"\b[A-Z]+_(?:OUTPUT|TABLE|COUNT|SECONDS)\b", page.read_text())


IDIOM = re.compile(
    r"\b(?:nobody|somebody|everybody|anybody|whoever|told|hears?|heard|(?:go|goes|going|went|gone) on|trainings|begun"
    r"|anew|dear(?:er|est)|is said|has (?:no|its) say)\b|, say\b|\bsay;",
    flags=re.IGNORECASE,
)
"""Turns of phrase for which the field has a term: retry, continue, receive, training run, e.g."""


def texts() -> dict[str, str]:
    """What people read: the documents, the help of every command, the dashboard, and comments, docstrings and messages.

    Of scripts and modules only their sentences: names in code are not read.
    """
    found = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
    parser = build_parser()
    [commands_of] = [action for action in parser._actions if action.dest == "command"]
    found["es-service --help"] = parser.format_help()
    for name, command in dict(commands_of.choices or {}).items():
        found[f"es-service {name} --help"] = " ".join(command.format_help().split())
    static = ROOT / "es_service" / "api" / "static"
    for path in sorted(static.rglob("*.html")):
        found[path.name] = path.read_text()
    for path in sorted(static.rglob("*.js")):
        code = re.sub(r"^\s*(?://|/?\*).*$", "", path.read_text(), flags=re.MULTILINE)
        strings = [one for one in re.findall(r'"[^"\n]*"|`[^`\n]*`', code) if " " in one]
        found[str(path.relative_to(static))] = "\n".join(strings)
    for path in sorted((ROOT / "es_service").rglob("*.py")):
        found[str(path.relative_to(ROOT))] = "\n".join(sentences(path.read_text()))
    return found


def sentences(source: str) -> list[str]:
    """The comments and the strings of a module, docstrings among them, that hold more than one word."""
    strings = [one.value for one in ast.walk(ast.parse(source)) if isinstance(one, ast.Constant)]
    comments = [one.string for one in tokenize.generate_tokens(io.StringIO(source).readline) if one.string[:1] == "#"]
    return [one for one in [*strings, *comments] if isinstance(one, str) and " " in one]


@pytest.mark.parametrize(("name", "text"), texts().items(), ids=lambda value: value if len(value) < 60 else "")
def test_users_read_plain_english(name: str, text: str) -> None:
    assert [text[max(0, one.start() - 50) : one.end() + 30] for one in IDIOM.finditer(text)] == []


def test_the_citation_names_this_version() -> None:
    assert f"\nversion: {es.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

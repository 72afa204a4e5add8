"""What the site adds to docs/ (deploy/site/hooks.py). `make docs` builds it, strictly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from es_service.cli import build_parser

ROOT = Path(__file__).parents[2]
mkdocs_exceptions = pytest.importorskip("mkdocs.exceptions", reason="needs the extra docs")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "deploy" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_reference_names_every_command_and_flag(hooks: ModuleType) -> None:
    page = hooks.cli_page()
    [commands] = [action for action in build_parser()._actions if action.dest == "command"]
    for name, parser in dict(commands.choices or {}).items():
        assert f"\n## es-service {name}\n" in page
        for action in parser._actions:
            for flag in action.option_strings:
                assert flag in ("-h", "--help") or re.search(rf"{flag}[ `,]", page), flag
    assert "%(" not in page


def test_links_between_the_repository_and_docs_lead_to_pages_of_the_site(hooks: ModuleType) -> None:
    def on_page(page: str, markdown: str) -> str:
        return hooks.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page)))

    assert on_page("index.md", "[a](docs/how-to/training.md#x)") == "[a](how-to/training.md#x)"
    assert on_page("index.md", "[a](deploy/README.md), [b](LICENSE)") == "[a](how-to/deploying.md), b"
    assert on_page("how-to/deploying.md", "[a](../docs/reference/metrics.md)") == "[a](../reference/metrics.md)"
    assert on_page("explanation/security.md", "[a](../../SECURITY.md)") == "[a](reporting.md)"
    assert on_page("explanation/draws.md", "![a](../images/draws.png)") == "![a](../images/draws.png)"
    assert on_page("index.md", "[a](https://arxiv.org/abs/1) [b](#c)") == "[a](https://arxiv.org/abs/1) [b](#c)"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="https://fonts.example/css">'),
        ("a.html", '<link href="//fonts.example" rel="preconnect">'),
        ("b.css", "@font-face { src: url(https://fonts.example/a.woff2) }"),
    ],
)
def test_a_page_that_asks_another_host_fails_the_build(hooks: ModuleType, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "fine.html").write_text('<a href="https://arxiv.org">a paper</a> <script src="assets/x.js"></script>')
    config = SimpleNamespace(site_dir=str(tmp_path))
    hooks.on_post_build(config)
    (tmp_path / name).write_text(text)
    with pytest.raises(mkdocs_exceptions.PluginError, match="asks another host"):
        hooks.on_post_build(config)

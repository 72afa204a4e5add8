"""The import graph, read from the source: imports go down the house, never up, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import es_service

ROOT = Path(es_service.__file__).parent

FLOORS = {
    "errors": 0,
    "environment": 0,
    "ledger": 0,
    "plugins": 0,
    "stopping": 0,
    "selection": 1,
    "storage": 1,
    "actors": 2,
    "exchange": 3,
    "scorer": 4,
    "selector": 4,
    "selector_state": 4,
    "epoch": 4,
    "cursor": 4,
    "step_draws": 4,
    "run_view": 4,
    "measures": 4,
    "metrics": 4,
    "kept_samples": 4,
    "connect": 4,
    "attach": 4,
    "whereabouts": 4,
    "streamed": 4,
    "training": 5,
    "experiments": 6,
    "integrations": 6,
    "api": 6,
    "": 7,  # es_service/__init__.py, the front door
    "cli": 8,
}
IMPURE = {"ray", "torch", "os", "time", "random", "threading", "datetime", "uuid", "secrets", "socket", "pathlib", "io"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def resolved(dotted: str) -> str | None:
    """The longest module of ours that this names, None for somebody else's."""
    parts = dotted.split(".")
    if parts[0] != "es_service":
        return None
    while ".".join(parts) not in SOURCES:
        parts.pop()
    return ".".join(parts)


def type_checking_only(tree: ast.Module) -> set[ast.AST]:
    hidden: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                hidden.update(ast.walk(statement))
    return hidden


def imported(path: Path, *, runtime_only: bool = False) -> set[str]:
    """Every dotted name a file imports, at any depth; `from a import b` gives a.b."""
    tree = ast.parse(path.read_text())
    hidden = type_checking_only(tree) if runtime_only else set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def ours(name: str, *, runtime_only: bool = False) -> set[str]:
    found = {resolved(dotted) for dotted in imported(SOURCES[name], runtime_only=runtime_only)}
    return {one for one in found if one is not None} - {name}


def floor(name: str) -> int:
    parts = name.split(".")
    return FLOORS[parts[1] if len(parts) > 1 else ""]


def test_the_house_is_not_empty_and_every_module_has_a_floor() -> None:
    assert len(SOURCES) > 20
    assert {name.split(".")[1] for name in SOURCES if "." in name} <= set(FLOORS)
    assert ours("es_service.selector") >= {"es_service.exchange.embedded", "es_service.errors"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_imports_from_a_higher_floor(name: str) -> None:
    upward = sorted(one for one in ours(name) if floor(one) > floor(name))
    assert not upward, f"{name} (floor {floor(name)}) imports {upward}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: ours(name) for name in SOURCES}
    # Importing a.b runs a/__init__.py: what that imports counts as well, the way up to it does not.
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert set(order) == set(SOURCES)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_links_at_the_top_are_never_imported(name: str) -> None:
    heads = {dotted.split(".")[0] for dotted in imported(SOURCES[name])}
    assert not heads & {"actors", "api", "tests"}


@pytest.mark.parametrize("name", [name for name in sorted(SOURCES) if name.startswith("es_service.selection")])
def test_selection_is_pure(name: str) -> None:
    heads = {dotted.split(".")[0] for dotted in imported(SOURCES[name])}
    assert not heads & IMPURE
    assert not any(dotted.startswith("numpy.random") for dotted in imported(SOURCES[name]))
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("np.random", "numpy.random"), f"{name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("open", "print", "input", "eval", "exec"), f"{name}:{node.lineno}"


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(SOURCES)
        if floor(name) in (0, 1)
        or name
        in (
            "es_service",
            "es_service.selector",
            "es_service.ledger",
            "es_service.exchange.embedded",
            "es_service.exchange.base",
        )
    ],
)
def test_what_import_es_service_needs_imports_no_ray_and_no_torch_at_its_top(name: str) -> None:
    tree = ast.parse(SOURCES[name].read_text())
    hidden = type_checking_only(tree)
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in hidden:
            heads = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            heads |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            assert not heads & {"ray", "torch"}, f"{name}:{node.lineno}"


@pytest.mark.parametrize("name", [name for name in sorted(SOURCES) if name.split(".")[-1] != "__init__"])
def test_nothing_unpickles_and_nobody_asks_for_global_randomness(name: str) -> None:
    names = imported(SOURCES[name])
    assert not any(one.split(".")[0] in ("pickle", "cloudpickle", "marshal", "shelve") for one in names)


def test_modules_are_short_enough_to_be_read_at_once() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}

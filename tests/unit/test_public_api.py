"""The public surface: what `import es_service` gives, and what it must not pull in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import es_service as es
from es_service import errors, selection


def test_all_is_sorted_and_without_repetition() -> None:
    assert list(es.__all__) == sorted(set(es.__all__))


@pytest.mark.parametrize("name", es.__all__)
def test_every_name_can_be_had(name: str) -> None:
    assert getattr(es, name) is not None


def test_all_is_the_whole_surface() -> None:
    submodules = {module.name for module in pkgutil.iter_modules(es.__path__)}
    public = {name for name in vars(es) if not name.startswith("_")}
    public -= submodules | {"annotations", "TYPE_CHECKING", "Any"}
    assert public <= set(es.__all__)
    assert set(errors.__all__) <= set(es.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Selecter'"):
        es.Selecter  # noqa: B018


def test_methods_are_reached_under_one_name() -> None:
    assert es.methods is selection.methods
    assert list(es.methods.__all__) == sorted(es.methods.__all__)
    assert set(es.methods.METHODS) <= set(es.methods.__all__)


def modules_below(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.walk_packages(path, package + ".") if not module.ispkg]


def kind_then_name(name: str) -> tuple[bool, bool, str]:
    """The linter's order: CONSTANTS, then Classes, then functions."""
    return not name.isupper(), name[0].islower(), name


@pytest.mark.parametrize("name", [*modules_below("es_service.selection"), *modules_below("es_service.storage")])
def test_every_pure_module_names_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=kind_then_name)
    for one in module.__all__:
        value = getattr(module, one)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{one} says nothing of itself"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_importing_it_pulls_in_neither_ray_nor_torch() -> None:
    heavy = "('ray', 'torch', 'fastapi', 'uvicorn', 'scipy', 'yaml', 'tqdm')"
    done = run_python(f"import sys, es_service; print([name for name in {heavy} if name in sys.modules])")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_embedded_selector_runs_where_ray_and_torch_cannot_be_imported() -> None:
    done = run_python(
        "import sys\n"
        "sys.modules['ray'] = sys.modules['torch'] = None\n"
        "import numpy as np, es_service as es\n"
        "selection = es.Selection(es.methods.evolved(), anneal=(0, 0))\n"
        "selector = es.Selector(selection, num_samples=40, num_epochs=1, batch_size=20)\n"
        "for ids in selector.epoch(0):\n"
        "    selector.select(ids, np.ones(20, dtype=np.float32))\n"
        "selector.state_dict()\n"
        "print(selector.ledger.trained)\n"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "10"), done.stderr


def test_connecting_without_ray_says_what_to_install() -> None:
    done = run_python(
        "import sys\n"
        "sys.modules['ray'] = None\n"
        "import es_service as es\n"
        "try:\n"
        "    es.connect('run', es.Selection(es.methods.full()), num_samples=40, num_epochs=1, batch_size=20)\n"
        "except es.errors.ConfigError as error:\n"
        "    print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'es-service[ray]'" in done.stdout

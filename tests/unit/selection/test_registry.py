"""Methods of other packages: found by entry point or module:factory, imported when used, refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import es_service as es
from es_service import errors
from es_service.cli import main
from es_service.selection.config import Selection
from es_service.selection.engine import Engine
from es_service.selection.methods import registry
from es_service.selection.named import preset
from es_service.selection.run import RunConfig
from es_service.storage import runs
from es_service.storage.described import describe
from es_service.storage.runs import RunStorage

METHOD = """
import dataclasses
from typing import ClassVar
import numpy as np
from es_service.selection.methods.base import LastValue, Method

@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Mine(LastValue):
    name: ClassVar[str] = "mine"
    at: float = 1.0

def mine(at=1.0):
    return Mine(at=at)
"""

Write = Callable[..., str]


@pytest.fixture
def example(example_method: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example package, installed."""
    monkeypatch.syspath_prepend(str(example_method))
    yield
    sys.modules.pop("es_margin", None)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A function that writes a new module and returns its name; `registers` makes it an installed package."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    made: list[str] = []

    def make(source: str, **registers: str) -> str:
        name = f"plug_{uuid.uuid4().hex[:8]}"
        (site / f"{name}.py").write_text(textwrap.dedent(source))
        if registers:
            info = site / f"{name}-2.5.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
            lines = [f"{key} = {name}:{value}" if value else f"{key} = {name}" for key, value in registers.items()]
            (info / "entry_points.txt").write_text("\n".join(["[es_service.methods]", *lines, ""]))
            monkeypatch.syspath_prepend(str(site / name))  # another path: what is registered is read again
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_an_installed_method_is_found_by_its_entry_point_and_by_its_factory(example: None) -> None:
    made = preset("margin", at=0.4, ratio=0.5)
    assert made.to_dict()["method"] == "margin"
    assert made.to_dict()["settings"] == {"at": 0.4, "beta": 0.5}
    assert preset("es_margin:margin", at=0.4, ratio=0.5) == made
    assert Selection.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert Selection.from_dict({**made.to_dict(), "method": "es_margin:margin"}) == made
    selector = es.Selector(made, num_samples=40, num_epochs=2, batch_size=10)
    for ids in selector.epoch(0):
        selector.observe([0.5] * selector.select(ids, [0.5] * ids.size).ids.size)


def test_nothing_is_imported_before_the_name_is_used(example_method: Path) -> None:
    """Neither the packages of methods, nor what reads their metadata, which takes time."""
    program = """
        import sys
        import es_service as es
        from es_service.selection.config import Selection
        from es_service.selection.named import preset
        assert "importlib.metadata" not in sys.modules
        try:
            preset("margni")
        except es.ConfigError as error:
            assert "did you mean 'margin'" in str(error), error
        preset("es")
        Selection.from_dict({"method": "margin", "settings": {"at": 0.4}}, load=False)
        assert "es_margin" not in sys.modules
        preset("margin")
        assert "es_margin" in sys.modules
    """
    path = f"{example_method}:{Path(es.__file__).parent.parent}"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=example_method,
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_method_in_a_module_of_ones_own_needs_no_package(write: Write) -> None:
    module = write(METHOD)
    made = preset(f"{module}:mine", at=2.0)
    assert made.to_dict()["method"] == f"{module}:Mine"
    assert made.to_dict()["settings"] == {"at": 2.0}
    assert Selection.from_dict(made.to_dict()) == made
    assert preset(f"{module}:Mine", at=2.0) == made


def test_a_module_in_the_current_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods_here.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert preset("my_methods_here:mine").method.name == "mine"


def test_a_class_that_shares_a_registered_name_keeps_its_own(example: None, write: Write) -> None:
    """Otherwise the score server would silently take the package's."""
    module = write(METHOD.replace('"mine"', '"margin"'))
    made = preset(f"{module}:mine")
    assert made.to_dict()["method"] == f"{module}:Mine"


REFUSED = {
    "no such module": ("no_such_module_at_all:mine", "", "no module 'no_such_module_at_all' is installed"),
    "no such factory": ("{}:mine", "", "there is no function 'mine' in "),
    "no factory named": ("{}:", "", "is not of the form module:function"),
    "its import raises": ("{}:mine", "raise RuntimeError('no licence')", "failed: RuntimeError: no licence"),
    "its import lacks a module": (
        "{}:mine",
        "import not_there_either",
        "no module 'not_there_either'|named 'not_there_",
    ),
    "no syntax": ("{}:mine", "def", "failed: SyntaxError"),
    "it raises": ("{}:mine", "def mine(): raise RuntimeError('no luck')", "its factory raised RuntimeError: no luck"),
    "it returns no method": ("{}:mine", "def mine(): return 3", "must return an es.methods.Method, got int"),
    "it needs arguments": ("{}:mine", "def mine(at): pass", "missing a required argument: 'at'"),
    "a method without a name": (
        "{}:M",
        "from es_service.selection.methods.base import LastValue\nclass M(LastValue): pass",
        "has no name: give the class name = 'my_name'",
    ),
    "a built-in name": ("{}:mine", METHOD.replace('"mine"', '"full"'), "has the name 'full', which is built in"),
    "a signal that does not exist": (
        "{}:mine",
        METHOD.replace("    at:", "    observes: ClassVar[tuple[str, ...]] = ('los',)\n    at:"),
        "method 'mine' has 'los' among its observes; did you mean 'loss'",
    ),
    "a column that does not exist": (
        "{}:mine",
        METHOD.replace("    at:", "    columns: ClassVar[tuple[str, ...]] = ('q',)\n    at:"),
        "method 'mine' has 'q' among its columns; known: correct, confidence, variance",
    ),
    "a setting of every selection": (
        "{}:mine",
        METHOD.replace("at:", "ratio:").replace("at=at", "ratio=at"),
        "has a setting 'ratio'",
    ),
    "settings that do not make it again": (
        "{}:mine",
        METHOD + "    pass\ndef mine(at=1.0): return Mine(at=object())",
        "cannot be made again from its settings",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_the_reason(write: Write, case: str) -> None:
    name, source, message = REFUSED[case]
    name = name.format(write(source))
    with pytest.raises(errors.ConfigError, match=message) as caught:
        preset(name)
    assert any(one in str(caught.value) for one in (repr(name), name.rpartition(":")[0], "method 'mine'"))


def test_a_setting_that_it_does_not_take_is_refused(example: None) -> None:
    with pytest.raises(errors.ConfigError, match="method 'margin' has no setting 'bta'; did you mean 'beta'"):
        preset("margin", bta=0.1)
    with pytest.raises(
        errors.ConfigError, match=r"method 'margin' cannot be made with these settings \(bta\): .*'bta'"
    ):
        Selection.from_dict({"method": "margin", "settings": {"bta": 0.1}})
    with pytest.raises(errors.ConfigError, match=r"beta must lie in \[0, 1\], got 2"):  # the package's own words
        preset("margin", beta=2)


def test_an_unknown_name_lists_what_packages_register(example: None) -> None:
    with pytest.raises(errors.ConfigError, match="unknown method 'margn'; did you mean 'margin'"):
        preset("margn")
    with pytest.raises(errors.ConfigError, match=r"unknown method 'q'; known: full, .*, rho, margin \(a method of an"):
        preset("q")
    with pytest.raises(errors.ConfigError, match=r"known: full, .*, margin \("):
        Selection.from_dict({"method": "q"})


@pytest.mark.parametrize("name", [5, None, [], {}])
def test_a_name_that_is_not_a_string_is_refused(name: Any) -> None:
    for make in (preset, lambda name: Selection.from_dict({"method": name})):
        with pytest.raises(errors.ConfigError, match="method must be a string, got"):
            make(name)


def test_an_entry_point_that_fails_names_its_package(write: Write) -> None:
    name = write("raise RuntimeError('no licence')", broken="mine", without="")
    with pytest.raises(
        errors.ConfigError, match=f"method 'broken' of package {name} 2.5: importing '{name}' failed: Run"
    ):
        preset("broken")
    with pytest.raises(
        errors.ConfigError, match=f"method 'without' of package {name} 2.5 is not of the form module:fun"
    ):
        preset("without")


@pytest.mark.parametrize("name", ["es", "loss"])
def test_a_package_cannot_take_the_name_of_a_built_in_method(write: Write, name: str) -> None:
    package = write(METHOD, **{name: "mine", "other": "mine"})
    with pytest.raises(
        errors.ConfigError, match=f"method '{name}' is built in, and package {package} 2.5 registers the"
    ):
        preset(name)
    assert package not in sys.modules
    assert preset("other").method.name == "mine"  # its other methods, and the other built-in ones, are as they were
    assert preset("eswp").method.name == "evolved"


def test_files_always_name_the_built_in_method(write: Write) -> None:
    package = write(METHOD, loss="mine", evolved="mine")
    assert Selection.from_dict({"method": "evolved"}) == Selection(es.methods.evolved(), anneal_by="epochs")
    with pytest.raises(errors.ConfigError, match=f"method 'evolved' is built in, and package {package} 2.5 registers"):
        preset("evolved")
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("typed", "name"),
    [("evolved", "es"), ("selective-backprop", "selective_backprop"), ("epsilon-greedy", "epsilon_greedy")],
)
def test_a_built_in_method_has_one_name_however_it_is_typed(typed: str, name: str) -> None:
    assert registry.preset_name(typed) == name
    assert preset(typed, seed=3) == preset(name, seed=3)
    for other in ("my-module:mine", "my-method", "es:ratio"):
        assert registry.preset_name(other) == other


def test_two_packages_with_one_name_are_refused(write: Write) -> None:
    one, other = write(METHOD, twice="mine"), write(METHOD, twice="mine")
    with pytest.raises(
        errors.ConfigError, match=r"method 'twice' is registered by .* and by .*: uninstall one"
    ) as caught:
        preset("twice")
    assert all(f"{name} 2.5" in str(caught.value) for name in (one, other))
    assert preset(f"{one}:mine").method.name == "mine"


@pytest.mark.parametrize("name", ["margin", "not_installed_here:Margin"])
def test_readers_of_a_run_import_no_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the storage may name any module: who only looks at runs must not run its code, nor need it."""
    RunStorage(str(tmp_path), "mine").begin(
        RunConfig(selection=preset("es"), num_samples=10, num_epochs=2, batch_size=5)
    )
    path = tmp_path / "mine" / "run.json"
    about = json.loads(path.read_text())
    about["config"]["selection"] |= {"method": name, "settings": {"at": 0.4}}
    path.write_text(json.dumps(about))
    config = describe(RunStorage(str(tmp_path), "mine")).config
    assert runs.config_to_dict(config) == about["config"]
    assert config.selection.method.name == name
    assert hash(config.selection) == hash(runs.config_from_dict(about["config"]).selection)
    with pytest.raises(errors.ConfigError, match=r"unknown method 'margin'|no module 'not_installed_here'"):
        config.loaded()
    with pytest.raises(errors.ConfigError, match="was read from a file and not imported"):
        Engine(config.selection, 10)


def test_a_recorded_method_becomes_the_real_one(example: None) -> None:
    config = RunConfig(selection=preset("margin", at=0.4), num_samples=10, num_epochs=2, batch_size=5)
    recorded = runs.config_from_dict(json.loads(json.dumps(runs.config_to_dict(config))))
    assert recorded != config
    runs.check_same("mine", recorded, config)
    assert recorded.loaded() == config
    assert config.loaded() == config
    other = RunConfig(selection=preset("margin", at=0.5), num_samples=10, num_epochs=2, batch_size=5)
    with pytest.raises(errors.RunMismatchError, match=r"at: run 0\.4, yours 0\.5"):
        runs.check_same("mine", recorded, other)


def test_a_comparison_takes_a_registered_method(example: None) -> None:
    from es_service.experiments.compare.comparison import parse_candidates

    found = parse_candidates("margin:at=0.4")
    assert found[-1].selection(3) == preset("margin", at=0.4, seed=3)


def test_a_comparison_and_a_search_take_a_factory(example: None) -> None:
    from es_service.experiments.compare.comparison import parse_candidates
    from es_service.experiments.tune.space import default_space, read_space

    for name in ("margin", "es_margin:margin"):
        found = parse_candidates(f"{name}:at=0.4,{name}")
        assert [one.selection(3) for one in found[-2:]] == [preset(name, at=0.4, seed=3), preset(name, seed=3)]
        space = read_space(name, {"at": "uniform(0, 1)"})
        assert space.selection({"at": 0.4}, 3) == preset(name, at=0.4, seed=3)
        with pytest.raises(errors.ConfigError, match="has no default search space"):
            default_space(name, weighs_cost=True)
    with pytest.raises(errors.ConfigError, match="unknown method 'margn'; did you mean 'margin'"):
        read_space("margn", {"at": "uniform(0, 1)"})
    with pytest.raises(errors.ConfigError, match="unknown method 'margn'; did you mean 'margin'"):
        default_space("margn", weighs_cost=True)


def test_the_command_line_shows_the_reason(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words: list[Any] = ["train", "--exchange", "embedded", "--storage", str(tmp_path), "--method", "no_such_thing:mine"]
    assert main(words) == 2
    assert "method 'no_such_thing:mine': no module 'no_such_thing' is installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

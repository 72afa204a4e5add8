"""The examples run, and print what examples/README.md shows; each is short."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
PAGE = (FOLDER / "README.md").read_text()
BLOCK = re.compile(r"^## .*\n\n\[(\w+\.py)\].*\n(?:.+\n)*\n```console\n\$ (.*)\n((?:(?!```).*\n)*)```", re.MULTILINE)
SHOWN = {file: (command, output) for file, command, output in BLOCK.findall(PAGE)}
SCRIPTS = sorted({path.name for path in FOLDER.glob("*.py")} - {"texts.py"})


def without_numbers(text: str) -> list[str]:
    """Other processors add in another order: figures differ in their last digits. Some depend on the time."""
    return re.sub(r"[-+]?\d[\d.,]*", " ", text).split()


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_prints_what_its_page_shows(name: str, tmp_path: Path) -> None:
    command, shown = SHOWN[name]
    shutil.copytree(FOLDER, tmp_path / "examples")
    if (ROOT / "data").is_dir():
        shutil.copytree(ROOT / "data", tmp_path / "data")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    del environment["WANDB_MODE"]  # transformers prints that it is set
    if name.startswith("ray"):
        environment["RAY_ADDRESS"] = "local"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == without_numbers(shown)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / "hard_images.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2

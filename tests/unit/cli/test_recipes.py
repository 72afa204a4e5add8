"""The commands of docs/explanation/evidence.md for the paper's tasks: accepted, where the files they name are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from es_service.cli import build_parser
from es_service.cli.comparing import subject_of
from es_service.experiments.begin import check_known
from es_service.experiments.compare.comparison import parse_candidates
from es_service.training.tasks.options import MODELS

PAGE = Path(__file__).parents[3] / "docs/explanation/evidence.md"
SECTION = re.search(r"^## The paper's tasks\n(.*?)^## ", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
assert SECTION is not None
BLOCKS = re.findall(r"^```\n(.*?)^```", SECTION[1], flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines() if line[:11] == "es-service "]
DATA = (
    *("cifar10_train.parquet", "cifar10_test.parquet", "cola_train.parquet", "cola_validation.parquet"),
    *("sst2_train.parquet", "sst2_validation.parquet", "rte_train.parquet", "rte_validation.parquet"),
    *("gsm8k_train.parquet", "gsm8k_test.parquet", "cifar-100-binary"),
)
FOLDERS = ("MINILM", "ALBERT", "VIT", "SMOLLM")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("--out ")[1])
def test_a_recipe_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*DATA, *FOLDERS):
        (tmp_path / name).mkdir()  # what is in there is looked at later
    places = {"DATA": str(tmp_path), **{name: str(tmp_path / name) for name in FOLDERS}}
    program, *words = shlex.split(re.sub(r"\$(\w+)", lambda found: places[found[1]], command))
    assert program == "es-service"
    options = build_parser().parse_args(words)
    known = check_known(**subject_of(options))
    assert known["data"].startswith(str(tmp_path))
    assert Path(known["options"]["model"]).exists() or known["options"]["model"] in MODELS[known["task"]]
    assert {one.label for one in parse_candidates(options.methods)} > {"full", "random"}
    assert options.seeds >= 3


def test_every_recipe_has_a_row_and_every_row_a_recipe() -> None:
    assert SECTION is not None
    rows = re.findall(r"^\| \(([a-f])\) (.*?) \|.*\| (\d) \| .+ \|$", SECTION[1], flags=re.MULTILINE)
    listed = {name: seeds for _, names, seeds in rows for name in re.findall(r"`([\w-]+)`", names)}
    parsed = [build_parser().parse_args(shlex.split(command)[1:]) for command in COMMANDS]
    assert listed == {str(options.out): str(options.seeds) for options in parsed}
    assert {letter for letter, _, _ in rows} == set("abcdef")

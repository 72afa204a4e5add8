"""A folder that holds what is damaged: an error that names the file, wherever it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from es_service import errors
from es_service.experiments.compare.comparison import Comparison, parse_candidates
from es_service.experiments.compare.folder import CompareFolder
from es_service.experiments.experiment_spec import ExperimentSpec
from es_service.experiments.folder import ExperimentFolder
from es_service.experiments.tune.folder import SearchFolder
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.search_spec import SearchSpec
from es_service.experiments.tune.space import read_space

USUAL: dict[str, Any] = {
    "task": "fashion", "data": None, "derived": {}, "num_samples": 100, "epochs": 2, "batch_size": 10,
    "learning_rate": 0.1, "seeds": (0,),
}  # fmt: skip
COMPARISON = Comparison(**USUAL, candidates=parse_candidates("es"))
SEARCH = SearchSpec(
    **USUAL, name="found", space=read_space("es", {"beta1": "grid(0.1)"}), objective=Objective(name="accuracy"),
    algorithm="grid", samples=1, seed=0, early_stopping=False,
)  # fmt: skip
RUN = COMPARISON.spec(COMPARISON.candidates[2], 0)


def opened(make: Callable[[str], ExperimentFolder], spec: ExperimentSpec) -> Callable[[Path], None]:
    def read(out: Path) -> None:
        with make(str(out)).open(spec):
            pass

    return read


READERS: dict[str, Callable[[Path], Any]] = {
    "comparison.json": opened(CompareFolder, COMPARISON),
    "short_full.json": lambda out: CompareFolder(str(out)).lengths(),
    "runs/es-s0/outcome.json": lambda out: CompareFolder(str(out)).outcome(RUN),
    "search.json": opened(SearchFolder, SEARCH),
    "references.json": lambda out: SearchFolder(str(out)).lengths(),
}
DAMAGES: dict[str, bytes | None] = {
    "nothing": b"",
    "cut short": b'{"epochs": [1',
    "no text": b"\xff\xfe\x00",
    "a list": b'[{"epochs": [1]}]',
    "null": b"null",
    "a number": b"1",
    "deep": b"[" * 100_000,
    "a folder": None,
}
OTHERS = {
    "short_full.json": [b'{"es": 5}', b'{"es": {"epochs": "five", "basis": "cost"}}', b'{"es": {}}'],
    "runs/es-s0/outcome.json": [b"{}", b'{"spec": []}'],
    "references.json": [b"{}", b'{"epochs": 5}', b'{"epochs": ["x"]}'],
}
CASES = [
    *((name, damage) for name in READERS for damage in DAMAGES.values()),
    *((name, damage) for name, damages in OTHERS.items() for damage in damages),
]


@pytest.mark.parametrize("name, damage", CASES)
def test_a_damaged_file_is_named(name: str, damage: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if damage is None else path.write_bytes(damage)
    with pytest.raises((errors.ConfigError, errors.StorageError)) as caught:
        READERS[name](tmp_path)
    assert str(path) in str(caught.value)

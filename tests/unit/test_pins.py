"""What `make setup` installs: each version pinned, and each file held against a sha256."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
WITHOUT_HASHES = {"torch"}  # see requirements/lock.py


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {plain(name): version for name, version in (line.split("==") for line in lines)}


def locked(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each requirement of a file."""
    found = {}
    for entry in re.split(r"^(?=[^\s#])", path.read_text(), flags=re.MULTILINE)[1:]:
        name, version, hashes = re.fullmatch(
            r"(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n", entry
        ).groups()  # type: ignore[union-attr]
        found[plain(name)] = version, hashes.split()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_locked_version_is_the_pinned_one(path: Path) -> None:
    found = {name: version for name, (version, _) in locked(path).items()}
    tools = path.stem == "tools"  # what they need besides is pinned there alone
    assert found == {name: pins().get(name, version if tools else None) for name, version in found.items()}


def test_every_pin_has_hashes() -> None:
    assert {path.stem for path in FILES} == {"bohb", "dev", "serve", "tools"}
    assert set(pins()) - WITHOUT_HASHES == set().union(*(locked(path) for path in FILES if path.stem != "tools"))


def test_setup_installs_nothing_without_a_hash_but_torch() -> None:
    [recipe] = re.findall(r"^\$\(VENV\)/installed:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    installing = [line for line in recipe.splitlines() if "$(PIP)" in line or "$(HASHED)" in line]
    unchecked = [line for line in installing if "$(HASHED)" not in line]
    assert [line.split()[-1] for line in unchecked] == ["torch", "."]
    assert "--no-deps --no-build-isolation" in unchecked[1]  # with the flit_core of dev.txt
    assert "flit-core" in locked(ROOT / "requirements" / "dev.txt")

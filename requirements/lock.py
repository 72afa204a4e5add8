"""Write the sha256 of every file that `make setup` may install beside the versions of constraints.txt: `make lock`.

    dev.txt     what the extra dev needs: flit_core among it, which builds the package, and setuptools
    bohb.txt, serve.txt, tools.txt    what the extras bohb and serve, and the targets lock and audit, need besides

torch is left out, with the CUDA libraries that it brings: which of its builds is right depends on the machine, and each
index has builds, and hashes, of its own. Its version is pinned in constraints.txt, and its other needs are in dev.txt.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
CONSTRAINTS = ROOT / "constraints.txt"
PYTHON = "3.11"
TOOLS = "uv\npip-audit\n"
LEFT_OUT = re.compile(r"pip|torch|triton|(nvidia|cuda)-.*")
HEADER = (
    "# Written by `make lock` for Python {python} on Linux: what {what} needs, with the sha256 of every file on PyPI.\n"
)


def resolved(*words: str, given: str | None = None) -> dict[str, str]:
    """Return the lines of each requirement, hashes and all, by its name."""
    command = ["-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header"]
    places = ["--constraint", str(CONSTRAINTS), "--python-version", PYTHON, "--python-platform", "linux", *words]
    done = subprocess.run(
        [sys.executable, *command, *places], cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, check=True
    )
    entries = re.findall(r"^(\S+?)==.*\n(?:    .*\n)*", done.stdout, re.MULTILINE)
    texts = re.split(r"^(?=\S)", done.stdout, flags=re.MULTILINE)[1:]
    return {name: text for name, text in zip(entries, texts, strict=True) if not LEFT_OUT.fullmatch(name)}


def main() -> None:
    """Write the files."""
    of_extra = {extra: resolved("pyproject.toml", "--extra", extra) for extra in ("dev", "bohb", "serve")}
    found = {**of_extra, "tools": resolved("-", given=TOOLS)}
    for name, entries in found.items():
        kept = [text for one, text in entries.items() if name == "dev" or one not in found["dev"]]
        what = f"the extra {name}" if name != "tools" else "make lock and make audit"
        (HERE / f"{name}.txt").write_text(HEADER.format(python=PYTHON, what=what) + "".join(kept))


if __name__ == "__main__":
    main()

"""A rank that torchrun starts: it calls functions of a test file one after the other, and writes what each returned.

arguments: test file, folder; calls.pickle in the folder lists (name, arguments …), and each rank writes rank<r>.pickle
"""

from __future__ import annotations

import datetime
import importlib.util
import pickle
import sys
from pathlib import Path
from typing import Any

from torch import distributed


def main(path: str, folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    spec = importlib.util.spec_from_file_location("called", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["called"] = module
    spec.loader.exec_module(module)
    answers: list[Any] = []
    for name, *arguments in pickle.loads((folder / "calls.pickle").read_bytes()):
        try:
            answers.append(getattr(module, name)(*arguments))
        except Exception as error:
            answers.append(error)
    (folder / f"rank{distributed.get_rank()}.pickle").write_bytes(pickle.dumps(answers))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

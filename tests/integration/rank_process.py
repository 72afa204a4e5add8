"""One rank, as a process that does what it is asked to: see the fixture `ranks`.

request on stdin     (file of the function, its name, its arguments, rank, world size, file to meet at), pickled
answer on stdout     what the function returned or raised, pickled
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import pickle
import sys
from typing import Any

from torch import distributed


def module_at(path: str) -> Any:
    """Import a test file by its path, once."""
    if path not in sys.modules:
        spec = importlib.util.spec_from_file_location(path, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path])
    return sys.modules[path]


def answer(path: str, name: str, args: tuple[Any, ...], rank: int, world_size: int, meeting: str) -> Any:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        return getattr(module_at(path), name)(*args)
    except Exception as error:
        return error
    finally:
        distributed.destroy_process_group()


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not get between the answers
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(*request), answers)
        answers.flush()


if __name__ == "__main__":
    main()

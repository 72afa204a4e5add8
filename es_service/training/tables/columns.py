"""Which column of a table is meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import pyarrow as pa

from es_service import errors

__all__ = ["check_apart", "find_column"]


def find_column(table: pa.Table, asked: str | None, usual: Sequence[str], *, flag: str) -> str:
    """Return the name of a column.

    Args:
        table: its columns are looked at, not their values.
        asked: the name that the user gave, None for the first of `usual` that is there.
        usual: what the column is often called; upper and lower case are the same.
        flag: that names the column, e.g. "--label-column".

    Raises:
        ConfigError: there is no such column; the message has all of them, and the nearest.
    """
    names: list[str] = table.column_names
    if asked is not None and asked in names:
        return asked
    folded = {name.casefold(): name for name in reversed(names)}
    if asked is None:
        for name in usual:
            if name in names or name in folded:
                return name if name in names else folded[name]
        raise errors.ConfigError(
            f"none of the columns is called {' or '.join(usual)}: name one with {flag}; there are {', '.join(names)}"
        )
    near = difflib.get_close_matches(asked.casefold(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    raise errors.ConfigError(f"{flag} {asked}: there is no such column; {hint}there are {', '.join(names)}")


def check_apart(columns: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError where two of these, flags and the columns that they name, are one column."""
    for number, (flag, name) in enumerate(columns):
        for other, its_name in columns[:number]:
            if name == its_name:
                raise errors.ConfigError(
                    f"{other} and {flag} are both the column {name!r}: what is to be learnt must not be what it is "
                    "learnt from; name another one"
                )

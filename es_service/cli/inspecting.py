"""`es-service runs`, `top` and `export`: what runs left in their storage folder. Needs neither Ray nor torch."""

from __future__ import annotations

import argparse
import os
from typing import IO, Any

import pyarrow as pa
from pyarrow import compute, csv, parquet

from es_service import errors
from es_service.api.runs.ledgers import summary
from es_service.cli import output, text
from es_service.cli.parser import Parser, add_command
from es_service.cli.samples import samples_of
from es_service.experiments.progress import measured
from es_service.selection.settings import suggest
from es_service.storage.described import describe
from es_service.storage.listing import Found, find_runs
from es_service.storage.plain import text as plain_text
from es_service.storage.runs import DEFAULT_STORAGE, RunStorage

__all__ = ["add_parsers"]

_FORMATS = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow", ".csv": "csv"}
"""How names of files end -> what they hold."""


def add_parsers(commands: Any) -> None:
    """Add the three commands to the parser's."""
    runs = add_command(
        commands,
        "runs",
        list_command,
        help="list the runs of a storage folder",
        examples=("runs --storage runs", "runs --storage s3://bucket/runs --json"),
    )
    _common(runs)

    top = add_command(
        commands,
        "top",
        top_command,
        help="show the samples with the highest weights",
        examples=(
            "top demo --storage runs --limit 5",
            "top demo --storage runs --by suspicion --where label=Pullover",
            'top demo --storage runs --by last_loss --lowest --where "visits>=3" --where selected=0',
        ),
    )
    top.add_argument("run")
    top.add_argument("--by", default="w", metavar="COLUMN", help="column to order by, descending (default: w)")
    top.add_argument("--lowest", action="store_true", help="lowest values first")
    top.add_argument("--limit", type=int, default=10, metavar="N", help="number of samples (default: 10)")
    _where(top)
    _common(top)

    export = add_command(
        commands,
        "export",
        export_command,
        help="write a run's table to a file",
        examples=(
            "export demo --storage runs --format parquet",
            "export demo --storage runs --where selected=0 --out never_picked.csv",
        ),
    )
    export.add_argument("run")
    export.add_argument(
        "--format", choices=("parquet", "arrow", "csv"), help="default: from the file name of --out, else parquet"
    )
    export.add_argument("--out", metavar="FILE", help="file to write; - is stdout (default: RUN.FORMAT in this folder)")
    _where(export)
    _common(export)


def _where(parser: Parser) -> None:
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="only samples that meet it, as in the HTTP API: a column, one of = != < <= > >=, and a value, e.g. "
        '"w>=1.5", label=Pullover or last_loss=null; repeatable',
    )


def _common(parser: Parser) -> None:
    parser.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="DIR", help="folder or URI of the runs (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON value and nothing else")


def list_command(options: argparse.Namespace) -> int:
    """List the runs of a storage folder, oldest first, with their results: accuracy, and the compute and time saved."""
    found = [_describe(options.storage, one) for one in find_runs(options.storage)]
    if options.json:
        output.print_json({"storage": options.storage, "runs": found})
        return 0
    if not found:
        output.print_text(f"no runs in {options.storage}")
        return 0
    header = ["run", "method", "epochs", "samples", "state", "accuracy", "compute saved", "time saved"]
    rows = [_row(one) for one in found]
    if any(one.get("search") for one in found):
        header.append("search")
        rows = [[*row, one.get("search")] for row, one in zip(rows, found, strict=True)]
    output.print_text(text.grid(header, rows))
    return 0


def _describe(storage: str, found: Found) -> dict[str, Any]:
    try:
        if found.problem is not None:
            raise errors.StorageError(found.problem)
        place = RunStorage(storage, found.name)
        run, done = describe(place), place.snapshots.newest()
    except errors.EsServiceError as error:  # one damaged run must not hide the others
        return {"run": found.name, "state": f"unreadable: {error}"}
    ledger = summary(run.result, run.progress)
    is_done = run.result is not None or done >= run.config.num_epochs
    return {
        "run": found.name,
        "method": plain_text(run.training.get("method")) or run.config.selection.method.name,
        "num_samples": run.config.num_samples,
        "epochs": run.config.num_epochs,
        "finished_epochs": done,
        "state": "done" if is_done else f"{done} of {run.config.num_epochs} epochs",
        "accuracy": ledger["accuracy"],
        "saving": ledger["saving"],
        "search": run.search,
    }


def _row(run: dict[str, Any]) -> list[Any]:
    saving, accuracy, num_samples = run.get("saving"), run.get("accuracy"), run.get("num_samples")
    return [
        run["run"],
        run.get("method"),
        run.get("epochs"),
        None if num_samples is None else f"{num_samples:,}",
        run["state"],
        None if accuracy is None else measured("accuracy", accuracy),
        None if saving is None else text.saved(saving.get("cost"), "more"),
        None if saving is None or saving.get("seconds") is None else text.saved(saving["seconds"], "slower"),
    ]


def top_command(options: argparse.Namespace) -> int:
    """Show the samples with the highest weight, or by another column, as of the last finished epoch."""
    table = samples_of(RunStorage(options.storage, options.run), options.where, options.by)
    if options.by == "label":
        raise errors.ConfigError("samples cannot be ordered by label: choose some by --where label=…")
    if options.by not in table.column_names:
        raise errors.ConfigError(f"no column {options.by!r}; {suggest(options.by, table.column_names)}")
    if options.limit < 1:
        raise errors.ConfigError(f"limit must be at least 1, got {options.limit}")
    order = "ascending" if options.lowest else "descending"
    keys = [(options.by, order), ("id", "ascending")]
    table = table.filter(compute.fill_null(compute.is_finite(table[options.by]), False))  # nothing to order by
    rows = table.take(
        compute.select_k_unstable(table, k=min(options.limit, table.num_rows), sort_keys=keys)
    ).to_pylist()
    if options.json:
        output.print_json({"run": options.run, "samples": rows})
        return 0
    output.print_text(text.grid(table.column_names, [[_cell(value) for value in row.values()] for row in rows]))
    return 0


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.4f}".replace("-0.0000", "0.0000")  # a loss of nothing, off by a rounding


def export_command(options: argparse.Namespace) -> int:
    """Write a run's table, as of the last finished epoch, to a file: all samples, or those that meet conditions."""
    file_format = _format(options.format, options.out)
    if options.out == "-" and options.json:
        raise errors.ConfigError("--json and --out - both write to stdout: name a file")
    table = samples_of(RunStorage(options.storage, options.run), options.where)
    if options.out == "-":
        with output.bytes_to_stdout() as stdout:
            _write(table, file_format, stdout)
        return 0
    place = options.out or f"{options.run}.{file_format}"
    with output.file_at(place) as file:
        _write(table, file_format, file)
    if options.json:
        output.print_json({"run": options.run, "file": place, "format": file_format, "rows": table.num_rows})
    else:
        output.print_text(f"wrote {table.num_rows:,} rows to {place}")
    return 0


def _format(asked: str | None, out: str | None) -> str:
    """Return the format that was requested, or that of the file's name; ConfigError where the two differ."""
    named = _FORMATS.get(os.path.splitext(out or "")[1].lower())
    if asked is not None and named is not None and asked != named:
        raise errors.ConfigError(
            f"--out {out} has the file name of {named}, but --format is {asked}: leave --format out, or rename the file"
        )
    return asked or named or "parquet"


def _write(table: pa.Table, file_format: str, file: IO[bytes]) -> None:
    sink = pa.PythonFile(file, mode="w")
    if file_format == "parquet":
        parquet.write_table(table, sink)
    elif file_format == "csv":
        csv.write_csv(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

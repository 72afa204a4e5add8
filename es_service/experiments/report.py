"""What the reports of a comparison and of a search share: templates, pictures, tables, formatted numbers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from pyarrow import parquet

from es_service.experiments.figures import Picture, save, write

__all__ = ["cost_in_words", "difference_in_words", "draw", "spread_in_words", "write_page", "write_table"]


def draw(folder: Path, pictures: Mapping[str, Picture], *args: Any) -> list[dict[str, str]]:
    """Write those of the pictures that show something as PNG; return name, title, caption and base64 of each."""
    folder.mkdir(exist_ok=True)
    drawn = []
    for name, picture in pictures.items():
        path, figure = folder / f"{name}.png", picture.draw(*args)
        path.unlink(missing_ok=True)
        if figure is not None:
            save(figure, path)
            encoded = base64.b64encode(path.read_bytes()).decode()
            drawn.append({"name": name, "title": picture.title, "caption": picture.caption, "base64": encoded})
    return drawn


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write a page, of HTML or Markdown, from a template of this package; it asks no host for anything."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("es_service.experiments"),
        autoescape=path.suffix == ".html",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write(path, environment.get_template(template).render(context))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table to a Parquet file: a reader sees the old one or the new one."""
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    write(path, sink.getvalue().to_pybytes())


def spread_in_words(spread: Mapping[str, Any] | None, factor: float = 100, digits: int = 2) -> str:
    """Return a mean with its deviation, in percent by default; "" for None."""
    if spread is None:
        return ""
    mean = f"{factor * spread['mean']:.{digits}f}"
    return mean if spread["std"] is None else f"{mean} ± {factor * spread['std']:.{digits}f}"


def cost_in_words(backward_cost: float) -> str:
    """Return what the cost is, in words."""
    counted = "two" if backward_cost == 2 else f"{backward_cost:.2f}"
    return f"forward passes, a backward counted as {counted}, as a share of full training's"


def difference_in_words(difference: Mapping[str, Any] | None) -> str:
    """Return a difference of shares in points, with its interval where it has one; "" for None."""
    if difference is None:
        return ""
    words = f"{100 * difference['mean']:+.2f}"
    if difference["low"] is None:
        return words
    return f"{words} ({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f})"

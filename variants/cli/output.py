"""Tables for people and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

_WIDEST = 1000

json_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)


def print_json(document: Any) -> None:
    """Prints a document as indented JSON."""
    click.echo(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """Prints a table; columns whose title ends in `>` are flush right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left")
    for row in rows:
        table.add_row(*row)
    # Cells are never cut: a terminal that is too narrow wraps lines, a pipe has no width to fit into.
    natural = Console(width=_WIDEST).measure(table).maximum
    Console(width=max(natural, 20)).print(table)

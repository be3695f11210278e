"""The tables on a terminal, and as markdown for a draft or a README."""

import re
from itertools import groupby
from typing import Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jaxunlearn.metrics.results import Results
from jaxunlearn.report.sheets import Sheet, make_sheets


def print_table(report: Results, console: Console | None = None) -> None:
    """Prints the tables, how to read them, and their verdicts in plain sentences.

    Where the console is too narrow, gaps go under their values, and further columns into further
    tables.

    Args:
      report: see `metrics.results`.
      console: where to print; the standard output if None.
    """
    console = console or Console()
    for sheet in make_sheets(report):
        parts, narrow = _parts(sheet, console)
        console.print(Text(sheet.title, style="bold"))
        for columns in parts:
            console.print(_table(sheet, columns, narrow))
        for line in (*sheet.notes, *sheet.findings):
            console.print(Text(line))


def markdown_table(report: Results) -> str:
    """The same tables as GitHub markdown, with the run's notes.

    Args:
      report: see `metrics.results`.
    """
    parts = []
    for sheet in make_sheets(report):
        header = [_escaped(name) for name in sheet.header]
        lines = [header, ["---", *["--:"] * (len(header) - 1)]]
        for i, row in enumerate(sheet.rows):
            cells = [_escaped(cell) for cell in row]
            lines.append([f"**{c}**" if (i, j) in sheet.best else c for j, c in enumerate(cells)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = [note.replace("* marks", "Bold marks") for note in sheet.notes]
        parts += [f"**{_escaped(sheet.title)}**", table, *notes, *sheet.findings]
    return "\n\n".join([*parts, *(f"Note: {note}" for note in report["notes"])]) + "\n"


def _escaped(text: str) -> str:
    """Names as they are, and not as markdown: an underscore within a word is none."""
    return re.sub(r"[\\|*`<]", r"\\\g<0>", text)


def _table(sheet: Sheet, columns: list[int], narrow: bool) -> Table:
    """A Rich table of some columns; narrow: a cell's gap goes under its value."""

    def text(cell: str, j: int, best: bool = False) -> Text:
        marked = cell + "*" * best
        return Text(marked.replace(" ", "\n") if narrow and j else marked, "bold" if best else "")

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for j in columns:
        justify: Literal["left", "right"] = "right" if j else "left"
        table.add_column(text(sheet.header[j], j), justify=justify, overflow="fold")
    for i, row in enumerate(sheet.rows):
        if any(row[j] for j in columns[1:]):
            cells = [text(row[j], j, (i, j) in sheet.best) for j in columns]
            table.add_row(*cells, end_section=i in sheet.lines)
    return table


def _parts(sheet: Sheet, console: Console) -> tuple[list[list[int]], bool]:
    """Which columns go into which table, and whether these must be narrow."""
    everything = list(range(len(sheet.header)))
    for narrow in (False, True):
        if _fits(_table(sheet, everything, narrow), console):
            return [everything], narrow
    parts = [[0]]
    for _, group in groupby(everything[1:], key=lambda j: sheet.groups[j]):
        columns = list(group)
        if len(parts[-1]) > 1 and not _fits(_table(sheet, [*parts[-1], *columns], True), console):
            parts.append([0])
        for j in columns:  # a group that is too wide for one table goes on in the next
            if len(parts[-1]) > 1 and not _fits(_table(sheet, [*parts[-1], j], True), console):
                parts.append([0])
            parts[-1].append(j)
    return parts, True


def _fits(table: Table, console: Console) -> bool:
    """Whether no line of a cell needs breaking."""
    unbounded = console.options.update(width=10_000)
    return Measurement.get(console, unbounded, table).maximum <= console.width

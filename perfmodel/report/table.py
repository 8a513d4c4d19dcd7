"""Tables of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

__all__ = ["csv_text", "table"]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Columns of text, the first left-aligned, the others right-aligned."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """The same as comma-separated values, without the last line's end."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(list(header))
    writer.writerows(list(row) for row in rows)
    return stream.getvalue().rstrip("\n")

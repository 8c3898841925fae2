"""A FOCUS file is written row by row as the charges come, and the same charges make the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Sequence
from typing import Final

from gateway.core.focus import Cells, ChargeFact, FocusRows

ROWS_AT_ONCE: Final = 250
"""Few enough that nobody whose answer is being streamed has to wait for them."""


async def row_batches(
    facts: AsyncIterator[ChargeFact], rows: FocusRows, *, rows_at_once: int = ROWS_AT_ONCE
) -> AsyncIterator[list[Cells]]:
    """The rows of a file, so many at once; none at all where there are no charges."""
    batch: list[Cells] = []
    async for fact in facts:
        batch.append(rows.row(fact))
        if len(batch) == rows_at_once:
            yield batch
            batch = []
    if batch:
        yield batch


async def focus_csv(facts: AsyncIterator[ChargeFact], rows: FocusRows) -> AsyncIterator[bytes]:
    """The whole CSV file, piece by piece."""
    yield csv_header(rows)
    async for batch in row_batches(facts, rows):
        yield csv_lines(batch)


def csv_header(rows: FocusRows) -> bytes:
    return csv_lines([[column.name for column in rows.columns]])


def csv_lines(batch: Sequence[Cells]) -> bytes:
    """Rows as CSV; null is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows(batch)
    return buffer.getvalue().encode()

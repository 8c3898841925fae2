"""What may be long goes to standard output piece by piece; whoever waits at a terminal for a file sees it grow."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

from rich.console import Console
from rich.progress import FileSizeColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn


async def write(pieces: AsyncIterator[bytes]) -> None:
    """Writes every piece as it comes."""
    out = sys.stdout.buffer
    told = Console(stderr=True)
    is_watched = told.is_terminal and not out.isatty()
    columns: list[ProgressColumn] = [TextColumn("Written"), FileSizeColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=told, transient=True, disable=not is_watched) as progress:
        task = progress.add_task("", total=None)
        async for piece in pieces:
            out.write(piece)
            progress.advance(task, len(piece))
    out.flush()

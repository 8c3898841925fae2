"""``make prove``: every proof in turn, a bar while it runs and a line with its figure after; status 1 if one breaks."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.launch import working_folder
from bench.process import LaunchError, allow_many_sockets
from gateway.adapters.embedded import embedded
from gateway.adapters.postgres.schema import migrate
from tests.prove.catalogue import PROOFS
from tests.prove.proof import Ground, Proof, Proven

PAGE_COLUMNS: Final = 160
LOG_TAIL_CHARACTERS: Final = 1_000


class SizeType(click.ParamType):
    """A number, or ``full``."""

    name = "number|full"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value == "full":
            return None
        try:
            factor = float(str(value))
        except ValueError:
            factor = 0.0
        if not 0 < factor < 1e6:
            self.fail(f"{value!r} is neither a number above 0 nor `full`.", param, ctx)
        return factor


def size_of(proof: Proof, factor: float | None) -> int:
    """How much of its unit a proof does; None = the figures that are to be reached."""
    return proof.full if factor is None else max(1, round(proof.usual * factor))


def run(proof: Proof, size: int, tick: Callable[[int], None]) -> Proven:
    """One proof on ground of its own; what keeps it from running is a violation too."""
    with working_folder() as folder:

        @contextlib.contextmanager
        def database() -> Iterator[str]:
            data_dir = folder / "database"
            data_dir.mkdir(mode=0o711)
            with embedded(data_dir) as url:
                migrate(url)
                yield url

        try:
            return proof.prove(size, Ground(folder=folder, database=database, tick=tick))
        except Exception as error:  # noqa: BLE001 - the other proofs go on, and the log's end is in the message
            return Proven(figure="could not be finished", violations=(_words(error, folder),))


def _words(error: BaseException, folder: Path) -> str:
    """An error in words; of a group its first cause, for the others only follow it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, LaunchError):
        return str(error)  # which ends with the end of its log
    tail = "".join(log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:] for log in folder.rglob("gateway.log"))
    return f"{type(error).__name__}: {error}\n{tail}".strip()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("names", nargs=-1, type=click.Choice([proof.name for proof in PROOFS]))
@click.option("--size", "factor", type=SizeType(), default="1", help="A factor, or `full` for the figures to reach.")
def main(names: tuple[str, ...], factor: float | None) -> None:
    """Try to break the laws of the ledger: all proofs, or those that are named."""
    logging.getLogger("gateway").addHandler(logging.NullHandler())  # the faults that a proof makes are its own business
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        del os.environ[name]  # what is proven is this checkout, and not somebody's installation
    allow_many_sockets()
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=PAGE_COLUMNS, highlight=False)
    broken = [proof.name for proof in PROOFS if not names or proof.name in names if not _show(proof, factor, console)]
    if broken:
        console.print(f"Violations: {', '.join(broken)}.", style="red")
        sys.exit(1)


def _show(proof: Proof, factor: float | None, console: Console) -> bool:
    """Runs a proof with a bar and prints its line; whether the law held."""
    size, began = size_of(proof, factor), time.monotonic()
    with _progress(console) as bar:
        task = bar.add_task(f"{proof.name}: {proof.claim}", total=size * proof.ticks, unit=proof.unit)
        proven = run(proof, size, lambda done: bar.advance(task, done))
    word, style = "held", "green"
    if proven.violations or proven.missed:
        word, style = ("BROKEN", "red") if proven.violations else ("short", "yellow")
    seconds = time.monotonic() - began
    console.print(f"[{style}]{word:6}[/] {proof.name:12} {proven.figure} ({seconds:.0f} s)", soft_wrap=True)
    if proven.missed:
        console.print(f"       the figure to reach is {proven.missed}; a busy machine shows less", style=style)
    for violation in proven.violations:
        console.print(f"       {violation}", style="red", markup=False, soft_wrap=True)
    return not proven.violations


def _progress(console: Console) -> Progress:
    """A bar on a terminal, nothing in a pipe."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


if __name__ == "__main__":
    main()

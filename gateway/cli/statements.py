"""A provider's statement as a file: read a piece at a time, with its digest, and every bad line named."""

from __future__ import annotations

import codecs
import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.core.catalogue import ProviderCard
from gateway.core.statement import BadLine, LineReader, StatementError, StatementLine, StatementMapping
from gateway.core.statement_files import Statement
from gateway.providers import DIALECTS

PIECE_BYTES: Final = 64 * 1024
BAD_LINES_SHOWN: Final = 20
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def mapping_of(card: ProviderCard, usd_per_unit: str | None) -> StatementMapping:
    """The columns of a provider's statements: its dialect's, under what the configuration says, under the option.
    Raises StatementError."""
    usual = DIALECTS[card.dialect].statement
    where = f"[providers.{card.name}.statement]"
    fields: dict[str, Any] = dict(card.statement)
    if usd_per_unit is not None:
        fields["usd_per_unit"] = _rate(usd_per_unit)
    if usual is None and "amount" not in fields:
        raise StatementError(f"Nobody knows the columns of {card.name}'s statements: name them in {where}.")
    mapping = StatementMapping(**fields) if usual is None else msgspec.structs.replace(usual, **fields)
    if mapping.usd_per_unit is None:
        raise StatementError(
            f"What one unit of {card.name}'s statements costs is not known: write usd_per_unit in {where}, or give "
            "--usd-per-unit."
        )
    return mapping


def _rate(text: str) -> Decimal:
    try:
        rate = Decimal(text)
    except InvalidOperation:
        rate = Decimal(0)
    if not rate.is_finite() or rate <= 0:
        raise click.BadParameter(f"{text!r} is not an amount of USD above nothing.", param_hint="--usd-per-unit")
    return rate


class StatementFile:
    """The good lines of a file, once; the bad ones gather meanwhile, the first of them whole."""

    def __init__(self, mapping: StatementMapping, file: BinaryIO, told: Progress) -> None:
        self.reader = LineReader(mapping)
        self.statement = Statement(self.reader, self._pieces())
        self.bad: list[BadLine] = []
        self.bad_count = 0
        self._file = file
        self._told = told
        self._digest = hashlib.sha256()

    def lines(self) -> Iterator[StatementLine]:
        """Raises StatementError where the file is no statement."""
        for line in self.statement:
            if isinstance(line, StatementLine):
                yield line
                continue
            self.bad_count += 1
            if len(self.bad) < BAD_LINES_SHOWN:
                self.bad.append(line)

    def facts(self) -> Mapping[str, object]:
        """What is remembered of a statement that something was booked by."""
        return {"statement_sha256": self._digest.hexdigest(), "statement_lines": self.reader.lines}

    def _pieces(self) -> Iterator[str]:
        task = next(iter(self._told.task_ids))
        first = self._file.read(PIECE_BYTES)
        encoding = "utf-16" if first.startswith(_UTF_16) else "utf-8"
        decoder = codecs.getincrementaldecoder(encoding)()
        piece = first
        while piece:
            self._digest.update(piece)
            self._told.advance(task, len(piece))
            yield _decoded(decoder, piece)
            piece = self._file.read(PIECE_BYTES)
        yield _decoded(decoder, b"", final=True)


def _decoded(decoder: codecs.IncrementalDecoder, piece: bytes, *, final: bool = False) -> str:
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError:
        raise StatementError("The statement is not UTF-8 text. Save it as UTF-8.") from None


@contextmanager
def opened(path: Path, mapping: StatementMapping) -> Iterator[StatementFile]:
    """A statement's file (``-`` is the standard input), with a bar on a terminal. Raises StatementError."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as told,
            _binary(path) as file,
        ):
            told.add_task("Reading the statement", total=None if path == Path("-") else path.stat().st_size)
            yield StatementFile(mapping, file, told)
    except OSError as error:
        raise StatementError(f"{path} cannot be read: {error.strerror or type(error).__name__}.") from None


@contextmanager
def _binary(path: Path) -> Iterator[BinaryIO]:
    if path == Path("-"):
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file

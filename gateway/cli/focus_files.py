"""FOCUS files appear whole or not at all: written beside, then moved into place, each with its checksum.

The same rows go into every format in one pass, so that no two of them can differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from gateway.core.focus import BillingAccount, Cells, ChargeFact, FocusRows, schema_metadata
from gateway.core.money import Money
from gateway.http.focus import csv_header, csv_lines, row_batches

ROWS_AT_ONCE: Final = 1_000
CHECKSUMS: Final = "SHA256SUMS"
_READ_BYTES: Final = 1 << 20


class Sink(Protocol):
    """Where rows go, batch by batch."""

    def write(self, batch: Sequence[Cells]) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that is in place."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An export: its files, how many rows each of them has, and what those add up to."""

    files: tuple[File, ...]
    rows: int
    billed: Money


@dataclass(slots=True)
class Tally:
    """What has gone by."""

    rows: int = 0
    billed_pico: int = 0

    async def over(
        self, facts: AsyncIterator[ChargeFact], told: Callable[[datetime], None]
    ) -> AsyncIterator[ChargeFact]:
        async for fact in facts:
            self.rows += 1
            self.billed_pico += fact.cost_pico
            if self.rows % ROWS_AT_ONCE == 0:
                told(fact.hour)
            yield fact


class CsvFile:
    """Rows as CSV, under a header."""

    def __init__(self, path: Path, rows: FocusRows) -> None:
        self._file = path.open("wb")
        self._file.write(csv_header(rows))

    def write(self, batch: Sequence[Cells]) -> None:
        self._file.write(csv_lines(batch))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


async def write_focus(
    facts: AsyncIterator[ChargeFact],
    account: BillingAccount,
    *,
    version: str,
    folder: Path,
    stem: str,
    forms: Sequence[str],
    created_at: datetime,
    told: Callable[[datetime], None] = lambda _: None,
) -> Written:
    """Writes ``<stem>.csv``, ``<stem>.parquet`` or both, ``<stem>.metadata.json`` and their checksums into the folder,
    over whatever has those names. ``told`` hears how far it has come. Raises OSError."""
    rows = FocusRows(account, version=version)
    tally = Tally()
    names = [f"{stem}.{form}" for form in forms]
    with _beside(folder, [*names, f"{stem}.metadata.json", CHECKSUMS]) as paths:
        with ExitStack() as stack:
            sinks = [
                stack.enter_context(_sink(form, paths[name], rows)) for form, name in zip(forms, names, strict=True)
            ]
            async for batch in row_batches(tally.over(facts, told), rows, rows_at_once=ROWS_AT_ONCE):
                for sink in sinks:
                    sink.write(batch)
        digests = {name: _sha256(paths[name]) for name in names}
        metadata = schema_metadata(
            account,
            version=version,
            created_at=created_at,
            artifacts=[{"Name": name, "Sha256": digest, "Rows": tally.rows} for name, digest in digests.items()],
        )
        name = f"{stem}.metadata.json"
        paths[name].write_bytes(msgspec.json.format(msgspec.json.encode(metadata), indent=2) + b"\n")
        digests[name] = _sha256(paths[name])
        paths[CHECKSUMS].write_text(_checksums(folder / CHECKSUMS, digests), encoding="utf-8")
    files = tuple(File(path=folder / name, sha256=digest) for name, digest in digests.items())
    return Written(files=files, rows=tally.rows, billed=Money(tally.billed_pico))


def _sink(form: str, path: Path, rows: FocusRows) -> Sink:
    if form == "csv":
        return CsvFile(path, rows)
    from gateway.adapters.parquet_focus import ParquetFocus  # brings the library with it, which few need

    return ParquetFocus(path, rows.columns)


@contextmanager
def _beside(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Path]]:
    """Where to write each file; all of them are moved into place at the end, and none is left behind before it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f".{name}.partial" for name in names}
    try:
        yield paths
        for name, path in paths.items():
            path.replace(folder / name)
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def _checksums(path: Path, digests: dict[str, str]) -> str:
    """The folder's checksums, as sha256sum reads them: those of other files stay."""
    known = {}
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        known = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted((known | digests).items()))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()

"""The archive's folder: two Parquet files a month with their checksums beside them, each complete or not there.

    2026-08/ledger.parquet  2026-08/exchanges.parquet  2026-08/SHA256SUMS

A file is written under another name and takes its own when it is on the disk, so that who is killed leaves nothing
that looks like an archive. What is missing, or is not what was written, is said with its path.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.core.archive import ArchivedFile, ArchivedMonth
from gateway.pipeline.ports import ArchiveUnavailableError

if TYPE_CHECKING:
    from gateway.adapters.archive.parquet import ParquetRows

TIMES: Final[Mapping[str, str]] = {"ledger": "started_at", "exchanges": "made_at"}
"""The tables of an archive, and the column by which each is in order."""
CHECKSUMS: Final = "SHA256SUMS"
SLICE_GROUPS: Final = 2
_DRAFT: Final = ".partial"


class ArchiveFolder:
    """Implements the Archive port of the reports; blocking, for threads that may wait for a disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    # --- reading ---------------------------------------------------------------------------------------------------

    def columns(self, table: str, file: ArchivedFile) -> list[str]:
        with self._opened(table, file) as rows:
            return rows.columns

    def cuts(self, table: str, file: ArchivedFile, begins: datetime, ends: datetime) -> list[datetime]:
        """Moments between which a period may be read in pieces that fit into memory; none of them is its edge."""
        with self._opened(table, file) as rows:
            starts = [group.first for group in rows.groups(begins, ends)][SLICE_GROUPS::SLICE_GROUPS]
        return sorted({start for start in starts if begins < start < ends})

    def between(self, table: str, file: ArchivedFile, begins: datetime, ends: datetime) -> Iterator[bytes]:
        with self._opened(table, file) as rows:
            yield from rows.between(begins, ends)

    def having(self, table: str, file: ArchivedFile, column: str, value: str) -> Iterator[bytes]:
        with self._opened(table, file) as rows:
            yield from rows.having(column, value)

    def check(self, file: ArchivedFile) -> None:
        """Raises ArchiveUnavailableError unless the file is byte for byte what was written."""
        path = self.folder / file.name
        try:
            found = _sha256(path)
        except OSError as error:
            raise self._unavailable(path, _reason(error)) from None
        if found != file.sha256:
            raise self._unavailable(path, "it is not the file that was written: its SHA-256 is another")

    @contextmanager
    def _opened(self, table: str, file: ArchivedFile) -> Iterator[ParquetRows]:
        """The file, if it is there and as long as it was. Raises ArchiveUnavailableError, also while it is read."""
        from gateway.adapters.archive.parquet import UNREADABLE, ParquetRows  # costs a second and 100 MB

        path = self.folder / file.name
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise self._unavailable(path, f"it has {size} bytes where {file.bytes} were written")
            with ParquetRows(path, time=TIMES[table]) as rows:
                yield rows
        except UNREADABLE as error:
            raise self._unavailable(path, _reason(error)) from None

    def _unavailable(self, path: Path, why: str) -> ArchiveUnavailableError:
        return ArchiveUnavailableError(
            f"{path} of the archive cannot be read: {why}. Put it back, or set GATEWAY_ARCHIVE_DIR to where it is."
        )

    # --- writing ---------------------------------------------------------------------------------------------------

    def writer(self, month: str, table: str, columns: Mapping[str, str]) -> Draft:
        """A new file of a month, for rows in order of time. Raises OSError."""
        folder = self.folder / month
        folder.mkdir(parents=True, exist_ok=True)
        return Draft(folder / f"{table}.parquet", columns, name=f"{month}/{table}.parquet")

    def seal(self, month: str, archived: ArchivedMonth) -> None:
        """Writes the checksums of a month's files. Raises OSError."""
        folder = self.folder / month
        files = (archived.ledger, archived.exchanges)
        lines = "".join(f"{file.sha256}  {file.name.removeprefix(f'{month}/')}\n" for file in files)
        draft = folder / f"{CHECKSUMS}{_DRAFT}"
        draft.write_text(lines)
        _appear(draft, folder / CHECKSUMS)
        _sync(self.folder)


class Draft:
    """A file that is being written."""

    def __init__(self, path: Path, columns: Mapping[str, str], *, name: str) -> None:
        from gateway.adapters.archive.parquet import ParquetWriter  # costs a second and 100 MB

        self._path = path
        self._draft = path.with_name(f"{path.name}{_DRAFT}")
        self._name = name
        self._writer = ParquetWriter(self._draft, columns)

    def write(self, text: bytes) -> None:
        """Whole rows of CSV, which become a piece of their own."""
        self._writer.write(text)

    def finish(self) -> ArchivedFile:
        """The file takes its name; what it is."""
        self._writer.close()
        written = ArchivedFile(
            name=self._name,
            rows=self._writer.rows,
            bytes=self._draft.stat().st_size,
            sha256=_sha256(self._draft),
        )
        _appear(self._draft, self._path)
        return written

    def give_up(self) -> None:
        """Nothing is left of it; after ``finish`` nothing happens."""
        self._writer.close()
        self._draft.unlink(missing_ok=True)


def _appear(draft: Path, path: Path) -> None:
    """A file has its name once it is on the disk, whatever is cut off when."""
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__

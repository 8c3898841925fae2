"""An archived month is two files, of its ledger rows and of its plans, whose names, sizes and checksums are on record.

A month may be archived once journals no longer keep what belongs to it: until then a journal that is shipped again is
told from one that never was by the rows that are in the database.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

JOURNAL_KEPT: Final = timedelta(days=7)
"""So long journals keep what has been shipped, for a database that was restored from a backup."""


class ArchivedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. ``name`` is its path in the archive's folder, ``sha256`` in hexadecimal."""

    name: str
    rows: int
    bytes: int
    sha256: str


class ArchivedMonth(msgspec.Struct, frozen=True, kw_only=True):
    """What left the database for files."""

    ledger: ArchivedFile
    exchanges: ArchivedFile


def month_begins(month: str) -> datetime:
    """The first moment of ``2026-08``. Raises ValueError for what is no month."""
    try:
        begins = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        begins = None
    if begins is None or f"{begins:%Y-%m}" != month:
        raise ValueError(f"{month[:40]!r} is not a month such as 2026-08")
    return begins


def month_ends(begins: datetime) -> datetime:
    """The first moment of the month after the one that begins then."""
    return (begins + timedelta(days=31)).replace(day=1)


def archivable_from(begins: datetime) -> datetime:
    """When the month that begins then may be archived, once it is closed."""
    return month_ends(begins) + JOURNAL_KEPT

"""An archived month is two files, of its ledger rows and of its plans, whose names, sizes and checksums are on record.

A month may be archived once journals no longer keep what belongs to it: until then a journal that is shipped again is
told from one that never was by the rows that are in the database.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from gateway.core.closing import month_end

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


def archivable_from(begins: datetime) -> datetime:
    """When the month that begins then may be archived, once it is closed."""
    return month_end(begins) + JOURNAL_KEPT


class NotArchivedError(Exception):
    """The month stays where it is; the text says why and what to do."""

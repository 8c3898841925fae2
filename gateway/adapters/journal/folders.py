"""A journal lives while somebody holds its lock; a dead one belongs to whoever gets the lock next.

A new folder is built under a hidden name and shown only with its lock already held, so that nobody can take the
journal of a writer that has just begun. The kernel lets go of the lock when a process dies, however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

FOLDER: Final = "journal"
LOCK: Final = "lock"
SHIPPED: Final = "shipped"
"""This file in a dead journal says that all of it is in the database, and since when (by its mtime)."""


def journal_id(now: datetime, chance: bytes) -> str:
    """A name that sorts by time and that nobody else has: ``20251122T044121.123456Z-1f3a5c7e``."""
    assert now.utcoffset() is not None
    assert len(chance) >= 4
    return f"{now:%Y%m%dT%H%M%S.%fZ}-{chance[:4].hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalFolder:
    """One journal as found. ``is_live``: somebody held its lock at that moment."""

    journal_id: str
    path: Path
    is_live: bool
    is_shipped: bool


def journals(data_dir: Path) -> tuple[JournalFolder, ...]:
    """Every journal of a data directory, oldest first."""
    root = data_dir / FOLDER
    if not root.is_dir():
        return ()
    found = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return tuple(
        JournalFolder(journal_id=path.name, path=path, is_live=_is_live(path), is_shipped=(path / SHIPPED).exists())
        for path in found
    )


@dataclass(slots=True)
class ClaimedJournal:
    """A journal whose lock we hold, until :meth:`release` or the end of the process."""

    path: Path
    descriptor: int

    @property
    def journal_id(self) -> str:
        return self.path.name

    def release(self) -> None:
        """Gives the lock back; idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def remove(self) -> None:
        """Deletes the journal for good and gives the lock back. Only what is shipped may be deleted."""
        assert (self.path / SHIPPED).exists()
        hidden = self.path.with_name(f".removed-{self.path.name}")
        self.path.rename(hidden)
        shutil.rmtree(hidden)
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def create(data_dir: Path, name: str) -> ClaimedJournal:
    """A new, empty journal with its lock held. Raises OSError, FileExistsError for a name already taken."""
    root = data_dir / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    draft = root / f".new-{name}"
    draft.mkdir(mode=0o700)
    descriptor = _open_lock(draft)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = root / name
    if path.exists():
        os.close(descriptor)
        raise FileExistsError(f"the journal {name} exists already")
    draft.rename(path)
    _fsync_directory(root)
    return ClaimedJournal(path=path, descriptor=descriptor)


def claim(path: Path) -> ClaimedJournal | None:
    """The dead journal in that folder, or None: its writer lives, somebody else has claimed it, or it is gone."""
    try:
        descriptor = _open_lock(path)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    if not _is_still_there(path, descriptor):
        os.close(descriptor)
        return None
    return ClaimedJournal(path=path, descriptor=descriptor)


def _is_still_there(path: Path, descriptor: int) -> bool:
    """Whether the lock that we got is that of this folder, not of one removed while we waited for our turn."""
    try:
        found = (path / LOCK).stat()
    except FileNotFoundError:
        return False
    return found.st_ino == os.fstat(descriptor).st_ino


def _is_live(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _open_lock(path: Path) -> int:
    return os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

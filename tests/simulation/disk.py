"""A disk that remembers what was synced: a killed process leaves the page cache behind, a lost power only the disk.

The files are real and in memory; no sync reaches the machine. What a sync may have lost after it failed once stays
lost, as on Linux. ``durable`` says which records are certain, read off the bytes and not asked of the product.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from gateway.adapters.journal.segments import Syscalls
from tests.simulation.committer import DrivenCommitter
from tests.simulation.life import Life

_HEADER_BYTES: Final = 8
_UNREADABLE: Final[dict[str, Any]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What the disk does for a while, in virtual seconds from the start."""

    kind: str
    begins: float
    ends: float


@dataclass(slots=True, kw_only=True)
class _File:
    path: Path
    content: bytearray = field(default_factory=bytearray)
    synced: int = 0
    is_named: bool = False
    has_lost: bool = False
    indexed: int = 0


def frames(content: bytes | bytearray) -> list[dict[str, Any]]:
    """Every whole record of a segment's bytes, decoded without the product's types; {} where it cannot be."""
    found, at = [], 0
    while at + _HEADER_BYTES <= len(content):
        end = at + _HEADER_BYTES + int.from_bytes(content[at : at + 4], "little")
        payload = content[at + _HEADER_BYTES : end]
        checksum = int.from_bytes(content[at + 4 : at + _HEADER_BYTES], "little")
        if not payload or end > len(content) or zlib.crc32(payload) != checksum:
            break
        try:
            found.append(msgspec.msgpack.decode(payload))
        except (msgspec.MsgspecError, ValueError):
            found.append(_UNREADABLE)
        at = end
    return found


class SimulatedDisk:
    """All segments that any process wrote."""

    def __init__(self, *, chance: Random, now: Callable[[], float], note: Callable[..., None]) -> None:
        self.chance = chance
        self._now = now
        self._note = note
        self._files: dict[Path, _File] = {}
        self.troubles: list[Trouble] = []
        self.sync_seconds = 0.001
        self.durable: defaultdict[str, set[str]] = defaultdict(set)
        """The kinds of records that are certain, by attempt."""

    def is_troubled(self, kind: str) -> bool:
        return any(each.kind == kind and each.begins <= self._now() < each.ends for each in self.troubles)

    def healed_for(self, seconds: float) -> bool:
        """Whether nothing has been wrong for so long."""
        return all(self._now() - seconds >= each.ends or self._now() < each.begins for each in self.troubles)

    def segments(self) -> list[tuple[Path, bytes]]:
        """Every segment that is there, by path."""
        return [(path, bytes(file.content)) for path, file in sorted(self._files.items()) if path.exists()]

    def create(self, path: Path) -> _File:
        file = self._files[path] = _File(path=path)
        return file

    def file(self, path: Path) -> _File | None:
        return self._files.get(path)

    def sync_time(self) -> float:
        slow = self.is_troubled("slow")
        return self.chance.uniform(0.5, 4.0) if slow else self.sync_seconds * self.chance.uniform(0.5, 2.0)

    def synced(self, file: _File, size: int) -> None:
        """The disk has the file up to there, unless it once lost some of it."""
        if file.has_lost:
            return
        file.synced = max(file.synced, min(size, len(file.content)))
        self._index(file)

    def named(self, folder: Path) -> None:
        for file in self._files.values():
            if file.path.parent == folder:
                file.is_named = True
                self._index(file)

    def lose_power(self) -> None:
        """Of what was not synced only some is left; a file whose name was not may be gone."""
        for path, file in sorted(self._files.items()):
            if not path.exists():
                continue
            if not file.is_named and self.chance.random() < 0.5:
                path.unlink()
                continue
            kept = file.content[: file.synced] + self._remains(file.content[file.synced :])
            path.write_bytes(kept)
            file.content, file.synced, file.is_named, file.has_lost = bytearray(kept), len(kept), True, False
            self._index(file)
        for folder in sorted({path.parent for path in self._files}):
            mark = folder / "shipped"
            if mark.exists() and self.chance.random() < 0.5:
                mark.unlink()
        self._note("power lost")

    def _remains(self, tail: bytearray) -> bytes:
        """What a power loss may leave of bytes that were written and not synced."""
        cut = self.chance.randrange(len(tail) + 1)
        match self.chance.randrange(4):
            case 0:
                return b""
            case 1:
                return bytes(tail[:cut])
            case 2:
                return bytes(tail[:cut]) + bytes(len(tail) - cut)  # the length came through, the blocks did not
            case _:
                return bytes(tail)

    def _index(self, file: _File) -> None:
        if not file.is_named:
            return
        for record in frames(file.content[file.indexed : file.synced]):
            attempt = record.get("attempt_id")
            if attempt is not None:
                self.durable[str(attempt)].add(str(record.get("t")))
        file.indexed = file.synced


class DiskCalls(Syscalls):
    """The system calls of one process."""

    def __init__(self, disk: SimulatedDisk, life: Life, committer: DrivenCommitter | None = None) -> None:
        self._disk = disk
        self._life = life
        self._committer = committer
        self._open: dict[int, _File] = {}

    def create(self, path: Path) -> int:
        if not self._life.is_alive:
            return os.open(os.devnull, os.O_WRONLY)
        self._refuse("full", errno.ENOSPC)
        descriptor = super().create(path)
        self._open[descriptor] = self._disk.create(path)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        file = self._open.get(descriptor)
        if file is None or not self._life.is_alive:
            return len(data)
        if self._life.tears():
            self._put(descriptor, file, data[: self._disk.chance.randrange(len(data))])
        if not self._life.passes("write"):
            return len(data)
        if self._disk.is_troubled("full"):
            self._life.disk_failed = True
            if self._disk.chance.random() < 0.5:
                raise OSError(errno.ENOSPC, "no space left on device")
            return self._put(descriptor, file, data[: len(data) // 2])
        return self._put(descriptor, file, data)

    def _put(self, descriptor: int, file: _File, data: bytes) -> int:
        written = super().write(descriptor, data)
        file.content += data[:written]
        return written

    def truncate(self, descriptor: int, size: int) -> None:
        file = self._open.get(descriptor)
        if file is None or not self._life.is_alive:
            return
        super().truncate(descriptor, size)
        del file.content[size:]

    def fdatasync(self, descriptor: int) -> None:
        file = self._open.get(descriptor)
        if file is None or not self._life.is_alive:
            return
        size = len(file.content)
        if self._committer is not None:
            self._committer.wait()
        if not self._life.passes("sync"):
            return
        if self._disk.is_troubled("broken") and not file.has_lost:
            file.has_lost = self._life.disk_failed = True  # told once; later syncs say that all is well
            raise OSError(errno.EIO, "input/output error")
        self._disk.synced(file, size)

    def sync_file(self, path: Path) -> None:
        file = self._disk.file(path)
        if file is None or not self._life.passes("sync"):
            return
        if self._disk.is_troubled("broken") and not file.has_lost:
            file.has_lost = self._life.disk_failed = True
            raise OSError(errno.EIO, "input/output error")
        self._disk.synced(file, len(file.content))

    def fsync_directory(self, path: Path) -> None:
        if self._life.is_alive:
            self._refuse("broken", errno.EIO)
            self._disk.named(path)

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        super().close(descriptor)

    def close_all(self) -> None:
        """What the kernel does when a process has died."""
        for descriptor in list(self._open):
            self.close(descriptor)

    def _refuse(self, kind: str, code: int) -> None:
        if self._disk.is_troubled(kind):
            self._life.disk_failed = True
            raise OSError(code, os.strerror(code))

"""A segment is a file of frames, each whole or absent: u32 length, u32 CRC-32 of the payload, payload (msgpack).

Both numbers are little-endian. A segment ends at its first frame that is not whole; the next one carries on. The
calls to the kernel go through :class:`Syscalls`, so that a test can make any of them fail.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from gateway.core.ledger import Intent, LedgerEntry, PlanRecord, Progress, Record
from gateway.core.prefix import Prompt

HEADER: Final = struct.Struct("<II")
PAYLOAD_BYTES_MAX: Final = 16 * 1024 * 1024
"""A longer frame is damage, not a record."""

SEGMENT_SUFFIX: Final = ".seg"
TAINTED_SUFFIX: Final = ".tainted"


@dataclass(frozen=True, slots=True, order=True)
class JournalPosition:
    """A place between two frames: segment number (from 1; 0 = before any) and byte offset in it."""

    segment: int
    offset: int


START: Final = JournalPosition(0, 0)


class Frame(NamedTuple):
    """One whole frame of a segment: where it begins, where the next one would, and its payload."""

    offset: int
    end: int
    payload: bytes


class _PlanFrame(msgspec.Struct, frozen=True, kw_only=True, tag="plan", tag_field="t"):
    """A PlanRecord as it travels: its plan is JSON text, which msgpack can only carry as bytes."""

    request_id: str
    made_at: datetime
    key_id: str
    plan: bytes
    prompt: Prompt | None = None
    tenant: str = ""
    turn: int = 0


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Intent | Progress | LedgerEntry | _PlanFrame]] = msgspec.msgpack.Decoder(
    Intent | Progress | LedgerEntry | _PlanFrame
)


_INTENT_TAG: Final = msgspec.msgpack.encode("t") + msgspec.msgpack.encode("intent")
_PROGRESS_TAG: Final = msgspec.msgpack.encode("t") + msgspec.msgpack.encode("progress")
_TAG_END: Final = 5 + len(_PROGRESS_TAG)  # the tag is the first field; a map's header is at most five bytes


def encode_frame(record: Record) -> bytes:
    """The bytes of one record, header included."""
    payload = _ENCODER.encode(_travelling(record))
    assert len(payload) <= PAYLOAD_BYTES_MAX
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def decode(payload: bytes) -> Record | str:
    """The record of a whole frame, or, for one that this version cannot read, why not. Never raises."""
    try:
        record = _DECODER.decode(payload)
    except (msgspec.MsgspecError, AssertionError, ValueError, OverflowError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(record, _PlanFrame):
        return PlanRecord(
            request_id=record.request_id,
            made_at=record.made_at,
            key_id=record.key_id,
            plan=msgspec.Raw(record.plan),
            prompt=record.prompt,
            tenant=record.tenant,
            turn=record.turn,
        )
    return record


def is_open(payload: bytes) -> bool:
    """Whether this is an intent or a progress mark, which a ledger has no row for; far cheaper than decoding it."""
    begin = payload[:_TAG_END]
    return _INTENT_TAG in begin or _PROGRESS_TAG in begin


def _travelling(record: Record) -> Intent | Progress | LedgerEntry | _PlanFrame:
    if not isinstance(record, PlanRecord):
        return record
    return _PlanFrame(
        request_id=record.request_id,
        made_at=record.made_at,
        key_id=record.key_id,
        plan=bytes(record.plan),
        prompt=record.prompt,
        tenant=record.tenant,
        turn=record.turn,
    )


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}{SEGMENT_SUFFIX}"


def segment_numbers(folder: Path) -> list[int]:
    """The segments of a journal in their order; gaps are normal."""
    names = (path.stem for path in folder.glob(f"*{SEGMENT_SUFFIX}"))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


class Syscalls:
    """What the journal asks of the kernel. Each raises OSError."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_file(self, path: Path) -> None:
        """The same for a file that somebody else wrote and may not have synced."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def fsync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)


SYSCALLS: Final = Syscalls()


class SegmentFile:
    """One segment being written. ``size`` counts whole frames only; ``is_sound`` is false once a torn frame is in it
    that could not be cut away, or a sync failed: nothing more may be written then."""

    __slots__ = ("_descriptor", "_is_named", "_syscalls", "is_sound", "number", "path", "size", "synced_size")

    def __init__(self, folder: Path, number: int, syscalls: Syscalls) -> None:
        """Creates the file; a file of that number must not exist. Raises OSError."""
        self.number = number
        self.path = segment_path(folder, number)
        self.size = 0
        self.synced_size = 0
        self.is_sound = True
        self._is_named = False
        self._syscalls = syscalls
        self._descriptor = syscalls.create(self.path)

    @property
    def end(self) -> JournalPosition:
        return JournalPosition(self.number, self.size)

    def write(self, frame: bytes) -> None:
        """Appends a whole frame or nothing. Raises OSError."""
        assert self.is_sound
        try:
            written = self._syscalls.write(self._descriptor, frame)
            while written < len(frame):
                more = self._syscalls.write(self._descriptor, frame[written:])
                if more == 0:
                    raise OSError(errno.EIO, "the file takes no more bytes")
                written += more
        except OSError:
            self._cut_back()
            raise
        self.size += len(frame)

    def probe(self) -> None:
        """Whether a block could be written just now; leaves nothing behind. Raises OSError."""
        assert self.is_sound
        try:
            self._syscalls.write(self._descriptor, bytes(4096))
        finally:
            self._cut_back()

    def sync(self) -> None:
        """Everything written so far, and the file's own name, is on the disk when this returns. Raises OSError; after
        that the kernel may have dropped what it could not write, so nothing here may be asked again."""
        size = self.size
        try:
            self._syscalls.fdatasync(self._descriptor)
            if not self._is_named:
                self._syscalls.fsync_directory(self.path.parent)
                self._is_named = True
        except OSError:
            self.is_sound = False
            raise
        self.synced_size = size

    def close(self) -> None:
        self._syscalls.close(self._descriptor)

    def _cut_back(self) -> None:
        try:
            self._syscalls.truncate(self._descriptor, self.size)
        except OSError:
            self.is_sound = False

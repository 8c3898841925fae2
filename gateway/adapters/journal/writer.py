"""What is appended is in the file when the event loop's tick ends, and on the disk when ``durable`` returns, in order.

Records of one tick share one call to the kernel, whose price is nearly the same for one record as for ten. In between
only a kill of the process can come, and it finds nothing that anybody has been told: whoever spends or answers waits
for ``durable`` first, which takes a tick at least. So such a kill is, for the records of that tick, a kill before
them. Where no event loop runs, and while the disk refuses, each record is written before ``append`` returns.

One thread syncs for everybody: while one sync runs the next group gathers, so an idle gateway waits for one sync and
a busy one shares it. A descriptor whose sync failed is never asked again (the kernel may have dropped the data and
forgotten the error): all that is not yet durable is written once more, into a new segment. What has been bought is
never thrown away: a settlement that the disk refuses is held in memory, bounded, and written when the disk is back;
only new work (an intent, a plan) is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Literal, Protocol, Self

from gateway.adapters.journal import folders
from gateway.adapters.journal.folders import ClaimedJournal
from gateway.adapters.journal.segments import (
    START,
    SYSCALLS,
    TAINTED_SUFFIX,
    JournalPosition,
    SegmentFile,
    Syscalls,
    encode_frame,
)
from gateway.core.ledger import Intent, PlanRecord, Record
from gateway.pipeline.ports import MeteringUnavailableError

log = logging.getLogger(__name__)

SEGMENT_BYTES_MAX: Final = 64 * 1024 * 1024
BACKLOG_BYTES_MAX: Final = 64 * 1024 * 1024
"""Records not yet durable are kept in memory up to this; past it every append is refused."""

IDLE_SYNC_SECONDS: Final = 1.0
"""Records that nobody waits for are synced, and a fault is looked at again, after this long."""

WRITE_BYTES_MAX: Final = 64 * 1024
"""So much goes to the kernel in one call, and with it stands or falls; a longer record goes alone."""

COMPANY_MIN: Final = 4
GATHER_SECONDS: Final = 0.002
"""While that many wait, and as long as every tick of the event loop brings another, the next sync waits for company,
but no longer than this: a sync and a change of threads cost as much as many records, an empty tick next to nothing."""

_CLOSE_SECONDS_MAX: Final = 30.0
_SYNC_TRIES: Final = 2  # the segment, then the new one that replaces it


class Committer(Protocol):
    """Who commits for a writer, off its event loop. One commit at a time."""

    def start(self, commit: Callable[[], None]) -> None:
        """Calls ``commit`` whenever it was asked for, and each IDLE_SYNC_SECONDS without."""
        ...

    def ask(self) -> None:
        """A commit is wanted that begins after this call."""
        ...

    def stop(self, seconds_max: float) -> bool:
        """Commits a last time and ends; whether that was done in time."""
        ...


class CommitThread:
    """Implements ``Committer`` with a thread of its own; to wake it is one call, and no lock is waited for."""

    def __init__(self) -> None:
        self._asks: SimpleQueue[Literal["commit", "commit and end"]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, commit: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(commit,), name="journal-sync", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        self._asks.put("commit")

    def stop(self, seconds_max: float) -> bool:
        assert self._thread is not None
        self._asks.put("commit and end")
        self._thread.join(seconds_max)
        return not self._thread.is_alive()

    def _run(self, commit: Callable[[], None]) -> None:
        is_last = False
        while not is_last:
            with contextlib.suppress(Empty):
                is_last = self._asks.get(timeout=IDLE_SYNC_SECONDS) == "commit and end"
            commit()


class JournalWriter:
    """One worker's journal, open for writing. Implements the port ``Journal`` for one event loop."""

    def __init__(
        self,
        claimed: ClaimedJournal,
        *,
        syscalls: Syscalls = SYSCALLS,
        committer: Committer | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        """``committer`` None: a thread of its own."""
        self._claimed = claimed
        self._syscalls = syscalls
        self._segment_bytes_max = segment_bytes_max
        self._backlog_bytes_max = backlog_bytes_max
        self._lock = threading.Lock()
        # Guarded by the lock. The frames past `_durable`, in order, are those unsynced and then those unwritten.
        self._segment: SegmentFile | None = None
        self._unclosed: list[SegmentFile] = []
        self._distrusted: list[SegmentFile] = []
        self._next_number = 1
        self._unsynced: deque[bytes] = deque()
        self._unwritten: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._durable = 0
        self._durable_end = START
        self._fault: str | None = None
        self._is_closing = False
        # The event loop's own.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._listeners: list[Callable[[], None]] = []
        self._attended: asyncio.AbstractEventLoop | None = None
        self._is_asked = False
        self._gathered = 0
        self._gathers_until = 0.0
        self._committer = committer or CommitThread()
        self._committer.start(self._commit_if_needed)

    @classmethod
    def open(
        cls,
        data_dir: Path,
        name: str,
        *,
        syscalls: Syscalls = SYSCALLS,
        committer: Committer | None = None,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> Self:
        """A new journal with that id (see ``journal_id``). Raises OSError."""
        return cls(
            folders.create(data_dir, name),
            syscalls=syscalls,
            committer=committer,
            segment_bytes_max=segment_bytes_max,
            backlog_bytes_max=backlog_bytes_max,
        )

    @property
    def journal_id(self) -> str:
        return self._claimed.journal_id

    @property
    def path(self) -> Path:
        return self._claimed.path

    @property
    def available(self) -> bool:
        """Whether the last write or sync worked: refuse new work while this is false. Looked at again each second."""
        return self._fault is None

    @property
    def fault(self) -> str | None:
        """What keeps the journal from taking records, in an operator's words."""
        return self._fault

    @property
    def backlog_records(self) -> int:
        """Records appended and not yet durable."""
        return len(self._unsynced) + len(self._unwritten)

    @property
    def durable_end(self) -> JournalPosition:
        """Up to here the files may be shipped: earlier segments whole, this one up to the offset."""
        return self._durable_end

    def on_durable(self, listener: Callable[[], None]) -> None:
        """Calls ``listener`` on the event loop after each sync that made something durable for a waiter."""
        self._listeners.append(listener)

    def append(self, record: Record) -> int:
        """Takes a record and returns its position: 1, 2, 3 … in the order of the calls.

        Raises MeteringUnavailableError for an intent or a plan while the disk refuses, and for anything once the
        backlog is full. A settlement or a progress mark that the disk refuses is kept and written later: its position
        is returned, and ``durable`` says whether it has reached the disk.
        """
        frame = encode_frame(record)
        loop = _running_loop()
        with self._lock:
            assert not self._is_closing
            if self._backlog_bytes + len(frame) > self._backlog_bytes_max:
                raise MeteringUnavailableError(
                    f"the journal holds {self._backlog_bytes} bytes that are not on the disk"
                )
            self._unwritten.append(frame)
            if loop is None or self._fault is not None:
                self._write_now(record)
            self._backlog_bytes += len(frame)
            position = self._durable + len(self._unsynced) + len(self._unwritten)
        if loop is not None:
            self._attend(loop)
        return position

    async def durable(self, position: int) -> None:
        """Returns when everything up to ``position`` is on the disk; at once when it is already. Raises
        MeteringUnavailableError when the disk refused; the record may then reach it later, or not at all."""
        if position <= self._durable:
            return
        loop = asyncio.get_running_loop()
        assert self._loop is loop or not self._waiters, "a journal serves one event loop"
        self._loop = loop
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append((position, waiter))
        self._attend(loop)
        await waiter

    def close(self) -> None:
        """Makes durable what can be, stops the thread and gives the lock back. Blocks; idempotent."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
        if not self._committer.stop(_CLOSE_SECONDS_MAX):
            log.error("the journal in %s does not sync; it is left as it is", self.path)
            return
        if self.backlog_records:
            log.error("%d records of the journal in %s never reached the disk", self.backlog_records, self.path)
        for segment in self._unclosed:
            segment.close()
        self._claimed.release()

    # --- writing; the lock is held ---------------------------------------------------------------------------------

    def _write_now(self, record: Record) -> None:
        """Writes what is held; ``record``, the last of it, is given up where it is new work and the disk refuses."""
        try:
            self._write_held()
        except OSError as error:
            self._break("written", error)
            if isinstance(record, Intent | PlanRecord):
                self._unwritten.pop()
                raise MeteringUnavailableError(self._fault) from None
        else:
            self._fault = None

    def _write_tick(self) -> None:
        """Writes what a tick has brought. After a fault that is left to those who find out whether it is over."""
        if self._fault is not None or self._is_closing:
            return
        try:
            self._write_held()
        except OSError as error:
            self._break("written", error)

    def _write_held(self) -> None:
        """Raises OSError; what was not written by then is still held."""
        while self._unwritten:
            first = self._unwritten[0]
            segment = self._segment
            if segment is None or not segment.is_sound or segment.size + len(first) > self._segment_bytes_max:
                segment = self._next_segment()
            frames = [first]
            room = min(self._segment_bytes_max - segment.size, WRITE_BYTES_MAX) - len(first)
            for frame in islice(self._unwritten, 1, None):
                room -= len(frame)
                if room < 0:
                    break
                frames.append(frame)
            segment.write(b"".join(frames))
            for _ in frames:
                self._unwritten.popleft()
            self._unsynced += frames

    def _next_segment(self) -> SegmentFile:
        number = self._next_number
        self._next_number += 1  # also after a failure: a number is never used twice
        self._segment = SegmentFile(self.path, number, self._syscalls)
        self._unclosed.append(self._segment)
        return self._segment

    def _break(self, what: str, error: OSError) -> None:
        fault = f"the journal in {self.path} cannot be {what}: {error.strerror or error}"
        if self._fault is None:
            log.error("%s; new work is refused until that is mended", fault)
        self._fault = fault

    # --- syncing; where the committer calls ------------------------------------------------------------------------

    def _commit_if_needed(self) -> None:
        with self._lock:
            is_idle = not self._unsynced and not self._unwritten and self._fault is None
        if not is_idle:
            self._commit()

    def _commit(self) -> None:
        """One group: everything written by now becomes durable, or its waiters learn that it cannot."""
        for _ in range(_SYNC_TRIES):
            with self._lock:
                self._mend()
                segments = tuple(self._unclosed)
                durable = self._durable + len(self._unsynced)
                end = segments[-1].end if segments else self._durable_end
            try:
                for segment in segments:
                    segment.sync()
            except OSError as error:
                with self._lock:
                    self._distrust(error)
                continue
            with self._lock:
                self._settled(durable, end)
            break
        with self._lock:
            outcome = (self._durable, self._fault)
        self._tell(*outcome)

    def _mend(self) -> None:
        """Writes what the event loop has not come to; after a fault also a trial block, to see what the disk takes."""
        try:
            self._write_held()
            if self._fault is None:
                return
            segment = self._segment
            if segment is None or not segment.is_sound:
                segment = self._next_segment()
            segment.probe()
        except OSError as error:
            self._break("written", error)
            return
        for distrusted in self._distrusted:  # only now is there another copy of what they hold
            _taint(distrusted)
        self._distrusted = []
        if segment.is_sound:
            log.warning("the journal in %s takes records again", self.path)
            self._fault = None

    def _distrust(self, error: OSError) -> None:
        """A sync failed: nothing past ``_durable`` counts as written any more, and no open file is used again."""
        self._break("synced", error)
        self._unsynced.extend(self._unwritten)
        self._unwritten, self._unsynced = self._unsynced, deque()
        self._segment = None
        for segment in self._unclosed:
            segment.close()
        self._distrusted += self._unclosed
        self._unclosed = []

    def _settled(self, durable: int, end: JournalPosition) -> None:
        for _ in range(durable - self._durable):
            self._backlog_bytes -= len(self._unsynced.popleft())
        self._durable = durable
        self._durable_end = end
        finished = [segment for segment in self._unclosed if segment.number < end.segment]
        self._unclosed = self._unclosed[len(finished) :]
        for segment in finished:
            segment.close()
            if segment.size == 0:
                _taint(segment)

    def _tell(self, durable: int, fault: str | None) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._resolve, durable, fault)
        except RuntimeError:
            log.debug("the event loop of the journal in %s has ended", self.path)

    # --- asking and answering; on the event loop -------------------------------------------------------------------

    def _attend(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._attended is not loop:
            self._attended = loop
            loop.call_soon(self._end_tick, loop)

    def _end_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Writes what the tick brought, and wakes the thread for those who wait, unless company is on its way."""
        self._attended = None
        with self._lock:
            self._write_tick()
        waiting, before, self._gathered = len(self._waiters), self._gathered, 0
        if self._is_asked or not waiting:
            return
        if not before:
            self._gathers_until = loop.time() + GATHER_SECONDS
        if waiting >= COMPANY_MIN and waiting > before and loop.time() < self._gathers_until:
            self._gathered = waiting
            self._attend(loop)
            return
        self._is_asked = True
        self._committer.ask()

    def _resolve(self, durable: int, fault: str | None) -> None:
        still: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._is_asked = False
        for position, waiter in self._waiters:
            if waiter.done():
                continue
            if position <= durable:
                waiter.set_result(None)
            elif fault is not None:
                waiter.set_exception(MeteringUnavailableError(fault))
            else:
                still.append((position, waiter))
        self._waiters = still
        if still and self._loop is not None:
            self._attend(self._loop)
        for listener in self._listeners:
            listener()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _taint(segment: SegmentFile) -> None:
    """Marks a segment whose sync failed, for whoever looks; one that never held a durable byte is removed instead."""
    try:
        if segment.synced_size == 0:
            segment.path.unlink()
        else:
            os.close(os.open(segment.path.with_suffix(TAINTED_SUFFIX), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        log.warning("%s could not be marked as damaged: %s", segment.path, error.strerror)

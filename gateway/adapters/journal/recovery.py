"""Recovery settles what a killed worker left open: one flagged estimate per open intent, once, in the same journal.

An intent that was never sent cannot be told from one that was, so both are charged for the estimated input. The entry
goes to a new segment of the dead journal and is durable before anybody ships it; a second recovery finds nothing open.
What a killed worker had not synced is synced before it is read: if the power went next, recovery would have settled by
records that nobody has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.adapters.journal.folders import ClaimedJournal
from gateway.adapters.journal.reader import SegmentReader
from gateway.adapters.journal.segments import (
    SYSCALLS,
    SegmentFile,
    Syscalls,
    decode,
    encode_frame,
    segment_numbers,
    segment_path,
)
from gateway.core.exchange import AttemptStatus, Observation
from gateway.core.ledger import Intent, LedgerEntry, Progress, settle
from gateway.core.pricing import rate
from gateway.core.usage import Usage, UsageSource

CRASHED: Final = "crashed"
RECOVERED: Final = "recovered"
SETTLED_MAX: Final = 200_000
"""A failed sync writes records a second time, some of them after their settlement and any number of segments later,
but never more than a backlog of them (``writer``), which holds fewer settlements than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What was found in a dead journal and what was written to it."""

    entries: tuple[LedgerEntry, ...]
    torn_bytes: int
    unreadable_records: int


@dataclass(slots=True)
class _Scan:
    """The open intents with their last progress marks, after the segments read so far."""

    open: dict[str, Intent] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    settled: dict[str, None] = field(default_factory=dict)
    """The last settlements, in their order."""
    torn_bytes: int = 0
    unreadable_records: int = 0

    def read(self, path: Path) -> None:
        reader = SegmentReader(path)
        for frame in reader:
            match decode(frame.payload):
                case Intent() as intent if intent.attempt_id not in self.settled:
                    self.open[intent.attempt_id] = intent
                case Progress() as progress if progress.attempt_id in self.open:
                    self.progress[progress.attempt_id] = progress
                case LedgerEntry() as entry:
                    self._settle(entry.attempt_id)
                case str():
                    self.unreadable_records += 1
                case _:
                    pass
        self.torn_bytes += reader.torn_bytes

    def _settle(self, attempt_id: str) -> None:
        self.open.pop(attempt_id, None)
        self.progress.pop(attempt_id, None)
        self.settled[attempt_id] = None
        if len(self.settled) > SETTLED_MAX:
            del self.settled[next(iter(self.settled))]


def recover(claimed: ClaimedJournal, *, syscalls: Syscalls = SYSCALLS) -> Recovery:
    """Settles every open intent of a dead journal that we hold. Blocks for as long as the reading takes, about one
    second per segment. Raises OSError; it may then be tried again."""
    scan = _Scan()
    numbers = segment_numbers(claimed.path)
    for number in numbers:
        syscalls.sync_file(segment_path(claimed.path, number))
    syscalls.fsync_directory(claimed.path)
    for number in numbers:
        scan.read(segment_path(claimed.path, number))
    entries = tuple(_entries(scan))
    if entries:
        segment = SegmentFile(claimed.path, numbers[-1] + 1, syscalls)
        try:
            for entry in entries:
                segment.write(encode_frame(entry))
            segment.sync()
        finally:
            segment.close()
    return Recovery(entries=entries, torn_bytes=scan.torn_bytes, unreadable_records=scan.unreadable_records)


def _entries(scan: _Scan) -> Iterator[LedgerEntry]:
    last: dict[str, int] = {}
    for intent in scan.open.values():  # a lost power may leave several of a request
        last[intent.request_id] = max(intent.attempt, last.get(intent.request_id, 0))
    for attempt_id, intent in scan.open.items():
        yield abandoned(intent, scan.progress.get(attempt_id), is_final=intent.attempt == last[intent.request_id])


def abandoned(intent: Intent, progress: Progress | None, *, is_final: bool) -> LedgerEntry:
    """The estimate of an attempt of which nothing more than this is known, at the price it was begun under."""
    prompt = intent.input_tokens_estimate
    if progress is not None and progress.input_tokens is not None:
        prompt = progress.input_tokens
    usage = Usage.from_wire(
        prompt=prompt,
        completion=0 if progress is None else progress.output_tokens,
        cached=None if progress is None else progress.cached_tokens,
        flags=(RECOVERED,),
    )
    return settle(
        intent,
        rate(usage, intent.price.price(), cache_ttl=intent.cache_ttl),
        usage,
        usage_source=UsageSource.ESTIMATED,
        status=AttemptStatus.ABANDONED,
        finished_at=intent.started_at if progress is None else max(progress.at, intent.started_at),
        is_final=is_final,
        seen=Observation(),
        error_type=CRASHED,
    )

"""Whatever a power cut leaves of the journal's files, recovery loses nothing synced and invents nothing (L2, L3, L4).

The journal's calls to the kernel are recorded while exchanges run and the disk fails now and then. Any state that the
kernel may leave behind after any of them is built: what a sync had not covered may be there whole, in part, out of
order or not at all, and a file whose directory was not synced may be missing.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Final, Literal

from gateway.adapters.journal import JournalWriter, SegmentReader, Syscalls, claim, decode, encode_frame, recover
from gateway.adapters.journal.folders import FOLDER, LOCK, ClaimedJournal
from gateway.core.ledger import Intent, LedgerEntry, Record
from gateway.pipeline.ports import MeteringUnavailableError
from tests.integration.samples import entry, intent, plan, progress
from tests.prove.proof import Ground, Proven, told

EXCHANGES: Final = 24
STATES_PER_HISTORY: Final = 50
SEGMENT_BYTES: Final = 6_000
FAULT_SHARE: Final = 0.04
INTERRUPTED_SHARE: Final = 0.3
"""So often the power goes again in the middle of the recovery."""
RECORDING_SECONDS_MAX: Final = 60.0

Kind = Literal["create", "write", "truncate", "sync begins", "synced", "directory synced"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the kernel that did something. ``mark`` is a truncation's size, or which call a sync began as."""

    kind: Kind
    path: Path
    data: bytes = b""
    mark: int = 0


@dataclass(slots=True, kw_only=True)
class History:
    """The calls in their order, and which records had been vouched for after how many of them."""

    calls: list[Call] = field(default_factory=list)
    appended: list[tuple[int, Record]] = field(default_factory=list)
    vouched: list[tuple[int, Record]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, call: Call) -> int:
        with self.lock:
            self.calls.append(call)
            return len(self.calls) - 1


class Recording(Syscalls):
    """The real kernel, written down; now and then a write falls short, the disk is full or a sync fails."""

    def __init__(self, history: History, chance: Random, *, fault_share: float = FAULT_SHARE) -> None:
        self._history = history
        self._chance = chance
        self._fault_share = fault_share
        self._paths: dict[int, Path] = {}

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._paths[descriptor] = path
        self._history.note(Call("create", path))
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        if self._chance.random() < self._fault_share:
            if self._chance.random() < 0.5:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[: self._chance.randrange(1, len(data) + 1)]
        written = super().write(descriptor, data)
        self._history.note(Call("write", self._paths[descriptor], data[:written]))
        return written

    def truncate(self, descriptor: int, size: int) -> None:
        super().truncate(descriptor, size)
        self._history.note(Call("truncate", self._paths[descriptor], mark=size))

    def fdatasync(self, descriptor: int) -> None:
        path = self._paths[descriptor]
        began = self._history.note(Call("sync begins", path))
        if self._chance.random() < self._fault_share:
            raise OSError(errno.EIO, "Input/output error")
        super().fdatasync(descriptor)
        self._history.note(Call("synced", path, mark=began))

    def fsync_directory(self, path: Path) -> None:
        began = self._history.note(Call("sync begins", path))
        super().fsync_directory(path)
        self._history.note(Call("directory synced", path, mark=began))


# -- recording ---------------------------------------------------------------------------------------------------------


def record(folder: Path, seed: int) -> History:
    """Exchanges side by side on a real journal: plan, intent, marks and settlement, as the pipeline writes them."""
    history, chance = History(), Random(seed)
    journal = JournalWriter.open(
        folder, f"h{seed}", syscalls=Recording(history, Random(seed)), segment_bytes_max=SEGMENT_BYTES
    )
    try:
        asyncio.run(_exchanges(journal, history, chance))
    finally:
        journal.close()
    return history


async def _exchanges(journal: JournalWriter, history: History, chance: Random) -> None:
    places = asyncio.Semaphore(6)

    async def exchange(number: int) -> None:
        async with places:
            try:
                await _vouched(journal, history, plan(number), intent(number))
                for marks in range(chance.randrange(3)):
                    _append(journal, history, progress(number, tokens=10 * (marks + 1)))
                    await asyncio.sleep(0)
                if chance.random() < 0.9:
                    await _vouched(journal, history, entry(number))
            except MeteringUnavailableError:
                return  # refused before anything was bought, or kept for later: nobody was told otherwise

    async with asyncio.timeout(RECORDING_SECONDS_MAX), asyncio.TaskGroup() as group:
        for number in range(EXCHANGES):
            group.create_task(exchange(number))


def _append(journal: JournalWriter, history: History, record: Record) -> int:
    with history.lock:
        history.appended.append((len(history.calls), record))
    return journal.append(record)


async def _vouched(journal: JournalWriter, history: History, *records: Record) -> None:
    positions = [_append(journal, history, each) for each in records]
    await journal.durable(positions[-1])
    with history.lock:
        history.vouched += [(len(history.calls), each) for each in records]


# -- states ------------------------------------------------------------------------------------------------------------


def crash(history: History, at: int, chance: Random) -> dict[str, bytes]:
    """One legal content of the journal's folder after a power cut that follows the first ``at`` calls."""
    calls = history.calls[:at]
    named_until = max((call.mark for call in calls if call.kind == "directory synced"), default=-1)
    files: dict[str, bytes] = {}
    indexed = sorted(enumerate(calls), key=lambda pair: str(pair[1].path))
    for path, group in groupby(indexed, key=lambda pair: pair[1].path):
        own = list(group)
        created = next((index for index, call in own if call.kind == "create"), None)
        if created is None or (created > named_until and chance.random() < 0.5):
            continue
        synced_until = max((call.mark for _, call in own if call.kind == "synced"), default=-1)
        changes = [(index, call) for index, call in own if call.kind in ("write", "truncate")]
        content = _applied(b"", (call for index, call in changes if index < synced_until))
        files[path.name] = _survived(content, [call for index, call in changes if index >= synced_until], chance)
    return files


def _applied(content: bytes, changes: Iterable[Call]) -> bytes:
    for call in changes:
        content = content[: call.mark] if call.kind == "truncate" else content + call.data
    return content


def _survived(content: bytes, unsynced: list[Call], chance: Random) -> bytes:
    """What is left of a file when only the first part of it is certain."""
    match chance.choice(["all", "suffix lost", "torn", "reordered"]):
        case "all":
            return _applied(content, unsynced)
        case "suffix lost":
            return _applied(content, unsynced[: chance.randrange(len(unsynced) + 1)])
        case "torn":
            whole = _applied(content, unsynced[: chance.randrange(len(unsynced) + 1)])
            return whole[: chance.randint(min(len(content), len(whole)), len(whole))]
        case _:
            return _reordered(content, unsynced, chance)


def _reordered(content: bytes, unsynced: list[Call], chance: Random) -> bytes:
    """Later writes may have reached the disk and earlier ones not: those read as zeros, or as what was there before."""
    kept = bytearray(content)
    end = len(content)
    for call in unsynced:
        if call.kind == "truncate":
            end = min(end, call.mark)
            if chance.random() < 0.5:
                del kept[call.mark :]
            continue
        if chance.random() < 0.5:
            kept.extend(bytes(max(0, end - len(kept))))
            kept[end : end + len(call.data)] = _holed(call.data, chance)
        end += len(call.data)
    return bytes(kept)


def _holed(data: bytes, chance: Random) -> bytes:
    """One write, of which a part may not have reached the disk: a file grows before its content is there."""
    if chance.random() < 0.5:
        return data
    start, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    return data[:start] + bytes(end - start) + data[end:]


# -- recovery ----------------------------------------------------------------------------------------------------------


def check(history: History, at: int, folder: Path, seed: str) -> list[str]:
    """Builds one state, recovers it twice, and says what is wrong with what is there then."""
    chance = Random(seed)
    files = crash(history, at, chance)
    journal = folder / FOLDER / "j"
    journal.mkdir(parents=True)
    (journal / LOCK).touch()
    for name, content in files.items():
        (journal / name).write_bytes(content)
    try:
        with _claimed(journal) as claimed:
            interrupted = _interrupted(claimed, chance) if chance.random() < INTERRUPTED_SHARE else []
            first = recover(claimed)
            again = recover(claimed)
        found = [decode(frame.payload) for path in sorted(journal.glob("*.seg")) for frame in SegmentReader(path)]
    except Exception as error:  # noqa: BLE001 - any of them is what this proof looks for
        return [f"{seed}: {type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(folder)
    wrong = _wrong(history, at, found, [*interrupted, *first.entries])
    if again.entries:
        wrong.append("a second recovery found something open")
    return [f"{seed}: {each}" for each in wrong]


def _interrupted(claimed: ClaimedJournal, chance: Random) -> list[LedgerEntry]:
    """A recovery in which the power goes again: leaves some legal state of what it wrote. Returns what it meant to."""
    history = History()
    meant = recover(claimed, syscalls=Recording(history, chance, fault_share=0.0))
    left = crash(history, chance.randint(0, len(history.calls)), chance)
    for call in history.calls:
        if call.kind == "create":
            call.path.unlink()
    for name, content in left.items():
        (claimed.path / name).write_bytes(content)
    return list(meant.entries)


def _claimed(journal: Path) -> ClaimedJournal:
    claimed = claim(journal)
    assert claimed is not None
    return claimed


def _wrong(history: History, at: int, found: list[Record | str], recovered: list[LedgerEntry]) -> list[str]:
    wrong = [f"a frame that nobody wrote: {each}" for each in found if isinstance(each, str)]
    there = {encode_frame(each) for each in found if not isinstance(each, str)}
    known = {encode_frame(each) for when, each in history.appended if when <= at}
    for when, each in history.vouched:
        if when <= at and encode_frame(each) not in there:
            wrong.append(f"lost though synced: {type(each).__name__} {getattr(each, 'attempt_id', '')}")
    made_up = there - known - {encode_frame(each) for each in recovered}
    wrong += [f"invented: {frame!r}" for frame in made_up]
    begun = {each.attempt_id for each in found if isinstance(each, Intent)}
    rows = Counter(
        dict.fromkeys(((each.attempt_id, encode_frame(each)) for each in found if isinstance(each, LedgerEntry)), 1)
    )
    entries = Counter(attempt_id for attempt_id, _ in rows)
    wrong += [f"{count} different entries of {attempt_id}" for attempt_id, count in entries.items() if count > 1]
    wrong += [f"an intent without an entry: {attempt_id}" for attempt_id in begun - entries.keys()]
    wrong += [f"a flagless estimate of {each.attempt_id}" for each in recovered if each.usage_source != "estimated"]
    return wrong


def prove(size: int, ground: Ground) -> Proven:
    """``size`` states, of as many recorded histories as that takes."""
    violations: list[str] = []
    calls = synced = 0
    for seed in range(-(-size // STATES_PER_HISTORY)):
        history = record(ground.folder / f"h{seed}", seed)
        chance = Random(f"states of {seed}")
        calls, synced = calls + len(history.calls), synced + len(history.vouched)
        states = min(STATES_PER_HISTORY, size - seed * STATES_PER_HISTORY)
        for state in range(states):
            at = chance.randint(0, len(history.calls))
            violations += check(history, at, ground.folder / "state", f"history {seed}, state {state}, call {at}")
        shutil.rmtree(ground.folder / f"h{seed}")
        ground.tick(states)
    kinds = Counter(
        "lost" if "lost" in each else "invented" if "invented" in each or "nobody" in each else "other"
        for each in violations
    )
    figure = (
        f"{size:,} states of {calls:,} recorded calls, {synced:,} records synced: exceptions and others "
        f"{kinds['other']}, synced and lost {kinds['lost']}, invented {kinds['invented']}"
    )
    return Proven(figure=figure, violations=told(violations))

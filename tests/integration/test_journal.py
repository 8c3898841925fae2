"""The journal keeps laws L2 and L3 on a real disk, and on one that fails in every way a disk can."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.adapters.journal import (
    JournalWriter,
    SegmentReader,
    Syscalls,
    claim,
    decode,
    encode_frame,
    folders,
    journal_id,
    journals,
)
from gateway.adapters.journal.writer import COMPANY_MIN, WRITE_BYTES_MAX
from gateway.core.ledger import PlanRecord, Record
from gateway.core.prefix import Prompt
from gateway.pipeline.ports import MeteringUnavailableError
from tests.integration.samples import T0, entry, intent, plan, progress

WAIT_SECONDS_MAX = 20


class FaultySyscalls(Syscalls):
    """The real kernel, except for what a test tells it to fail. ``calls`` are the names in the order they came."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.write_errors: list[int] = []
        self.sync_errors: list[int] = []
        self.short_writes: list[int] = []
        self.truncate_errors: list[int] = []
        self.is_full = False
        self.gate: threading.Event | None = None
        self.syncing = threading.Event()

    def write(self, descriptor: int, data: bytes) -> int:
        self.calls.append("write")
        if self.short_writes:
            return super().write(descriptor, data[: self.short_writes.pop(0)])
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.write_errors:
            raise OSError(self.write_errors.pop(0), "told to fail")
        return super().write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        self.calls.append("truncate")
        if self.truncate_errors:
            raise OSError(self.truncate_errors.pop(0), "told to fail")
        super().truncate(descriptor, size)

    def fsync_directory(self, path: Path) -> None:
        self.calls.append("fsync_directory")
        super().fsync_directory(path)

    def fdatasync(self, descriptor: int) -> None:
        self.syncing.set()
        if self.gate is not None:
            assert self.gate.wait(WAIT_SECONDS_MAX)
        self.calls.append("fdatasync")
        if self.sync_errors:
            raise OSError(self.sync_errors.pop(0), "told to fail")
        super().fdatasync(descriptor)


class PatientCommitter:
    """Implements ``Committer``: counts what it is asked and commits once, when it is stopped."""

    def __init__(self) -> None:
        self.asked = 0
        self._commit: Callable[[], None] = lambda: None

    def start(self, commit: Callable[[], None]) -> None:
        self._commit = commit

    def ask(self) -> None:
        self.asked += 1

    def stop(self, seconds_max: float) -> bool:
        self._commit()
        return True


@pytest.fixture
def syscalls() -> FaultySyscalls:
    return FaultySyscalls()


@pytest.fixture
def journal(tmp_path: Path, syscalls: FaultySyscalls) -> Iterator[JournalWriter]:
    writer = JournalWriter.open(tmp_path, "j1", syscalls=syscalls)
    yield writer
    writer.close()


def records(folder: Path) -> list[Record | str]:
    return [decode(frame.payload) for path in sorted(folder.glob("*.seg")) for frame in SegmentReader(path)]


def until_durable(journal: JournalWriter, *positions: int) -> None:
    async def wait() -> None:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await asyncio.gather(*(journal.durable(position) for position in positions))

    asyncio.run(wait())


def test_every_kind_of_record_comes_back_as_it_went_in(journal: JournalWriter) -> None:
    """A record read from a segment equals the one appended, JSON plan included."""
    kept = plan(2, prompt=Prompt((2**64 - 1, 5), (10, 20), 2**63, 10), tenant="blue", turn=3)
    written: list[Record] = [plan(), intent(), progress(input_tokens=900, cached_tokens=100), entry(), kept]
    until_durable(journal, *(journal.append(record) for record in written))
    assert records(journal.path) == written
    found = records(journal.path)[0]
    assert isinstance(found, PlanRecord)
    assert msgspec.json.decode(found.plan)["model"] == "kimi-k2-thinking"


def test_append_is_in_the_file_at_once_and_synced_before_durable_returns(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """L2: the write precedes the sync, and the sync precedes the answer."""
    position = journal.append(intent())
    assert records(journal.path) == [intent()]
    assert syscalls.calls == ["write"]
    until_durable(journal, position)
    assert syscalls.calls == ["write", "fdatasync", "fsync_directory"]
    until_durable(journal, journal.append(entry()))
    assert syscalls.calls[3:] == ["write", "fdatasync"]  # the file's name is on the disk already


def test_the_records_of_one_tick_are_in_the_file_when_it_ends_with_one_call(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """Whether anybody waits for them or not, and in their order."""
    written: list[Record] = [plan(), intent(), progress(), entry()]

    async def scenario() -> None:
        for record in written:
            journal.append(record)
        assert syscalls.calls == []
        await asyncio.sleep(0)
        assert syscalls.calls == ["write"]
        assert records(journal.path) == written

    asyncio.run(scenario())


def test_what_an_ended_loop_left_is_written_by_the_next(journal: JournalWriter) -> None:
    """The end of its last tick never came."""
    loop = asyncio.new_event_loop()

    def last() -> None:
        journal.append(intent(1))
        loop.stop()

    loop.call_soon(last)
    loop.run_forever()
    loop.close()

    async def scenario() -> None:
        journal.append(intent(2))
        await asyncio.sleep(0)
        assert records(journal.path) == [intent(1), intent(2)]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("first", "seconds", "asked"),
    [(COMPANY_MIN - 1, 60.0, 1), (COMPANY_MIN, 60.0, 0), (COMPANY_MIN, 0.0, 1)],
    ids=["a few", "many", "many for too long"],
)
def test_a_sync_waits_for_company_as_long_as_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, seconds: float, asked: int
) -> None:
    """A few are synced when their tick ends; many when a tick has brought nobody, or after a moment at the latest."""
    monkeypatch.setattr("gateway.adapters.journal.writer.GATHER_SECONDS", seconds)
    committer = PatientCommitter()
    writer = JournalWriter.open(tmp_path, "j1", committer=committer)
    tasks: list[asyncio.Task[None]] = []

    async def come(count: int) -> None:
        tasks.extend(asyncio.create_task(writer.durable(writer.append(intent(1)))) for _ in range(count))
        await asyncio.sleep(0)

    async def scenario() -> None:
        await come(first)
        for _ in range(4):  # each while the end of the tick before is due
            await come(1 if first >= COMPANY_MIN else 0)
            assert committer.asked == asked
        for _ in range(2):
            await come(0)
        assert committer.asked == 1

    asyncio.run(scenario())
    writer.close()


def test_durable_is_free_when_it_is_so_already(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """Asking twice syncs once."""
    position = journal.append(intent())
    until_durable(journal, position, position)
    until_durable(journal, position)
    assert syscalls.calls.count("fdatasync") == 1


def test_those_who_come_while_a_sync_runs_share_the_next(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """Group commit: forty records that gather during one sync cost one more."""

    async def scenario() -> None:
        syscalls.gate = threading.Event()
        first = asyncio.create_task(journal.durable(journal.append(intent(1))))
        await asyncio.to_thread(syscalls.syncing.wait, WAIT_SECONDS_MAX)
        others = [asyncio.create_task(journal.durable(journal.append(intent(n)))) for n in range(2, 42)]
        await asyncio.sleep(0)
        assert not first.done()
        syscalls.gate.set()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await asyncio.gather(first, *others)

    asyncio.run(scenario())
    assert syscalls.calls.count("fdatasync") == 2
    assert len(records(journal.path)) == 41


def test_a_cancelled_waiter_takes_nothing_back(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """L3: the client may hang up while the disk works; its record becomes durable all the same."""

    async def scenario() -> None:
        syscalls.gate = threading.Event()
        waiting = asyncio.create_task(journal.durable(journal.append(entry(1))))
        await asyncio.to_thread(syscalls.syncing.wait, WAIT_SECONDS_MAX)
        waiting.cancel()
        syscalls.gate.set()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await journal.durable(journal.append(entry(2)))

    asyncio.run(scenario())
    assert records(journal.path) == [entry(1), entry(2)]


def test_a_short_write_is_carried_on(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """A frame that the kernel takes in pieces is whole in the file."""
    syscalls.short_writes = [3, 10, 1]
    until_durable(journal, journal.append(intent(1)), journal.append(intent(2)))
    assert records(journal.path) == [intent(1), intent(2)]


def test_a_full_disk_refuses_new_work_and_keeps_what_was_bought(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """ENOSPC: an intent is refused, a settlement is held and written when there is room; no torn frame is left."""
    until_durable(journal, journal.append(intent(1)))
    syscalls.short_writes, syscalls.is_full = [5], True
    with pytest.raises(MeteringUnavailableError, match="No space left"):
        journal.append(intent(2))
    assert not journal.available
    held = journal.append(entry(1))
    with pytest.raises(MeteringUnavailableError):
        until_durable(journal, held)
    assert records(journal.path) == [intent(1)]
    syscalls.is_full = False
    until_durable(journal, journal.append(intent(3)))
    assert journal.available
    assert records(journal.path) == [intent(1), entry(1), intent(3)]
    assert len(list(journal.path.glob("*.seg"))) == 1


def test_a_full_disk_that_a_tick_finds_refuses_whoever_waits_and_then_whoever_comes(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """ENOSPC on a running loop: the intents of that tick are refused when they are waited for, later ones at once."""

    async def scenario() -> None:
        syscalls.is_full = True
        position = journal.append(intent(1))
        with pytest.raises(MeteringUnavailableError, match="No space left"):
            await journal.durable(position)
        assert not journal.available
        with pytest.raises(MeteringUnavailableError, match="No space left"):
            journal.append(intent(2))
        voided = journal.append(entry(1))
        syscalls.is_full = False
        await journal.durable(voided)
        assert journal.available

    asyncio.run(asyncio.wait_for(scenario(), WAIT_SECONDS_MAX))
    assert records(journal.path) == [intent(1), entry(1)]


def test_what_a_full_disk_held_up_goes_to_it_in_pieces(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """A disk with little room takes what it can: one call stands or falls as a whole, so none is long."""
    syscalls.is_full = True
    held = [entry(number) for number in range(200)]
    positions = [journal.append(record) for record in held]
    syscalls.is_full, syscalls.calls = False, []
    until_durable(journal, *positions)
    assert records(journal.path) == held
    size = sum(len(encode_frame(record)) for record in held)
    assert -(-size // WRITE_BYTES_MAX) <= syscalls.calls[: syscalls.calls.index("fdatasync")].count("write") - 1 <= 3


def test_the_journal_notices_by_itself_that_there_is_room_again(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """While no request is let in, none can try the disk: the writer does, when somebody waits or a second passes."""
    syscalls.is_full = True
    held = journal.append(entry(1))
    syscalls.is_full = False
    assert not journal.available
    until_durable(journal, held)
    assert journal.available
    assert records(journal.path) == [entry(1)]


def test_a_torn_frame_that_cannot_be_cut_away_ends_its_segment(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """The next record goes to a new segment, so that the reader loses nothing."""
    until_durable(journal, journal.append(intent(1)))
    syscalls.short_writes, syscalls.write_errors, syscalls.truncate_errors = [7], [errno.EIO], [errno.EIO]
    with pytest.raises(MeteringUnavailableError):
        journal.append(intent(2))
    until_durable(journal, journal.append(intent(3)))
    assert records(journal.path) == [intent(1), intent(3)]
    reader = SegmentReader(journal.path / "00000001.seg")
    assert len(list(reader)) == 1
    assert reader.torn_bytes == 7


def test_a_failed_sync_is_never_repeated_on_its_descriptor(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """EIO: what was not durable is written again, to a new segment, and the old one is marked."""
    until_durable(journal, journal.append(intent(1)))
    syscalls.sync_errors = [errno.EIO]
    until_durable(journal, journal.append(intent(2)), journal.append(entry(1)))
    assert [path.name for path in sorted(journal.path.glob("0*"))] == [
        "00000001.seg",
        "00000001.tainted",
        "00000002.seg",
    ]
    assert [decode(frame.payload) for frame in SegmentReader(journal.path / "00000002.seg")] == [intent(2), entry(1)]
    assert journal.available
    assert journal.durable_end.segment == 2


def test_when_the_new_segment_fails_too_the_journal_says_so_until_one_works(
    journal: JournalWriter, syscalls: FaultySyscalls
) -> None:
    """Two failed syncs: the waiters learn it, new work is refused, and a later append mends it."""
    syscalls.sync_errors = [errno.EIO, errno.EIO]
    position = journal.append(entry(1))
    with pytest.raises(MeteringUnavailableError, match="synced"):
        until_durable(journal, position)
    assert not journal.available
    until_durable(journal, journal.append(entry(2)), position)
    assert journal.available
    assert [record for record in records(journal.path) if record == entry(1)]
    assert records(journal.path)[-1] == entry(2)


def test_segments_rotate_by_size(tmp_path: Path) -> None:
    """A full segment is followed by the next, each synced, and the records keep their order."""
    writer = JournalWriter.open(tmp_path, "j1", segment_bytes_max=2_000)
    until_durable(writer, *[writer.append(intent(number)) for number in range(20)])
    writer.close()
    assert len(list(writer.path.glob("*.seg"))) > 4
    assert all(path.stat().st_size <= 2_000 for path in writer.path.glob("*.seg"))
    assert records(writer.path) == [intent(number) for number in range(20)]


def test_a_failed_sync_of_a_full_segment_is_mended_with_the_one_after_it(
    tmp_path: Path, syscalls: FaultySyscalls
) -> None:
    """Records of two segments wait for a sync, the first one's fails: all of them go to a third, in order."""
    writer = JournalWriter.open(tmp_path, "j1", syscalls=syscalls, segment_bytes_max=1_600)
    syscalls.sync_errors = [errno.EIO]

    async def scenario() -> None:  # of one tick, so no sync comes in between
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await writer.durable([writer.append(intent(number)) for number in range(4)][-1])

    asyncio.run(scenario())
    writer.close()
    assert [path.stem for path in sorted(writer.path.glob("*.seg"))] == ["00000003", "00000004"]
    assert records(writer.path) == [intent(number) for number in range(4)]


def test_the_lock_of_a_folder_that_was_removed_meanwhile_claims_nothing(tmp_path: Path) -> None:
    """Two workers wait for one dead journal; the first removes it, and another of that name appears."""
    folder = tmp_path / "j1"
    folder.mkdir()
    descriptor = folders._open_lock(folder)
    assert folders._is_still_there(folder, descriptor)
    (folder / "lock").unlink()
    assert not folders._is_still_there(folder, descriptor)
    os.close(folders._open_lock(folder))
    assert not folders._is_still_there(folder, descriptor)
    os.close(descriptor)
    assert claim(tmp_path / "nowhere") is None


def test_a_backlog_is_bounded(tmp_path: Path, syscalls: FaultySyscalls) -> None:
    """When the disk does not keep up, appends are refused before memory runs out."""
    writer = JournalWriter.open(tmp_path, "j1", syscalls=syscalls, backlog_bytes_max=1_000)
    syscalls.is_full = True
    writer.append(entry(1))
    with pytest.raises(MeteringUnavailableError, match="not on the disk"):
        writer.append(entry(2))
    syscalls.is_full = False
    until_durable(writer, 1)
    writer.close()


def test_listeners_hear_of_each_commit_on_the_event_loop(journal: JournalWriter) -> None:
    """The shipper is woken by the sync, and need not poll."""
    heard: list[int] = []
    journal.on_durable(lambda: heard.append(threading.get_ident()))
    until_durable(journal, journal.append(entry(1)))
    assert heard == [threading.get_ident()]


def test_closing_syncs_what_nobody_waited_for(journal: JournalWriter, syscalls: FaultySyscalls) -> None:
    """A progress mark has no waiter; a clean stop makes it durable."""
    journal.append(progress())
    journal.close()
    assert "fdatasync" in syscalls.calls
    assert journal.backlog_records == 0


def test_a_torn_tail_at_any_byte_ends_the_reading_cleanly(tmp_path: Path) -> None:
    """L3: however a frame is cut, the frames before it are read and the cut is reported."""
    whole, last = encode_frame(intent(1)) + encode_frame(entry(1)), encode_frame(intent(2))
    path = tmp_path / "00000001.seg"
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        reader = SegmentReader(path)
        assert [decode(frame.payload) for frame in reader] == [intent(1), entry(1)]
        assert (reader.offset, reader.torn_bytes) == (len(whole), cut)


def test_a_flipped_byte_anywhere_in_a_frame_ends_the_reading_there(tmp_path: Path) -> None:
    """Damage is never read as a record."""
    first, last = encode_frame(intent(1)), encode_frame(intent(2))
    path = tmp_path / "00000001.seg"
    for place in range(len(last)):
        damaged = bytearray(last)
        damaged[place] ^= 0x41
        path.write_bytes(first + damaged + last)
        assert [decode(frame.payload) for frame in SegmentReader(path)] == [intent(1)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600), offset=st.integers(0, 700))
def test_no_bytes_make_the_reader_raise(tmp_path: Path, data: bytes, offset: int) -> None:
    """Whatever is in a segment, reading it and decoding what was found ends in records or reasons."""
    path = tmp_path / "00000001.seg"
    path.write_bytes(data)
    for frame in SegmentReader(path, offset=offset):
        decode(frame.payload)
    assert not isinstance(decode(data), Exception)


def test_reading_goes_on_from_an_offset_and_stops_at_an_end(tmp_path: Path) -> None:
    """The shipper reads on from where it was, and no further than the disk vouches for."""
    frames = [encode_frame(intent(number)) for number in range(5)]
    path = tmp_path / "00000001.seg"
    path.write_bytes(b"".join(frames))
    begin, end = len(frames[0]), sum(map(len, frames[:3])) + 2
    reader = SegmentReader(path, offset=begin, end=end)
    assert [decode(frame.payload) for frame in reader] == [intent(1), intent(2)]
    assert reader.offset == sum(map(len, frames[:3]))


def test_a_journal_lives_as_long_as_its_writer(tmp_path: Path) -> None:
    """A living journal cannot be claimed; one whose writer is gone can, by one claimer at a time."""
    writer = JournalWriter.open(tmp_path, journal_id(T0, b"abcd"))
    assert [(found.journal_id, found.is_live) for found in journals(tmp_path)] == [
        ("20251122T100000.000000Z-61626364", True)
    ]
    assert claim(writer.path) is None
    writer.close()
    assert [found.is_live for found in journals(tmp_path)] == [False]
    claimed = claim(writer.path)
    assert claimed is not None
    assert claim(writer.path) is None
    claimed.release()
    assert journals(tmp_path / "nowhere") == ()


def test_two_journals_never_share_a_folder(tmp_path: Path) -> None:
    """A name that is taken is refused, and the journal that has it is left alone."""
    first = JournalWriter.open(tmp_path, "j1")
    with pytest.raises(FileExistsError):
        JournalWriter.open(tmp_path, "j1")
    until_durable(first, first.append(intent()))
    first.close()


def test_the_journal_of_a_killed_process_is_dead_and_readable(tmp_path: Path) -> None:
    """kill -9 between two records: the lock is free and the records are there."""
    child = os.fork()
    if child == 0:
        writer = JournalWriter.open(tmp_path, "j1")
        writer.append(intent(1))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    (found,) = journals(tmp_path)
    assert not found.is_live
    assert records(found.path) == [intent(1)]


def test_a_kill_in_a_tick_takes_only_what_nobody_was_told(tmp_path: Path) -> None:
    """L3: what earlier ticks brought is in the file, waited for or not; an intent of this one has bought nothing."""
    child = os.fork()
    if child == 0:
        writer = JournalWriter.open(tmp_path, "j1")

        async def scenario() -> None:
            await writer.durable(writer.append(intent(1)))
            writer.append(entry(1))
            await asyncio.sleep(0)
            writer.append(intent(2))
            os.kill(os.getpid(), 9)

        asyncio.run(scenario())
    os.waitpid(child, 0)
    (found,) = journals(tmp_path)
    assert records(found.path) == [intent(1), entry(1)]

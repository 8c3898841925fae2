"""Recovery gives each open intent of a killed worker exactly one flagged entry (laws L2 and L3)."""

from __future__ import annotations

import errno
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.adapters.journal import (
    ClaimedJournal,
    JournalWriter,
    Recovery,
    SegmentReader,
    Syscalls,
    claim,
    decode,
    encode_frame,
    recover,
)
from gateway.core.ledger import Record
from gateway.core.money import Money
from tests.integration.samples import entry, intent, progress


class NoSync(Syscalls):
    """A disk that takes bytes and cannot vouch for them."""

    def fdatasync(self, descriptor: int) -> None:
        raise OSError(errno.EIO, "told to fail")


def dead_journal(data_dir: Path, *written: Record, segment_bytes_max: int = 10_000) -> ClaimedJournal:
    """A journal with these records whose writer is gone, claimed."""
    writer = JournalWriter.open(data_dir, "j1", segment_bytes_max=segment_bytes_max)
    for record in written:
        writer.append(record)
    writer.close()
    claimed = claim(writer.path)
    assert claimed is not None
    return claimed


def recovered(claimed: ClaimedJournal) -> Recovery:
    return recover(claimed)


def test_an_open_intent_without_progress_is_charged_for_its_estimated_input(tmp_path: Path) -> None:
    """1,000 estimated tokens at 0.556 USD per million, nothing for output, flagged and final."""
    with dead_journal(tmp_path, intent(1)) as claimed:
        (found,) = recovered(claimed).entries
    assert (found.attempt_id, found.status, found.error_type) == ("att_00000001", "abandoned", "crashed")
    assert (found.usage_source, found.flags, found.is_final) == ("estimated", ["recovered"], True)
    assert (found.input_tokens, found.output_tokens) == (1000, 0)
    assert Money(found.cost_pico) == Money.from_usd("0.000556")
    assert found.started_at == found.finished_at == intent(1).started_at
    assert found.price_id == intent(1).price.price_id


def test_the_last_progress_mark_decides(tmp_path: Path) -> None:
    """900 prompt tokens, 100 of them cached, and 40 of output so far, each at its own price."""
    marks = [progress(1, tokens=20), progress(1, tokens=40, input_tokens=900, cached_tokens=100)]
    with dead_journal(tmp_path, intent(1), *marks) as claimed:
        (found,) = recovered(claimed).entries
    assert (found.input_tokens, found.cached_tokens, found.output_tokens) == (900, 100, 40)
    assert Money(found.cost_pico) == Money.from_usd("0.00044480") + Money.from_usd("0.0000139") + Money.from_usd(
        "0.00008888"
    )
    assert found.finished_at == intent(1).started_at + timedelta(seconds=1)


def test_recovery_happens_exactly_once(tmp_path: Path) -> None:
    """L4: the entry is in the journal itself, so a second recovery finds nothing open and writes nothing."""
    with dead_journal(tmp_path, intent(1), intent(2), entry(2), intent(3), progress(3)) as claimed:
        first = recovered(claimed)
        files = sorted(claimed.path.iterdir())
        second = recovered(claimed)
        assert [found.attempt_id for found in first.entries] == ["att_00000001", "att_00000003"]
        assert second.entries == ()
        assert sorted(claimed.path.iterdir()) == files
        last = [decode(frame.payload) for frame in SegmentReader(claimed.path / "00000002.seg")]
        assert last == list(first.entries)


def test_a_settlement_in_a_later_segment_closes_its_intent(tmp_path: Path) -> None:
    """An attempt may begin in one segment and end in another."""
    with dead_journal(tmp_path, intent(1), intent(2), entry(1), entry(2), segment_bytes_max=700) as claimed:
        assert recovered(claimed).entries == ()


def test_an_intent_written_again_after_its_settlement_stays_closed(tmp_path: Path) -> None:
    """A failed sync repeats records in the next segment; a crash may cut that short after the intent."""
    with dead_journal(tmp_path, intent(1), entry(1)) as claimed:
        (claimed.path / "00000002.seg").write_bytes(encode_frame(intent(1)))
        assert recovered(claimed).entries == ()


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_torn_settlement_leaves_its_intent_open(tmp_path: Path, cut: int) -> None:
    """A settlement that did not reach the file was never acknowledged: the estimate takes its place."""
    with dead_journal(tmp_path, intent(1)) as claimed:
        with (claimed.path / "00000001.seg").open("ab") as file:
            file.write(encode_frame(entry(1))[:cut])
        found = recovered(claimed)
        assert [each.attempt_id for each in found.entries] == ["att_00000001"]
        assert found.torn_bytes == cut


def test_a_recovery_that_could_not_be_synced_can_be_tried_again(tmp_path: Path) -> None:
    """An error leaves a journal that the next recovery finishes, still with one entry per attempt."""
    with dead_journal(tmp_path, intent(1), intent(2)) as claimed:
        with pytest.raises(OSError, match="told to fail"):
            recover(claimed, syscalls=NoSync())
        recovered(claimed)
        found = [decode(frame.payload) for path in sorted(claimed.path.glob("*.seg")) for frame in SegmentReader(path)]
        assert len(found) == len({getattr(record, "attempt_id", None) for record in found}) * 2


def test_an_empty_journal_needs_nothing(tmp_path: Path) -> None:
    """A worker that died before its first request left nothing to settle."""
    with dead_journal(tmp_path) as claimed:
        assert recovered(claimed) == Recovery(entries=(), torn_bytes=0, unreadable_records=0)

"""The audit's chain: whole as it was written, broken by any change of any field of any entry."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from gateway.core.audit import GENESIS, AuditEntry, ChainCheck

T0 = datetime(2025, 11, 22, 10, 0, 0, 123, tzinfo=UTC)


def chain(length: int = 4) -> list[AuditEntry]:
    """Entries that follow on each other."""
    entries: list[AuditEntry] = []
    for number in range(1, length + 1):
        entry = AuditEntry(
            entry_id=number,
            at=T0 + timedelta(seconds=number),
            actor="key_1",
            action="key.update",
            target=f"key:{number}",
            team="blue",
            before={"rpm": 1, "tags": {"a": "ü"}},
            after={"rpm": 2, "tags": {}},
            request_id=f"req_{number}",
            previous_hash=entries[-1].hash if entries else GENESIS,
            hash=b"",
        )
        entries.append(replace(entry, hash=entry.expected_hash()))
    return entries


def followed(entries: list[AuditEntry]) -> ChainCheck:
    check = ChainCheck()
    for entry in entries:
        if not check.follow(entry):
            break
    return check


def test_a_whole_chain() -> None:
    """Every entry fits, and the head is the last one's hash."""
    entries = chain()
    check = followed(entries)
    assert (check.broken, check.entries, check.head) == (None, 4, entries[-1].hash)
    assert (followed([]).entries, followed([]).head) == (0, GENESIS)


CHANGES: list[dict[str, Any]] = [
    {"at": T0}, {"actor": "key_2"}, {"action": "key.create"}, {"target": "key:9"}, {"team": None},
    {"before": None}, {"before": {"rpm": 1, "tags": {"a": "u"}}}, {"after": {"rpm": 3, "tags": {}}},
    {"request_id": "req_9"}, {"hash": bytes(32)},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_a_changed_entry_is_the_broken_one(changes: dict[str, Any]) -> None:
    """Whatever was changed in it."""
    entries = chain()
    entries[1] = replace(entries[1], **changes)
    check = followed(entries)
    assert check.entries == 1
    assert check.broken is not None
    assert check.broken.startswith("entry 2 was changed")


def test_an_entry_changed_with_its_hash_is_found_by_the_next_one() -> None:
    """A hash made anew fits the entry and not the chain."""
    entries = chain()
    forged = replace(entries[1], actor="nobody")
    entries[1] = replace(forged, hash=forged.expected_hash())
    assert followed(entries).broken == "entry 3 does not follow on the entry before it"


def test_a_missing_entry_is_named() -> None:
    """Also the first one, and also if the others are renumbered."""
    entries = chain()
    assert followed([*entries[:1], *entries[2:]]).broken == "entry 2 is missing; entry 3 follows on 1"
    assert followed(entries[1:]).broken == "entry 1 is missing; entry 2 follows on 0"
    renumbered = [replace(entry, entry_id=entry.entry_id - 1) for entry in entries[1:]]
    assert followed(renumbered).broken == "entry 1 does not follow on the entry before it"


def test_the_encoding_is_one() -> None:
    """A database may order names as it likes and tell a moment in any zone."""
    entry = chain(1)[0]
    other = replace(
        entry,
        at=entry.at.astimezone(timezone(timedelta(hours=5))),
        before=json.loads('{"tags":{"a":"\\u00fc"},"rpm":1}'),
    )
    assert other.expected_hash() == entry.hash

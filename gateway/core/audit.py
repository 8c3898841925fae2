"""Every change has an entry, and each entry's hash covers its content and the hash before it.

An entry that was changed, removed, inserted or renumbered breaks the chain there; entries cut off at its end are found
by whoever has kept the last hash elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

GENESIS: Final = bytes(32)
"""The hash before the first entry."""

Facts = Mapping[str, Any]
"""What was, or what is: JSON without secrets and without digests of secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who changed what. ``actor`` is a key's id, ``admin-token``, ``cli`` or ``signal``; ``team`` whose tenant it
    was done in."""

    entry_id: int
    at: datetime
    actor: str
    action: str
    target: str
    team: str | None
    before: Facts | None
    after: Facts | None
    request_id: str | None
    previous_hash: bytes
    hash: bytes

    def expected_hash(self) -> bytes:
        """What the hash has to be: SHA-256 of the hash before and the content in its one encoding."""
        return hashlib.sha256(self.previous_hash + self._content()).digest()

    def _content(self) -> bytes:
        """JSON with sorted names and no spaces, so that a database may store it in any order."""
        at = self.at.astimezone(UTC).isoformat(timespec="microseconds")
        content = [
            *(self.entry_id, at, self.actor, self.action, self.target, self.team),
            *(self.before, self.after, self.request_id),
        ]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


class ChainCheck:
    """Follows a chain from its first entry on. ``broken`` says what is wrong with the first entry that does not fit;
    ``entries`` and ``head`` are how many fit and the last one's hash."""

    def __init__(self) -> None:
        self.entries = 0
        self.head = GENESIS
        self.broken: str | None = None

    def follow(self, entry: AuditEntry) -> bool:
        """Whether the chain is whole with this entry, the next one by number."""
        self.broken = self._fault(entry)
        if self.broken is None:
            self.entries += 1
            self.head = entry.hash
        return self.broken is None

    def _fault(self, entry: AuditEntry) -> str | None:
        expected = self.entries + 1
        if entry.entry_id != expected:
            return f"entry {expected} is missing; entry {entry.entry_id} follows on {self.entries}"
        if entry.previous_hash != self.head:
            return f"entry {entry.entry_id} does not follow on the entry before it"
        if entry.hash != entry.expected_hash():
            return f"entry {entry.entry_id} was changed after it was written"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerdict:
    """How many entries are whole, the last one's hash, and what is wrong with the first one that is not."""

    entries: int
    head: bytes
    broken: str | None


def entry_json(entry: AuditEntry) -> dict[str, object]:
    """An entry under its public names; hashes in hexadecimal."""
    return {
        "id": entry.entry_id,
        "at": entry.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "team": entry.team,
        "before": entry.before,
        "after": entry.after,
        "request_id": entry.request_id,
        "previous_hash": entry.previous_hash.hex(),
        "hash": entry.hash.hex(),
    }

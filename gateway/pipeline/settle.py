"""How an attempt ended becomes one ledger entry, once; after ``durable`` it survives whatever is killed."""

from __future__ import annotations

from datetime import datetime

from gateway.core import ledger
from gateway.core.ledger import Intent, LedgerEntry
from gateway.core.pricing import Charge
from gateway.pipeline.experience import Experience
from gateway.pipeline.outcome import Outcome
from gateway.pipeline.ports import Journal


def settle(
    intent: Intent,
    charge: Charge,
    outcome: Outcome,
    journal: Journal,
    *,
    finished_at: datetime,
    is_final: bool,
    flags: tuple[str, ...] = (),
) -> tuple[LedgerEntry, int]:
    """Writes the entry to the journal, charged at the price its intent has pinned; returns it with its position.
    Raises MeteringUnavailableError."""
    assert charge.price_id == intent.price.price_id
    entry = ledger.settle(
        intent,
        charge,
        outcome.usage,
        usage_source=outcome.usage_source,
        status=outcome.status,
        finished_at=finished_at,
        is_final=is_final,
        seen=outcome.seen,
        error_type=None if outcome.failure is None else outcome.failure.kind.value,
        flags=flags,
    )
    return entry, journal.append(entry)


def learn(entry: LedgerEntry, outcome: Outcome, experience: Experience, *, input_bytes: int) -> None:
    """What a finished answer teaches about token counts; nothing, if the provider did not tell its tokens."""
    if entry.status != "succeeded" or entry.usage_source != "provider":
        return
    reader = outcome.reader
    experience.learn(
        entry.model,
        key_id=entry.key_id,
        input_bytes=input_bytes,
        input_tokens=entry.input_tokens,
        output_bytes=reader.reasoning_bytes + reader.content_bytes + reader.tool_bytes,
        output_tokens=entry.output_tokens,
        whole_bytes=len(outcome.body or b""),
    )

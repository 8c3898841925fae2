"""Settlements of many keys, models and ends, drawn by a seed, and what their sums have to be, in plain integers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from random import Random
from typing import Final

from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry
from gateway.core.usage import NO_USAGE, Usage, UsageSource
from tests.integration.samples import T0, entry

KEYS: Final = 5
MINUTES: Final = 240

SUMS: Final = (
    "requests", "attempts", "failed_attempts", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens",
    "reasoning_tokens", "cost_pico", "estimated_cost_pico", "failed_cost_pico",
)  # fmt: skip
"""The columns of a roll-up."""


def settlements(count: int, *, seed: int, key: str | None = None) -> Iterable[LedgerEntry]:
    """``count`` entries, each of an attempt of its own; with ``key`` all of that key."""
    chance = Random(seed)
    for number in range(count):
        prompt, source = chance.randrange(1, 200_000), chance.choice(list(UsageSource))
        used = Usage.from_wire(
            prompt=prompt, completion=chance.randrange(50_000), cached=chance.choice([None, 0, prompt // 2])
        )
        name = key or f"key_{chance.randrange(KEYS)}"
        yield entry(
            number,
            used=NO_USAGE if source is UsageSource.NONE else used,
            status=chance.choice(list(AttemptStatus)),
            source=source,
            is_final=chance.random() < 0.9,
            attempt_id=f"att_{seed}_{number:08d}",
            request_id=f"req_{seed}_{number:08d}",
            key_id=name,
            key_name=name,
            tags={"env": chance.choice(["test", "live"])},
            started_at=T0 + timedelta(minutes=chance.randrange(MINUTES)),
        )


def sums_of(entries: Iterable[LedgerEntry]) -> tuple[int, ...]:
    """What the roll-ups of these entries add up to, in the order of ``SUMS``."""
    sums = [0] * len(SUMS)
    for each in entries:
        failed, estimated = each.status in ("failed", "abandoned"), each.usage_source == "estimated"
        added = (
            each.is_final, 1, failed, each.input_tokens, each.cached_tokens or 0, each.cache_write_tokens,
            each.output_tokens, each.reasoning_tokens or 0, each.cost_pico, each.cost_pico * estimated,
            each.cost_pico * failed,
        )  # fmt: skip
        sums = [total + amount for total, amount in zip(sums, added, strict=True)]
    return tuple(sums)

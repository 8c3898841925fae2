"""Journal records for tests: every field has a value, and a test names the ones it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gateway.core.exchange import AttemptStatus, Observation
from gateway.core.ledger import Intent, LedgerEntry, PinnedPrice, PlanRecord, Progress, settle
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price, rate
from gateway.core.usage import Usage, UsageSource

T0 = datetime(2025, 11, 22, 10, 0, tzinfo=UTC)
ROLLED_UP = """(
    SELECT
        r.*, key_id, key_name, team, status, usage_source, estimated_pico AS estimated_cost_pico,
        failed_pico AS failed_cost_pico
    FROM spend_rollup AS r JOIN spend_groups USING (group_id)
) AS rolled_up"""
"""The roll-ups of every grain with who and what they are of: a FROM item."""
PRICE = Price(
    provider="evolink",
    model="kimi-k2-thinking",
    effective_from=datetime(2025, 11, 6, tzinfo=UTC),
    input=UnitPrice.from_usd_per_million("0.556"),
    cached_input=UnitPrice.from_usd_per_million("0.139"),
    output=UnitPrice.from_usd_per_million("2.222"),
)


def intent(number: int = 1, **changes: Any) -> Intent:
    """The intent of attempt ``number``, made ``number`` seconds after T0."""
    values: dict[str, Any] = {
        "attempt_id": f"att_{number:08d}",
        "request_id": f"req_{number:08d}",
        "attempt": 1,
        "key_id": "key_1",
        "key_name": "one",
        "team": "blue",
        "tags": {"env": "test"},
        "surface": "chat_completions",
        "model": "kimi-k2-thinking",
        "provider": "evolink",
        "account": "main",
        "upstream_model": "kimi-k2-thinking",
        "started_at": T0 + timedelta(seconds=number),
        "price": PinnedPrice.of(PRICE),
        "cache_ttl": "5m",
        "input_tokens_estimate": 1000,
        "output_limit": 4096,
    }
    return Intent(**{**values, **changes})


def usage(**changes: Any) -> Usage:
    return Usage.from_wire(**{"prompt": 1000, "completion": 200, "cached": 600, "reasoning": 50, **changes})


def entry(
    number: int = 1,
    *,
    used: Usage | None = None,
    status: AttemptStatus = AttemptStatus.SUCCEEDED,
    source: UsageSource = UsageSource.PROVIDER,
    is_final: bool = True,
    **changes: Any,
) -> LedgerEntry:
    """The settlement of ``intent(number, **changes)``, two seconds after its start."""
    begun = intent(number, **changes)
    used = used or usage()
    return settle(
        begun,
        rate(used, begun.price.price()),
        used,
        usage_source=source,
        status=status,
        finished_at=begun.started_at + timedelta(seconds=2),
        is_final=is_final,
        seen=Observation(http_status=200, first_byte_at=begun.started_at + timedelta(milliseconds=300)),
    )


def progress(number: int = 1, *, tokens: int = 20, **changes: Any) -> Progress:
    at = T0 + timedelta(seconds=number + 1)
    return Progress(**{"attempt_id": f"att_{number:08d}", "at": at, "output_tokens": tokens, **changes})


def plan(number: int = 1, **changes: Any) -> PlanRecord:
    values: dict[str, Any] = {
        "request_id": f"req_{number:08d}",
        "made_at": T0 + timedelta(seconds=number),
        "key_id": "key_1",
        "plan": msgspec.Raw(b'{"model":"kimi-k2-thinking","candidates":[]}'),
    }
    return PlanRecord(**{**values, **changes})

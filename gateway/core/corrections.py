"""A correction is rows of its own: what was counted is taken back whole and counted anew, or an amount is added.

The row that counts of an attempt is its original or its last replacement; what it costs is the sum of all its rows.
Whatever corrects a closed month counts when the first open one begins, and says when that happened which it corrects.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from gateway.core.exchange import Surface
from gateway.core.ledger import LedgerEntry
from gateway.core.money import Money
from gateway.core.pricing import DEFAULT_CACHE_TTL, Price, PriceTable, rate
from gateway.core.usage import Meter, Usage, UsageSource

UNATTRIBUTED: Final = "unattributed"
"""The key of what a provider charged or gave back and no attempt of ours stands for."""

REVERSAL: Final = "-"
REPLACEMENT: Final = "+"
ADJUSTMENT: Final = "="
_CORRECTION_ID: Final = re.compile(r".*~([1-9][0-9]*)([-+=])", re.DOTALL)

_SUMMED: Final = (
    *("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("input_pico", "cached_pico", "cache_write_pico", "output_pico", "fee_pico", "cost_pico", "list_pico"),
)


CorrectionKind = Literal["reprice", "restatement", "refund", "reconciliation"]


class CorrectionBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Why rows were corrected: one reason for all of them. ``facts`` is JSON: what was asked for."""

    correction_id: str
    kind: CorrectionKind
    reason: str
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        assert self.reason.strip(), "somebody will ask why"


class CorrectedMeanwhileError(Exception):
    """Somebody else has corrected the same attempt since it was read; nothing of this part was written."""

    def __init__(self, attempt_id: str) -> None:
        super().__init__(
            f"The attempt {attempt_id} was corrected meanwhile. Run this again: it goes by what is so now."
        )
        self.attempt_id = attempt_id


class ArchivedError(Exception):
    """Rows of an archived month are not in the database, so that nothing there can be corrected."""

    def __init__(self, until: datetime) -> None:
        begins = until.astimezone(UTC)
        super().__init__(
            f"Months before {begins:%Y-%m} are archived, and what is archived is not corrected. Begin at "
            f"{begins:%Y-%m-%d}, or bring months back first: gateway ledger restore"
        )


class InForce(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt as it counts now: ``entry`` is its original or its last replacement, ``adjusted`` the sum of its
    adjustments, ``revision`` how often it was corrected."""

    entry: LedgerEntry
    original_started_at: datetime
    adjusted: Money
    revision: int

    @property
    def attempt_id(self) -> str:
        """The attempt's own, whatever was put in its place."""
        return self.entry.corrects or self.entry.attempt_id

    @property
    def cost(self) -> Money:
        """What the attempt costs now, with everything that corrects it."""
        return Money(self.entry.cost_pico) + self.adjusted


def new_correction_id(now: datetime, chance: bytes) -> str:
    """A name that sorts by time and that no other batch has: ``cor_20261103T091500Z-1f3a5c7e``."""
    assert len(chance) >= 4
    return f"cor_{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{chance[:4].hex()}"


def counting(started_at: datetime, closed_until: datetime | None) -> tuple[datetime, datetime | None]:
    """When a correction of what began then counts, and what moment it restates: none in an open month."""
    if closed_until is None or started_at >= closed_until:
        return started_at, None
    return closed_until, started_at


def correction_place(attempt_id: str) -> tuple[int, str] | None:
    """Of a correction's own id its number within the attempt and its sign; None for an attempt's id."""
    found = _CORRECTION_ID.fullmatch(attempt_id)
    return None if found is None else (int(found[1]), found[2])


def placed(entry: LedgerEntry, closed_until: datetime | None) -> LedgerEntry:
    """A correction where it counts if months are closed until then."""
    counts_at, restates = counting(entry.restates or entry.started_at, closed_until)
    if (counts_at, restates) == (entry.started_at, entry.restates):
        return entry
    return msgspec.structs.replace(entry, started_at=counts_at, restates=restates)


def rewritten(
    now: InForce,
    *,
    correction_id: str,
    usage: Usage,
    usage_source: UsageSource,
    price: Price,
    cache_ttl: str = DEFAULT_CACHE_TTL,
    closed_until: datetime | None,
) -> tuple[LedgerEntry, LedgerEntry]:
    """The reversal of the row in force, and its replacement by this usage at this price. Adjustments stay."""
    assert usage_source is not UsageSource.NONE, "a replacement is for what was billed"
    begun = _corrected(now, sign=REVERSAL, correction_id=correction_id, closed_until=closed_until)
    reversal = msgspec.structs.replace(begun, **{name: _negated(getattr(now.entry, name)) for name in _SUMMED})
    charge = rate(usage, price, cache_ttl=cache_ttl, fee=Money(now.entry.fee_pico))
    replacement = msgspec.structs.replace(
        begun,
        attempt_id=_correction_id(now, REPLACEMENT),
        usage_source=usage_source.value,
        input_tokens=usage.input_tokens,
        cached_tokens=usage.cache_read,
        cache_write_tokens=usage.cache_write,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning,
        reasoning_source=usage.reasoning_source.value,
        price_id=charge.price_id,
        input_pico=charge.cost_of(Meter.INPUT).pico,
        cached_pico=charge.cost_of(Meter.CACHE_READ).pico,
        cache_write_pico=charge.cost_of(Meter.CACHE_WRITE).pico,
        output_pico=charge.cost_of(Meter.OUTPUT).pico,
        fee_pico=charge.fee.pico,
        cost_pico=charge.cost.pico,
        list_pico=charge.cost.pico,
        flags=list(usage.flags),
    )
    return reversal, replacement


def repriced(
    now: InForce, prices: PriceTable, *, correction_id: str, closed_until: datetime | None
) -> tuple[LedgerEntry, LedgerEntry] | None:
    """The same tokens at the price that a table has in force for when the attempt began; None where it has none."""
    entry = now.entry
    price = prices.in_force(entry.provider, priced_model(entry), now.original_started_at)
    if price is None:
        return None
    ttl = cache_ttl_of(entry, prices.by_id(entry.price_id)) if entry.cache_write_tokens else DEFAULT_CACHE_TTL
    return rewritten(
        now,
        correction_id=correction_id,
        usage=usage_of(entry),
        usage_source=UsageSource(entry.usage_source),
        price=price,
        cache_ttl=ttl,
        closed_until=closed_until,
    )


def priced_model(entry: LedgerEntry) -> str:
    """The model whose price a row was rated with, which is another than was asked for where a successor answered."""
    return entry.price_id.removeprefix(f"{entry.provider}/").rpartition("@")[0] or entry.model


def adjusted(now: InForce, *, correction_id: str, amount: Money, closed_until: datetime | None) -> LedgerEntry:
    """An amount that is owed or given back for an attempt, where nobody says for which tokens."""
    entry = now.entry
    begun = _corrected(now, sign=ADJUSTMENT, correction_id=correction_id, closed_until=closed_until)
    told = "provider" if entry.usage_source == "none" else entry.usage_source  # what is not billed costs nothing
    return msgspec.structs.replace(begun, usage_source=told, **_amount_alone(amount))


def unattributed(
    *,
    correction_id: str,
    provider: str,
    account: str,
    model: str,
    line: str,
    at: datetime,
    amount: Money,
    closed_until: datetime | None,
    upstream_request_id: str | None,
) -> LedgerEntry:
    """An amount of a provider's that no attempt of ours stands for; ``line`` names it, once and for all."""
    corrects = f"{provider}/{account}/{line}"
    counts_at, restates = counting(at, closed_until)
    return LedgerEntry(
        attempt_id=f"{corrects}~1{ADJUSTMENT}",
        request_id=corrects,
        attempt=1,
        is_final=False,
        key_id=UNATTRIBUTED,
        key_name=UNATTRIBUTED,
        team=None,
        tags={},
        surface=Surface.CHAT_COMPLETIONS.value,  # none, but readers of the ledger know these three
        model=model,
        provider=provider,
        account=account,
        upstream_model=model,
        served_model=None,
        upstream_request_id=upstream_request_id,
        started_at=counts_at,
        finished_at=at,
        ttft_ms=None,
        status="succeeded",
        http_status=None,
        error_type=None,
        usage_source="provider",
        input_tokens=0,
        cached_tokens=None,
        cache_write_tokens=0,
        output_tokens=0,
        reasoning_tokens=None,
        reasoning_source="none",
        price_id="",
        input_pico=0,
        cached_pico=0,
        cache_write_pico=0,
        output_pico=0,
        fee_pico=amount.pico,
        cost_pico=amount.pico,
        list_pico=amount.pico,
        corrects=corrects,
        admitted_at=at,
        correction_id=correction_id,
        restates=restates,
    )


def usage_of(entry: LedgerEntry) -> Usage:
    """What a row says was consumed; of an original or a replacement."""
    cached, write = entry.cached_tokens, entry.cache_write_tokens
    return Usage(
        input=entry.input_tokens - (cached or 0) - write,
        cache_read=cached,
        cache_write=write,
        output=entry.output_tokens,
        reasoning=entry.reasoning_tokens,
        reasoning_source=UsageSource(entry.reasoning_source),
    )


def cache_ttl_of(entry: LedgerEntry, price: Price | None) -> str:
    """The lifetime for which a row's tokens were written to a cache, by what one of them cost at its ``price``; the
    usual one where that does not say."""
    if price is None or not price.cache_write or not entry.cache_write_tokens:
        return DEFAULT_CACHE_TTL
    fitting = [
        ttl
        for ttl, unit in sorted(price.cache_write.items())
        if unit.times(entry.cache_write_tokens).pico == entry.cache_write_pico
    ]
    return fitting[0] if fitting and DEFAULT_CACHE_TTL not in fitting else DEFAULT_CACHE_TTL


def _corrected(now: InForce, *, sign: str, correction_id: str, closed_until: datetime | None) -> LedgerEntry:
    """The row in force as a row that corrects its attempt: no attempt and no request of its own."""
    counts_at, restates = counting(now.original_started_at, closed_until)
    return msgspec.structs.replace(
        now.entry,
        attempt_id=_correction_id(now, sign),
        is_final=False,
        started_at=counts_at,
        restates=restates,
        corrects=now.attempt_id,
        correction_id=correction_id,
        admitted_at=now.entry.admitted_at or now.original_started_at,
        held_pico=None,
        flags=[],
    )


def _correction_id(now: InForce, sign: str) -> str:
    return f"{now.attempt_id}~{now.revision + 1}{sign}"


def _negated(value: int | None) -> int | None:
    return None if value is None else -value


def _amount_alone(amount: Money) -> dict[str, int | str | None]:
    nothing = dict.fromkeys(_SUMMED, 0) | {"cached_tokens": None, "reasoning_tokens": None}
    return {
        **nothing,
        "reasoning_source": "none",
        "fee_pico": amount.pico,
        "cost_pico": amount.pico,
        "list_pico": amount.pico,
    }

"""A ledger entry is what one upstream attempt consumed and cost, written once; a correction is another entry.

Entries and the journal's records are msgspec Structs: the journal carries them as bytes, the ledger as rows.
Money is in whole pico-dollars, moments are in UTC with microseconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

from gateway.core.exchange import Attempt, AttemptStatus, InferenceRequest, Observation, Principal
from gateway.core.money import UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Charge, Price
from gateway.core.usage import Meter, Usage, UsageSource

MODEL_MISMATCH_FLAG: Final = "model_mismatch"
"""Stands in the row of an answer that names another model than was asked for, whatever the policy does."""


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, tag="settle", tag_field="t"):
    """One upstream attempt, settled. Field meanings: INTERFACE §4; None = not told, which is not zero.

    Budgets count it in the window of ``admitted_at``; ``held_pico`` is what they held for all of its request. A row
    that ``corrects`` another belongs to the batch ``correction_id``; where it puts a closed month right, ``restates``
    is when that happened which it corrects, and ``started_at`` when it counts."""

    attempt_id: str
    request_id: str
    attempt: int
    is_final: bool
    key_id: str
    key_name: str
    team: str | None
    tags: dict[str, str]
    surface: str
    model: str
    provider: str
    account: str
    upstream_model: str
    served_model: str | None
    upstream_request_id: str | None
    started_at: datetime
    finished_at: datetime
    ttft_ms: int | None
    status: Literal["succeeded", "failed", "aborted", "abandoned"]
    http_status: int | None
    error_type: str | None
    usage_source: Literal["provider", "estimated", "none"]
    input_tokens: int
    cached_tokens: int | None
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int | None
    reasoning_source: Literal["provider", "estimated", "none"]
    price_id: str
    input_pico: int
    cached_pico: int
    cache_write_pico: int
    output_pico: int
    fee_pico: int
    cost_pico: int
    list_pico: int
    flags: list[str] = []
    corrects: str | None = None
    admitted_at: datetime | None = None
    held_pico: int | None = None
    correction_id: str | None = None
    restates: datetime | None = None

    def __post_init__(self) -> None:
        parts = self.input_pico + self.cached_pico + self.cache_write_pico + self.output_pico + self.fee_pico
        assert self.cost_pico == parts, "cost is the sum of its parts"
        assert self.usage_source != "none" or self.cost_pico == 0, "what is not billed costs nothing"


class PinnedPrice(msgspec.Struct, frozen=True, kw_only=True):
    """The price row an intent was made under, in pico-dollars per token, so that recovery needs no catalogue."""

    price_id: str
    provider: str
    model: str
    effective_from: datetime
    input: int
    cached_input: int | None
    output: int
    cache_write: dict[str, int] | None

    @classmethod
    def of(cls, price: Price) -> PinnedPrice:
        write = price.cache_write
        return cls(
            price_id=price.price_id,
            provider=price.provider,
            model=price.model,
            effective_from=price.effective_from,
            input=price.input.pico_per_token,
            cached_input=None if price.cached_input is None else price.cached_input.pico_per_token,
            output=price.output.pico_per_token,
            cache_write=None if write is None else {ttl: unit.pico_per_token for ttl, unit in write.items()},
        )

    def price(self) -> Price:
        write = self.cache_write
        price = Price(
            provider=self.provider,
            model=self.model,
            effective_from=self.effective_from,
            input=UnitPrice(self.input),
            cached_input=None if self.cached_input is None else UnitPrice(self.cached_input),
            output=UnitPrice(self.output),
            cache_write=None if write is None else {ttl: UnitPrice(unit) for ttl, unit in write.items()},
        )
        assert price.price_id == self.price_id
        return price


class Intent(msgspec.Struct, frozen=True, kw_only=True, tag="intent", tag_field="t"):
    """What is durable before an upstream is called: all that a row needs if nothing else is ever known."""

    attempt_id: str
    request_id: str
    attempt: int
    key_id: str
    key_name: str
    team: str | None
    tags: dict[str, str]
    surface: str
    model: str
    provider: str
    account: str
    upstream_model: str
    started_at: datetime
    price: PinnedPrice
    cache_ttl: str
    input_tokens_estimate: int
    output_limit: int
    admitted_at: datetime | None = None
    held_pico: int | None = None

    @classmethod
    def of(cls, attempt: Attempt, request: InferenceRequest, principal: Principal) -> Intent:
        candidate = attempt.candidate
        return cls(
            attempt_id=attempt.attempt_id,
            request_id=attempt.request_id,
            attempt=attempt.number,
            key_id=principal.key_id,
            key_name=principal.key_name,
            team=principal.team,
            tags={**principal.tags, **request.tags},
            surface=request.surface.value,
            model=request.model,
            provider=candidate.provider,
            account=candidate.account,
            upstream_model=candidate.deployment.upstream,
            started_at=attempt.started_at,
            price=PinnedPrice.of(attempt.price),
            cache_ttl=request.cache_ttl,
            input_tokens_estimate=attempt.input_tokens_estimate,
            output_limit=attempt.output_limit,
            admitted_at=attempt.admitted_at,
            held_pico=None if attempt.held is None else attempt.held.pico,
        )


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress", tag_field="t"):
    """How far an open stream had come: tokens relayed by our own count, and the provider's figures where known."""

    attempt_id: str
    at: datetime
    output_tokens: int
    input_tokens: int | None = None
    cached_tokens: int | None = None


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True, tag="plan", tag_field="t"):
    """What was decided for a request and why: kept for ``report explain``. ``plan`` is the JSON of ``/v1/route``.

    ``prompt`` says which prefixes the request shares with others, and nothing of what it says: with it the past can be
    driven again and counted again. ``turn`` is its place in its conversation, ``tenant`` whose traffic it belongs to.
    """

    request_id: str
    made_at: datetime
    key_id: str
    plan: msgspec.Raw
    prompt: Prompt | None = None
    tenant: str = ""
    turn: int = 0


Record = Intent | Progress | LedgerEntry | PlanRecord


def settle(
    intent: Intent,
    charge: Charge,
    usage: Usage,
    *,
    usage_source: UsageSource,
    status: AttemptStatus,
    finished_at: datetime,
    is_final: bool,
    seen: Observation,
    error_type: str | None = None,
    flags: tuple[str, ...] = (),
) -> LedgerEntry:
    """The entry of a finished attempt: the intent, what was seen of the answer, and the charge for its usage."""
    assert usage_source is not UsageSource.NONE or charge.cost.pico == 0
    first_byte = seen.first_byte_at
    return LedgerEntry(
        attempt_id=intent.attempt_id,
        request_id=intent.request_id,
        attempt=intent.attempt,
        is_final=is_final,
        key_id=intent.key_id,
        key_name=intent.key_name,
        team=intent.team,
        tags=intent.tags,
        surface=intent.surface,
        model=intent.model,
        provider=intent.provider,
        account=intent.account,
        upstream_model=intent.upstream_model,
        served_model=seen.served_model,
        upstream_request_id=seen.upstream_request_id,
        started_at=intent.started_at,
        finished_at=finished_at,
        ttft_ms=None if first_byte is None else max(0, round((first_byte - intent.started_at).total_seconds() * 1000)),
        status=status.value,
        http_status=seen.http_status,
        error_type=error_type,
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
        flags=[*usage.flags, *seen.flags, *flags],
        admitted_at=intent.admitted_at,
        held_pico=intent.held_pico,
    )

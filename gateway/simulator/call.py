"""One request on its way: each stage adds what it found out, and the end turns that into a record and a bill line."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

import msgspec

from gateway.simulator.bill import BillLine, Ended, Price, Told
from gateway.simulator.cache import PrefixCache
from gateway.simulator.faults import Fault, Struck
from gateway.simulator.limits import Limiter
from gateway.simulator.model import Choice
from gateway.simulator.settings import Settings
from gateway.simulator.wire import Report, Usage

ID_PREFIX: Final = {"moonshot": "chatcmpl-", "cometapi": "chatcmpl-", "evolink": "cmpl-"}


class RequestLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One call as the provider saw it, refused ones included. ``status`` None: the client got no status line."""

    request: int
    arrived_at: float
    credential: str | None
    model: str | None
    stream: bool
    status: int | None
    refused: str | None
    ended: Ended | None
    faults: list[str]
    fields: list[str]
    prompt_tokens: int
    cached_tokens: int
    request_id: str
    completion_id: str
    attempt_id: str | None


class Account:
    """What the requests of one account share."""

    __slots__ = ("cache", "limiter", "name")

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.limiter = Limiter(settings.limits)
        self.cache = PrefixCache(ttl_seconds=settings.cache_ttl_seconds)


class Owed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to an admitted request: from here on something is owed for it. ``ttl`` is of its cache write."""

    account: str
    model: str
    usage: Usage
    choices: tuple[Choice, ...]
    ttl: str | None

    @property
    def reasoning_tokens(self) -> int:
        return sum(choice.reasoning_tokens for choice in self.choices)


class Call:
    """One request. ``ended`` is None until an answer is owed, and for a refusal to the end."""

    __slots__ = (
        "account", "admitted", "arrived_at", "attempt_id", "billed", "completion_id", "ended", "number", "owed",
        "reasoning_sent", "refused", "report", "request", "request_id", "serialized", "status", "stream", "struck",
        "tokens_sent", "usage_sent",
    )  # fmt: skip

    def __init__(self, provider: str, *, number: int, seed: str, arrived_at: float) -> None:
        self.number = number
        self.request_id = blake2b(b"%d" % number, digest_size=12, key=seed.encode()).hexdigest()
        self.completion_id = ID_PREFIX[provider] + self.request_id
        self.arrived_at = arrived_at
        self.account: Account | None = None
        self.attempt_id: str | None = None
        self.request: dict[str, Any] = {}
        self.stream = False
        self.struck: Struck | None = None
        self.refused: str | None = None
        self.admitted = False
        self.serialized = b""
        self.owed: Owed | None = None
        self.billed = False
        self.report: Report | None = None
        self.status: int | None = None
        self.ended: Ended | None = None
        self.tokens_sent = 0
        self.reasoning_sent = 0
        self.usage_sent = False

    @property
    def model(self) -> str | None:
        model = self.request.get("model")
        return model if isinstance(model, str) else None

    def fault(self, kind: str) -> Fault | None:
        return self.struck.get(kind) if self.struck is not None else None

    @property
    def told(self) -> Told:
        if not self.usage_sent or self.report is None:
            return "untold"
        return "distorted" if self.report.distorted else "told"


def record_of(call: Call) -> RequestLine:
    usage = call.owed.usage if call.owed is not None else None
    return RequestLine(
        request=call.number,
        arrived_at=call.arrived_at,
        credential=call.account.name if call.account is not None else None,
        model=call.model,
        stream=call.stream,
        status=call.status,
        refused=call.refused,
        ended=call.ended,
        faults=list(call.struck or ()),
        fields=list(call.request),
        prompt_tokens=usage.prompt_tokens if usage is not None else 0,
        cached_tokens=usage.cached_tokens if usage is not None else 0,
        request_id=call.request_id,
        completion_id=call.completion_id,
        attempt_id=call.attempt_id,
    )


class Charged(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What of the output is charged; ``early_output_tokens`` is what a statement has before it is restated."""

    output_tokens: int
    reasoning_tokens: int
    early_output_tokens: int


def charged_output(call: Call, owed: Owed, settings: Settings, provider: str) -> Charged | None:
    """Output and reasoning tokens to charge, by how the answer ended; None charges nothing at all.

    The first guess at an answer that did not reach its end is the other one: planned for sent, sent for planned.
    """
    planned = owed.usage.completion_tokens
    is_cut = not call.billed and call.ended in ("aborted", "broken")
    policy: str = "full"
    if not call.billed and call.ended == "aborted":
        policy = settings.abort_billing_of(provider)
    elif not call.billed and call.ended == "broken":
        policy = settings.break_billing
    match policy:
        case "none":
            return None
        case "stop":
            return Charged(
                output_tokens=call.tokens_sent, reasoning_tokens=call.reasoning_sent, early_output_tokens=planned
            )
        case _:
            return Charged(
                output_tokens=planned,
                reasoning_tokens=owed.reasoning_tokens,
                early_output_tokens=call.tokens_sent if is_cut else planned,
            )


def line_of(call: Call, owed: Owed, price: Price, *, line: int, provider: str, charged: Charged) -> BillLine:
    """The bill line of an owed answer of which that much is charged."""
    assert call.ended is not None
    output = charged.output_tokens
    usage = owed.usage
    fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
    write_price = (price.write_1h if owed.ttl == "1h" else None) or price.write_5m or 0
    input_pico = fresh * price.input
    cached_pico = usage.cached_tokens * (price.input if price.cached is None else price.cached)
    write_pico = usage.cache_write_tokens * write_price
    output_pico = output * price.output
    return BillLine(
        line=line,
        provider=provider,
        credential=owed.account,
        model=owed.model,
        request_id=call.request_id,
        completion_id=call.completion_id,
        attempt_id=call.attempt_id,
        arrived_at=call.arrived_at,
        stream=call.stream,
        ended=call.ended,
        aborted=call.ended == "aborted",
        told=call.told,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=output,
        input_tokens=fresh,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=output,
        early_output_tokens=charged.early_output_tokens,
        reasoning_tokens=charged.reasoning_tokens,
        input_pico=input_pico,
        cached_pico=cached_pico,
        cache_write_pico=write_pico,
        output_pico=output_pico,
        cost_pico=input_pico + cached_pico + write_pico + output_pico,
    )

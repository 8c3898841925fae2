"""One provider behind one ASGI callable: every answered request is billed exactly once, however it ended.

A request is parsed, struck by faults, checked, admitted, answered and closed; closing bills it, gives its place back
and records it, in that order and on every path.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from random import Random
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from gateway.simulator import rules, stream, wire
from gateway.simulator.bill import PRICES, Bill, BillLine, Ended, Price, Told, credential_label
from gateway.simulator.cache import BLOCK_TOKENS, PrefixCache, Prompt
from gateway.simulator.connection import Hangup, Receive, Scope, Send, Sleep, cut, read_body, respond
from gateway.simulator.control import control
from gateway.simulator.faults import Fault, Faults, Struck, refusal_of
from gateway.simulator.limits import Limiter
from gateway.simulator.model import Choice, answer
from gateway.simulator.rules import ModelCard, Refusal, card_of
from gateway.simulator.settings import Settings
from gateway.simulator.tokens import count_tokens, serialize

REQUESTS_MAX: Final = 500_000
ID_PREFIX: Final = {"moonshot": "chatcmpl-", "cometapi": "chatcmpl-", "evolink": "cmpl-"}
JSON: Final = b"application/json; charset=utf-8"
SSE: Final = b"text/event-stream; charset=utf-8"
HTML: Final = b"text/html"

_decode = msgspec.json.Decoder().decode


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


class _Call:
    """One request on its way through; each stage fills in what it found out."""

    __slots__ = (
        "account", "admitted", "arrived_at", "attempt_id", "billed", "cached_tokens", "card", "choices",
        "completion_id", "created", "ended", "number", "prompt", "reasoning_sent", "refused", "report", "request",
        "request_id", "scope", "serialized", "status", "stream", "struck", "tokens_sent", "usage", "usage_sent",
    )  # fmt: skip

    def __init__(self, scope: Scope, number: int, seed: str, arrived_at: float) -> None:
        digest = blake2b(b"%d" % number, digest_size=12, key=seed.encode()).hexdigest()
        self.scope = scope
        self.number = number
        self.request_id = digest
        self.completion_id = digest
        self.arrived_at = arrived_at
        self.created = int(arrived_at)
        self.request: dict[str, Any] = {}
        self.account: Account | None = None
        self.attempt_id: str | None = None
        self.stream = False
        self.struck: Struck | None = None
        self.refused: str | None = None
        self.admitted = False
        self.billed = False
        self.card: ModelCard | None = None
        self.serialized = b""
        self.prompt: Prompt | None = None
        self.cached_tokens = 0
        self.choices: tuple[Choice, ...] = ()
        self.usage: wire.Usage | None = None
        self.report: wire.Report | None = None
        self.status: int | None = None
        self.ended: Ended | None = None
        self.tokens_sent = 0
        self.reasoning_sent = 0
        self.usage_sent = False

    @property
    def model(self) -> str | None:
        model = self.request.get("model")
        return model if isinstance(model, str) else None


class Simulator:
    """One provider. Call it as an ASGI application, or run it with :func:`gateway.simulator.running`.

    ``prices`` adds to or replaces rows of :data:`gateway.simulator.bill.PRICES`; a model is served when it has a price.
    ``clock`` rules cache, limits and fault windows; ``wall`` stamps what is written down; ``sleep`` is every wait.
    """

    def __init__(
        self,
        provider: str,
        settings: Settings | None = None,
        *,
        prices: Mapping[str, Price] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if provider not in wire.PROVIDERS:
            raise ValueError(f"Unknown provider {provider!r}. Known: {', '.join(wire.PROVIDERS)}.")
        self.provider = provider
        self.settings = settings or Settings()
        self.prices: dict[str, Price] = {**PRICES[provider], **(prices or {})}
        self.clock = clock
        self._wall = wall
        self._sleep = sleep
        self._seed = f"{self.settings.seed}/{provider}"
        self._number = 0
        self.reset()

    def reset(self) -> None:
        """Forgets bill, records, caches, limits and faults; request ids go on, so that none comes twice."""
        self.bill = Bill(self.provider)
        self.faults = Faults(f"{self._seed}/faults")
        self.requests: deque[RequestLine] = deque(maxlen=REQUESTS_MAX)
        self.accounts: dict[str, Account] = {}
        self.tokens_read = self.tokens_prompted = 0
        self._noise = Random(f"{self._seed}/noise")
        self._cards: dict[str, ModelCard] = {}

    def configure(self, settings: Settings) -> None:
        """Other settings from the next request on; caches and windows keep what they hold."""
        self.settings = settings
        for account in self.accounts.values():
            account.limiter.limits = settings.limits
            account.cache.ttl_seconds = settings.cache_ttl_seconds

    # -- routes ------------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        path: str = scope["path"]
        if path == "/v1/chat/completions" and scope["method"] == "POST":
            await self._chat(scope, receive, send)
        elif path.startswith("/__sim/"):
            await control(self, scope, receive, send)
        else:
            await self._plain(scope, receive, send, path)

    async def _plain(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Model list, balance and token count."""
        body = await read_body(receive, self.settings.body_bytes_max) or b""
        call = self._open(scope)
        status, document = self._plain_answer(call, scope, path, body)
        content_type = HTML if isinstance(document, bytes) and document.startswith(b"<") else JSON
        headers = wire.headers(self.provider, call.request_id, content_type)
        await respond(send, status, headers, document if isinstance(document, bytes) else wire.encode(document))

    def _plain_answer(self, call: _Call, scope: Scope, path: str, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        route = (self.provider, scope["method"], path)
        if route == ("cometapi", "GET", "/user/quota"):
            key = parse_qs(scope["query_string"].decode()).get("key", [""])[0]
            call.account = self._account(key)
        if call.account is None:
            return self._rendered(call, Refusal(kind="invalid_key"))
        match route:
            case (_, "GET", "/v1/models"):
                cards = [(name, card_of(name).context) for name in self.prices if name not in self.settings.retired]
                return 200, wire.models(self.provider, cards)
            case ("moonshot", "GET", "/v1/users/me/balance") | ("evolink", "GET", "/v1/credits"):
                return 200, self._balance(call.account)
            case ("cometapi", "GET", "/user/quota"):
                return 200, self._balance(call.account)
            case ("moonshot", "POST", "/v1/tokenizers/estimate-token-count"):
                return self._estimate(call, body)
            case ("cometapi", _, _):
                return 200, wire.HTML % (b"CometAPI", b"CometAPI")
            case _:
                return self._rendered(call, Refusal(kind="not_found"))

    def _estimate(self, call: _Call, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        refused = self._parse(call, body)
        if refused is not None:
            return self._rendered(call, refused)
        return 200, {"data": {"total_tokens": count_tokens({"messages": call.request.get("messages")})}}

    def _balance(self, account: Account) -> dict[str, Any]:
        spent = self.bill.spent_pico.get(account.name, 0)
        left = self.settings.balance_pico - spent
        requests = sum(line.credential == account.name for line in self.bill.lines)
        return wire.balance(self.provider, account=account.name, left_pico=left, spent_pico=spent, requests=requests)

    # -- one chat completion -----------------------------------------------------------------------------------------

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._open(scope)
        hangup = Hangup(receive, self._sleep)
        try:
            body = await read_body(receive, self.settings.body_bytes_max)
            refused = Refusal(kind="too_large") if body is None else self._parse(call, body)
            fault = self._strike(call)
            refused = _as_refusal(fault) if fault is not None else (refused or self._check(call))
            if refused is None or (fault is not None and fault.billed):
                refused = self._answer(call) or refused
            await self._serve(call, refused, fault, hangup, send)
        except ConnectionResetError:
            call.ended = None
        finally:
            hangup.close()
            self._close(call)

    def _open(self, scope: Scope) -> _Call:
        self._number += 1
        call = _Call(scope, self._number, self._seed, self._wall())
        call.completion_id = ID_PREFIX[self.provider] + call.request_id
        for name, value in scope["headers"]:
            if name == b"authorization":
                kind, _, key = value.decode("latin-1").partition(" ")
                call.account = self._account(key.strip()) if kind.lower() == "bearer" else None
            elif name == b"x-gateway-attempt-id":
                call.attempt_id = value.decode("latin-1")
        return call

    def _account(self, key: str) -> Account | None:
        known = self.settings.accounts
        if known is not None:
            name = known.get(key)
        else:
            name = credential_label(key) if key.startswith("sk-") and len(key) > len("sk-") else None
        if name is None:
            return None
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(name, self.settings)
        return account

    def _parse(self, call: _Call, body: bytes) -> Refusal | None:
        try:
            request = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Refusal(kind="invalid_request", message=f"Invalid request: body is not JSON: {error}")
        if not isinstance(request, dict):
            return Refusal(kind="invalid_request", message="Invalid request: body is not a JSON object")
        call.request = request
        call.stream = request.get("stream") is True
        return None

    def _strike(self, call: _Call) -> Fault | None:
        call.struck = self.faults.strike(
            model=call.model or "",
            credential=call.account.name if call.account else "",
            stream=call.stream,
            now=self.clock(),
        )
        return refusal_of(call.struck) if call.struck else None

    def _check(self, call: _Call) -> Refusal | None:
        """Key, model, rules, money and limits, in this order; admission takes a place."""
        account, request, model = call.account, call.request, call.model
        if account is None:
            return Refusal(kind="invalid_key")
        if not model:
            kind = "model_missing" if self.provider == "cometapi" else "invalid_request"
            return Refusal(
                kind=kind, message=None if self.provider == "cometapi" else "Invalid request: model is required"
            )
        if model in self.settings.retired or model not in self.prices:
            return Refusal(kind="model_gone")
        card = self._card(model)
        call.serialized = serialize(request)
        prompt_tokens = len(call.serialized) // 4
        refused = rules.check(self.provider, request, card, prompt_tokens=prompt_tokens)
        if refused is not None:
            return refused
        if self.bill.spent_pico.get(account.name, 0) >= self.settings.balance_pico:
            return Refusal(kind="balance_exhausted")
        hit = account.limiter.admit(tokens=prompt_tokens + rules.output_limit(request, card), now=self.clock())
        if hit is not None:
            facts: dict[str, object] = {"limit": hit.limit, "current": hit.current}
            return Refusal(kind=f"rate_limit_{hit.kind}", retry_seconds=hit.retry_seconds, facts=facts)
        call.admitted = True
        return None

    def _card(self, model: str) -> ModelCard:
        card = self._cards.get(model)
        if card is None:
            card = self._cards[model] = card_of(model)
        return card

    def _answer(self, call: _Call) -> Refusal | None:
        """Reads the cache and makes the answer, which from here on is owed; a refusal when the request is not valid."""
        if not call.admitted and (refused := self._check(call)) is not None:
            return refused
        account, model = call.account, call.model
        assert account is not None and model is not None
        card, request, serialized = self._card(model), call.request, call.serialized
        prompt = Prompt.of(serialized, model=model)
        now = self.clock()
        ignored = self.settings.cache_noise > 0 and self._noise.random() < self.settings.cache_noise
        cached = 0 if ignored else account.cache.read(prompt, now=now)
        prefill = self.settings.prefill_tokens_per_second
        ready_at = now if prefill is None else now + (prompt.tokens - cached) / prefill
        account.cache.write(prompt, now=now, ready_at=ready_at)
        self.tokens_read += cached
        self.tokens_prompted += prompt.tokens
        limit = min(rules.output_limit(request, card), max(1, card.context - prompt.tokens))
        call.choices = answer(
            request, serialized, seed=self.settings.seed, limit=limit, thinks=rules.thinks(request, card),
            struck=call.struck,
        )  # fmt: skip
        writes = self.prices[model].write_5m is not None
        written = max(0, prompt.tokens // BLOCK_TOKENS * BLOCK_TOKENS - cached) if writes else 0
        call.prompt, call.cached_tokens = prompt, cached
        call.usage = wire.Usage(
            prompt_tokens=prompt.tokens, cached_tokens=cached, cache_write_tokens=written,
            completion_tokens=sum(choice.completion_tokens for choice in call.choices), writes=writes,
        )  # fmt: skip
        call.ended = "broken"
        return None

    # -- sending -----------------------------------------------------------------------------------------------------

    async def _serve(
        self, call: _Call, refused: Refusal | None, fault: Fault | None, hangup: Hangup, send: Send
    ) -> None:
        call.refused = refused.kind if refused is not None else None
        if not await self._first_byte(call, hangup):
            call.ended = "aborted" if call.usage is not None else None
        elif refused is None:
            as_stream = call.stream and (call.struck is None or "json_for_stream" not in call.struck)
            await (self._send_stream(call, hangup, send) if as_stream else self._send_body(call, hangup, send))
        else:
            call.billed = fault is not None and fault.billed
            await self._send_refusal(call, refused, fault, send)

    async def _first_byte(self, call: _Call, hangup: Hangup) -> bool:
        """The wait before anything is sent; False when the client did not stay for it."""
        settings = self.settings
        seconds = settings.first_byte_ms / 1000
        if settings.prefill_tokens_per_second is not None and call.prompt is not None:
            seconds += (call.prompt.tokens - call.cached_tokens) / settings.prefill_tokens_per_second
        stall = call.struck.get("stall_before_first_byte") if call.struck else None
        if stall is not None:
            return await hangup.pause(None if stall.seconds is None else stall.seconds + seconds)
        return await hangup.pause(seconds) if seconds > 0 else True

    async def _send_refusal(self, call: _Call, refused: Refusal, fault: Fault | None, send: Send) -> None:
        if refused.kind in ("close_before_response", "reset_before_response"):
            await cut(call.scope, reset=refused.kind == "reset_before_response")
            return
        status, body, content_type = self._refusal_of(call, refused, fault)
        headers = wire.headers(self.provider, call.request_id, content_type)
        if refused.retry_after is not None:
            headers.append((b"retry-after", refused.retry_after.encode()))
        call.status = status
        await respond(send, status, headers, body)

    def _refusal_of(self, call: _Call, refused: Refusal, fault: Fault | None) -> tuple[int, bytes, bytes]:
        match refused.kind:
            case "bad_gateway_html":
                return 502, wire.HTML % (b"502 Bad Gateway", b"502 Bad Gateway"), HTML
            case "html_ok":
                return 200, wire.HTML % (b"Welcome", b"Welcome"), HTML
            case "status":
                assert fault is not None
                return fault.status, fault.body.encode(), fault.content_type.encode()
            case "error_in_ok":
                _, body = self._rendered(call, Refusal(kind="server_error", message=refused.message))
                return 200, body, JSON
            case _:
                status, body = self._rendered(call, refused)
                return status, body, JSON

    def _rendered(self, call: _Call, refused: Refusal) -> tuple[int, bytes]:
        account = call.account.name if call.account else "unknown"
        facts: dict[str, object] = {"model": call.model, "account": account, **refused.facts}
        return wire.refusal(self.provider, refused, request_id=call.request_id, facts=facts)

    def _told(self, call: _Call, *, as_stream: bool) -> tuple[wire.Report, str]:
        """How usage is reported, and the model that the answer names."""
        options = call.request.get("stream_options")
        include_usage = isinstance(options, dict) and options.get("include_usage") is True
        report = call.report = wire.report_of(
            self.provider, stream=as_stream, include_usage=include_usage, struck=call.struck
        )
        other = call.struck.get("served_model") if call.struck else None
        return report, other.served if other else (call.model or "")

    async def _send_body(self, call: _Call, hangup: Hangup, send: Send) -> None:
        usage, struck = call.usage, call.struck or {}
        assert usage is not None
        if not await self._generate(call, usage.completion_tokens, hangup):
            call.ended = "aborted"
            return
        report, model = self._told(call, as_stream=False)
        body = wire.completion(
            self.provider, completion_id=call.completion_id, created=call.created, model=model, choices=call.choices,
            usage=usage, report=report,
        )  # fmt: skip
        call.tokens_sent = usage.completion_tokens
        call.reasoning_sent = sum(choice.reasoning_tokens for choice in call.choices)
        call.status = 200
        headers = wire.headers(self.provider, call.request_id, JSON)
        if "malformed_event" in struck or "error_event" in struck:
            body = body[: len(body) // 2]
        elif "reset_mid_body" in struck or "close_mid_body" in struck or "cut_stream" in struck:
            headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
            await cut(call.scope, reset="reset_mid_body" in struck)
            return
        else:
            call.usage_sent = report.told
        await respond(send, 200, headers, body)
        call.ended = "aborted" if hangup.gone else "complete"

    async def _generate(self, call: _Call, tokens: int, hangup: Hangup) -> bool:
        """Takes as long as the chunks of a stream would; on a hang-up notes how far it came."""
        pace = self._pace(call)
        if pace <= 0:
            return True
        started, seconds = self.clock(), pace * tokens / self.settings.tokens_per_chunk
        if await hangup.pause(seconds):
            return True
        call.tokens_sent = min(tokens, int(tokens * (self.clock() - started) / seconds))
        call.reasoning_sent = min(call.tokens_sent, sum(choice.reasoning_tokens for choice in call.choices))
        return False

    def _pace(self, call: _Call) -> float:
        """Seconds between chunks."""
        slow = call.struck.get("slow_chunks") if call.struck else None
        return (slow.ms if slow else self.settings.chunk_ms) / 1000

    async def _send_stream(self, call: _Call, hangup: Hangup, send: Send) -> None:
        report, model = self._told(call, as_stream=True)
        call.status = 200
        headers = wire.headers(self.provider, call.request_id, SSE)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        items = self._items(call, report, model)
        pace = self._pace(call)
        split = call.struck.get("split") if call.struck else None
        batch = _Batch(call, send, split.mode if split else None, split=split is not None)
        bytes_max = 0 if pace > 0 else self.settings.write_bytes_max
        for item in items:
            if isinstance(item, stream.Act):
                await batch.flush()
                if not await self._act(call, item, hangup):
                    return
                continue
            batch.add(item)
            if batch.size > bytes_max:
                hangup.watch()
                await batch.flush()
                if hangup.gone or (pace > 0 and not await hangup.pause(pace)):
                    call.ended = "aborted"
                    return
        await batch.flush(last=True)
        call.ended = "aborted" if hangup.gone else ("complete" if batch.complete else "broken")

    def _items(self, call: _Call, report: wire.Report, model: str) -> Iterator[stream.Item]:
        usage = call.usage
        assert usage is not None
        frame = wire.Frame.of(
            completion_id=call.completion_id, created=call.created, model=model,
            usage_null=self.provider == "moonshot" and "chunk" in report.places,
        )  # fmt: skip
        events = wire.chunks(
            self.provider, frame, choices=call.choices, usage=usage, report=report,
            size=self.settings.tokens_per_chunk,
        )  # fmt: skip
        if call.struck is None:
            return events
        fault = call.struck.get("error_event")
        failure = wire.failure_event(self.provider, call.request_id, fault.message if fault else None)
        return stream.bend(events, call.struck, failure=failure)

    async def _act(self, call: _Call, act: stream.Act, hangup: Hangup) -> bool:
        """Stalls or cuts; False when the stream ends here."""
        if act.kind == "stall":
            if await hangup.pause(act.seconds):
                return True
            call.ended = "aborted"
            return False
        await cut(call.scope, reset=act.kind == "reset")
        return False

    # -- closing -----------------------------------------------------------------------------------------------------

    def _close(self, call: _Call) -> None:
        if call.usage is not None:
            self._charge(call, call.usage)
        if call.admitted and call.account is not None:
            call.account.limiter.release()
        self.requests.append(
            RequestLine(
                request=call.number,
                arrived_at=call.arrived_at,
                credential=call.account.name if call.account else None,
                model=call.model,
                stream=call.stream,
                status=call.status,
                refused=call.refused,
                ended=call.ended,
                faults=list(call.struck or ()),
                fields=list(call.request),
                prompt_tokens=call.prompt.tokens if call.prompt else 0,
                cached_tokens=call.cached_tokens,
                request_id=call.request_id,
                completion_id=call.completion_id,
                attempt_id=call.attempt_id,
            )
        )

    def _charge(self, call: _Call, usage: wire.Usage) -> None:
        """The bill line of an answer that was owed, by how it ended."""
        policy: str = "full"
        if not call.billed and call.ended == "aborted":
            policy = self.settings.abort_billing_of(self.provider)
        elif not call.billed and call.ended == "broken":
            policy = self.settings.break_billing
        if policy == "none":
            return
        output, reasoning = call.tokens_sent, call.reasoning_sent
        if policy == "full":
            output = usage.completion_tokens
            reasoning = sum(choice.reasoning_tokens for choice in call.choices)
        assert call.model is not None and call.account is not None
        self.bill.add(self._line(call, usage, self.prices[call.model], output, reasoning))

    def _line(self, call: _Call, usage: wire.Usage, price: Price, output: int, reasoning: int) -> BillLine:
        assert call.model is not None and call.account is not None and call.ended is not None
        fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        write_price = price.write_5m or 0
        options = call.request.get("prompt_cache_options")
        if isinstance(options, dict) and options.get("ttl") == "1h":
            write_price = price.write_1h or write_price
        input_pico = fresh * price.input
        cached_pico = usage.cached_tokens * (price.input if price.cached is None else price.cached)
        write_pico = usage.cache_write_tokens * write_price
        output_pico = output * price.output
        return BillLine(
            line=self.bill.next_line(),
            provider=self.provider,
            credential=call.account.name,
            model=call.model,
            request_id=call.request_id,
            completion_id=call.completion_id,
            attempt_id=call.attempt_id,
            arrived_at=call.arrived_at,
            stream=call.stream,
            ended=call.ended,
            aborted=call.ended == "aborted",
            told=_told_of(call),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=output,
            input_tokens=fresh,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=output,
            reasoning_tokens=reasoning,
            input_pico=input_pico,
            cached_pico=cached_pico,
            cache_write_pico=write_pico,
            output_pico=output_pico,
            cost_pico=input_pico + cached_pico + write_pico + output_pico,
        )


class _Batch:
    """Events that go out in one write; what they carried counts as sent once they have."""

    __slots__ = ("_call", "_data", "_mode", "_output", "_reasoning", "_send", "_split", "_unfinished", "_usage", "size")

    def __init__(self, call: _Call, send: Send, mode: str | None, *, split: bool) -> None:
        self._call = call
        self._send = send
        self._mode = mode
        self._split = split
        self._data: list[bytes] = []
        self._output = self._reasoning = 0
        self._usage = False
        self._unfinished = len(call.choices)
        self.size = 0

    @property
    def complete(self) -> bool:
        return self._unfinished <= 0

    def add(self, event: wire.Event) -> None:
        data = event.data
        self._data.append(data)
        self.size += len(data)
        if event.output_tokens:
            self._output += event.output_tokens
            self._reasoning += event.reasoning_tokens
        elif b'"finish_reason":"' in data:
            self._unfinished -= 1
            self._usage = self._usage or b'"usage":{' in data
        elif b'"usage":{' in data:
            self._usage = True

    async def flush(self, *, last: bool = False) -> None:
        data = b"".join(self._data)
        if self._split:
            for piece in stream.pieces(data, self._mode):
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)
            data = b""
        if data or last:
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        call = self._call
        call.tokens_sent += self._output
        call.reasoning_sent += self._reasoning
        call.usage_sent = call.usage_sent or self._usage
        self._data.clear()
        self.size = self._output = self._reasoning = 0
        self._usage = False


def _as_refusal(fault: Fault) -> Refusal:
    return Refusal(
        kind=fault.kind,
        message=fault.message,
        retry_seconds=fault.retry_seconds,
        retry_after=fault.retry_after,
        facts={"limit": 100, "current": 101},
    )


def _told_of(call: _Call) -> Told:
    if not call.usage_sent or call.report is None:
        return "untold"
    return "distorted" if call.report.distorted else "told"


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return

"""One provider behind one ASGI callable: every answered request is billed exactly once, however it ended.

A request is parsed, struck by faults, checked, admitted, answered and closed; closing bills it, gives its place back
and records it, in that order and on every path.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from gateway.simulator import rules, wire
from gateway.simulator.bill import PRICES, Bill, Price, credential_label
from gateway.simulator.cache import BLOCK_TOKENS, Prompt
from gateway.simulator.call import Account, Call, Owed, RequestLine, charged_output, line_of, record_of
from gateway.simulator.connection import Hangup, Receive, Scope, Send, Sleep, read_body, respond
from gateway.simulator.control import control
from gateway.simulator.drift import Drifts
from gateway.simulator.faults import Fault, Faults, refusal_of
from gateway.simulator.model import answer
from gateway.simulator.reply import HTML, JSON, Reply, rendered, serve
from gateway.simulator.rules import ModelCard, Refusal, card_of
from gateway.simulator.settings import Settings
from gateway.simulator.statement import Statements
from gateway.simulator.tokens import BYTES_PER_TOKEN, count_tokens, serialize

REQUESTS_MAX: Final = 500_000

_decode = msgspec.json.Decoder().decode


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
        """Forgets bill, drifts, top-ups, records, caches, limits and faults; request ids go on, so none comes twice."""
        self.bill = Bill(self.provider)
        self.drifts = Drifts(self.prices)
        self.topped_up_pico: dict[str, int] = {}
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

    def _plain_answer(self, call: Call, scope: Scope, path: str, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        route = (self.provider, scope["method"], path)
        if route == ("cometapi", "GET", "/user/quota"):
            key = parse_qs(scope["query_string"].decode()).get("key", [""])[0]
            call.account = self._account(key)
        if route == ("cometapi", "GET", "/api/models"):
            return 200, wire.catalog(self.prices)
        if call.account is None:
            return rendered(self.provider, call, Refusal(kind="invalid_key"))
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
                return rendered(self.provider, call, Refusal(kind="not_found"))

    def _estimate(self, call: Call, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        refused = self._parse(call, body)
        if refused is not None:
            return rendered(self.provider, call, refused)
        return 200, {"data": {"total_tokens": count_tokens({"messages": call.request.get("messages")})}}

    def _balance(self, account: Account) -> dict[str, Any]:
        name = account.name
        left, spent, requests = self.left_pico(name), self.spent_pico(name), self.bill.requests_of(name)
        return wire.balance(self.provider, account=name, left_pico=left, spent_pico=spent, requests=requests)

    def spent_pico(self, credential: str) -> int:
        """What was taken from the balance: the bill, and what drifts that are really charged make of it."""
        return self.bill.spent_pico.get(credential, 0) + self.drifts.difference_pico.get(credential, 0)

    def left_pico(self, credential: str) -> int:
        return self.settings.balance_pico + self.topped_up_pico.get(credential, 0) - self.spent_pico(credential)

    def top_up(self, credential: str, pico: int) -> None:
        """Money arrives on an account, by its name on the bill."""
        self.topped_up_pico[credential] = self.topped_up_pico.get(credential, 0) + pico

    def statements(self) -> Statements:
        """The statements of this moment."""
        restated = self.settings.restate_after_seconds
        early_since = None if restated is None else self._wall() - restated
        return Statements(self.provider, self.bill, self.drifts, early_since=early_since)

    # -- one chat completion -----------------------------------------------------------------------------------------

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self._open(scope)
        hangup = Hangup(receive, self._sleep)
        reply = Reply(
            provider=self.provider, settings=self.settings, clock=self.clock, scope=scope, hangup=hangup, send=send
        )
        try:
            body = await read_body(receive, self.settings.body_bytes_max)
            refused = Refusal(kind="too_large") if body is None else self._parse(call, body)
            fault = self._strike(call)
            refused = _as_refusal(fault) if fault is not None else (refused or self._check(call))
            if refused is None or (fault is not None and fault.billed):
                refused = self._answer(call) or refused
            await serve(reply, call, refused, fault)
        except ConnectionResetError:
            call.ended = None
        finally:
            hangup.close()
            self._close(call)

    def _open(self, scope: Scope) -> Call:
        self._number += 1
        call = Call(self.provider, number=self._number, seed=self._seed, arrived_at=self._wall())
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

    def _parse(self, call: Call, body: bytes) -> Refusal | None:
        try:
            request = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Refusal(kind="invalid_request", message=f"Invalid request: body is not JSON: {error}")
        if not isinstance(request, dict):
            return Refusal(kind="invalid_request", message="Invalid request: body is not a JSON object")
        call.request = request
        call.stream = request.get("stream") is True
        return None

    def _strike(self, call: Call) -> Fault | None:
        call.struck = self.faults.strike(
            model=call.model or "",
            credential=call.account.name if call.account else "",
            stream=call.stream,
            now=self.clock(),
        )
        return refusal_of(call.struck) if call.struck else None

    def _check(self, call: Call) -> Refusal | None:
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
        prompt_tokens = len(call.serialized) // BYTES_PER_TOKEN
        refused = rules.check(self.provider, request, card, prompt_tokens=prompt_tokens)
        if refused is not None:
            return refused
        if self.left_pico(account.name) <= 0:
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

    def _answer(self, call: Call) -> Refusal | None:
        """Reads the cache and makes the answer, which from here on is owed; a refusal when the request is not valid."""
        if not call.admitted and (refused := self._check(call)) is not None:
            return refused
        account, model, request = call.account, call.model, call.request
        assert account is not None and model is not None
        card, prompt = self._card(model), Prompt.of(call.serialized, model=model)
        cached = self._read_cache(account, prompt)
        limit = min(rules.output_limit(request, card), max(1, card.context - prompt.tokens))
        choices = answer(
            request, call.serialized, seed=self.settings.seed, limit=limit, thinks=rules.thinks(request, card),
            struck=call.struck,
        )  # fmt: skip
        writes = self.prices[model].write_5m is not None
        written = max(0, prompt.tokens // BLOCK_TOKENS * BLOCK_TOKENS - cached) if writes else 0
        usage = wire.Usage(
            prompt_tokens=prompt.tokens, cached_tokens=cached, cache_write_tokens=written,
            completion_tokens=sum(choice.completion_tokens for choice in choices), writes=writes,
        )  # fmt: skip
        options = request.get("prompt_cache_options")
        ttl = options.get("ttl") if isinstance(options, dict) else None
        call.owed = Owed(account=account.name, model=model, usage=usage, choices=choices, ttl=ttl)
        call.ended = "broken"
        return None

    def _read_cache(self, account: Account, prompt: Prompt) -> int:
        """Cached tokens of the prompt, which from the end of its prefill on is cached as a whole."""
        settings, now = self.settings, self.clock()
        ignored = settings.cache_noise > 0 and self._noise.random() < settings.cache_noise
        cached = 0 if ignored else account.cache.read(prompt, now=now)
        prefill = settings.prefill_tokens_per_second
        ready_at = now if prefill is None else now + (prompt.tokens - cached) / prefill
        account.cache.write(prompt, now=now, ready_at=ready_at)
        self.tokens_read += cached
        self.tokens_prompted += prompt.tokens
        return cached

    def _close(self, call: Call) -> None:
        """Bills what is owed, gives the place back, and writes the request down."""
        if (owed := call.owed) is not None:
            charged = charged_output(call, owed, self.settings, self.provider)
            if charged is not None:
                number, price = self.bill.next_line(), self.prices[owed.model]
                line = line_of(call, owed, price, line=number, provider=self.provider, charged=charged)
                self.bill.add(line)
                self.drifts.charge(line)
        if call.admitted and call.account is not None:
            call.account.limiter.release()
        self.requests.append(record_of(call))


def _as_refusal(fault: Fault) -> Refusal:
    return Refusal(
        kind=fault.kind,
        message=fault.message,
        retry_seconds=fault.retry_seconds,
        retry_after=fault.retry_after,
        facts={"limit": 100, "current": 101},
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        else:
            await send({"type": "lifespan.shutdown.complete"})
            return

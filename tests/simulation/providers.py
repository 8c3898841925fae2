"""Providers as bytes on virtual time: each call is decided by the seed, misbehaves as decided, and is billed here.

The bill is kept from what was generated, never from what the gateway says; ``told`` is what the gateway was told.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from gateway.core.failure import Failure, FailureClass
from gateway.pipeline.ports import FreeAnswer, UpstreamCall, UpstreamFailedError
from tests.simulation.life import Life, never

COMPLETION_MARK: Final = "the-lighthouse-keeper"
CREDENTIAL_MARK: Final = "sk-lantern-4711"
BYTES_PER_TOKEN: Final = 4.2
FOREVER: Final = float("inf")
LIMIT_IGNORED_MAX: Final = 300
"""Longer answers than that cost a simulation time and show nothing more."""
DONE: Final = b"data: [DONE]\n\n"

# status, error members, headers: what providers say when they refuse; none of it is billed.
REFUSALS: Final[tuple[tuple[int, dict[str, Any], dict[str, str]], ...]] = (
    (400, {"type": "invalid_request_error", "message": "temperature is out of range"}, {}),
    (400, {"type": "content_filter", "message": "high risk"}, {}),
    (401, {"type": "invalid_authentication_error", "message": f"Incorrect API key {CREDENTIAL_MARK}"}, {}),
    (402, {"type": "insufficient_quota_error", "message": "recharge"}, {}),
    (403, {"type": "permission_denied_error", "message": "not allowed"}, {}),
    (404, {"type": "resource_not_found_error", "message": "Not found the model"}, {}),
    (429, {"type": "exceeded_current_quota_error", "message": "exceeded your current quota"}, {}),
    (429, {"type": "rate_limit_reached_error", "message": "max RPM: try again after 1 seconds"}, {"retry-after": "1"}),
    (429, {"type": "engine_overloaded_error", "message": "overloaded"}, {}),
    (500, {"type": "server_error", "message": "oops"}, {}),
    (502, {}, {"content-type": "text/html"}),
    (503, {"type": "service_unavailable_error", "message": "later"}, {"retry-after": "2"}),
    (529, {"type": "overloaded_error", "message": "busy"}, {}),
    (302, {}, {}),
)
COMMON_REFUSALS: Final = (7, 8, 9, 10, 11, 12)
WHOLE_BREAKS: Final = ("unreachable", "closed", "silent", "cut", "stall", "error_in_ok")
STREAM_BREAKS: Final = (*WHOLE_BREAKS, "cut", "short", "error", "early_error", "malformed", "no_done", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A provider's figures, inclusive as on the wire; None = not told."""

    prompt: int
    completion: int
    cached: int | None
    written: int
    reasoning: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One event of a stream; ``kind``: delta, comment, closing, done, error or malformed. ``tokens`` made by then."""

    raw: bytes
    kind: str = "delta"
    tokens: int = 0
    told: Told | None = None
    gap: float = 0.0


@dataclass(eq=False, slots=True, kw_only=True)
class Call:
    """One call as the provider knows it: its script, what became of it, and its bill."""

    number: int
    life: Life
    attempt_id: str
    provider: str
    account: str
    opened_at: float
    stream: bool
    n: int
    limit: int
    prompt: int
    behaviour: str = "whole"
    cached: int = 0
    written: int = 0
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)
    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    is_billed: bool = True
    """Whether anything is owed for it at all."""
    billed_in_full: bool = False
    """Whether an abort leaves the whole answer owed."""
    ending: str = "end"
    """end, cut or silence, once the script is over."""
    generated: int = 0
    told: Told | None = None
    delivered: list[tuple[float, int]] = field(default_factory=list)
    delivered_pieces: int = 0
    head_at: float | None = None
    finished: bool = False
    released_at: float | None = None
    interrupted: bool = False
    asked_model: str = ""
    order: int = 0
    tells_another_model: bool = False
    connection: int = 0
    slow_reader: bool = False

    @property
    def output_billed(self) -> int:
        if not self.is_billed:
            return 0
        return self.tokens if self.billed_in_full else self.generated

    @property
    def heard_at(self) -> float:
        """When the gateway last had an event of it."""
        return self.delivered[-1][0] if self.delivered else self.opened_at

    @property
    def has_content(self) -> bool:
        """Whether a token of the answer reached the gateway."""
        return bool(self.delivered) and self.delivered[-1][1] > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """How one account behaves: shares of 1 by kind of trouble."""

    refuses: float = 0.0
    breaks: float = 0.0
    odd_usage: float = 0.3
    slow: float = 0.1
    bills_in_full: bool = False
    tells_model: str | None = None
    ignores_limit: float = 0.0


class SimulatedProviders:
    """Every provider of the world, and their bill."""

    def __init__(
        self, *, chance: Random, free_chance: Random, now: Callable[[], float], note: Callable[..., None]
    ) -> None:
        self.chance = chance
        self.free_chance = free_chance
        self.models: set[str] = set()
        self.now = now
        self.note = note
        self.characters: dict[tuple[str, str], Character] = {}
        self.calls: list[Call] = []
        self.on_open: Callable[[Call], None] = lambda _: None
        self.is_calm = False

    def upstreams(self, life: Life) -> Upstreams:
        return Upstreams(self, life)

    def receive(self, call: UpstreamCall, life: Life) -> Call:
        """A request has come: what it asks for, and what will become of it."""
        asked = json.loads(call.body)
        text = sum(len(json.dumps(message, ensure_ascii=False)) for message in asked["messages"])
        taken = Call(
            number=len(self.calls) + 1,
            life=life,
            attempt_id=call.headers["x-gateway-attempt-id"],
            provider=call.provider,
            account=call.account,
            opened_at=self.now(),
            stream=bool(asked.get("stream")),
            n=int(asked.get("n", 1)),
            limit=int(asked.get("max_tokens") or asked.get("max_completion_tokens")),
            prompt=max(8, int(text / BYTES_PER_TOKEN * self.chance.uniform(0.9, 1.1))),
            asked_model=str(asked["model"]),
            connection=int(asked["messages"][0]["content"].split()[1]),
        )
        self.calls.append(taken)
        character = Character() if self.is_calm else self.characters[(call.provider, call.account)]
        Script(taken, character, self.chance).write()
        self.note("call", taken.number, taken.attempt_id, taken.provider, taken.account, taken.behaviour)
        self.on_open(taken)
        return taken

    def hang_up(self, life: Life) -> None:
        """The kernel closes a dead process's connections."""
        for call in self.calls:
            if call.life is life and call.released_at is None:
                self.release(call)

    def release(self, call: Call) -> None:
        if call.released_at is not None:
            return
        call.released_at = self.now()
        if call.finished:
            call.generated = call.tokens
        self.note("released", call.number, call.generated)


class Upstreams:
    """The port ``Upstreams`` of one process."""

    def __init__(self, providers: SimulatedProviders, life: Life) -> None:
        self._providers = providers
        self._life = life

    async def open(self, call: UpstreamCall) -> Answer:
        if not self._life.passes("open"):
            await never()
        taken = self._providers.receive(call, self._life)
        try:
            await self._head(taken)
        except BaseException:
            self._providers.release(taken)
            raise
        taken.head_at = self._providers.now()
        return Answer(self._providers, taken)

    async def ask(self, provider: str, account: str, url: str, *, key_member: str | None = None) -> FreeAnswer:
        """The port ``Inquiries``: what costs nothing is answered like everything else here, well or badly."""
        if not self._life.is_alive:
            await never()
        chance = self._providers.free_chance
        await asyncio.sleep(chance.uniform(0.01, 0.5))
        what = chance.choices(("well", "unreachable", "failing", "odd"), (6, 2, 1, 1))[0]
        if what == "unreachable":
            raise _failed(FailureClass.UNREACHABLE)
        if what == "failing":
            return FreeAnswer(chance.choice((401, 404, 429, 500, 503)), CREDENTIAL_MARK.encode())
        if what == "odd":
            return FreeAnswer(
                200, chance.choice((b"", b"[]", b'{"data":[{"id":7}]}', b'{"data":{"available_balance":"5"}}'))
            )
        if url.endswith("/models"):
            names = chance.sample(sorted(self._providers.models), len(self._providers.models) - chance.randrange(2))
            return FreeAnswer(200, json.dumps({"data": [{"id": name} for name in names]}).encode())
        left = chance.choice((-3.5, 0, 12.25))
        data: dict[str, Any] = {"available_balance": left}
        for who in ("token", "user"):
            data[who] = {"remaining_credits": left, "used_credits": 1}
        return FreeAnswer(200, json.dumps({"status": True, "success": True, "data": data}).encode())

    async def _head(self, taken: Call) -> None:
        chance = self._providers.chance
        match taken.behaviour:
            case "unreachable":
                await asyncio.sleep(chance.uniform(0.0, 0.1))
                taken.finished = True
                raise _failed(FailureClass.UNREACHABLE)
            case "closed":
                await asyncio.sleep(chance.uniform(0.0, 2.0))
                raise _failed(FailureClass.BROKEN)
            case "silent":
                await asyncio.get_running_loop().create_future()
        await asyncio.sleep(chance.uniform(0.05, 1.5))
        if not taken.stream and taken.status == 200:
            await asyncio.sleep(taken.tokens * 0.01)
            taken.generated = taken.tokens

    async def close(self) -> None:
        pass


class Answer:
    """The port ``UpstreamAnswer``: the script's bytes, cut as the network pleases."""

    def __init__(self, providers: SimulatedProviders, call: Call) -> None:
        self._providers = providers
        self._call = call
        self._life = call.life
        self._steps = _steps(call, providers.chance)
        self.status = call.status
        self.headers: Mapping[str, str] = call.headers

    async def read(self) -> bytes:
        call = self._call
        assert call.released_at is None, "read after release"
        if not self._life.passes("read"):
            await never()
        if not self._steps:
            return await self._end()
        gap, data, pieces = self._steps[0]
        if gap:
            await asyncio.sleep(gap)
        self._steps.pop(0)
        for piece in pieces:
            call.delivered_pieces += 1
            call.generated = max(call.generated, piece.tokens)
            call.delivered.append((self._providers.now(), piece.tokens))
            call.told = piece.told or call.told
        if not self._steps and call.ending == "end":
            call.finished = True
        return data

    async def _end(self) -> bytes:
        call = self._call
        if call.ending == "cut":
            await asyncio.sleep(0.01)
            raise _failed(FailureClass.BROKEN)
        if call.ending == "silence":
            await asyncio.get_running_loop().create_future()
        call.finished = True
        return b""

    def release(self, *, reusable: bool) -> None:
        if self._life.is_alive:
            self._call.interrupted = not reusable
            self._providers.release(self._call)


def _failed(kind: FailureClass) -> UpstreamFailedError:
    return UpstreamFailedError(Failure(kind=kind, message=f"transport words, {CREDENTIAL_MARK}"))


def _steps(call: Call, chance: Random) -> list[tuple[float, bytes, list[Piece]]]:
    """Network reads: how long until one comes, its bytes, and the events that it completes."""
    if call.body is not None:
        whole = Piece(raw=call.body, tokens=call.tokens, told=call.pieces[0].told if call.pieces else None)
        cut = chance.randrange(len(call.body) + 1) if call.ending != "end" else len(call.body)
        if call.ending != "end":
            return [(0.0, call.body[: max(1, cut // 2)], [])]
        half = chance.randrange(1, len(call.body)) if len(call.body) > 1 and chance.random() < 0.3 else 0
        first: list[tuple[float, bytes, list[Piece]]] = [(0.01, call.body[:half], [])] if half else []
        return [*first, (0.01, call.body[half:], [whole])]
    style = chance.choice(("whole", "whole", "whole", "joined", "split"))
    steps: list[tuple[float, bytes, list[Piece]]] = []
    for piece in call.pieces:
        if style == "joined" and steps and chance.random() < 0.5:
            gap, data, pieces = steps.pop()
            steps.append((gap + piece.gap, data + piece.raw, [*pieces, piece]))
        elif style == "split" and len(piece.raw) > 2:
            at = chance.randrange(1, len(piece.raw))
            steps += [(piece.gap, piece.raw[:at], []), (0.001, piece.raw[at:], [piece])]
        else:
            steps.append((piece.gap, piece.raw, [piece]))
    if call.ending == "cut" and chance.random() < 0.3:
        steps.append((0.01, b'data: {"choices":[{"delta":{"content":"half an ev', []))
    return steps


class Script:
    """Writes what one call will do."""

    def __init__(self, call: Call, character: Character, chance: Random) -> None:
        self.call = call
        self.character = character
        self.chance = chance
        self.usage_style = "closing"
        self.spelling = "none"
        self.head: dict[str, Any] = {
            "id": f"chatcmpl-{call.number}",
            "object": "chat.completion.chunk" if call.stream else "chat.completion",
            "created": 1_763_000_000,
            "model": character.tells_model or call.asked_model,
        }

    def write(self) -> None:
        call, chance, character = self.call, self.chance, self.character
        call.billed_in_full = character.bills_in_full
        call.tells_another_model = character.tells_model is not None
        luck = chance.random()
        if luck < character.refuses:
            self._refuse()
            return
        if luck < character.refuses + character.breaks:
            call.behaviour = chance.choice(STREAM_BREAKS if call.stream else WHOLE_BREAKS)
        if call.behaviour in ("unreachable", "error_in_ok", "early_error"):
            call.is_billed = False
        if call.behaviour == "error_in_ok":
            self._json_body({"error": {"type": "server_error", "message": "oops"}}, None)
            return
        self._figures()
        if call.stream and call.behaviour != "json":
            self._stream()
        else:
            self._whole()
        if call.behaviour in ("closed", "silent"):
            call.pieces, call.body = [], None

    def _refuse(self) -> None:
        call = self.call
        call.behaviour, call.is_billed = "refusal", False
        which = (
            self.chance.choice(COMMON_REFUSALS) if self.chance.random() < 0.75 else self.chance.randrange(len(REFUSALS))
        )
        call.status, error, headers = REFUSALS[which]
        if error:
            self._json_body({"error": error}, None)
        else:
            call.body = b"<html><title>Bad gateway</title></html>"
        call.headers.update(headers)

    def _figures(self) -> None:
        call, chance = self.call, self.chance
        longest = min(call.limit, chance.choice((3, 20, 60, 200)))
        call.tokens = max(1, chance.randrange(longest) + 1) * call.n
        ignores = self.character.ignores_limit
        if ignores and chance.random() < ignores:
            call.tokens = call.limit * call.n * 3 + call.prompt if call.limit <= LIMIT_IGNORED_MAX else call.tokens
        if chance.random() < 0.5:
            call.cached = chance.randrange(call.prompt)
        if call.provider == "writeco" and chance.random() < 0.5:
            call.written = chance.randrange(call.prompt - call.cached + 1)
        self.spelling = chance.choice(("top", "nested", "both", "conflict") if call.cached else ("none", "nested"))
        styles = ("choice", "both", "running", "twice", "finish", "missing", "zero", "garbage")
        if chance.random() < self.character.odd_usage:
            self.usage_style = chance.choice(styles)

    def _told(self, completion: int) -> tuple[Told | None, dict[str, Any] | None]:
        """A usage object and what it amounts to; (None, None) where nothing is told."""
        call = self.call
        if self.usage_style == "missing":
            return None, None
        if self.usage_style == "zero":
            return None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        if self.usage_style == "garbage":
            return None, {"prompt_tokens": -1, "completion_tokens": "many"}
        usage: dict[str, Any] = {"prompt_tokens": call.prompt, "completion_tokens": completion}
        usage["total_tokens"] = call.prompt + completion
        details: dict[str, Any] = {}
        spelling = self.spelling
        if spelling in ("top", "both", "conflict"):
            usage["cached_tokens"] = call.cached
        if spelling in ("nested", "both", "conflict"):
            details["cached_tokens"] = call.cached + (1 if spelling == "conflict" else 0)
        if call.written:
            details["cache_write_tokens"] = call.written
        if details:
            usage["prompt_tokens_details"] = details
        reasoning = completion // 2 if call.number % 3 == 0 else None
        if reasoning is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return Told(
            prompt=call.prompt,
            completion=completion,
            cached=None if spelling == "none" else call.cached,
            written=call.written,
            reasoning=reasoning,
        ), usage

    # --- whole answers -----------------------------------------------------------------------------------------------

    def _whole(self) -> None:
        call = self.call
        message = {"role": "assistant", "content": self._text(call.tokens), "reasoning_content": "hm"}
        choices = [{"index": at, "message": message, "finish_reason": "stop"} for at in range(call.n)]
        if call.n > 1:
            choices = [
                {**each, "message": {**message, "content": self._text(call.tokens // call.n)}} for each in choices
            ]
        if self.usage_style == "running":
            self.usage_style = "closing"
        told, usage = self._told(call.tokens)
        body: dict[str, Any] = {**self.head, "choices": choices}
        if self.usage_style in ("choice", "both") and told is not None and call.n == 1:
            body["choices"][0]["usage"] = usage
        if usage is not None and (self.usage_style != "choice" or call.n > 1):
            body["usage"] = usage
        if call.behaviour in ("cut", "stall"):
            call.ending = {"cut": "cut", "stall": "silence"}[call.behaviour]
        self._json_body(body, told)

    def _json_body(self, body: dict[str, Any], told: Told | None) -> None:
        call = self.call
        call.body = json.dumps(body, ensure_ascii=False).encode()
        call.headers.update({"content-type": "application/json", "content-length": str(len(call.body))})
        call.pieces = [Piece(raw=b"", told=told)]

    # --- streams -----------------------------------------------------------------------------------------------------

    def _stream(self) -> None:
        call, chance = self.call, self.chance
        call.headers["content-type"] = "text/event-stream"
        slow = chance.random() < self.character.slow
        pieces = [self._delta(index, {"role": "assistant", "content": ""}, 0, 0.0) for index in range(call.n)]
        per_chunk = chance.choice((1, 3, 8))
        tokens = 0
        share = call.tokens // call.n
        for index in range(call.n):
            left = share if index < call.n - 1 else call.tokens - share * (call.n - 1)
            while left > 0:
                step = min(per_chunk, left)
                left -= step
                tokens += step
                gap = chance.uniform(0.5, 6.0) if slow else chance.uniform(0.0, 0.1)
                pieces.append(self._delta(index, self._words(step), tokens, gap))
                if chance.random() < 0.05:
                    pieces.append(Piece(raw=b": ping\n\n", kind="comment", tokens=tokens))
            pieces.append(
                self._finish(index, tokens, left_of=share if index < call.n - 1 else call.tokens - share * index)
            )
        pieces += self._closing()
        call.pieces = self._broken(pieces)
        if chance.random() < 0.05:
            call.pieces = [_carriage(piece) for piece in call.pieces]

    def _words(self, tokens: int) -> dict[str, str]:
        where = self.chance.choice(("content", "content", "reasoning_content"))
        return {where: self._text(tokens)}

    def _text(self, tokens: int) -> str:
        """About so many tokens of text, with a mark that no log may show."""
        size = max(1, round(tokens * BYTES_PER_TOKEN * self.chance.uniform(0.9, 1.1)))
        return (f"{COMPLETION_MARK} wrote: {'wave ' * (size // 5)}" if size > 40 else "abcde " * size)[:size]

    def _delta(self, index: int, delta: dict[str, str], tokens: int, gap: float) -> Piece:
        chunk: dict[str, Any] = {**self.head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        told = None
        if self.usage_style == "running" and self.call.n == 1 and tokens:
            told, chunk["usage"] = self._told(tokens)
        return Piece(raw=_event(chunk), tokens=tokens, gap=gap, told=told)

    def _finish(self, index: int, tokens: int, *, left_of: int) -> Piece:
        choice: dict[str, Any] = {"index": index, "delta": {}, "finish_reason": "stop"}
        chunk: dict[str, Any] = {**self.head, "choices": [choice]}
        is_last = index == self.call.n - 1
        told = None
        if self.usage_style in ("choice", "both"):
            _, choice["usage"] = self._told(left_of)
            told = self._told(self.call.tokens)[0] if is_last else None
            if told is not None and self.call.n > 1:
                told = replace(told, reasoning=None)
        if self.usage_style in ("finish", "running") and is_last:
            told, chunk["usage"] = self._told(self.call.tokens)
        return Piece(raw=_event(chunk), tokens=tokens, gap=0.02, told=told)

    def _closing(self) -> list[Piece]:
        tokens = self.call.tokens
        pieces: list[Piece] = []
        if self.usage_style in ("closing", "both", "twice", "zero", "garbage"):
            told, usage = self._told(tokens)
            raw = _event({**self.head, "choices": [], "usage": usage})
            pieces = [Piece(raw=raw, kind="closing", tokens=tokens, told=told, gap=0.01)]
            pieces *= 2 if self.usage_style == "twice" else 1
        return [*pieces, Piece(raw=DONE, kind="done", tokens=tokens)]

    def _broken(self, pieces: list[Piece]) -> list[Piece]:
        """The stream as this call's behaviour lets it come."""
        call, chance = self.call, self.chance
        at = chance.randrange(len(pieces))
        match call.behaviour:
            case "cut" | "short" | "stall":
                call.ending = {"cut": "cut", "short": "end", "stall": "silence"}[call.behaviour]
                kept = pieces[:at]
                if call.ending == "end":
                    call.tokens = kept[-1].tokens if kept else 0
                return kept
            case "error" | "early_error":
                at = at if call.behaviour == "error" else chance.randrange(call.n + 1)
                call.tokens = pieces[at - 1].tokens if at else 0
                call.is_billed = call.tokens > 0
                error = _event({"error": {"type": "server_error", "message": "engine died"}})
                return [*pieces[:at], Piece(raw=error, kind="error", tokens=call.tokens)]
            case "malformed":
                return [
                    *pieces[:at],
                    Piece(raw=b"data: {not json\n\n", kind="malformed", tokens=pieces[at].tokens),
                    *pieces[at:],
                ]
            case "no_done":
                return [piece for piece in pieces if piece.kind != "done"]
        return pieces


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _carriage(piece: Piece) -> Piece:
    return Piece(
        raw=piece.raw.replace(b"\n", b"\r\n"), kind=piece.kind, tokens=piece.tokens, told=piece.told, gap=piece.gap
    )

"""What the client gets, when, and how it ends; what was sent before it left is known to the token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from gateway.simulator import stream, wire
from gateway.simulator.call import Call, Owed
from gateway.simulator.connection import PAUSE_SECONDS_MAX, Hangup, Scope, Send, cut, respond
from gateway.simulator.faults import Fault
from gateway.simulator.rules import Refusal
from gateway.simulator.settings import Settings

JSON: Final = b"application/json; charset=utf-8"
SSE: Final = b"text/event-stream; charset=utf-8"
HTML: Final = b"text/html"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """How to answer one call."""

    provider: str
    settings: Settings
    clock: Callable[[], float]
    scope: Scope
    hangup: Hangup
    send: Send


async def serve(reply: Reply, call: Call, refused: Refusal | None, fault: Fault | None) -> None:
    """Answers, refuses or breaks; afterwards ``call.ended`` says how an owed answer ended."""
    call.refused = refused.kind if refused is not None else None
    if not await _first_byte(reply, call):
        call.ended = "aborted" if call.owed is not None else None
    elif refused is not None:
        call.billed = fault is not None and fault.billed
        await _send_refusal(reply, call, refused, fault)
    elif call.owed is not None:
        as_stream = call.stream and call.fault("json_for_stream") is None
        await (_send_stream if as_stream else _send_body)(reply, call, call.owed)


async def _first_byte(reply: Reply, call: Call) -> bool:
    """The wait before anything is sent; False when the client did not stay for it."""
    settings = reply.settings
    seconds = settings.first_byte_ms / 1000
    if settings.prefill_tokens_per_second is not None and call.owed is not None:
        usage = call.owed.usage
        seconds += (usage.prompt_tokens - usage.cached_tokens) / settings.prefill_tokens_per_second
    if (stall := call.fault("stall_before_first_byte")) is not None:
        return await reply.hangup.pause(None if stall.seconds is None else stall.seconds + seconds)
    return await reply.hangup.pause(seconds) if seconds > 0 else True


# -- refusals ----------------------------------------------------------------------------------------------------------


async def _send_refusal(reply: Reply, call: Call, refused: Refusal, fault: Fault | None) -> None:
    if refused.kind in ("close_before_response", "reset_before_response"):
        await cut(reply.scope, reset=refused.kind == "reset_before_response")
        return
    call.status, body, content_type = _refusal(reply.provider, call, refused, fault)
    headers = wire.headers(reply.provider, call.request_id, content_type)
    if refused.retry_after is not None:
        headers.append((b"retry-after", refused.retry_after.encode()))
    await respond(reply.send, call.status, headers, body)


def _refusal(provider: str, call: Call, refused: Refusal, fault: Fault | None) -> tuple[int, bytes, bytes]:
    match refused.kind:
        case "bad_gateway_html":
            return 502, wire.HTML % (b"502 Bad Gateway", b"502 Bad Gateway"), HTML
        case "html_ok":
            return 200, wire.HTML % (b"Welcome", b"Welcome"), HTML
        case "status":
            assert fault is not None
            return fault.status, fault.body.encode(), fault.content_type.encode()
        case "error_in_ok":
            _, body = rendered(provider, call, Refusal(kind="server_error", message=refused.message))
            return 200, body, JSON
        case _:
            status, body = rendered(provider, call, refused)
            return status, body, JSON


def rendered(provider: str, call: Call, refused: Refusal) -> tuple[int, bytes]:
    """Status and JSON body of a refusal in the provider's words."""
    account = call.account.name if call.account is not None else "unknown"
    facts: dict[str, object] = {"model": call.model, "account": account, **refused.facts}
    return wire.refusal(provider, refused, request_id=call.request_id, facts=facts)


# -- answers -----------------------------------------------------------------------------------------------------------


def _told(reply: Reply, call: Call, *, as_stream: bool) -> tuple[wire.Report, str]:
    """How usage is reported, and the model that the answer names."""
    options = call.request.get("stream_options")
    include_usage = isinstance(options, dict) and options.get("include_usage") is True
    report = wire.report_of(reply.provider, stream=as_stream, include_usage=include_usage, struck=call.struck)
    call.report = report
    other = call.fault("served_model")
    return report, other.served if other is not None else (call.model or "")


async def _send_body(reply: Reply, call: Call, owed: Owed) -> None:
    if not await _generate(reply, call, owed):
        call.ended = "aborted"
        return
    report, model = _told(reply, call, as_stream=False)
    body = wire.completion(
        reply.provider, completion_id=call.completion_id, created=int(call.arrived_at), model=model,
        choices=owed.choices, usage=owed.usage, report=report,
    )  # fmt: skip
    call.tokens_sent, call.reasoning_sent = owed.usage.completion_tokens, owed.reasoning_tokens
    call.status = 200
    headers = wire.headers(reply.provider, call.request_id, JSON)
    if any(call.fault(kind) for kind in ("reset_mid_body", "close_mid_body", "cut_stream")):
        headers.append((b"content-length", b"%d" % len(body)))
        await reply.send({"type": "http.response.start", "status": 200, "headers": headers})
        await reply.send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        await cut(reply.scope, reset=call.fault("reset_mid_body") is not None)
        return
    if call.fault("malformed_event") is not None:
        body = body[: len(body) // 2]
    else:
        call.usage_sent = report.told
    await respond(reply.send, 200, headers, body)
    call.ended = "aborted" if reply.hangup.gone else "complete"


async def _generate(reply: Reply, call: Call, owed: Owed) -> bool:
    """Takes as long as the chunks of a stream would; on a hang-up notes how far it came."""
    pace, tokens = _pace(reply, call), owed.usage.completion_tokens
    if pace <= 0:
        return True
    started, seconds = reply.clock(), pace * tokens / reply.settings.tokens_per_chunk
    if await reply.hangup.pause(seconds):
        return True
    call.tokens_sent = min(tokens, int(tokens * (reply.clock() - started) / seconds)) if seconds > 0 else tokens
    call.reasoning_sent = min(call.tokens_sent, owed.reasoning_tokens)
    return False


def _pace(reply: Reply, call: Call) -> float:
    """Seconds between chunks."""
    slow = call.fault("slow_chunks")
    return (slow.ms if slow is not None else reply.settings.chunk_ms) / 1000


async def _send_stream(reply: Reply, call: Call, owed: Owed) -> None:
    report, model = _told(reply, call, as_stream=True)
    call.status = 200
    headers = wire.headers(reply.provider, call.request_id, SSE)
    await reply.send({"type": "http.response.start", "status": 200, "headers": headers})
    pace, hangup = _pace(reply, call), reply.hangup
    batch = _Batch(call, reply.send, choices=len(owed.choices))
    bytes_max = 0 if pace > 0 else reply.settings.write_bytes_max
    for item in _items(reply, call, owed, report, model):
        if isinstance(item, stream.Act):
            await batch.flush()
            if not await _act(reply, call, item):
                # All of it was made, and is owed as it was told, also reasoning that no event carried.
                call.billed = call.billed or (batch.finished and call.usage_sent)
                return
            continue
        batch.add(item)
        if batch.size > bytes_max:
            hangup.watch()
            await batch.flush()
            if batch.done:
                continue
            if hangup.gone or (pace > 0 and not await hangup.pause(pace)):
                call.ended = "aborted"
                return
    lost = await batch.flush(last=True) and hangup.gone
    call.ended = "aborted" if lost else ("complete" if batch.finished else "broken")


def _items(reply: Reply, call: Call, owed: Owed, report: wire.Report, model: str) -> Iterator[stream.Item]:
    frame = wire.Frame.of(
        completion_id=call.completion_id, created=int(call.arrived_at), model=model,
        usage_null=reply.provider == "moonshot" and "chunk" in report.places,
    )  # fmt: skip
    events = wire.chunks(
        reply.provider, frame, choices=owed.choices, usage=owed.usage, report=report,
        size=reply.settings.tokens_per_chunk,
    )  # fmt: skip
    if call.struck is None:
        return events
    fault = call.struck.get("error_event")
    failure = wire.failure_event(reply.provider, call.request_id, fault.message if fault else None)
    return stream.bend(events, call.struck, failure=failure)


async def _act(reply: Reply, call: Call, act: stream.Act) -> bool:
    """Stalls or cuts; False when the stream ends here."""
    if act.kind == "stall":
        if await _stall(reply, act):
            return True
        call.ended = "aborted"
        return False
    await cut(reply.scope, reset=act.kind == "reset")
    return False


async def _stall(reply: Reply, act: stream.Act) -> bool:
    """Silence, or nothing but comments; False when the client leaves during it."""
    if act.comment_ms is None:
        return await reply.hangup.pause(act.seconds)
    step = act.comment_ms / 1000
    left = PAUSE_SECONDS_MAX if act.seconds is None else act.seconds
    while left > 0:
        await reply.send({"type": "http.response.body", "body": stream.KEEPALIVE, "more_body": True})
        if not await reply.hangup.pause(min(step, left)):
            return False
        left -= step
    return True


class _Batch:
    """Events that go out in one write; what they carried counts as sent once they have."""

    __slots__ = ("_call", "_data", "_output", "_reasoning", "_send", "_unfinished", "_usage", "done", "size")

    def __init__(self, call: Call, send: Send, *, choices: int) -> None:
        self._call = call
        self._send = send
        self._data: list[bytes] = []
        self._output = self._reasoning = 0
        self._unfinished = choices
        self._usage = False
        self.done = False
        self.size = 0

    @property
    def finished(self) -> bool:
        """Every choice has had its finish chunk."""
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
        elif b"[DONE]" in data:
            self.done = True

    async def flush(self, *, last: bool = False) -> bool:
        """Sends what was added; False when there was nothing to send but the end."""
        call, data = self._call, b"".join(self._data)
        carried = bool(data)
        if (split := call.fault("split")) is not None:
            for piece in stream.pieces(data, split.mode):
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)
            data = b""
        if data or last:
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        call.tokens_sent += self._output
        call.reasoning_sent += self._reasoning
        call.usage_sent = call.usage_sent or self._usage
        self._data.clear()
        self.size = self._output = self._reasoning = 0
        self._usage = False
        return carried

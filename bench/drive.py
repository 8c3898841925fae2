"""Every request is sent once, at its moment, and every answer is judged; what went wrong is said in a word."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal

import aiohttp

from bench.audit import Acknowledged, pico
from bench.prompts import Request

ANSWER_SECONDS_MAX: Final = 300.0
DONE: Final = b"data: [DONE]"
_REQUEST_ID: Final = re.compile(r"\s*\(request id: [^)]*\)")  # the one part in which equal complaints differ

Failed = Literal["no connection", "before the first byte", "in the stream", "answer cut", "wrong answer"]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How one request ended. ``failed`` None: a complete, right answer. ``late_seconds``: waited for a place."""

    request: Request
    late_seconds: float
    status: int | None = None
    failed: Failed | None = None
    detail: str = ""
    request_id: str | None = None
    provider: str | None = None
    usage: dict[str, Any] | None = None
    first_byte_seconds: float | None = None
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """The client got all of an answer, whatever it thinks of it."""
        return self.failed is None or self.failed == "wrong answer"

    def acknowledged(self) -> Acknowledged | None:
        if not self.complete or self.request_id is None:
            return None
        usage = self.usage or {}
        cost = usage.get("cost")
        return Acknowledged(
            request_id=self.request_id,
            input_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            cost=None if cost is None else pico(cost),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go: the gateway's address, the secrets of its keys, and how many may be under way at once."""

    url: str
    keys: Sequence[str]
    concurrency: int
    run: str


@dataclass(slots=True)
class _Drive:
    target: Target
    session: aiohttp.ClientSession
    places: asyncio.Semaphore
    outcomes: list[Outcome] = field(default_factory=list)


async def drive(
    requests: Iterable[Request], target: Target, *, speed: float, done: Callable[[Outcome], None]
) -> list[Outcome]:
    """Send every request at its moment divided by ``speed``; ``done`` is told of each outcome."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
    connector = aiohttp.TCPConnector(limit=0)
    started_at = time.monotonic()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        this = _Drive(target, session, asyncio.Semaphore(target.concurrency))
        async with asyncio.TaskGroup() as group:
            for request in requests:
                due = started_at + request.row.at_ms / 1000 / speed
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await this.places.acquire()
                group.create_task(_one(this, request, late_seconds=time.monotonic() - due, done=done))
    return this.outcomes


async def _one(this: _Drive, request: Request, *, late_seconds: float, done: Callable[[Outcome], None]) -> None:
    outcome = Outcome(request=request, late_seconds=max(0.0, late_seconds))
    started_at = time.monotonic()
    try:
        await _send(this, request, outcome, started_at)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        outcome.failed = _where_cut(outcome)
        outcome.detail = f"{type(error).__name__}: {error}"
    finally:
        outcome.seconds = time.monotonic() - started_at
        this.places.release()
    this.outcomes.append(outcome)
    done(outcome)


def _where_cut(outcome: Outcome) -> Failed:
    if outcome.status is None:
        return "no connection"
    return "before the first byte" if outcome.first_byte_seconds is None else "answer cut"


async def _send(this: _Drive, request: Request, outcome: Outcome, started_at: float) -> None:
    headers = {
        "authorization": f"Bearer {this.target.keys[request.key]}",
        "content-type": "application/json",
        "x-gateway-tags": f"run={this.target.run}",
    }
    url = f"{this.target.url}/v1/chat/completions"
    async with this.session.post(url, data=request.body, headers=headers, allow_redirects=False) as response:
        outcome.status = response.status
        outcome.request_id = response.headers.get("x-request-id")
        outcome.provider = response.headers.get("x-gateway-provider")
        parts: list[bytes] = []
        async for part in response.content.iter_any():
            if outcome.first_byte_seconds is None and not _only_comments(part):
                outcome.first_byte_seconds = time.monotonic() - started_at
            parts.append(part)
    judge(request, outcome, b"".join(parts), content_type=response.content_type)


def _only_comments(part: bytes) -> bool:
    return all(line.startswith(b":") for line in part.split(b"\n") if line)


# -- judging -----------------------------------------------------------------------------------------------------------


def judge(request: Request, outcome: Outcome, body: bytes, *, content_type: str) -> None:
    """Fill in what the body says. An answer has the right form, ends properly, and tells its usage where it should."""
    if outcome.status != 200:
        outcome.failed, outcome.detail = "before the first byte", _words_of(body)
    elif outcome.request_id is None:
        outcome.failed, outcome.detail = "wrong answer", "no x-request-id"
    elif not request.stream:
        _judge_whole(request, outcome, body)
    elif content_type != "text/event-stream":
        outcome.failed, outcome.detail = "wrong answer", f"a stream was asked for and {content_type} came"
    else:
        _judge_stream(request, outcome, body)


def _words_of(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        message = _REQUEST_ID.sub("", str(error.get("message")))
        return f"{error.get('code') or error.get('type')}: {message}"[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:200].decode(errors="replace")


def _judge_whole(request: Request, outcome: Outcome, body: bytes) -> None:
    try:
        document = json.loads(body, parse_float=Decimal)
    except ValueError:
        outcome.failed, outcome.detail = "answer cut", "the body is not JSON"
        return
    outcome.usage = document.get("usage")
    _judge_usage(request, outcome, wanted=True)


def _judge_stream(request: Request, outcome: Outcome, body: bytes) -> None:
    closing: list[dict[str, Any]] = []
    lines = body.replace(b"\r\n", b"\n").split(b"\n")
    for line in lines:
        if not line.startswith(b"data: {") or not (b'"error"' in line or b'"usage":{' in line):
            continue
        event = json.loads(line[6:], parse_float=Decimal)
        if "error" in event:
            outcome.failed, outcome.detail = "in the stream", _words_of(line[6:])
            return
        if event.get("usage") and not event.get("choices"):
            closing.append(event["usage"])
    if DONE not in lines:
        outcome.failed, outcome.detail = "answer cut", "no [DONE]"
        return
    outcome.usage = closing[-1] if closing else None
    if len(closing) > 1:
        outcome.failed, outcome.detail = "wrong answer", f"{len(closing)} closing usage chunks"
        return
    _judge_usage(request, outcome, wanted=request.include_usage)


def _judge_usage(request: Request, outcome: Outcome, *, wanted: bool) -> None:
    usage = outcome.usage
    if not wanted:
        if usage is not None:
            outcome.failed, outcome.detail = "wrong answer", "a closing usage chunk that nobody asked for"
        return
    if usage is None:
        outcome.failed, outcome.detail = "wrong answer", "no usage"
        return
    expected = {"prompt_tokens": request.input_tokens, "completion_tokens": request.output_tokens}
    wrong = [f"{name} {usage.get(name)}, not {count}" for name, count in expected.items() if usage.get(name) != count]
    if "cost" not in usage:
        wrong.append("no cost")
    if wrong:
        outcome.failed, outcome.detail = "wrong answer", "; ".join(wrong)

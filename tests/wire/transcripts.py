"""Answers as the providers write them, as bytes; shapes from providers §1.4, §1.5, §2.5, §3.2 and §11."""

from __future__ import annotations

import json
from typing import Any, Final

from gateway.core.sse import SseScanner
from gateway.providers.reading import AnswerReader, EventKind

DONE: Final = b"data: [DONE]\n\n"
HEAD: Final[dict[str, Any]] = {
    "id": "chatcmpl-7a8b",
    "object": "chat.completion.chunk",
    "created": 1763000000,
    "model": "kimi-k2-thinking",
}


def encoded(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def sse(payload: object) -> bytes:
    return b"data: " + encoded(payload) + b"\n\n"


def totals(prompt: object, completion: object, **more: object) -> dict[str, Any]:
    """A usage object; the sum is only told where there is one."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, **more}
    if type(prompt) is int and type(completion) is int:
        usage.setdefault("total_tokens", prompt + completion)
    return usage


def delta(index: int = 0, **members: object) -> bytes:
    return sse({**HEAD, "choices": [{"index": index, "delta": members, "finish_reason": None}]})


def finish(
    reason: str = "stop", *, index: int = 0, in_choice: object = None, on_top: object = None, **chunk: object
) -> bytes:
    choice: dict[str, Any] = {"index": index, "delta": {}, "finish_reason": reason}
    if in_choice is not None:
        choice["usage"] = in_choice
    if on_top is not None:
        chunk["usage"] = on_top
    return sse({**HEAD, "choices": [choice], **chunk})


def closing(usage: object) -> bytes:
    return sse({**HEAD, "choices": [], "usage": usage})


def whole(
    usage: object, *, content: str | None = "hello", reason: str = "stop", in_choice: object = None, **message: object
) -> bytes:
    """A non-stream answer."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": reason,
    }
    if in_choice is not None:
        choice["usage"] = in_choice
    answer: dict[str, Any] = {**HEAD, "object": "chat.completion", "choices": [choice]}
    if usage is not None:
        answer["usage"] = usage
    return encoded(answer)


ROLE: Final = delta(role="assistant", content="")
THOUGHT: Final = delta(reasoning_content="Let me think. 想一想。")
HELLO: Final = delta(content="hello")
ANSWER: Final = ROLE + THOUGHT + HELLO
"""Everything of a thinking answer but its end."""


def read(*chunks: bytes) -> tuple[AnswerReader, list[EventKind]]:
    """A stream through the scanner and the reader, as the gateway reads it in passing."""
    scanner, reader = SseScanner(), AnswerReader()
    events = [event for chunk in chunks for event in scanner.feed(chunk)]
    last = scanner.finish()
    if last is not None:
        events.append(last)
    return reader, [reader.feed(event.data) for event in events if event.data is not None]


def read_whole(body: bytes) -> tuple[AnswerReader, EventKind]:
    reader = AnswerReader()
    return reader, reader.feed_answer(body)


def told(reader: AnswerReader) -> dict[str, object]:
    """Everything a reader learned, for comparison."""
    names = [name for name in AnswerReader.__slots__ if not name.startswith("_")]
    return {name: getattr(reader, name) for name in (*names, "reports", "complete", "flags")}

"""A chat answer leaves as it came but for its ``usage``: normalised, with the cost in exact decimal notation.

Other members keep their bytes and their order. What a provider did not report is left out, never zero (law L14).
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from gateway.core.money import Money
from gateway.core.usage import Usage

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_NO_CHOICES: Final = Raw(b"[]")


def render_answer(body: bytes, usage_json: Raw) -> bytes:
    """An upstream's whole answer with its top-level ``usage`` replaced, or added. Raises ValueError for no object."""
    return msgspec.json.encode(_with_usage(body, usage_json))


def _with_usage(body: bytes, usage_json: Raw) -> dict[str, Raw]:
    try:
        members = _OBJECT.decode(body)
    except RecursionError:
        raise ValueError("the answer nests too deep") from None
    members["usage"] = usage_json
    return members


def render_usage(usage: Usage, cost: Money, original: object | None) -> Raw:
    """The ``usage`` of an answer: our figures in OpenAI's members, the original's unknown members, and ``cost``.

    ``original`` is the provider's decoded object, if it sent one.
    """
    members: dict[str, object] = dict(original) if isinstance(original, dict) else {}
    members["prompt_tokens"] = usage.input_tokens
    members["completion_tokens"] = usage.output_tokens
    members["total_tokens"] = usage.input_tokens + usage.output_tokens
    if "cached_tokens" in members:
        _set(members, "cached_tokens", usage.cache_read)
    prompt = _details(members, "prompt_tokens_details")
    _set(prompt, "cached_tokens", usage.cache_read)
    if usage.cache_write or "cache_write_tokens" in prompt:
        prompt["cache_write_tokens"] = usage.cache_write
    completion = _details(members, "completion_tokens_details")
    _set(completion, "reasoning_tokens", usage.reasoning)
    for name, details in (("prompt_tokens_details", prompt), ("completion_tokens_details", completion)):
        if details:
            members[name] = details
        else:
            members.pop(name, None)
    members.pop("cost", None)
    members["cost"] = Raw(str(cost).encode())
    return Raw(msgspec.json.encode(members))


def _details(members: dict[str, object], name: str) -> dict[str, object]:
    details = members.get(name)
    return dict(details) if isinstance(details, dict) else {}


def _set(members: dict[str, object], name: str, tokens: int | None) -> None:
    if tokens is None:
        members.pop(name, None)
    else:
        members[name] = tokens


def render_closing_chunk(
    original_event_data: bytes | None, *, upstream_id: str | None, model: str, created: int, usage_json: Raw
) -> bytes:
    """The event with ``"choices": []`` and the usage that ends a stream before ``[DONE]``.

    The upstream's own closing chunk, if it sent one, keeps its other members; else one is written from the answer's
    id, model and moment.
    """
    if original_event_data is not None:
        try:
            original = _with_usage(original_event_data, usage_json)
        except ValueError:
            pass  # not an object after all: one is written
        else:
            return _event({**original, "choices": _NO_CHOICES})
    return _event(
        {
            "id": upstream_id or "",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "choices": _NO_CHOICES,
            "usage": usage_json,
        }
    )


def _event(members: dict[str, object]) -> bytes:
    return b"data: " + msgspec.json.encode(members) + b"\n\n"

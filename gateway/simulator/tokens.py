"""One token is four UTF-8 bytes of the serialized prompt; every count in the simulator follows from that.

The rule, for whoever builds prompts of an exact size:

* a message costs ``MESSAGE_TOKENS`` (4) plus the tokens of each of its texts;
* a text costs ``ceil(UTF-8 bytes / 4)`` tokens: content (each text part apart), ``reasoning_content``, ``name``,
  ``tool_call_id``, and the compact JSON of ``tool_calls`` or of a message's own ``tools``;
* an image or a video part costs ``MEDIA_TOKENS`` (256), whatever it shows;
* a non-empty ``tools`` list costs ``MESSAGE_TOKENS`` plus its compact JSON and is serialized before the messages;
* nothing else in the request counts: not the model, not sampling, not ``prompt_cache_key``.

So one user message whose content is 4·n bytes long is exactly n + 4 tokens, and prompts that share their first
k·512 content tokens share them in the prefix cache too (:mod:`gateway.simulator.cache`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from zlib import crc32

import msgspec

BYTES_PER_TOKEN: Final = 4
MESSAGE_TOKENS: Final = 4
MEDIA_TOKENS: Final = 256

_HEADER_BYTES: Final = MESSAGE_TOKENS * BYTES_PER_TOKEN
_HEADERS: Final = {
    role: f"<|{role}|>".encode().ljust(_HEADER_BYTES) for role in ("tools", "system", "user", "assistant", "tool")
}
_PADDING: Final = (b"", b"   ", b"  ", b" ")  # by length modulo 4

_encode = msgspec.json.encode


def count_tokens(request: Mapping[str, Any]) -> int:
    """Prompt tokens of a chat completion request (its ``messages`` and ``tools``)."""
    return len(serialize(request)) // BYTES_PER_TOKEN


def count_text(text: str) -> int:
    """Tokens of one text."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def serialize(request: Mapping[str, Any]) -> bytes:
    """The prompt as the model reads it; its length is a multiple of four. Unknown shapes count as nothing."""
    parts: list[bytes] = []
    tools = request.get("tools")
    if tools:
        parts.append(_HEADERS["tools"])
        _add(parts, _encode(tools))
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            _add_message(parts, message)
    return b"".join(parts)


def _add_message(parts: list[bytes], message: dict[str, Any]) -> None:
    role = message.get("role")
    header = _HEADERS.get(role) if isinstance(role, str) else None
    parts.append(header or f"<|{role}|>".encode()[:_HEADER_BYTES].ljust(_HEADER_BYTES))
    content = message.get("content")
    if isinstance(content, str):
        _add(parts, content.encode("utf-8", "surrogatepass"))
    elif isinstance(content, list):
        for part in content:
            _add_part(parts, part)
    if len(message) > 2:
        _add_rest(parts, message)


def _add_rest(parts: list[bytes], message: dict[str, Any]) -> None:
    for field in ("reasoning_content", "name", "tool_call_id"):
        text = message.get(field)
        if isinstance(text, str):
            _add(parts, text.encode("utf-8", "surrogatepass"))
    for field in ("tool_calls", "tools"):
        if message.get(field):
            _add(parts, _encode(message[field]))


def _add_part(parts: list[bytes], part: object) -> None:
    if not isinstance(part, dict):
        return
    text = part.get("text")
    if isinstance(text, str):
        _add(parts, text.encode("utf-8", "surrogatepass"))
    elif "image_url" in part or "video_url" in part:
        parts.append((b"%08x" % crc32(_encode(part))) * (MEDIA_TOKENS // 2))


def _add(parts: list[bytes], data: bytes) -> None:
    parts.append(data)
    parts.append(_PADDING[len(data) % BYTES_PER_TOKEN])

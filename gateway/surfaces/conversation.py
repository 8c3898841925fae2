"""A conversation is a list of messages that is checked, measured and never closed: unknown members stay.

Raw values are looked at by their first byte; only what must be understood is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec import Raw

from gateway.core.refusal import RefusedError
from gateway.surfaces.bodies import (
    BOOLEAN,
    NESTING_MAX,
    OBJECT,
    OBJECTS,
    STRING,
    Members,
    is_deeper,
    is_null,
    is_string,
    kind_of,
    nested_too_deep,
    present,
    text_bytes,
)
from gateway.surfaces.errors import invalid, shown

MEDIA_BYTES: Final = 4_200
"""What an image or a video counts as input: 1,000 tokens' worth of text, whatever its data URL weighs."""

DOCUMENT_BYTES: Final = 32_768
"""A message with longer content may be shared in part: a document, and then a question about it."""

_MESSAGE_LEVELS: Final = NESTING_MAX - 3
"""Levels left below a message: the body, the list and the message are three."""

_ROLES: Final = {f'"{role}"'.encode(): role for role in ("system", "developer", "user", "assistant", "tool")}
_ROLE_WORDS: Final = ", ".join(f'"{role}"' for role in _ROLES.values())
_EMPTY: Final = frozenset({b'""', b"[]"})
_MEDIA: Final = {"image_url": b"\x05", "video_url": b"\x06"}
_CALL: Final = b"\x07"
_NO_CONTENT: Final = (b"null",)
_PART_WORDS: Final = '"text", "image_url" or "video_url"'


@dataclass(slots=True)
class Conversation:
    """What the messages of one request amount to; grows while they are checked, in order.

    What a fingerprint needs is noted where it is decoded: ``contents`` and ``calls`` by message, as pieces of what is
    hashed (a content that is a plain string is not noted), ``documents`` with their sizes, ``media_extra``: by how much
    a message is read longer or shorter than it is written. ``head`` messages are the system's, before any other; the
    first user's message ends after ``first_user``, the last assistant's begins after ``last_assistant``.
    """

    messages: list[Members] = field(default_factory=list)
    needs: set[str] = field(default_factory=set)
    media: int = 0
    media_bytes: int = 0
    contents: dict[int, Sequence[Raw | bytes]] = field(default_factory=dict)
    calls: dict[int, list[Raw | bytes]] = field(default_factory=dict)
    documents: dict[int, int] = field(default_factory=dict)
    media_extra: dict[int, int] = field(default_factory=dict)
    head: int = 0
    first_user: int = 0
    last_assistant: int = 0
    is_escaped: bool = False

    def input_bytes(self, messages: Raw) -> int:
        """The UTF-8 size of what the model will read, an image at its flat size."""
        size_bytes = text_bytes(messages)
        self.is_escaped = size_bytes != len(messages)
        return max(0, size_bytes - self.media_bytes) + self.media * MEDIA_BYTES


def read_conversation(messages: Raw) -> Conversation:
    """Checks every message. Raises RefusedError naming the first field that is wrong."""
    listed = _listed(messages)
    if is_deeper(
        (value for message in listed for name, value in message.items() if len(value) > 250 and name != "content"),
        _MESSAGE_LEVELS,
    ):
        raise nested_too_deep()
    seen = Conversation(messages=listed)
    last = len(listed) - 1
    for index, message in enumerate(listed):
        role = _ROLES.get(bytes(message.get("role", b""))) or _role(message, index)
        if role == "assistant":
            seen.last_assistant = index
            _check_assistant(seen, message, index, is_last=index == last)
        elif role == "tool":
            _check_tool(seen, message, index)
        else:
            if role == "user":
                seen.first_user = seen.first_user or index + 1
            elif seen.head == index:
                seen.head = index + 1
            _check_prompt(seen, message, index, role)
    return seen


def _listed(messages: Raw) -> list[Members]:
    if kind_of(messages) != "a list":
        raise invalid("messages", f"`messages` must be a list of messages; it is {kind_of(messages)}.")
    try:
        listed = OBJECTS.of(messages, "messages")
    except RefusedError:
        _refuse_first_that_is_no_object(messages)
        raise
    if not listed:
        raise invalid("messages", "`messages` is empty; send at least one message.")
    return listed


def _refuse_first_that_is_no_object(messages: Raw) -> None:
    for index, message in enumerate(msgspec.json.decode(messages, type=list[Raw])):
        if kind_of(message) != "an object":
            raise invalid(f"messages[{index}]", f"`messages[{index}]` must be an object; it is {kind_of(message)}.")


def _role(message: Members, index: int) -> str:
    """A role that is not written plainly: with escapes, or wrong."""
    param = f"messages[{index}].role"
    value = message.get("role")
    if value is None or is_null(value):
        raise invalid(param, f"`{param}` is missing; it is one of {_ROLE_WORDS}.")
    word = STRING.of(value, param)
    if word in _ROLES.values():
        return word
    if word == "function":
        raise invalid(param, f'`{param}` "function" is not supported; send role "tool" with its `tool_call_id`.')
    raise invalid(param, f"`{param}` is {shown(word)}; it must be one of {_ROLE_WORDS}.")


def _check_prompt(seen: Conversation, message: Members, index: int, role: str) -> None:
    """A user's or operator's message has something to say; a system message may carry tools instead."""
    content = message.get("content")
    if content is None or is_null(content):
        if role == "system" and "tools" in message:
            seen.needs.add("tools")
            seen.contents[index] = _NO_CONTENT
            return
        param = f"messages[{index}].content"
        raise invalid(param, f"`{param}` is missing; send a string or a list of parts.")
    if len(content) == 2 and bytes(content) in _EMPTY:
        param = f"messages[{index}].content"
        raise invalid(param, f"`{param}` must not be empty.")
    _check_content(seen, content, index)


def _check_tool(seen: Conversation, message: Members, index: int) -> None:
    call_id = message.get("tool_call_id")
    if call_id is None or not is_string(call_id) or len(call_id) == 2:
        param = f"messages[{index}].tool_call_id"
        raise invalid(param, f"`{param}` is missing; it is the `id`, a string, of the tool call that this answers.")
    content = message.get("content")
    if content is None or is_null(content):
        param = f"messages[{index}].content"
        raise invalid(param, f'`{param}` is missing; send the tool\'s result, "" if it had none.')
    _check_content(seen, content, index)


def _check_assistant(seen: Conversation, message: Members, index: int, *, is_last: bool) -> None:
    """An assistant's message says something, calls tools, or is the beginning of the answer."""
    calls = message.get("tool_calls")
    has_calls = calls is not None and not is_null(calls) and _check_calls(seen, calls, index)
    partial = message.get("partial")
    is_partial = partial is not None and not is_null(partial) and BOOLEAN.of(partial, f"messages[{index}].partial")
    if is_partial:
        if not is_last:
            param = f"messages[{index}].partial"
            raise invalid(param, f"`{param}` is only allowed on the last message.")
        seen.needs.add("partial")
    content = message.get("content")
    if content is not None and not is_null(content):
        _check_content(seen, content, index)
    elif not has_calls and not is_partial:
        param = f"messages[{index}].content"
        raise invalid(param, f"`{param}` is missing; only a message with `tool_calls` or `partial` may do without it.")
    else:
        seen.contents[index] = _NO_CONTENT


def _check_calls(seen: Conversation, calls: Raw, index: int) -> bool:
    """Whether there are any; each has an id, a function name and its arguments as text."""
    path = f"messages[{index}].tool_calls"
    pieces: list[Raw | bytes] = []
    listed = OBJECTS.of(calls, path)
    for place, call in enumerate(listed):
        here = f"{path}[{place}]."
        _require_string(call, "id", here)
        function = present(call, "function")
        if function is None:
            raise invalid(f"{here}function", f"`{here}function` is missing.")
        members = OBJECT.of(function, f"{here}function")
        _require_string(members, "name", f"{here}function.")
        _require_string(members, "arguments", f"{here}function.", may_be_empty=True)
        pieces += (_CALL, call["id"], members["name"], members["arguments"])
    seen.calls[index] = pieces
    return bool(listed)


def _require_string(members: Members, name: str, path: str, *, may_be_empty: bool = False) -> None:
    value = members.get(name)
    if value is None or not is_string(value):
        what = "is missing" if value is None else f"is {kind_of(value)}"
        raise invalid(f"{path}{name}", f"`{path}{name}` {what}; it must be a string.")
    if len(value) == 2 and not may_be_empty:
        raise invalid(f"{path}{name}", f"`{path}{name}` must not be empty.")


def _check_content(seen: Conversation, content: Raw, index: int) -> None:
    if is_string(content):
        if len(content) > DOCUMENT_BYTES:
            seen.documents[index] = len(content)
        return
    param = f"messages[{index}].content"
    if kind_of(content) != "a list":
        raise invalid(param, f"`{param}` must be a string or a list of parts; it is {kind_of(content)}.")
    pieces: list[Raw | bytes] = []
    media, media_bytes = seen.media, seen.media_bytes
    for place, part in enumerate(OBJECTS.of(content, param)):
        if is_deeper(part.values(), _MESSAGE_LEVELS - 2):
            raise nested_too_deep()
        pieces += _check_part(seen, part, f"{param}[{place}]")
    seen.contents[index] = pieces if len(pieces) == 1 else (b"[", *pieces, b"]")
    if seen.media > media:
        seen.media_extra[index] = (seen.media - media) * MEDIA_BYTES - (seen.media_bytes - media_bytes)
    elif len(content) > DOCUMENT_BYTES:
        seen.documents[index] = len(content)


def _check_part(seen: Conversation, part: Members, path: str) -> tuple[Raw | bytes, ...]:
    """What the model reads of a part: a text, or the address of an image or a video after its mark."""
    kind = STRING.optional(part, "type", path=f"{path}.")
    if kind is None:
        raise invalid(f"{path}.type", f"`{path}.type` is missing; it is {_PART_WORDS}.")
    if kind == "text":
        _require_string(part, "text", f"{path}.", may_be_empty=True)
        return (part["text"],)
    if kind in _MEDIA:
        return _MEDIA[kind], _check_media(seen, part, kind, f"{path}.{kind}")
    raise invalid(f"{path}.type", f"`{path}.type` is {shown(kind)}; supported are {_PART_WORDS}.")


def _check_media(seen: Conversation, part: Members, kind: str, param: str) -> Raw:
    """An image or video by address: a string, or an object with a ``url``."""
    value = present(part, kind)
    if value is None:
        raise invalid(param, f"`{param}` is missing.")
    address: Raw | None = value
    if not is_string(value):
        address = present(OBJECT.of(value, param), "url")
    if address is None or not is_string(address):
        raise invalid(f"{param}.url", f"`{param}.url` must be a string.")
    seen.needs.add("images")
    seen.media += 1
    seen.media_bytes += len(value)
    return address

"""An answer is a function of the seed and the request: reasoning, then content or tool calls, four bytes a token.

What a driver may ask for, anywhere in the text of the last user message:

* ``[[out=343]]``: exactly 343 completion tokens, reasoning included (the request's output limit still cuts);
* ``[[reasoning=0.5]]`` or ``[[reasoning=120]]``: the share, or the number, of them that is reasoning;
* ``[[tool=name]]``: which tool to call, ``[[tool=none]]``: none, ``[[tools=3]]``: how many calls at once.

A tool is called when the request has tools, ``tool_choice`` is not ``none`` and the last message is the user's: the
first tool, with arguments made from its JSON Schema. After a tool message the answer is content.
``response_format`` gets JSON content. Without a marker an answer has 32 to 159 tokens, two fifths of them reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Final
from zlib import crc32

import msgspec

from gateway.simulator.faults import Struck
from gateway.simulator.tokens import BYTES_PER_TOKEN, count_text

TOOL_CALL_TOKENS: Final = 4
DEPTH_MAX: Final = 8

_encode = msgspec.json.encode


def _cycle() -> tuple[str, ...]:
    """A long round of words of exactly four bytes, some with accents, emoji, quotes, backslashes and line ends."""
    chance = Random(20_251_106)
    plain = [a + b + c + " " for a in "bdfklmnprst" for b in "aeiou" for c in "lmnrst"]
    rare = ["né ", "ça ", "月 ", "火 ", "🌙", "🚀", '"a" ', '"k".', "c:\\ ", "ok.\n", "a\tb ", "ß- "]
    words = tuple(chance.choice(rare) if chance.random() < 0.06 else chance.choice(plain) for _ in range(4093))
    assert all(len(word.encode()) == BYTES_PER_TOKEN for word in words)
    return words


_WORDS: Final = _cycle()
_PLAIN: Final = "".join(word for word in _WORDS if word.rstrip().isalpha() and word.isascii())
_ROUND: Final = len(_WORDS)
_TEXT: Final = "".join(_WORDS).encode()
_ESCAPED: Final = tuple(_encode(word)[1:-1] for word in _WORDS)


class Text(msgspec.Struct, frozen=True, gc=False):
    """``tokens`` words of the round from ``offset``; or ``literal``, whose last piece carries the remainder."""

    offset: int
    tokens: int
    literal: str | None = None

    def string(self) -> str:
        if self.literal is not None:
            return self.literal
        rounds = (self.offset + self.tokens) // _ROUND + 1
        start = self.offset * BYTES_PER_TOKEN
        return (_TEXT * rounds)[start : start + self.tokens * BYTES_PER_TOKEN].decode()

    def pieces(self, size: int) -> Iterator[tuple[bytes, int]]:
        """JSON-escaped pieces of ``size`` tokens, each with its tokens."""
        if self.literal is not None:
            return self._literal_pieces(self.literal, size)
        return self._word_pieces(size)

    def _word_pieces(self, size: int) -> Iterator[tuple[bytes, int]]:
        offset, left = self.offset, self.tokens
        while left > 0:
            taken = min(size, left, _ROUND - offset)
            yield (_ESCAPED[offset] if taken == 1 else b"".join(_ESCAPED[offset : offset + taken])), taken
            left -= taken
            offset = (offset + taken) % _ROUND

    def _literal_pieces(self, literal: str, size: int) -> Iterator[tuple[bytes, int]]:
        left, step = self.tokens, size * BYTES_PER_TOKEN
        for start in range(0, len(literal), step):
            last = start + step >= len(literal)
            taken = left if last else min(size, left)
            left -= taken
            yield _encode(literal[start : start + step])[1:-1], taken


_NOTHING: Final = Text(0, 0)


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """A call as the model makes it; ``arguments`` is JSON text unless a fault broke it."""

    id: str
    name: str
    arguments: str

    @property
    def tokens(self) -> int:
        return TOOL_CALL_TOKENS + count_text(self.name) + count_text(self.arguments)


class Choice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One of the ``n`` answers. ``reasoning`` None: the answer has no reasoning field."""

    reasoning: Text | None
    content: Text
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    completion_tokens: int

    @property
    def reasoning_tokens(self) -> int:
        return self.reasoning.tokens if self.reasoning is not None else 0


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the markers of a request ask for."""

    out: int | None = None
    reasoning: float | None = None
    tool: str | None = None
    tools: int = 1


_MARKER: Final = re.compile(r"\[\[(out|reasoning|tool|tools)=([^\]\s]{1,64})\]\]")


def wish_of(messages: list[Any]) -> Wish:
    """The markers of the last user message; a marker that is no number where one belongs is text."""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return _wish_in(_text_of(message.get("content")))
    return _NO_WISH


def _wish_in(text: str) -> Wish:
    start = text.find("[[")
    if start < 0:
        return _NO_WISH
    found = {match[1]: match[2] for match in _MARKER.finditer(text, start)}
    try:
        return Wish(
            out=int(found["out"]) if "out" in found else None,
            reasoning=float(found["reasoning"]) if "reasoning" in found else None,
            tool=found.get("tool"),
            tools=int(found.get("tools", "1")),
        )
    except ValueError:
        return _NO_WISH


_NO_WISH: Final = Wish()


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def answer(
    request: Mapping[str, Any], serialized: bytes, *, seed: int, limit: int, thinks: bool, struck: Struck | None
) -> tuple[Choice, ...]:
    """The ``n`` choices to a valid request, each of at most ``limit`` tokens."""
    messages: list[Any] = request["messages"]
    wish = wish_of(messages)
    count = request.get("n") or 1
    digest = crc32(serialized, seed & 0xFFFF_FFFF)
    choices = tuple(
        _choice(request, wish, digest=crc32(b"%d" % index, digest), limit=limit, thinks=thinks)
        for index in range(count)
    )
    return choices if struck is None else tuple(_bend(choice, struck) for choice in choices)


def _choice(request: Mapping[str, Any], wish: Wish, *, digest: int, limit: int, thinks: bool) -> Choice:
    calls = _tool_calls(request, wish, digest)
    literal = None if calls else _json_content(request.get("response_format"), digest)
    whole = sum(call.tokens for call in calls) if calls else count_text(literal or "")
    natural = whole + 16 if whole else 32 + digest % 128
    wanted = max(natural if wish.out is None else wish.out, whole)
    total = min(wanted, limit)
    reasoning = 0
    if thinks:
        reasoning = total - whole if calls else _reasoning_tokens(wish, total, whole)
    if total - reasoning < whole or reasoning < 0:
        return _cut_short(max(0, min(reasoning, total)), total, digest, literal, thinks=thinks)
    if literal is not None:
        content = Text(0, total - reasoning, literal + " " * ((total - reasoning - whole) * BYTES_PER_TOKEN))
    else:
        content = _NOTHING if calls else Text((digest >> 8) % _ROUND, total - reasoning)
    return Choice(
        reasoning=Text(digest % _ROUND, reasoning) if thinks else None,
        content=content,
        tool_calls=calls,
        finish_reason="length" if wanted > limit else ("tool_calls" if calls else "stop"),
        completion_tokens=reasoning + (whole if calls else content.tokens),
    )


def _cut_short(reasoning: int, total: int, digest: int, literal: str | None, *, thinks: bool) -> Choice:
    """What must be whole does not fit in the limit: calls are lost to reasoning, JSON content ends in its middle."""
    if literal is None:
        reasoning = total if thinks else 0
    text = (literal or "")[: (total - reasoning) * BYTES_PER_TOKEN]
    return Choice(
        reasoning=Text(digest % _ROUND, reasoning) if thinks else None,
        content=Text(0, count_text(text), text),
        tool_calls=(),
        finish_reason="length",
        completion_tokens=reasoning + count_text(text),
    )


def _reasoning_tokens(wish: Wish, total: int, whole: int) -> int:
    """The share or number that was asked for, leaving room for what must be whole where the answer is long enough."""
    if wish.reasoning is None:
        asked = total * 2 // 5
    else:
        asked = int(wish.reasoning) if wish.reasoning > 1 else int(total * wish.reasoning)
    return max(0, min(asked, total - whole))


# -- tool calls and JSON ---------------------------------------------------------------------------------------------


def _tool_calls(request: Mapping[str, Any], wish: Wish, digest: int) -> tuple[ToolCall, ...]:
    tools = [tool["function"] for tool in request.get("tools") or () if isinstance(tool.get("function"), dict)]
    choice = request.get("tool_choice")
    messages: list[Any] = request["messages"]
    if not tools or choice == "none" or wish.tool == "none" or messages[-1].get("role") != "user":
        return ()
    named = choice["function"]["name"] if isinstance(choice, dict) else wish.tool
    first = next((index for index, tool in enumerate(tools) if tool["name"] == named), 0)
    serial = sum(len(message.get("tool_calls") or ()) for message in messages)
    return tuple(
        _call(tools[(first + step) % len(tools)], serial + step, digest) for step in range(max(1, min(wish.tools, 16)))
    )


def _call(tool: dict[str, Any], serial: int, digest: int) -> ToolCall:
    arguments = conforming(tool.get("parameters"), digest=digest + serial)
    return ToolCall(id=f"functions.{tool['name']}:{serial}", name=tool["name"], arguments=_encode(arguments).decode())


def _json_content(response_format: object, digest: int) -> str | None:
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return _encode(conforming(schema, digest=digest)).decode()
        case {"type": "json_object" | "json_schema"}:
            return _encode({"answer": f"simulated {digest:08x}"}).decode()
        case _:
            return None


def conforming(schema: object, *, digest: int) -> Any:
    """An instance of the schema; an empty object for what is no schema, which not every provider looks at."""
    try:
        return instance(schema, root=schema, digest=digest) if isinstance(schema, dict) else {}
    except (TypeError, ValueError, LookupError, AttributeError):
        return {}


def instance(schema: Mapping[str, Any], *, root: Mapping[str, Any], digest: int, depth: int = 0) -> Any:
    """A value that conforms to the JSON Schema, as far as types, enums, required members and bounds go."""
    if depth > DEPTH_MAX:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return instance(_resolve(root, reference), root=root, digest=digest, depth=depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][digest % len(schema["enum"])]
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return instance(schema[several][0], root=root, digest=digest, depth=depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return _typed(kind[0] if isinstance(kind, list) else kind, schema, root, digest, depth)


def _typed(kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], digest: int, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties") or {}
            names = [name for name in schema.get("required") or properties if name in properties]
            return {
                name: instance(properties[name], root=root, digest=crc32(name.encode(), digest), depth=depth + 1)
                for name in names
            }
        case "array":
            item = schema.get("items")
            made = instance(item if isinstance(item, dict) else {}, root=root, digest=digest, depth=depth + 1)
            return [made] * max(1, schema.get("minItems", 1))
        case "string":
            text = f"value {digest % 1000}".ljust(schema.get("minLength", 0), ".")
            return text[: schema.get("maxLength", len(text))]
        case "integer" | "number":
            low = schema.get("minimum", 0)
            return min(low + digest % 10, schema.get("maximum", low + 10))
        case "boolean":
            return digest % 2 == 0
        case _:
            return None


def _resolve(root: Mapping[str, Any], reference: str) -> Mapping[str, Any]:
    node: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(name, {}) if isinstance(node, dict) and name else node
    return node if isinstance(node, dict) else {}


# -- content faults --------------------------------------------------------------------------------------------------


def _bend(choice: Choice, struck: Struck) -> Choice:
    """The choice with its content faults. Tags and leaked markers cost no tokens: a tokenizer has them as its own."""
    if "empty_content" in struck:
        return _without_content(choice)
    if "special_tokens" in struck:
        choice = _leaked(choice)
    if "invalid_tool_arguments" in struck:
        choice = _wrong_arguments(choice, truncated=struck["invalid_tool_arguments"].mode != "schema")
    if "unknown_function" in struck:
        calls = tuple(ToolCall(call.id, f"functions_{call.name}", call.arguments) for call in choice.tool_calls)
        choice = _calling(choice, calls)
    if "false_finish" in struck and choice.tool_calls:
        choice = msgspec.structs.replace(choice, finish_reason="stop")
    if "think_in_content" in struck and choice.reasoning is not None:
        text = f"<think>{choice.reasoning.string()}</think>{choice.content.string()}"
        content = Text(0, choice.reasoning.tokens + choice.content.tokens, text)
        return msgspec.structs.replace(choice, reasoning=None, content=content)
    if "no_reasoning" in struck:
        return msgspec.structs.replace(choice, reasoning=None)
    return choice


def _without_content(choice: Choice) -> Choice:
    reasoning = Text(choice.content.offset, choice.completion_tokens)
    return msgspec.structs.replace(choice, reasoning=reasoning, content=_NOTHING, tool_calls=(), finish_reason="length")


def _leaked(choice: Choice) -> Choice:
    calls = "".join(
        f"<|tool_call_begin|>{call.id}<|tool_call_argument_begin|>{call.arguments}<|tool_call_end|>"
        for call in choice.tool_calls
    )
    text = f"{choice.content.string()}<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>"
    content = Text(0, choice.completion_tokens - choice.reasoning_tokens, text)
    return msgspec.structs.replace(choice, content=content, tool_calls=(), finish_reason="stop")


def _wrong_arguments(choice: Choice, *, truncated: bool) -> Choice:
    calls = tuple(
        ToolCall(call.id, call.name, call.arguments[:-1] if truncated else '{"unexpected":[1]}')
        for call in choice.tool_calls
    )
    return _calling(choice, calls)


def _calling(choice: Choice, calls: tuple[ToolCall, ...]) -> Choice:
    """The choice with other calls, and what those cost."""
    change = sum(call.tokens for call in calls) - sum(call.tokens for call in choice.tool_calls)
    return msgspec.structs.replace(choice, tool_calls=calls, completion_tokens=choice.completion_tokens + change)


def filler(tokens: int, *, seed: int) -> str:
    """Plain words of exactly ``tokens`` tokens, from the first on other than another seed's; for trace drivers."""
    size = tokens * BYTES_PER_TOKEN
    start = seed % (len(_PLAIN) // BYTES_PER_TOKEN) * BYTES_PER_TOKEN
    words = _PLAIN * ((start + size) // len(_PLAIN) + 1)
    return (f"{seed & 0xFFFF_FFFF_FFFF:012x}" + words[start : start + size])[:size]

"""One reader for every OpenAI-shaped answer, streamed or whole: it counts and remembers, and keeps no text but calls.

Any bytes are accepted and none raises. A typical chunk is decoded into typed Structs; whatever does not fit them is
decoded untyped and coerced into the same Structs, so that there is one place that reads (``_take``).

Of several top-level ``usage`` objects the last wins, as does the last one of a choice (providers §1.5, §10.1), except
that one which says less never replaces one which says more. An all-zero or malformed object tells nothing, as ``null``
does, and no answer takes back tokens it has counted; so the provider's earlier words stand rather than our estimate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from gateway.core.quality import ARGUMENTS_CHARACTERS_MAX, CALLS_MAX, Call, Choice, ToolAnswer
from gateway.core.usage import TOKENS_MAX
from gateway.providers.dialect import UsageReports

CHOICES_MAX: Final = 128
"""Choices told apart; the state of more would be the upstream's to size."""

_NAME_CHARACTERS_MAX: Final = 256
_REPORT_CHARACTERS_MAX: Final = 64
_ERROR_CHARACTERS_MAX: Final = 2_000
_MEMBERS_MAX: Final = 64
_DEPTH_MAX: Final = 2

# Neither a log line, nor UTF-8 (surrogates), nor a database's text (NUL) takes all that a JSON string may hold.
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

_THINK: Final = "<think>"
_LEAK_CHARACTERS_MAX: Final = 40
_LEAK: Final = re.compile(r"<\|(?:tool_calls_section_(?:begin|end)|tool_call_(?:begin|argument_begin|end)|im_end)\|>")


class EventKind(Enum):
    """What one event of a stream, or a whole body, turned out to be."""

    DELTA = "delta"  # an answer, or a piece of one
    CLOSING_USAGE = "closing_usage"  # no choices, but usage
    DONE = "done"
    ERROR = "error"
    OTHER = "other"  # JSON that says nothing of the answer
    MALFORMED = "malformed"  # not JSON, or not an object


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    function: _Function | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    usage: Any = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


class _KeptCall:
    """One tool call, as far as its pieces have come."""

    __slots__ = ("name", "pieces")

    def __init__(self) -> None:
        self.name = ""
        self.pieces: list[str] = []


_decode_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_NOT_JSON: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_NO_MESSAGE: Final = _Message()


class AnswerReader:
    """What an answer told so far. Byte counts are of the decoded text in UTF-8.

    ``error`` is the payload of an error event; ``done`` whether ``[DONE]`` was seen, which a whole body never has.
    """

    __slots__ = (
        "_by_choice",
        "_calls",
        "_calls_size",
        "_choices",
        "_leaked",
        "_opening",
        "_tail",
        "_too_many",
        "_top_level",
        "_wrote",
        "content_bytes",
        "created",
        "done",
        "error",
        "finish_reasons",
        "has_content",
        "reasoning_bytes",
        "served_model",
        "tool_bytes",
        "upstream_id",
    )

    def __init__(self, *, keeps_calls: bool = False) -> None:
        """``keeps_calls``: what tools are called with is kept, up to a bound, for :meth:`tool_answer`."""
        self.served_model: str | None = None
        self.upstream_id: str | None = None
        self.created: int | None = None
        self.finish_reasons: dict[int, str] = {}
        self.reasoning_bytes = 0
        self.content_bytes = 0
        self.tool_bytes = 0
        self.has_content = False
        self.error: object | None = None
        self.done = False
        self._top_level: Mapping[str, object] | None = None
        self._by_choice: dict[int, Mapping[str, object]] = {}
        self._choices: set[int] = set()
        self._wrote: set[int] = set()
        self._opening: str | None = ""  # the first characters of the content; None once they are judged
        self._tail = ""  # what may be the beginning of a special token
        self._leaked: str | None = None
        self._calls: dict[tuple[int, int], _KeptCall] | None = {} if keeps_calls else None
        self._calls_size = 0
        self._too_many = False

    def feed(self, data: bytes) -> EventKind:
        """Reads the data of one event of a stream."""
        try:
            chunk = _decode_chunk(data)
        except _NOT_JSON:
            return self._feed_untyped(data)
        return self._take(chunk, data)

    def feed_answer(self, body: bytes) -> EventKind:
        """Reads a whole body: DELTA for an answer, ERROR for a refusal that came with HTTP 200."""
        return self.feed(body)

    @property
    def reports(self) -> UsageReports:
        """Every usage object that counts, not believed yet."""
        return UsageReports(
            top_level=self._top_level,
            by_choice=dict(self._by_choice),
            answer_has_content=self.has_content,
            choices_seen=len(self._choices),
        )

    @property
    def complete(self) -> bool:
        """Whether every choice that was seen has told its finish reason, and nothing went wrong."""
        return bool(self._choices) and len(self.finish_reasons) == len(self._choices) and self.error is None

    @property
    def leaked(self) -> str | None:
        """The first special token of a chat template that stood in the text."""
        return self._leaked

    @property
    def tool_answer(self) -> ToolAnswer:
        """What the answer called, as far as it was kept."""
        calls: dict[int, list[Call]] = {}
        for (choice, _), kept in (self._calls or {}).items():
            calls.setdefault(choice, []).append(Call(kept.name, "".join(kept.pieces)))
        return ToolAnswer(
            choices=tuple(
                Choice(tuple(calls.get(choice, ())), self.finish_reasons.get(choice))
                for choice in sorted(self._choices)
            ),
            leaked=self._leaked,
            thinks_in_content=self._thinks_in_content,
            is_long=self._calls_size > ARGUMENTS_CHARACTERS_MAX,
        )

    @property
    def _thinks_in_content(self) -> bool:
        return self._opening == _THINK and not self.reasoning_bytes

    @property
    def flags(self) -> tuple[str, ...]:
        """What is odd about the answer, for its ledger row."""
        silent = any(reason == "length" and index not in self._wrote for index, reason in self.finish_reasons.items())
        found = (
            ("think_in_content", self._thinks_in_content),
            ("special_tokens_leaked", self._leaked is not None),
            ("empty_at_length", silent),
            ("too_many_choices", self._too_many),
        )
        return tuple(flag for flag, is_so in found if is_so)

    def _feed_untyped(self, data: bytes) -> EventKind:
        text = data.strip()
        if text == b"[DONE]":
            self.done = True
            return EventKind.DONE
        if not text:
            return EventKind.OTHER
        payload = decode_object(data)
        return EventKind.MALFORMED if payload is None else self._take(_chunk_of(payload), data)

    def _take(self, chunk: _Chunk, data: bytes) -> EventKind:
        if self.served_model is None and chunk.model:
            self.served_model = fit(chunk.model, _NAME_CHARACTERS_MAX)
        if self.upstream_id is None:
            self._take_head(chunk)
        if chunk.usage is not None:
            self._top_level = _richer(self._top_level, chunk.usage)
        wrote = False
        if chunk.choices:
            for position, choice in enumerate(chunk.choices):
                wrote = self._take_choice(choice, position) or wrote
        if chunk.error and not wrote:
            self.error = _bounded(chunk.error, _ERROR_CHARACTERS_MAX)
            return EventKind.ERROR
        if chunk.choices:
            return EventKind.DELTA
        return self._take_without_choices(chunk, data)

    def _take_head(self, chunk: _Chunk) -> None:
        if chunk.id:
            self.upstream_id = fit(chunk.id, _NAME_CHARACTERS_MAX)
        if self.created is None and chunk.created is not None and 0 <= chunk.created < 2**63:
            self.created = chunk.created

    def _take_without_choices(self, chunk: _Chunk, data: bytes) -> EventKind:
        if isinstance(chunk.usage, dict):
            return EventKind.CLOSING_USAGE
        payload = decode_object(data) or {}
        if payload.get("object") == "error" or payload.get("type") == "error":
            self.error = _bounded(payload, _ERROR_CHARACTERS_MAX)
            return EventKind.ERROR
        return EventKind.OTHER

    def _take_choice(self, choice: _Choice, position: int) -> bool:
        """Counts one choice's piece; says whether it brought anything of the answer."""
        index = choice.index
        if index is None or index < 0:
            index = position
        if index not in self._choices:
            if len(self._choices) >= CHOICES_MAX:
                self._too_many = True
                return False
            self._choices.add(index)
        if choice.finish_reason:
            self.finish_reasons[index] = fit(choice.finish_reason, _NAME_CHARACTERS_MAX)
        if choice.usage is not None:
            usage = _richer(self._by_choice.get(index), choice.usage)
            if usage is not None:
                self._by_choice[index] = usage
        return self._take_message(choice.delta or choice.message or _NO_MESSAGE, index)

    def _take_message(self, message: _Message, index: int) -> bool:
        if content := message.content:
            self.content_bytes += _size(content)
            self._wrote.add(index)
            if self._opening is not None and self._opening != _THINK:
                self._judge_opening(content)
            if self._tail or "<" in content:
                self._look_for_leak(content)
        reasoning = message.reasoning_content or message.reasoning
        if reasoning:
            self.reasoning_bytes += _size(reasoning)
            if self._tail or "<" in reasoning:
                self._look_for_leak(reasoning)
        if message.tool_calls or message.function_call or message.refusal:
            self._take_calls(message, index)
        elif not (content or reasoning):
            return False
        self.has_content = True
        return True

    def _take_calls(self, message: _Message, index: int) -> None:
        self._wrote.add(index)
        for call in message.tool_calls or ():
            self._take_function(call.function)
            if self._calls is not None and call.function is not None:
                self._keep(self._calls, index, call.index, call.function)
        if message.function_call or message.refusal:
            self._take_function(message.function_call)
            self.content_bytes += _size(message.refusal or "")

    def _take_function(self, function: _Function | None) -> None:
        if function is not None:
            self.tool_bytes += _size(function.name or "") + _size(function.arguments or "")

    def _keep(
        self, calls: dict[tuple[int, int], _KeptCall], choice: int, index: int | None, function: _Function
    ) -> None:
        """Puts a piece to its call. Where pieces carry no index, one with a name begins the next call."""
        if index is None:
            count = sum(1 for each, _ in calls if each == choice)
            index = count if function.name or not count else count - 1
        kept = calls.get((choice, index))
        if kept is None:
            if len(calls) >= CALLS_MAX:
                self._calls_size = ARGUMENTS_CHARACTERS_MAX + 1
                return
            kept = calls[choice, index] = _KeptCall()
        if function.name and not kept.name:
            kept.name = fit(function.name, _NAME_CHARACTERS_MAX)
        if arguments := function.arguments:
            self._calls_size += len(arguments)
            if self._calls_size <= ARGUMENTS_CHARACTERS_MAX:
                kept.pieces.append(arguments)

    def _judge_opening(self, content: str) -> None:
        opening = ((self._opening or "") + content[:_LEAK_CHARACTERS_MAX]).lstrip()[: len(_THINK)]
        self._opening = opening if _THINK.startswith(opening) else None

    def _look_for_leak(self, piece: str) -> None:
        text = self._tail + piece
        if self._leaked is None and (found := _LEAK.search(text)) is not None:
            self._leaked = found.group()
        start = text.rfind("<")
        self._tail = text[start:] if start >= 0 and len(text) - start < _LEAK_CHARACTERS_MAX else ""


def fit(text: str, characters_max: int) -> str:
    """A provider's word as it may be logged and kept: on one line, encodable, no longer than that."""
    return _UNFIT.sub(" ", text[:characters_max])


def decode_object(data: bytes) -> dict[str, Any] | None:
    """A JSON object out of any bytes, None if they are none; a bad character costs itself, not the whole object."""
    value: object
    try:
        value = msgspec.json.decode(data)
    except _NOT_JSON:
        try:
            value = json.loads(data.decode("utf-8", "replace"))
        except _NOT_JSON:
            return None
    return value if isinstance(value, dict) else None


def _chunk_of(payload: dict[str, Any]) -> _Chunk:
    choices = payload.get("choices")
    return _Chunk(
        id=_text_or_none(payload.get("id")),
        model=_text_or_none(payload.get("model")),
        created=_whole_or_none(payload.get("created")),
        choices=[_choice_of(choice) for choice in choices] if isinstance(choices, list) else None,
        usage=payload.get("usage"),
        error=payload.get("error"),
    )


def _choice_of(choice: object) -> _Choice:
    if not isinstance(choice, dict):
        return _Choice()
    return _Choice(
        index=_whole_or_none(choice.get("index")),
        delta=_message_of(choice.get("delta")),
        message=_message_of(choice.get("message")),
        finish_reason=_text_or_none(choice.get("finish_reason")),
        usage=choice.get("usage"),
    )


def _message_of(message: object) -> _Message | None:
    if not isinstance(message, dict):
        return None
    calls = message.get("tool_calls")
    function_call = message.get("function_call")
    return _Message(
        content=_content_text(message.get("content")),
        reasoning_content=_text_or_none(message.get("reasoning_content")),
        reasoning=_text_or_none(message.get("reasoning")),
        refusal=_text_or_none(message.get("refusal")),
        tool_calls=[_tool_call_of(call) for call in calls] if isinstance(calls, list) else None,
        function_call=_function_of(function_call) if isinstance(function_call, dict) else None,
    )


def _content_text(content: object) -> str | None:
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(text for text in texts if isinstance(text, str))
    return _text_or_none(content)


def _tool_call_of(call: object) -> _ToolCall:
    if not isinstance(call, dict):
        return _ToolCall()
    return _ToolCall(index=_whole_or_none(call.get("index")), function=_function_of(call.get("function")))


def _function_of(function: object) -> _Function | None:
    if not isinstance(function, dict):
        return None
    arguments = function.get("arguments")
    if isinstance(arguments, (dict, list)):  # some hosts send arguments as JSON, not as a string of it
        arguments = _written(arguments)
    return _Function(name=_text_or_none(function.get("name")), arguments=_text_or_none(arguments))


def _written(value: object) -> str | None:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole_or_none(value: object) -> int | None:
    return value if type(value) is int else None


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _bounded(value: object, characters_max: int, depth: int = 0) -> object:
    """The same value, cut to a size that may be kept for as long as the answer lasts."""
    if isinstance(value, str):
        return fit(value, characters_max)
    if isinstance(value, dict):
        if depth == _DEPTH_MAX:
            return None
        members = list(value.items())[:_MEMBERS_MAX]
        return {fit(key, characters_max): _bounded(member, characters_max, depth + 1) for key, member in members}
    return None if isinstance(value, list) else value


def _richer(kept: Mapping[str, object] | None, told: object) -> Mapping[str, object] | None:
    """The later usage object, unless it says less than the one already kept."""
    if not isinstance(told, dict):
        return kept
    if kept is not None and _telling(told) < _telling(kept):
        return kept
    usage = _bounded(told, _REPORT_CHARACTERS_MAX)
    assert isinstance(usage, dict)
    return usage


def _telling(usage: Mapping[str, object]) -> int:
    """How much a usage object says: 2 = tokens in and out, 1 = one of them, 0 = nothing that could be billed."""
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (is_token_count(prompt) and is_token_count(completion)):
        return 0
    return bool(prompt) + bool(completion)


def is_token_count(value: object) -> bool:
    """Whether a decoded JSON value can be a number of tokens: whole, not negative, not a boolean, not absurd."""
    return type(value) is int and 0 <= value <= TOKENS_MAX

"""A tool-call answer is right or it has faults, and each is one of a few: nothing of what it said leaves this module.

Checked is every answer that calls a tool, says that it does, or lets a call leak into its text. What ended at a limit
is not checked: arguments that were cut are nobody's fault. Work is bounded by the sizes and steps named here.
"""

from __future__ import annotations

import json
from collections.abc import Container
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from gateway.core.exchange import InferenceRequest
from gateway.core.schema import Steps, conforms

ARGUMENTS_CHARACTERS_MAX: Final = 128 * 1024
"""Of all calls of one answer; longer ones are not checked against their schemas."""
CALLS_MAX: Final = 128
SCHEMA_BYTES_MAX: Final = 64 * 1024
"""Of all the functions that one answer calls; a schema past that is not read."""

CHECKED_FLAG: Final = "tool_calls_checked"
"""Stands in the ledger row of every answer that was checked; its faults stand beside it."""
UNCHECKED_FLAG: Final = "tool_call_schema_unchecked"
"""A schema of such an answer could not be judged: too long, too heavy, or by rules that are not looked at."""


class Fault(StrEnum):
    """What is wrong with a tool-call answer, the gravest first: an answer counts under its first."""

    SPECIAL_TOKENS_LEAKED = "special_tokens_leaked"
    ARGUMENTS_NOT_JSON = "arguments_not_json"
    UNKNOWN_FUNCTION = "unknown_function"
    SCHEMA_VIOLATED = "schema_violated"
    FINISH_REASON_FALSE = "finish_reason_false"
    THINK_IN_CONTENT = "think_in_content"


def gravest(flags: Container[str]) -> Fault | None:
    """The fault that a checked answer counts under, by the flags of its ledger row."""
    return next((fault for fault in Fault if fault.value in flags), None)


class Call(NamedTuple):
    """One tool call as it was told, its arguments put together."""

    name: str
    arguments: str


class Choice(NamedTuple):
    """What one choice of an answer called, and how it says it ended; None = it told no reason."""

    calls: tuple[Call, ...]
    finish_reason: str | None


class ToolAnswer(NamedTuple):
    """All that is looked at of an answer to a request with tools. ``leaked`` is the first special token of a template
    that stands in its text; ``is_long``: it said more than was kept."""

    choices: tuple[Choice, ...]
    leaked: str | None = None
    thinks_in_content: bool = False
    is_long: bool = False


class Judgement(NamedTuple):
    """A checked answer: its faults, the gravest first, and whether some schema was left out."""

    faults: tuple[Fault, ...]
    is_partial: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """For its ledger row."""
        unchecked = (UNCHECKED_FLAG,) if self.is_partial else ()
        return (CHECKED_FLAG, *(fault.value for fault in self.faults), *unchecked)


_NO_SCHEMA: Final = msgspec.Raw(b"true")


class _Function(msgspec.Struct, gc=False):
    name: str
    parameters: msgspec.Raw = _NO_SCHEMA


class _Tool(msgspec.Struct, gc=False):
    function: _Function


_decode_tools: Final = msgspec.json.Decoder(list[_Tool]).decode
_NOT_JSON: Final = (msgspec.MsgspecError, ValueError)
_CUT: Final = frozenset({"length", "content_filter"})
_CALLING: Final = frozenset({"tool_calls", "function_call"})
_SPECIAL_TOKENS: Final = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|im_end|>",
)


def judge(answer: ToolAnswer, request: InferenceRequest) -> Judgement | None:
    """What is to be said of an answer's tool calls; None for an answer that has none, and for one that was cut."""
    leaked = answer.leaked is not None and not is_quoted(answer.leaked, request)
    lost_a_call = leaked and "tool_call" in (answer.leaked or "")
    choices = [choice for choice in answer.choices if choice.finish_reason not in _CUT]
    if not choices or not (lost_a_call or any(choice.calls or _says_it_calls(choice) for choice in choices)):
        return None
    found = _Found(request)
    if leaked:
        found.faults.add(Fault.SPECIAL_TOKENS_LEAKED)
    if answer.thinks_in_content:
        found.faults.add(Fault.THINK_IN_CONTENT)
    for choice in choices:
        if not _is_honest(choice, is_forced=found.is_forced):
            found.faults.add(Fault.FINISH_REASON_FALSE)
        for call in choice.calls:
            if answer.is_long:
                found.is_partial = True
            else:
                found.look_at(call)
    return Judgement(tuple(fault for fault in Fault if fault in found.faults), found.is_partial)


def is_quoted(token: str, request: InferenceRequest) -> bool:
    """Whether the request holds the token itself: whoever asks about templates gets answers about them."""
    escaped = token.replace("<", "\\u003c").replace(">", "\\u003e")
    said = bytes(request.fields.get("messages", b""))
    return token.encode() in said or escaped.encode() in said


def _says_it_calls(choice: Choice) -> bool:
    return choice.finish_reason in _CALLING


def _is_honest(choice: Choice, *, is_forced: bool) -> bool:
    """A choice that calls says so, and only such a one. Where the request has named the function, OpenAI's own API
    ends with "stop"; a choice that told no reason has not lied."""
    if choice.finish_reason is None or (choice.calls and is_forced and choice.finish_reason == "stop"):
        return True
    return bool(choice.calls) == _says_it_calls(choice)


class _Found:
    """What the calls of one answer turn out to be, beside the tools of its request."""

    __slots__ = ("_bytes_left", "_parameters", "_request", "_schemas", "_steps", "faults", "is_forced", "is_partial")

    def __init__(self, request: InferenceRequest) -> None:
        self.faults: set[Fault] = set()
        self.is_partial = False
        self.is_forced = bytes(request.fields.get("tool_choice", b"")).startswith(b"{")
        self._request = request
        tools = _decode_tools(request.fields.get("tools", b"[]"))
        self._steps = Steps()
        self._bytes_left = SCHEMA_BYTES_MAX
        self._schemas: dict[str, object] = {}
        self._parameters = {tool.function.name: tool.function.parameters for tool in tools}

    def look_at(self, call: Call) -> None:
        if call.name not in self._parameters and not self._declares_elsewhere():
            self.faults.add(Fault.UNKNOWN_FUNCTION)
        try:
            arguments = _decoded(call.arguments)
        except RecursionError:
            self.is_partial = True
            return
        except _NOT_JSON:
            is_leak = any(token in call.arguments for token in _SPECIAL_TOKENS)
            self.faults.add(Fault.SPECIAL_TOKENS_LEAKED if is_leak else Fault.ARGUMENTS_NOT_JSON)
            return
        verdict = isinstance(arguments, dict) and conforms(arguments, self._schema(call.name), self._steps)
        if verdict is False:
            self.faults.add(Fault.SCHEMA_VIOLATED)
        elif verdict is None:
            self.is_partial = True

    def _schema(self, name: str) -> object:
        """The schema of a function's arguments, read once; None, by which nothing is judged, where it cannot be read.
        A function without one takes anything."""
        if name not in self._schemas:
            written = bytes(self._parameters.get(name, _NO_SCHEMA))
            self._bytes_left -= len(written)
            self._schemas[name] = _read(written) if self._bytes_left >= 0 else None
        return self._schemas[name]

    def _declares_elsewhere(self) -> bool:
        """A system message may declare tools too; they are not looked for, so where there may be some no name is
        called unknown."""
        return b'"tools"' in bytes(self._request.fields.get("messages", b""))


def _read(schema: bytes) -> object:
    try:
        return msgspec.json.decode(schema)
    except (*_NOT_JSON, RecursionError):
        return None


def _decoded(arguments: str) -> object:
    """Raises ValueError or msgspec's error for what is not JSON, RecursionError for what is nested too deeply."""
    try:
        return msgspec.json.decode(arguments)
    except _NOT_JSON:
        return json.loads(arguments, parse_constant=_refuse)  # half of a surrogate pair is JSON all the same


def _refuse(constant: str) -> object:
    raise ValueError(constant)

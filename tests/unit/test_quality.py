"""A tool-call answer is checked against its own request, and nothing else about it is kept."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from gateway.core.exchange import InferenceRequest, Surface
from gateway.core.quality import (
    ARGUMENTS_CHARACTERS_MAX,
    SCHEMA_BYTES_MAX,
    Call,
    Choice,
    Fault,
    Judgement,
    ToolAnswer,
    gravest,
    judge,
)
from gateway.providers.reading import AnswerReader
from gateway.simulator.model import conforming

SCHEMA: Final = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
GOOD: Final = Call("get_weather", '{"city":"Paris"}')
RIGHT: Final = Judgement(())


def tool(name: str, parameters: object = SCHEMA) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def request(*tools: dict[str, Any], said: str = "Weather?", **fields: object) -> InferenceRequest:
    members = {
        "messages": [{"role": "user", "content": said}],
        "tools": list(tools) or [tool("get_weather"), tool("ping", {})],
        **fields,
    }
    return InferenceRequest(
        surface=Surface.CHAT_COMPLETIONS,
        model="kimi-k2-thinking",
        model_asked="kimi-k2-thinking",
        fields={name: msgspec.Raw(json.dumps(value).encode()) for name, value in members.items()},
        needs=frozenset({"tools"}),
    )


def answer(*calls: Call, finish: str | None = "tool_calls", **more: Any) -> ToolAnswer:
    return ToolAnswer((Choice(calls, finish),), **more)


def test_a_right_answer() -> None:
    """Known functions, valid arguments, an honest end; a function without parameters takes any object."""
    assert judge(answer(GOOD, Call("ping", "{}")), request()) == RIGHT
    assert judge(answer(Call("ping", '{"x":1}')), request()) == RIGHT


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (Call("get_weather", '{"city":"Par'), Fault.ARGUMENTS_NOT_JSON),
        (Call("get_weather", ""), Fault.ARGUMENTS_NOT_JSON),
        (Call("get_weather", '{"city":NaN}'), Fault.ARGUMENTS_NOT_JSON),
        (Call("get_weather", '{"city":"Paris"}{"city":"Rome"}'), Fault.ARGUMENTS_NOT_JSON),
        (Call("get_weather", '{"city":"Paris"}<|tool_call_end|>'), Fault.SPECIAL_TOKENS_LEAKED),
        (Call("get_weather", '{"city":5}'), Fault.SCHEMA_VIOLATED),
        (Call("get_weather", "{}"), Fault.SCHEMA_VIOLATED),
        (Call("get_weather", '["Paris"]'), Fault.SCHEMA_VIOLATED),
        (Call("ping", '"x"'), Fault.SCHEMA_VIOLATED),
        (Call("functions.get_weather:0", '{"city":"Paris"}'), Fault.UNKNOWN_FUNCTION),
        (Call("", "{}"), Fault.UNKNOWN_FUNCTION),
    ],
)
def test_a_wrong_call(call: Call, fault: Fault) -> None:
    """One wrong call among right ones makes the answer wrong."""
    assert judge(answer(GOOD, call), request()) == Judgement((fault,))


@pytest.mark.parametrize(
    ("calls", "finish", "is_honest"),
    [
        ((GOOD,), "tool_calls", True),
        ((GOOD,), "stop", False),
        ((), "tool_calls", False),
        ((GOOD,), None, True),
    ],
)
def test_a_choice_says_how_it_ends(calls: tuple[Call, ...], finish: str | None, *, is_honest: bool) -> None:
    """With tool calls exactly where there are some; what was not said is no lie."""
    expected = RIGHT if is_honest else Judgement((Fault.FINISH_REASON_FALSE,))
    assert judge(answer(*calls, finish=finish), request()) == expected


def test_a_call_that_was_forced_may_end_with_stop() -> None:
    """OpenAI's own API does so where the request has named the function."""
    forced = request(tool_choice={"type": "function", "function": {"name": "get_weather"}})
    assert judge(answer(GOOD, finish="stop"), forced) == RIGHT
    assert judge(answer(GOOD, finish="stop"), request(tool_choice="auto")) != RIGHT


def test_what_calls_nothing_is_not_checked() -> None:
    """A text answer says nothing of tool calls, and nothing of it counts."""
    assert judge(answer(finish="stop"), request()) is None
    assert judge(answer(finish="stop", thinks_in_content=True), request()) is None
    assert judge(answer(finish="stop", leaked="<|im_end|>"), request()) is None
    assert judge(ToolAnswer(()), request()) is None


def test_what_was_cut_at_a_limit_is_nobodys_fault() -> None:
    """Half of the arguments at the output limit, or at a filter."""
    half = Call("get_weather", '{"city":"Par')
    assert judge(answer(half, finish="length"), request()) is None
    assert judge(answer(half, finish="content_filter"), request()) is None
    both = ToolAnswer((Choice((half,), "length"), Choice((GOOD,), "tool_calls")))
    assert judge(both, request()) == RIGHT


def test_a_call_that_leaks_into_the_text() -> None:
    """It was meant as a call, and no client can make it; whoever asks about the token is answered with it."""
    lost = answer(finish="stop", leaked="<|tool_call_begin|>")
    assert judge(lost, request()) == Judgement((Fault.SPECIAL_TOKENS_LEAKED,))
    assert judge(lost, request(said="What does <|tool_call_begin|> mean?")) is None


def test_faults_come_the_gravest_first() -> None:
    """An answer counts once, under its first."""
    wrong = answer(Call("x", "{"), finish="stop", leaked="<|im_end|>", thinks_in_content=True)
    judgement = judge(wrong, request())
    assert judgement is not None
    assert judgement.faults == (
        Fault.SPECIAL_TOKENS_LEAKED,
        Fault.ARGUMENTS_NOT_JSON,
        Fault.UNKNOWN_FUNCTION,
        Fault.FINISH_REASON_FALSE,
        Fault.THINK_IN_CONTENT,
    )
    assert judgement.flags == ("tool_calls_checked", *judgement.faults)
    assert gravest(judgement.flags) is Fault.SPECIAL_TOKENS_LEAKED
    assert gravest(["tool_calls_checked", "budget_overrun"]) is None


def test_what_cannot_be_judged_is_left_out() -> None:
    """A schema that is too heavy, too long or none, and arguments that are too long, are no fault of the answer."""
    partial = Judgement((), is_partial=True)
    long = {"type": "object", "description": "x" * SCHEMA_BYTES_MAX}
    deep = Call("get_weather", '{"city":' + "[" * 100_000 + "]" * 100_000 + "}")
    assert judge(answer(GOOD), request(tool("get_weather", {"$ref": "#"}))) == partial
    assert judge(answer(GOOD), request(tool("get_weather", long))) == partial
    assert judge(answer(GOOD), request(tool("get_weather", None))) == partial
    assert judge(answer(GOOD, is_long=True), request()) == partial
    assert judge(answer(deep), request()) == partial
    assert partial.flags == ("tool_calls_checked", "tool_call_schema_unchecked")


def test_tools_may_be_declared_in_a_message() -> None:
    """Newer models take them there; their names are not looked for, so no name is called unknown."""
    declared = [{"role": "system", "tools": [tool("other")]}, {"role": "user", "content": "Go"}]
    assert judge(answer(Call("other", "{}")), request(messages=declared)) == RIGHT
    assert judge(answer(Call("other", "{}")), request(said='the "tools" in a text')) != RIGHT


def test_half_a_surrogate_pair_is_json() -> None:
    """As RFC 8259 has it, and as Python's own reader takes it."""
    assert judge(answer(Call("get_weather", '{"city":"\\ud83d"}')), request()) == RIGHT


# --- what a reader keeps ---------------------------------------------------------------------------------------------


def piece(*calls: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    delta = {"tool_calls": list(calls)} if calls else {}
    return json.dumps({"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}).encode()


def part(arguments: str, *, name: str | None = None, **more: object) -> dict[str, Any]:
    return {"function": {"arguments": arguments} | ({} if name is None else {"name": name}), **more}


def read(*events: bytes) -> ToolAnswer:
    reader = AnswerReader(keeps_calls=True)
    for event in events:
        reader.feed(event)
    return reader.tool_answer


def test_pieces_become_calls() -> None:
    """By index, or, where a provider sends none, a name begins the next."""
    expected = (Call("a", '{"x":1}'), Call("b", "{}"))
    indexed = read(
        piece(part("", name="a", index=0)),
        piece(part("", name="b", index=1)),
        piece(part('{"x"', index=0), part("{}", index=1)),
        piece(part(":1}", index=0)),
        piece(finish="tool_calls"),
    )
    bare = read(piece(part("", name="a")), piece(part('{"x":1}')), piece(part("{}", name="b")), piece(finish="x"))
    assert indexed.choices == (Choice(expected, "tool_calls"),)
    assert bare.choices == (Choice(expected, "x"),)


def test_a_whole_body_has_its_calls_at_once() -> None:
    """Without any index, in several choices, and with arguments as an object where a host sends them so."""
    message = {"tool_calls": [part("{}", name="a"), {"function": {"name": "b", "arguments": {"x": 1}}}]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}, {"index": 1, "message": {"content": "x"}}]}
    assert read(json.dumps(body).encode()).choices == (
        Choice((Call("a", "{}"), Call("b", '{"x":1}')), "tool_calls"),
        Choice((), None),
    )


def test_what_is_kept_has_a_bound() -> None:
    """Endless arguments, and endless calls, are not kept."""
    endless = [piece(part("x" * 10_000, index=0)) for _ in range(ARGUMENTS_CHARACTERS_MAX // 10_000 + 5)]
    kept = read(piece(part("", name="a", index=0)), *endless)
    assert kept.is_long
    assert len(kept.choices[0].calls[0].arguments) <= ARGUMENTS_CHARACTERS_MAX
    many = read(*(piece(part("{}", name="a", index=index)) for index in range(200)))
    assert many.is_long
    assert len(many.choices[0].calls) == 128


def test_a_reader_that_was_not_asked_to_keeps_nothing() -> None:
    """Requests without tools pay nothing for them."""
    reader = AnswerReader()
    reader.feed(piece(part("{}", name="a", index=0), finish="tool_calls"))
    assert reader.tool_answer.choices == (Choice((), "tool_calls"),)


def test_what_the_simulator_calls_is_right() -> None:
    """Arguments made by a schema of every usual kind."""
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "count": {"type": "integer", "minimum": 3},
            "names": {"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 2},
        },
        "required": ["kind", "count", "names"],
        "additionalProperties": False,
    }
    made = json.dumps(conforming(schema, digest=3))
    assert judge(answer(Call("f", made)), request(tool("f", schema))) == RIGHT

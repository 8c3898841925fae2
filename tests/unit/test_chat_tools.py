"""Tools reach an upstream in the OpenAI form, with names that it takes, or not at all."""

from __future__ import annotations

import json

import pytest

from gateway.core.exchange import InferenceRequest
from gateway.core.refusal import RefusedError
from gateway.surfaces.chat_completions import parse

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}


def parsed(**members: object) -> InferenceRequest:
    whole = {"model": "k", "messages": [{"role": "user", "content": "x"}], **members}
    return parse(json.dumps(whole).encode(), headers={})


def param_of(**members: object) -> str | None:
    with pytest.raises(RefusedError) as caught:
        parsed(**members)
    return caught.value.refusal.param


def sent(request: InferenceRequest, name: str) -> object:
    return json.loads(bytes(request.fields[name]))


def test_openai_tools_pass_untouched() -> None:
    """Not re-encoded, and nothing to warn of."""
    request = parsed(tools=[LOOK], tool_choice="auto")
    assert bytes(request.fields["tools"]) == json.dumps([LOOK]).encode()
    assert request.needs == {"tools"}
    assert request.warnings == ()


@pytest.mark.parametrize(
    ("flat", "form"),
    [
        ({"name": "look", "description": "Looks.", "input_schema": SCHEMA}, "input_schema"),
        ({"type": "custom", "name": "look", "description": "Looks.", "input_schema": SCHEMA}, "input_schema"),
        ({"name": "look", "description": "Looks.", "parameters": SCHEMA}, "a bare function"),
        ({"type": "function", "name": "look", "description": "Looks.", "parameters": SCHEMA}, "a bare function"),
    ],
)
def test_flat_tools_are_converted_and_said_so(flat: dict[str, object], form: str) -> None:
    """The form that a launch article printed by mistake becomes the one that the endpoint takes (providers §7.5)."""
    request = parsed(tools=[LOOK | {"function": {"name": "other"}}, flat])
    converted = sent(request, "tools")
    assert isinstance(converted, list)
    assert converted[1] == LOOK
    assert request.warnings == (f'tool "look" was converted from {form} to the OpenAI form',)


def test_what_a_conversion_drops_is_named() -> None:
    """``cache_control`` has no place in the OpenAI form."""
    request = parsed(tools=[{"name": "look", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}])
    assert request.warnings[-1] == 'tool "look": "cache_control" was dropped'


def test_a_tool_without_a_type_gains_it() -> None:
    """The only type there is."""
    assert sent(parsed(tools=[{"function": {"name": "look"}}]), "tools") == [
        {"function": {"name": "look"}, "type": "function"}
    ]


def test_warnings_fit_a_header() -> None:
    """However many tools were converted, and whatever they carried."""
    tools = [{"name": f"look_{i}", "input_schema": {}, **{f"x{j}": 1 for j in range(100)}} for i in range(128)]
    warnings = parsed(tools=tools).warnings
    assert warnings[-1] == "and 240 more warnings"
    assert len("; ".join(warnings)) < 2_000


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ({}, "tools"),
        (["look"], "tools[0]"),
        ([{}], "tools[0].function"),
        ([LOOK, {"type": "function"}], "tools[1].function"),
        ([{"type": "computer_20250124", "name": "look"}], "tools[0].type"),
        ([{"type": 5, "function": {}}], "tools[0].type"),
        ([{"type": "function", "function": {}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "1look"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "look\n"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "look", "description": 5}}], "tools[0].function.description"),
        ([{"type": "function", "function": {"name": "look", "parameters": []}}], "tools[0].function.parameters"),
        ([LOOK, LOOK], "tools[1].function.name"),
        ([{"name": "look", "input_schema": SCHEMA, "parameters": SCHEMA}], "tools[0].input_schema"),
        ([{"type": "builtin_function", "function": {"name": "$rm"}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": f"look_{i}"}} for i in range(129)], "tools"),
    ],
)
def test_a_refusal_names_the_tool(tools: object, param: str) -> None:
    """By its place in the list, down to the member."""
    assert param_of(tools=tools) == param


def test_the_builtin_search_is_a_need_of_its_own() -> None:
    """It costs extra and few deployments have it."""
    request = parsed(tools=[{"type": "builtin_function", "function": {"name": "$web_search"}}])
    assert request.needs == {"web_search"}


def test_no_tools_are_not_sent() -> None:
    """An empty list is refused by some providers and means the same as none."""
    assert "tools" not in parsed(tools=[]).fields


@pytest.mark.parametrize(
    ("choice", "written", "demands"),
    [
        ("auto", "auto", False),
        ("none", "none", False),
        ("required", "required", True),
        ({"type": "auto"}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "tool", "name": "look"}, {"type": "function", "function": {"name": "look"}}, True),
        (
            {"type": "function", "function": {"name": "look"}},
            {"type": "function", "function": {"name": "look"}},
            True,
        ),
    ],
)
def test_tool_choice(choice: object, written: object, *, demands: bool) -> None:
    """A choice that demands a call is a need; Anthropic's words become OpenAI's."""
    request = parsed(tools=[LOOK], tool_choice=choice)
    assert sent(request, "tool_choice") == written
    assert ("tool_choice_required" in request.needs) is demands


@pytest.mark.parametrize(
    "choice", ["always", 5, [], {"type": "function"}, {"type": "allowed_tools"}, {"type": "tool", "name": "other"}]
)
def test_a_tool_choice_that_nobody_knows(choice: object) -> None:
    """Refused by its name, before a provider does it in worse words."""
    assert param_of(tools=[LOOK], tool_choice=choice) == "tool_choice"


def test_a_demanded_call_needs_tools() -> None:
    """Nothing could be called."""
    assert param_of(tool_choice="required") == "tool_choice"
    assert parsed(tool_choice="none").needs == frozenset()


@pytest.mark.parametrize("name", ["functions", "function_call"])
def test_functions_are_refused_with_a_hint(name: str) -> None:
    """They would be answered by ``tool_calls``, for which such a client does not look."""
    assert param_of(**{name: [{"name": "look"}]}) == name

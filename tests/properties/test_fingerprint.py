"""For any conversation that grows, its fingerprint finds where it has been, and finds nothing else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.exchange import InferenceRequest
from gateway.core.prefix import BOUNDARIES_MAX
from gateway.surfaces.chat_completions import parse

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
CALLS = st.builds(
    lambda name, arguments: [{"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}],
    TEXT,
    TEXT,
)
MESSAGES = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, TEXT),
    st.builds(lambda text: {"role": "user", "content": [{"type": "text", "text": text}] * 2}, TEXT),
    st.builds(lambda text: {"role": "assistant", "content": text}, TEXT),
    st.builds(lambda text, calls: {"role": "assistant", "reasoning_content": text, "tool_calls": calls}, TEXT, CALLS),
    st.builds(lambda name, text: {"role": "tool", "tool_call_id": name, "content": text}, TEXT, TEXT),
    st.builds(lambda size: {"role": "user", "content": "y" * size}, st.integers(33_000, 70_000)),
)
TURNS = st.lists(st.lists(MESSAGES, min_size=1, max_size=6), min_size=2, max_size=8)
TOOLS = st.sampled_from([None, [{"type": "function", "function": {"name": "look", "description": "x" * 40_000}}]])


def read(messages: list[Any], tools: Any = None, *, escaped: bool = False) -> InferenceRequest:
    members = {"model": "k", "messages": messages} | ({} if tools is None else {"tools": tools})
    return parse(json.dumps(members, ensure_ascii=escaped).encode(), headers={}, seed=7)


@given(st.lists(MESSAGES, max_size=40), TURNS, TOOLS)
def test_a_growing_conversation_finds_its_last_turn(start: list[Any], turns: list[list[Any]], tools: Any) -> None:
    """Whatever was said: the whole prompt of a turn is looked up by the next one, at the same depth in order, and so is
    every other boundary that both keep."""
    messages, before = list(start), None
    for turn in turns:
        messages += turn
        now = read(messages, tools).fingerprint
        if before is not None:
            assert before.digests[-1] in now.digests
            assert now.family == before.family
            again = [digest for digest in before.digests if digest in set(now.digests)]
            assert again == [digest for digest in now.digests if digest in set(before.digests)]
        before = now


@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_a_turn_of_any_length_finds_the_prompt_before_its_answer(length: int, results: int, has_tools: bool) -> None:
    """One answer that calls as many tools as it likes, at any depth."""
    start = [{"role": ("user", "assistant")[index % 2], "content": str(index)} for index in range(length)]
    calling = {"role": "assistant", "content": "on"}
    more = [{"role": "tool", "tool_call_id": str(index), "content": "x"} for index in range(results)]
    assert read(start).fingerprint.digests[-1] in read([*start, calling, *more]).fingerprint.digests


@given(st.lists(MESSAGES, min_size=1, max_size=30), st.data())
def test_a_changed_message_changes_what_comes_after_it(messages: list[Any], data: st.DataObject) -> None:
    """Exactly the digests at and after it; inside a document whose end is changed, those before its end stay too."""
    place = data.draw(st.integers(0, len(messages) - 1))
    changed = dict(messages[place])
    member = "reasoning_content" if "tool_calls" in changed else "content"
    if isinstance(changed[member], list):
        changed[member] = [changed[member][0], {"type": "text", "text": other_end(changed[member][1]["text"])}]
    else:
        changed[member] = other_end(changed[member])
    one = read(messages).fingerprint.digests
    other = read([*messages[:place], changed, *messages[place + 1 :]]).fingerprint.digests
    before = {digest for end in range(1, place + 1) for digest in read(messages[:end]).fingerprint.digests}
    before |= set(read(messages[: place + 1]).fingerprint.digests[:-1])
    assert [left == right for left, right in zip(one, other, strict=True)] == [digest in before for digest in one]


def other_end(text: str) -> str:
    return text[:-1] + ("z" if text[-1] != "z" else "q")


@given(st.lists(MESSAGES, min_size=1, max_size=60), TOOLS, st.booleans())
def test_boundaries_are_few_and_ever_deeper(messages: list[Any], tools: Any, escaped: bool) -> None:
    """At most sixteen, all different, strictly larger, the last one of the size of the whole input."""
    request = read(messages, tools, escaped=escaped)
    sizes = [boundary.size_bytes for boundary in request.fingerprint.boundaries]
    assert 1 <= len(sizes) <= BOUNDARIES_MAX
    assert all(low < high for low, high in zip([0, *sizes], sizes, strict=False))
    assert sizes[-1] == request.input_bytes == request.fingerprint.size_bytes
    assert len(set(request.fingerprint.digests)) == len(sizes)
    assert not request.fingerprint.boundaries[-1].is_passing

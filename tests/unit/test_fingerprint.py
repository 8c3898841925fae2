"""The fingerprint of a body is of what the model reads of it: equal where that is equal, another where it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.prefix import BOUNDARIES_MAX, Boundary, Fingerprint
from gateway.surfaces.chat_completions import parse
from gateway.surfaces.conversation import MEDIA_BYTES
from gateway.surfaces.fingerprint import _sized

SEED = 0x5EED
SYSTEM = {"role": "system", "content": "You are terse."}
USER = {"role": "user", "content": "Why is the sky blue?"}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}]
CALL = {"id": "look:0", "type": "function", "function": {"name": "look", "arguments": '{"at":"sky"}'}}
CALLING = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "look:0", "content": "blue"}


def printed(messages: list[Any], *, secret: int = SEED, **members: Any) -> Fingerprint:
    body = json.dumps({"model": "k", "messages": messages, **members}, ensure_ascii=False)
    return parse(body.encode(), headers={}, seed=secret).fingerprint


def digest(messages: list[Any], **members: Any) -> int:
    return printed(messages, **members).digests[-1]


def content(*parts: Any) -> list[Any]:
    return [SYSTEM, {"role": "user", "content": list(parts)}]


def test_boundaries_of_a_short_conversation() -> None:
    """After the tools, the system message, the first user's message, and after every one of the last messages; what
    only this conversation comes back to is passing: here the fourth, which the assistant's message makes."""
    found = printed([SYSTEM, USER, CALLING, RESULT, {"role": "assistant", "content": "Blue."}, USER], tools=TOOLS)
    assert [boundary.is_passing for boundary in found.boundaries] == [False, False, False, True, False, False, False]
    assert found.family == found.boundaries[1].digest
    sizes = [boundary.size_bytes for boundary in found.boundaries]
    assert sizes[0] == len(json.dumps(TOOLS))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("messages", "tools"), [([USER], TOOLS), ([SYSTEM, USER], None), ([SYSTEM, USER], TOOLS)])
def test_an_application_is_known_by_its_tools_and_system_message(messages: list[Any], tools: Any) -> None:
    """Whatever else is asked, and whoever asks it, the family is the same; without both there is none."""
    more = {} if tools is None else {"tools": tools}
    one, other = printed(messages, **more), printed([*messages[:-1], {**USER, "content": "?"}, SYSTEM, USER], **more)
    assert one.family == other.family != 0
    assert one.family in one.digests
    assert printed([USER]).family == 0


@pytest.mark.parametrize(
    "members",
    [
        {"temperature": 0.5, "top_p": 0.5, "seed": 5, "stop": "a", "n": 2, "max_tokens": 10, "user": "u"},
        {"stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}},
        {"prompt_cache_key": "c", "response_format": {"type": "json_object"}, "provider": {"sort": "price"}},
    ],
)
def test_sampling_changes_nothing(members: dict[str, Any]) -> None:
    """No cache of a provider looks at these."""
    assert printed([SYSTEM, USER], **members) == printed([SYSTEM, USER])


def test_equal_meaning_is_an_equal_digest() -> None:
    """The order of members, spaces, null members, cache markers, one text part instead of a string."""
    plain = digest([SYSTEM, USER])
    text = USER["content"]
    assert digest([SYSTEM, dict(reversed(USER.items()))]) == plain
    assert digest([SYSTEM, {**USER, "name": None, "mood": 1}]) == plain
    assert digest(content({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}})) == plain
    tight = json.dumps({"messages": [SYSTEM, USER], "model": "k"}, separators=(",", ":")).encode()
    assert parse(tight, headers={}, seed=SEED).fingerprint.digests[-1] == plain
    spaced = json.dumps([SYSTEM, CALLING, RESULT], indent=1).encode()
    assert parse(b'{"model":"k","messages":%s}' % spaced, headers={}, seed=SEED).fingerprint.digests[-1] == digest(
        [SYSTEM, {name: CALLING[name] for name in ("role", "tool_calls", "reasoning_content")}, RESULT]
    )


@pytest.mark.parametrize(
    "other",
    [
        [SYSTEM, USER, CALLING],
        [SYSTEM, USER, CALLING, {**RESULT, "tool_call_id": "look:1"}],
        [SYSTEM, USER, CALLING, {**RESULT, "name": "look"}],
        [SYSTEM, USER, {**CALLING, "reasoning_content": "Ha."}, RESULT],
        [SYSTEM, USER, {**CALLING, "content": "Hm."}, RESULT],
        [SYSTEM, USER, {**CALLING, "tool_calls": [{**CALL, "id": "look:2"}]}, RESULT],
        [SYSTEM, USER, {**CALLING, "tool_calls": [CALL, CALL]}, RESULT],
        [SYSTEM, {**USER, "role": "developer"}, CALLING, RESULT],
        [{**SYSTEM, "tools": TOOLS}, USER, CALLING, RESULT],
        content({"type": "text", "text": USER["content"]}, {"type": "image_url", "image_url": "a"}),
    ],
)
def test_what_the_template_reads_makes_another_digest(other: list[Any]) -> None:
    """Each of these differs from the same conversation in one thing."""
    assert digest(other) != digest([SYSTEM, USER, CALLING, RESULT])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"role": "user", "content": "ab"}], [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        ([{"role": "user", "content": "a", "name": "b"}], [{"role": "user", "content": "ab"}]),
        ([{**USER, "name": "b"}], [{**USER, "reasoning_content": "b"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": text} for text in ("a", "user", "c")]}],
            [{"role": "user", "content": "a"}, {"role": "user", "content": "c"}],
        ),
        (
            content({"type": "text", "text": "a"}, {"type": "text", "text": "b"}),
            content({"type": "text", "text": "ab"}),
        ),
        (
            content({"type": "text", "text": "a"}, {"type": "image_url", "image_url": "b"}),
            content({"type": "text", "text": "a"}, {"type": "video_url", "video_url": "b"}),
        ),
        (
            [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}],
            [
                USER,
                {"role": "assistant", "content": "a", "reasoning_content": "user"},
                {"role": "user", "content": "b"},
            ],
        ),
        (
            [USER, {"role": "assistant", "content": "a", "partial": True}],
            [USER, {"role": "assistant", "content": "a", "partial": False}],
        ),
        ([USER, {**CALLING, "tool_calls": [CALL]}], [USER, {**CALLING, "tool_calls": [], "content": "a"}]),
    ],
)
def test_bytes_that_move_between_fields_are_another_conversation(one: list[Any], other: list[Any]) -> None:
    """Neither whole prompts nor families of boundaries are confused."""
    assert digest(one) != digest(other)


def test_an_image_is_known_by_its_address_and_counts_flat() -> None:
    """In either form; the size before and after it differ by that of a thousand tokens."""
    data = "data:image/png;base64," + "A" * 90_000
    text = {"type": "text", "text": "Look"}
    as_object = content(text, {"type": "image_url", "image_url": {"url": data, "detail": "high"}})
    assert digest(as_object) == digest(content(text, {"type": "image_url", "image_url": data}))
    found = printed([*as_object, {"role": "assistant", "content": "A."}, USER])
    sizes = dict(
        zip(("system", "user", "assistant", "last"), (each.size_bytes for each in found.boundaries), strict=True)
    )
    assert MEDIA_BYTES < sizes["user"] - sizes["system"] < MEDIA_BYTES + 200


def test_tools_or_the_secret_change_every_digest() -> None:
    """Tools come first in the template; a secret of another gateway reads nothing of ours."""
    before = set(printed([SYSTEM, USER], tools=TOOLS).digests)
    assert before.isdisjoint(printed([SYSTEM, USER]).digests)
    assert before.isdisjoint(printed([SYSTEM, USER], tools=[*TOOLS, {**TOOLS[0], "function": {"name": "b"}}]).digests)
    assert before.isdisjoint(printed([SYSTEM, USER], tools=TOOLS, secret=1).digests)


def test_a_document_is_shared_in_part() -> None:
    """Two questions about the same 100 kB: every 16 kB of them is found again, and the whole of neither."""
    document = "It was a bright cold day in the harbour. " * 2_500
    one, other = (printed([SYSTEM, {"role": "user", "content": document + end}]) for end in ("Who?", "When, and why?"))
    shared = [boundary for boundary in one.boundaries if boundary.digest in other.digests]
    assert len(shared) == 1 + len(document) // 16_384
    assert not any(boundary.is_passing for boundary in one.boundaries)
    assert shared[-1].size_bytes > len(document) - 16_384


def test_a_long_document_has_fewer_boundaries_not_more() -> None:
    """Every 128 kB of a megabyte, and of two long ones the deeper is served first; never more than there may be."""
    long = {"role": "user", "content": "x" * 1_000_000}
    found = printed([SYSTEM, long])
    assert [boundary.size_bytes // 131_072 for boundary in found.boundaries[1:]] == [*range(1, 8), 7]
    assert len(printed([long] * 40).boundaries) == BOUNDARIES_MAX
    sizes = [boundary.size_bytes for boundary in printed([long] * 3).boundaries]
    assert sum(size > 2_000_200 for size in sizes) == 8


def test_what_a_message_has_beside_its_document_makes_no_more_boundaries() -> None:
    """Forty kilobytes of content have two inside, whatever was reasoned before, and the messages after keep theirs."""
    long = {"role": "assistant", "content": "x" * 40_000, "reasoning_content": "y" * 900_000}
    before = [USER] * 3
    found, without = printed([*before, long, *[USER] * 4]), printed([*before, {**long, "content": "x"}, *[USER] * 4])
    assert len(found.boundaries) == len(without.boundaries) + 2 <= BOUNDARIES_MAX


def test_an_application_is_looked_up_at_any_depth() -> None:
    """Three system messages, no power of two, and a hundred messages after them."""
    found = printed([*[SYSTEM] * 3, *[USER, {"role": "assistant", "content": "Blue."}] * 50])
    assert found.family in found.digests
    assert len(found.boundaries) == BOUNDARIES_MAX


def test_a_boundary_that_adds_nothing_is_left_out() -> None:
    """Where the whole was measured far smaller than its parts: sizes grow strictly all the same."""
    sized = _sized(
        [(1, 10, True), (2, 500, False), (3, 501, False), (4, 1_000, False)], tools_bytes=0, messages_bytes=4
    )
    assert sized == (Boundary(2, 2), Boundary(4, 4))


def test_escapes_are_another_spelling_with_the_same_sizes() -> None:
    """A known miss; a tail after Chinese is not thought longer than it is."""
    messages = [{"role": "user", "content": "天空是蓝色的" * 500}, {"role": "assistant", "content": "ok " * 900}, USER]
    raw, escaped = (
        parse(json.dumps({"model": "k", "messages": messages}, ensure_ascii=e).encode(), headers={}).fingerprint
        for e in (False, True)
    )
    assert not set(raw.digests) & set(escaped.digests)
    for one, other in zip(raw.boundaries, escaped.boundaries, strict=True):
        assert abs(one.size_bytes - other.size_bytes) < 20

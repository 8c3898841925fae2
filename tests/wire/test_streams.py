"""What is learned of an answer in passing, however its bytes were cut, and whatever they are."""

from __future__ import annotations

import pytest

from gateway.core.sse import SseScanner
from gateway.providers.reading import CHOICES_MAX, AnswerReader, EventKind
from tests.wire.transcripts import (
    ANSWER,
    DONE,
    HEAD,
    HELLO,
    ROLE,
    THOUGHT,
    closing,
    delta,
    encoded,
    finish,
    read,
    read_whole,
    sse,
    told,
    totals,
    whole,
)

USAGE = totals(146, 26, cached_tokens=128)


def tool_piece(arguments: str, *, choice: int = 0, position: int = 0) -> bytes:
    return delta(choice, tool_calls=[{"index": position, "function": {"arguments": arguments}}])


def tool_start(name: str, call_id: str, *, choice: int = 0, position: int = 0) -> bytes:
    function = {"name": name, "arguments": ""}
    return delta(choice, tool_calls=[{"index": position, "id": call_id, "type": "function", "function": function}])


TOOLS = (
    delta(role="assistant", reasoning_content="")
    + tool_start("get_weather", "functions.get_weather:0")
    + tool_piece('{"city":')
    + tool_piece('"Zürich 苏黎世",')
    + tool_piece('"note":"a\\"b😀"}')
    + finish("tool_calls", in_choice=USAGE)
    + DONE
)
ARGUMENTS = '{"city":"Zürich 苏黎世","note":"a\\"b😀"}'

TWO_CHOICES = (
    delta(1, role="assistant", content="")
    + tool_start("search", "search:0", choice=1)
    + delta(0, role="assistant", content="")
    + tool_start("search", "search:0")
    + tool_piece("{\n", choice=1)
    + tool_piece('{\n "q": "a"')
    + tool_piece('"q": "b"}', choice=1)
    + tool_piece("}")
    + finish("tool_calls", index=0, in_choice=totals(146, 26))
    + finish("tool_calls", index=1, in_choice=totals(146, 25))
    + DONE
)

STREAMS = {
    "thinking, then content": ANSWER + finish(in_choice=USAGE) + closing(USAGE) + DONE,
    "tool call in pieces": TOOLS,
    "two choices with tool calls": TWO_CHOICES,
    "CRLF": TOOLS.replace(b"\n\n", b"\r\n\r\n"),
    "comments": b": ping\n\n" + TOOLS.replace(b"\n\n", b"\n\n: ping\n\n"),
    "no [DONE], no last blank line": (ANSWER + finish(in_choice=USAGE))[:-2],
    "an error in the middle": ANSWER + sse({"error": {"message": "overloaded", "type": "server_error"}}),
    "JSON with line breaks inside an event": b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"a"}}]}\n\n',
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_l7_a_stream_cut_at_any_byte_is_the_same_stream(stream: bytes) -> None:
    """L7: every cut in two, also inside a UTF-8 character, a JSON escape, a CRLF; and byte by byte."""
    reader, kinds = read(stream)
    for cut in range(len(stream)):
        again, same = read(stream[:cut], stream[cut:])
        assert (told(again), same) == (told(reader), kinds), f"cut at byte {cut}"
    again, same = read(*(bytes([byte]) for byte in stream))
    assert (told(again), same) == (told(reader), kinds)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_l7_the_relayed_bytes_are_the_received_ones(stream: bytes) -> None:
    """L7: whatever the cut, the events' raw bytes in order are the stream."""
    for cut in range(len(stream)):
        scanner = SseScanner()
        raw = b"".join(event.raw for chunk in (stream[:cut], stream[cut:]) for event in scanner.feed(chunk))
        assert raw + scanner.rest == stream


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(HELLO[6:-2], EventKind.DELTA, id="a piece of the answer"),
        pytest.param(finish(in_choice=USAGE)[6:-2], EventKind.DELTA, id="finishing chunk"),
        pytest.param(finish(on_top=USAGE)[6:-2], EventKind.DELTA, id="finishing chunk with usage on top"),
        pytest.param(closing(USAGE)[6:-2], EventKind.CLOSING_USAGE, id="closing chunk"),
        pytest.param(encoded({"usage": USAGE}), EventKind.CLOSING_USAGE, id="usage and nothing else"),
        pytest.param(closing(None)[6:-2], EventKind.OTHER, id="no choices, usage null"),
        pytest.param(closing("none")[6:-2], EventKind.OTHER, id="no choices, usage no object"),
        pytest.param(b"[DONE]", EventKind.DONE, id="done"),
        pytest.param(b" [DONE] ", EventKind.DONE, id="done with spaces"),
        pytest.param(encoded({"error": {"message": "x"}}), EventKind.ERROR, id="error object"),
        pytest.param(encoded({"error": "x"}), EventKind.ERROR, id="error text"),
        pytest.param(encoded({"error": {"message": "x"}, "choices": []}), EventKind.ERROR, id="error, no choices"),
        pytest.param(
            encoded({"error": {"code": 502}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]}),
            EventKind.ERROR,
            id="error beside an empty choice",
        ),
        pytest.param(
            encoded({"error": {"code": 1}, "choices": [{"delta": {"content": "hello"}}]}),
            EventKind.DELTA,
            id="error beside a piece of the answer",
        ),
        pytest.param(encoded({"error": "", "choices": [{}]}), EventKind.DELTA, id="error empty"),
        pytest.param(encoded({"object": "error", "message": "x"}), EventKind.ERROR, id="error by its object"),
        pytest.param(encoded({"type": "error", "error": {}}), EventKind.ERROR, id="error by its type"),
        pytest.param(encoded({**HEAD, "error": None, "choices": [{}]}), EventKind.DELTA, id="error null"),
        pytest.param(b"{}", EventKind.OTHER, id="empty object"),
        pytest.param(encoded({"choices": [], "prompt_filter_results": []}), EventKind.OTHER, id="filter results"),
        pytest.param(encoded({"code": 0, "data": {}}), EventKind.OTHER, id="some other object"),
        pytest.param(b"", EventKind.OTHER, id="empty data"),
        pytest.param(b"null", EventKind.MALFORMED, id="null"),
        pytest.param(b"[]", EventKind.MALFORMED, id="list"),
        pytest.param(b'"text"', EventKind.MALFORMED, id="text"),
        pytest.param(b'{"choices":[', EventKind.MALFORMED, id="cut JSON"),
        pytest.param(b"<html><body>502 Bad Gateway</body></html>", EventKind.MALFORMED, id="HTML"),
        pytest.param(b'{"a":' * 100_000, EventKind.MALFORMED, id="nested without end"),
        pytest.param(b"\xff\xfe", EventKind.MALFORMED, id="no text"),
    ],
)
def test_every_event_has_a_kind(data: bytes, kind: EventKind) -> None:
    """Whatever it is; a whole body is told apart by the same rules."""
    assert AnswerReader().feed(data) is kind
    assert AnswerReader().feed_answer(data) is kind


def test_the_head_of_an_answer_is_remembered() -> None:
    """Who answered, under which id, when; the first words count."""
    reader, _ = read(ANSWER, finish(in_choice=USAGE), DONE)
    assert (reader.served_model, reader.upstream_id, reader.created) == (
        "kimi-k2-thinking",
        "chatcmpl-7a8b",
        1763000000,
    )
    assert reader.done


def test_a_model_named_late_is_still_the_served_one() -> None:
    """Some gateways leave the first chunk's model empty."""
    reader, _ = read(sse({"model": "", "choices": [{}]}), sse({"model": "kimi-k2.6", "choices": [{}]}))
    assert reader.served_model == "kimi-k2.6"


def test_bytes_are_counted_after_decoding_in_utf_8() -> None:
    """The same text costs the same, as UTF-8 or as JSON's escapes; names count with the arguments."""
    reader, _ = read(TOOLS)
    assert reader.tool_bytes == len("get_weather") + len(ARGUMENTS.encode())
    assert (reader.reasoning_bytes, reader.content_bytes, reader.has_content) == (0, 0, True)
    escaped = b'{"choices":[{"index":0,"delta":{"content":"\\u82cf\\ud83d\\ude00\\n"}}]}'
    reader = AnswerReader()
    assert reader.feed(escaped) is EventKind.DELTA
    assert reader.content_bytes == len("苏😀\n".encode())


def test_half_a_surrogate_pair_is_still_an_answer() -> None:
    """A tokenizer may cut an emoji between two events; neither is malformed, and both count."""
    reader, kinds = read(
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n'
        b'data: {"choices":[{"index":0,"delta":{"content":"\\ude00"}}]}\n\n'
    )
    assert kinds == [EventKind.DELTA, EventKind.DELTA]
    assert reader.content_bytes == 6


def test_a_broken_character_costs_itself_and_not_the_usage() -> None:
    """One bad byte in a long answer must not make it free."""
    reader, kind = read_whole(whole(USAGE, content="XX").replace(b"XX", b"\xff\xfe"))
    assert kind is EventKind.DELTA
    assert reader.reports.top_level == USAGE


def test_l8_a_whole_answer_tells_what_its_stream_tells() -> None:
    """L8: the same sizes, reasons and usage."""
    call = {"id": "x:0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    streamed, _ = read(
        THOUGHT,
        HELLO,
        tool_start("f", "x:0"),
        tool_piece("{"),
        tool_piece("}"),
        finish("tool_calls", on_top=USAGE),
    )
    answered, _ = read_whole(
        whole(USAGE, reason="tool_calls", reasoning_content="Let me think. 想一想。", tool_calls=[call])
    )
    assert told(streamed) == told(answered)


def test_reasoning_has_an_alias_that_is_not_counted_twice() -> None:
    """``reasoning`` as other hosts call it; beside ``reasoning_content`` it is the same text again."""
    alias, _ = read(delta(reasoning="abc"))
    both, _ = read(delta(reasoning="abc", reasoning_content="abc"))
    empty, _ = read(delta(reasoning="abc", reasoning_content=""))
    assert alias.reasoning_bytes == both.reasoning_bytes == empty.reasoning_bytes == 3


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param({"delta": {"content": [{"type": "text", "text": "hel"}, {"text": "lo"}, 7, "!"]}}, id="parts"),
        pytest.param({"index": "0", "delta": {"content": "hello!"}}, id="index as text"),
        pytest.param({"index": None, "delta": {"content": "hello!"}}, id="index null"),
        pytest.param({"index": -1, "delta": {"content": "hello!"}}, id="index negative"),
        pytest.param({"index": True, "delta": {"content": "hello!", "reasoning_content": 5}}, id="index boolean"),
        pytest.param({"delta": {"content": "hello!", "tool_calls": None, "function_call": None}}, id="nulls"),
        pytest.param({"delta": {"content": "hello!", "tool_calls": "none"}, "finish_reason": 0}, id="wrong types"),
        pytest.param({"message": {"content": "hello!"}}, id="a message in a stream"),
        pytest.param({"delta": {"refusal": "hello!"}}, id="a refusal is content"),
    ],
)
def test_any_shape_of_choice_is_counted(choice: object) -> None:
    """Six bytes of content of choice 0, however they are wrapped."""
    reader, kinds = read(sse({"choices": [choice], "created": 1.5, "id": 7}))
    assert kinds == [EventKind.DELTA]
    assert (reader.content_bytes, reader.has_content) == (6, True)
    reader.feed(finish(in_choice=USAGE)[6:-2])
    assert reader.complete


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, 3),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": "é"}}}]}, 11),
        ({"tool_calls": [{"function": None}, None, 5, {"function": {"name": 5, "arguments": None}}]}, 0),
        ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
    ],
)
def test_any_shape_of_tool_call_is_counted(message: object, size: int) -> None:
    """Without index, as an object, as the old function call."""
    reader, _ = read(sse({"choices": [{"index": 0, "delta": message}]}))
    assert (reader.tool_bytes, reader.has_content) == (size, True)


def test_complete_means_that_every_choice_gave_its_reason() -> None:
    """One of two is not complete; the socket may close after that without [DONE]."""
    reader, _ = read(TWO_CHOICES[: TWO_CHOICES.index(b'"prompt_tokens":146,"completion_tokens":25')])
    assert not reader.complete
    reader, _ = read(TWO_CHOICES[: -len(DONE)])
    assert (reader.complete, reader.done) == (True, False)
    assert reader.finish_reasons == {0: "tool_calls", 1: "tool_calls"}
    assert not AnswerReader().complete


def test_an_error_after_the_answer_began_is_remembered() -> None:
    """Its payload is there for the classifier, what came before still counts, and complete it is not."""
    reader, kinds = read(ANSWER, sse({"error": {"message": "overloaded", "type": "server_error"}}))
    assert kinds[-1] is EventKind.ERROR
    assert reader.error == {"message": "overloaded", "type": "server_error"}
    assert reader.content_bytes == 5
    assert not reader.complete


def test_an_answer_that_ends_in_an_error_is_not_complete() -> None:
    """Also where the error itself poses as a finish reason, or comes after a proper one."""
    broken = sse({"error": {"code": 502}, "choices": [{"delta": {"content": ""}, "finish_reason": "error"}]})
    assert not read(ANSWER, broken)[0].complete
    assert not read(ANSWER, finish(), broken)[0].complete


def test_an_error_with_usage_does_not_lose_the_usage() -> None:
    """A provider that fails late may still tell what it will bill."""
    reader, _ = read(ANSWER, sse({"error": {"message": "x"}, "usage": USAGE}))
    assert reader.reports.top_level == USAGE


@pytest.mark.parametrize(
    ("pieces", "is_flagged"),
    [
        pytest.param([b"<think>hm"], True, id="one piece"),
        pytest.param([b"\\n<thi", b"nk", b">hm"], True, id="in pieces"),
        pytest.param([b"so <think>"], False, id="not at the start"),
        pytest.param([b"<thin air"], False, id="another word"),
    ],
)
def test_thinking_inside_the_content_is_flagged(pieces: list[bytes], *, is_flagged: bool) -> None:
    """An aggregator's option that makes the provider unfit for tool loops (providers §4)."""
    reader = AnswerReader()
    for piece in pieces:
        reader.feed(b'{"choices":[{"index":0,"delta":{"content":"' + piece + b'"}}]}')
    assert ("think_in_content" in reader.flags) is is_flagged


def test_thinking_beside_real_reasoning_is_only_text() -> None:
    """A model may write about the tag."""
    reader, _ = read(THOUGHT, delta(content="<think> is a tag"))
    assert reader.flags == ()


@pytest.mark.parametrize(
    ("pieces", "is_flagged"),
    [
        pytest.param(["<|tool_calls_section_begin|>"], True, id="one piece"),
        pytest.param(["a < b <|tool_", "call_begin", "|>functions.f:0"], True, id="in pieces"),
        pytest.param(["if a <", " b and c <|", "d"], False, id="ordinary text"),
    ],
)
def test_leaked_special_tokens_are_flagged(pieces: list[str], *, is_flagged: bool) -> None:
    """In the content or the reasoning: a mark against the host (providers §8.3)."""
    for name in ("content", "reasoning_content"):
        reader, _ = read(*(delta(**{name: piece}) for piece in pieces))
        assert ("special_tokens_leaked" in reader.flags) is is_flagged


def test_an_answer_with_content_is_not_empty_at_length() -> None:
    """Only a limit that left nothing for the content is worth a word."""
    reader, _ = read(ROLE, THOUGHT, HELLO, finish("length", in_choice=USAGE))
    assert reader.flags == ()


def test_what_is_kept_does_not_grow_with_what_comes() -> None:
    """Neither choices, nor names, nor usage objects are the upstream's to size."""
    reader, _ = read(*(sse({"choices": [{"index": i, "usage": USAGE}]}) for i in range(CHOICES_MAX + 50)))
    assert len(reader.reports.by_choice) == CHOICES_MAX
    assert "too_many_choices" in reader.flags
    long = "x" * 100_000
    junk = {**USAGE, "note": long, "deep": {"deep": {"deep": long}}, "list": [long]}
    reader, _ = read(sse({"id": long, "model": long, "choices": [{"finish_reason": long}], "usage": junk}))
    reader.feed(encoded({"error": {"message": long, "metadata": {"raw": {"body": long}}}}))
    assert len(repr(told(reader))) < 10_000
    assert reader.reports.top_level is not None

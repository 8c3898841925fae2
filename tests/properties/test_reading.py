"""For any bytes whatever: the reader answers with a kind, never raises, and its dialects never charge nonsense."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.failure import Failure
from gateway.core.sse import SseScanner
from gateway.core.usage import TOKENS_MAX
from gateway.providers import DIALECTS
from gateway.providers.failing import MESSAGE_CHARACTERS_MAX, RETRY_AFTER_SECONDS_MAX
from gateway.providers.reading import AnswerReader, EventKind

scalars = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)


def some(members: dict[str, st.SearchStrategy[object]]) -> st.SearchStrategy[object]:
    """An object with some of these members, each sometimes of quite another type; or something else altogether."""
    return st.fixed_dictionaries({}, optional={name: value | anything for name, value in members.items()}) | anything


counts = st.integers(-2, 2000) | st.sampled_from([True, 1.0, "5", None, TOKENS_MAX, TOKENS_MAX + 1])
details = some({"cached_tokens": counts, "cache_write_tokens": counts, "reasoning_tokens": counts})
usages = some(
    {
        "prompt_tokens": counts,
        "completion_tokens": counts,
        "total_tokens": counts,
        "cached_tokens": counts,
        "prompt_tokens_details": details,
        "completion_tokens_details": details,
    }
)
texts = st.sampled_from(["", "<think>", "<|im_end|>", "<|", "a", "\ud83d", "\x00"]) | st.text(max_size=5)
functions = some({"name": texts, "arguments": texts})
messages = some(
    {
        "content": texts | st.lists(some({"text": texts}), max_size=2),
        "reasoning_content": texts,
        "reasoning": texts,
        "tool_calls": st.lists(some({"index": counts, "function": functions}), max_size=2),
    }
)
choices = some({"index": counts, "delta": messages, "message": messages, "finish_reason": texts, "usage": usages})
chunks = some(
    {
        "id": texts,
        "model": texts,
        "created": counts,
        "choices": st.lists(choices, max_size=3),
        "usage": usages,
        "error": anything,
    }
)
events = chunks.map(lambda chunk: json.dumps(chunk).encode()) | st.binary(max_size=40) | st.just(b"[DONE]")
errors = some(
    {
        "error": some({"message": texts, "type": texts, "code": counts | texts, "param": texts}),
        "message": texts,
        "detail": texts,
    }
)
headers = st.dictionaries(st.sampled_from(["retry-after", "date", "content-type"]), st.text(max_size=12))


@given(st.lists(events, max_size=6))
def test_a_reader_never_raises_and_never_believes_nonsense(stream: list[bytes]) -> None:
    """Every event has a kind; usage that is read is positive where there was content, and adds up."""
    reader = AnswerReader()
    for data in stream:
        assert isinstance(reader.feed(data), EventKind)
    assert isinstance(reader.flags, tuple)
    assert min(reader.content_bytes, reader.reasoning_bytes, reader.tool_bytes) >= 0
    assert reader.complete <= (reader.error is None)
    assert all(map(is_fit, [reader.served_model or "", reader.upstream_id or "", *reader.finish_reasons.values()]))
    for dialect in DIALECTS.values():
        usage = dialect.read_usage(reader.reports)
        if usage is not None:
            assert 0 <= (usage.cache_read or 0) + usage.cache_write <= usage.input_tokens
            assert not reader.has_content or (usage.input_tokens > 0 and usage.output_tokens > 0)


@given(events)
def test_l8_an_event_means_the_same_as_a_body(data: bytes) -> None:
    """Streamed or whole, one reader, one meaning."""
    one, other = AnswerReader(), AnswerReader()
    assert one.feed(data) is other.feed_answer(data)
    assert one.reports == other.reports


@given(st.lists(chunks.map(lambda chunk: b"data: " + json.dumps(chunk).encode() + b"\n\n"), max_size=4), st.data())
def test_l7_what_is_learned_does_not_depend_on_the_cuts(stream: list[bytes], data: st.DataObject) -> None:
    """Any two cuts of the same bytes leave the same reports, sizes and reasons."""
    joined = b"".join(stream)
    cut = data.draw(st.integers(0, len(joined)))
    assert learned(joined) == learned(joined[:cut], joined[cut:])


def learned(*parts: bytes) -> object:
    scanner, reader = SseScanner(), AnswerReader()
    kinds = [reader.feed(e.data) for part in parts for e in scanner.feed(part) if e.data is not None]
    return kinds, reader.reports, reader.content_bytes, reader.finish_reasons, reader.flags


@given(
    st.integers(100, 599),
    headers,
    errors.map(lambda error: json.dumps(error).encode()) | st.binary(max_size=60) | st.text().map(str.encode),
)
def test_any_refusal_is_classified(status: int, told: dict[str, str], body: bytes) -> None:
    """Every body has a class, and words that are fit for a log line."""
    for dialect in DIALECTS.values():
        failure = dialect.classify_failure(status, told, body)
        assert isinstance(failure, Failure)
        assert 0 < len(failure.message) <= MESSAGE_CHARACTERS_MAX
        assert is_fit(failure.message) and is_fit(failure.code or "") and is_fit(failure.param or "")
        assert failure.retry_after is None or 0 <= failure.retry_after <= RETRY_AFTER_SECONDS_MAX


def is_fit(text: str) -> bool:
    """Whether UTF-8, one log line and a database take it."""
    return text.encode("utf-8").decode() == text and len(text.splitlines()) <= 1 and "\x00" not in text

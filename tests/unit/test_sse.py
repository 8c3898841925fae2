"""The scanner cuts a stream into the events a browser would see, and keeps every byte."""

from __future__ import annotations

import pytest

from gateway.core.sse import Event, EventTooLongError, SseScanner, parse_event


def scan(*chunks: bytes) -> list[Event]:
    scanner = SseScanner()
    events = [event for chunk in chunks for event in scanner.feed(chunk)]
    last = scanner.finish()
    return events if last is None else [*events, last]


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        pytest.param(b"data: {}\n\n", b"{}", id="one line"),
        pytest.param(b"data:{}\n\n", b"{}", id="no space after the colon"),
        pytest.param(b"data:  {}\n\n", b" {}", id="only one space belongs to the wire"),
        pytest.param(b"data: a\ndata: b\n\n", b"a\nb", id="data lines are joined by a newline"),
        pytest.param(b"event: x\nid: 1\ndata: {}\n\n", b"{}", id="other fields are not data"),
        pytest.param(b": keep-alive\n\n", None, id="comment"),
        pytest.param(b"\n\n", None, id="blank lines only"),
        pytest.param(b"data\n\n", b"", id="a field without a colon is empty"),
        pytest.param(b"database: {}\n\n", None, id="a longer field name"),
        pytest.param(b"data: {}\r\n\r\n", b"{}", id="CRLF"),
        pytest.param(b"data: {}\r\r", b"{}", id="CR"),
        pytest.param(b": ping\r\ndata: {}\r\n\r\n", b"{}", id="comment before data"),
        pytest.param(b"data: {}\n\r\n", b"{}", id="mixed line ends"),
        pytest.param(b"\xef\xbb\xbfdata: {}\n\n", b"{}", id="byte order mark"),
        pytest.param(b"\ndata: {}\n\n", b"{}", id="a blank line too many before it"),
    ],
)
def test_an_event_is_read_by_the_rules_of_sse(raw: bytes, data: bytes | None) -> None:
    """Field by field, whole and byte by byte; a following event is untouched."""
    follow = b"data: next\n\n"
    expected = [Event(raw, data), Event(follow, b"next")]
    assert parse_event(raw) == Event(raw, data)
    assert scan(raw + follow) == expected
    assert scan(*(bytes([byte]) for byte in raw + follow)) == expected


def test_events_come_as_soon_as_they_end() -> None:
    """A chunk may hold no event, several, and a beginning."""
    scanner = SseScanner()
    assert scanner.feed(b"data: on") == []
    assert [event.data for event in scanner.feed(b"e\n\ndata: two\n\nda")] == [b"one", b"two"]
    assert scanner.rest == b"da"
    assert [event.data for event in scanner.feed(b"ta: three\n\n")] == [b"three"]
    assert scanner.rest == b""
    assert scanner.finish() is None


def test_a_carriage_return_at_the_end_of_a_chunk_waits_for_its_line_feed() -> None:
    """Otherwise a CRLF cut in two would make the line feed an event of its own."""
    scanner = SseScanner()
    assert scanner.feed(b"data: x\r\n\r") == []
    assert scanner.feed(b"\n") == [Event(b"data: x\r\n\r\n", b"x")]


def test_a_stream_that_ends_without_its_blank_line_keeps_its_last_event() -> None:
    """The connection closed after the last byte of data: those bytes were sent, and may hold the usage."""
    assert scan(b"data: a\n\ndata: b") == [Event(b"data: a\n\n", b"a"), Event(b"data: b", b"b")]


def test_an_open_event_longer_than_the_limit_is_refused() -> None:
    """Memory is bounded, whoever is on the other side."""
    scanner = SseScanner(event_bytes_max=64)
    scanner.feed(b"data: " + b"x" * 40)
    with pytest.raises(EventTooLongError):
        scanner.feed(b"x" * 40)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_a_whole_event_longer_than_the_limit_is_refused_too(end: bytes) -> None:
    """Whether a stream is refused does not depend on how it was cut."""
    with pytest.raises(EventTooLongError):
        SseScanner(event_bytes_max=64).feed(b"data: " + b"x" * 80 + end)


def test_many_short_events_in_one_long_chunk_are_fine() -> None:
    """The limit is one event's, not the chunk's."""
    assert len(SseScanner(event_bytes_max=64).feed(b"data: x\n\n" * 100)) == 100

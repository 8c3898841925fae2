"""For any bytes cut in any way: the same events, and their raw bytes joined are the input (L7)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.sse import Event, SseScanner

pieces = st.sampled_from(
    [b"data: ", b"data:", b"data", b": c", b"id: 1", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b'{"a":1}', b"[DONE]"]
)
streams = st.lists(pieces | st.binary(max_size=6), max_size=24).map(b"".join)


def scan(chunks: list[bytes]) -> list[Event]:
    scanner = SseScanner()
    events = [event for chunk in chunks for event in scanner.feed(chunk)]
    last = scanner.finish()
    return events if last is None else [*events, last]


@given(streams, st.lists(st.integers(0, 200), max_size=12))
@example(b"a\r\r\nb", [3])
@example(b"a\r\n\r\nb", [4])
@example(b"a\n\r\nb", [2, 3])
@example(b"a\r\n\rb\n\n", [4])
def test_l7_events_do_not_depend_on_the_cuts(stream: bytes, cuts: list[int]) -> None:
    """Whole, cut anywhere, byte by byte: one answer."""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    whole = scan([stream])
    assert scan([stream[start:end] for start, end in pairwise(edges)]) == whole
    assert scan([bytes([byte]) for byte in stream]) == whole


@given(streams)
def test_l7_no_byte_is_lost_or_added(stream: bytes) -> None:
    """What is relayed event by event is what was received."""
    assert b"".join(event.raw for event in scan([stream])) == stream

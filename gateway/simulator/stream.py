"""A stream is a row of events and acts; a fault adds to the row, takes from it or ends it, and sees nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal

import msgspec

from gateway.simulator.faults import Struck
from gateway.simulator.wire import DONE, Event

MALFORMED: Final = b'data: {"id":"chatcmpl-","choices":[{"index":0,"delta":{"content"\n\n'
KEEPALIVE: Final = b": keep-alive\n\n"


class Act(msgspec.Struct, frozen=True, gc=False):
    """What happens between two events. A ``stall`` without ``seconds`` lasts until the client leaves.

    With ``comment_ms`` a comment breaks its silence that often.
    """

    kind: Literal["stall", "reset", "close"]
    seconds: float | None = None
    comment_ms: float | None = None


Item = Event | Act


def bend(events: Iterator[Event], struck: Struck, *, failure: bytes) -> Iterator[Item]:
    """The row as the struck faults leave it; ``failure`` is the provider's error event."""
    items: Iterable[Item] = events
    if "missing_done" in struck:
        items = (item for item in items if not isinstance(item, Event) or item.data != DONE)
    if fault := struck.get("malformed_event"):
        items = _insert(items, fault.after_chunks, Event(MALFORMED), ends=False)
    if fault := struck.get("stall_mid_stream"):
        items = _insert(items, fault.after_chunks, Act("stall", fault.seconds), ends=False)
    if fault := struck.get("comments_mid_stream"):
        items = _insert(items, fault.after_chunks, Act("stall", fault.seconds, fault.ms), ends=False)
    if fault := struck.get("error_event"):
        items = _insert(items, fault.after_chunks, Event(failure), ends=True)
    if fault := struck.get("cut_stream"):
        items = _insert(items, fault.after_chunks, None, ends=True)
    if fault := struck.get("close_mid_body"):
        items = _insert(items, fault.after_chunks, Act("close"), ends=True)
    if fault := struck.get("reset_mid_body"):
        items = _insert(items, fault.after_chunks, Act("reset"), ends=True)
    if "keepalive_comments" in struck:
        items = _commented(items)
    for kind, (old, new) in _REWRITES.items():
        if kind in struck:
            items = _rewritten(items, old, new)
    return iter(items)


def _insert(items: Iterable[Item], after: int, extra: Item | None, *, ends: bool) -> Iterator[Item]:
    """``extra`` after that many events, counted from the end when negative; with ``ends`` nothing follows it."""
    if after < 0:
        items = list(items)
        after = max(0, sum(isinstance(item, Event) for item in items) + after)
    seen = 0
    done = False
    for item in items:
        if seen >= after and not done:
            done = True
            if extra is not None:
                yield extra
            if ends:
                return
        yield item
        seen += isinstance(item, Event)
    if not done and extra is not None:
        yield extra


def _commented(items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Event):
            yield Event(KEEPALIVE)
        yield item


_REWRITES: Final = {
    "no_tool_index": (re.compile(rb'("tool_calls":\[\{)"index":\d+,'), rb"\1"),
    "no_space": (re.compile(rb"^data: "), b"data:"),
    "crlf": (re.compile(rb"\n"), b"\r\n"),
}


def _rewritten(items: Iterable[Item], old: re.Pattern[bytes], new: bytes) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Event):
            yield Event(old.sub(new, item.data), item.output_tokens, item.reasoning_tokens)
        else:
            yield item


_INSIDE: Final = {"utf8": re.compile(rb"(?<=[\xc0-\xff])"), "escape": re.compile(rb"(?<=\\)")}


def pieces(data: bytes, mode: str | None) -> list[bytes]:
    """``data`` cut at every byte, or after every UTF-8 lead byte, or after every backslash."""
    if mode not in _INSIDE:
        return [data[start : start + 1] for start in range(len(data))]
    return [piece for piece in _INSIDE[mode].split(data) if piece]

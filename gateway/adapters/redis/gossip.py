"""What replicas tell each other goes through one bounded stream, told and heard beside the requests, never by them.

What is told in one turn of the event loop is one entry; an entry carries the version of its form and who wrote it.
While the server is away the newest words are kept and the oldest forgotten; what was on its way when the link broke is
lost, for nothing may be heard twice. Whoever starts hears the last hour first, as far as the stream still has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import msgspec

from gateway.adapters.redis.link import Link, LinkLostError
from gateway.pipeline.ports import Clock, Message

LOGGER: Final = logging.getLogger("gateway.gossip")
VERSION: Final = 1
ENTRIES_MAX: Final = 20_000
"""What the stream keeps: an hour at three requests a second, and some ten megabytes."""
PAST_SECONDS: Final = 3_600
WAITING_MAX: Final = 10_000
"""Words that wait to be told."""
ENTRY_MESSAGES_MAX: Final = 32
UNHEARD_ENTRIES_MAX: Final = 64
"""Entries that the server has not confirmed yet; a server that is that slow is told more when it has caught up."""
READ_ENTRIES_MAX: Final = 50
BLOCK_MS: Final = 1_000
REPLY_SECONDS_MAX: Final = 1.0
CLAIM_SECONDS_MAX: Final = 0.1
RETRY_SECONDS_MAX: Final = 2.0


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the stream. Another version's messages are never looked at."""

    version: int
    worker: str
    messages: msgspec.Raw


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_entry: Final = msgspec.msgpack.Decoder(Entry).decode
_decode_messages: Final = msgspec.msgpack.Decoder(tuple[Message, ...]).decode


@dataclass(slots=True)
class Counts:
    """What became of messages since the start. ``lag_seconds``: how old the last one was when it was heard."""

    told: int = 0
    heard: int = 0
    dropped: int = 0
    skipped: int = 0
    lag_seconds: float = 0.0

    @property
    def by_outcome(self) -> dict[str, int]:
        return {"told": self.told, "heard": self.heard, "dropped": self.dropped, "skipped": self.skipped}


class RedisGossip:
    """Implements the Gossip and Claims ports. Somebody must ``run`` it; until then, words wait."""

    def __init__(
        self, url: str, worker: str, *, clock: Clock, prefix: str = "kgw", entries_max: int = ENTRIES_MAX
    ) -> None:
        self._url = url
        self._worker = worker
        self._clock = clock
        self._entries_max = entries_max
        self._stream = f"{{{prefix}}}:gossip"
        self._claims = f"{{{prefix}}}:claim:"
        self._link: Link | None = None
        self._listening: Link | None = None
        self._waiting: deque[Message] = deque()
        self._unheard: deque[tuple[asyncio.Future[Any], int]] = deque()
        self._is_leaving = False
        self._callbacks: list[Callable[[Message], None]] = []
        self._heard_id = b""
        self._mine: set[str] = set()
        self.counts = Counts()

    # --- the ports -------------------------------------------------------------------------------------------------

    def tell(self, message: Message) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self.counts.dropped += 1
        self._waiting.append(message)
        self._leave_soon()

    def on_heard(self, callback: Callable[[Message], None]) -> None:
        self._callbacks.append(callback)

    async def claim(self, what: str, seconds: float) -> bool:
        link = self._link
        if link is None:
            return True
        self._mine.add(what)
        asked = link.send("SET", self._claims + what, self._worker, "NX", "PX", max(1, int(seconds * 1000)))
        try:
            async with asyncio.timeout(CLAIM_SECONDS_MAX):
                granted = await asked
        except (LinkLostError, TimeoutError, hiredis.HiredisError):
            return True
        if granted is None:
            self._mine.discard(what)
        return granted is not None

    def give_back(self, what: str) -> None:
        if what in self._mine:
            self._mine.discard(what)
            if self._link is not None:
                _unminded(self._link.send("DEL", self._claims + what))

    async def run(self, stop: asyncio.Event) -> None:
        """Tells and hears until ``stop``; what waits then is still told."""
        stopping = asyncio.create_task(stop.wait(), name="gossip-stop")
        tasks = [
            asyncio.create_task(self._keep_telling(), name="gossip-tell"),
            asyncio.create_task(self._keep_hearing(), name="gossip-hear"),
        ]
        try:
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
            self._leave()
            await asyncio.sleep(0)  # the link writes at the end of the turn
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            for link in (self._link, self._listening):
                if link is not None:
                    link.close()
            self._link = self._listening = None
            self._unheard.clear()

    # --- telling ---------------------------------------------------------------------------------------------------

    async def _keep_telling(self) -> None:
        """A link to tell over, and another one when it breaks."""
        troubles = 0
        while True:
            lost = asyncio.Event()
            try:
                self._link = await Link.open(
                    self._url, lambda *_, lost=lost: lost.set(), reply_seconds_max=REPLY_SECONDS_MAX
                )
            except LinkLostError as trouble:
                troubles += 1
                self._note(troubles, trouble)
            else:
                troubles = 0
                self._leave_soon()
                await lost.wait()
                self._link = None
                self._count_lost()
            await asyncio.sleep(min(0.05 * 2**troubles, RETRY_SECONDS_MAX))

    def _leave_soon(self) -> None:
        """All that is told in this turn of the loop leaves together."""
        if self._link is not None and not self._is_leaving:
            self._is_leaving = True
            asyncio.get_running_loop().call_soon(self._leave)

    def _leave(self) -> None:
        self._is_leaving = False
        while self._waiting and self._link is not None and len(self._unheard) < UNHEARD_ENTRIES_MAX:
            count = min(len(self._waiting), ENTRY_MESSAGES_MAX)
            messages = [self._waiting.popleft() for _ in range(count)]
            entry = _encode((VERSION, self._worker, messages))
            answer = self._link.send("XADD", self._stream, "MAXLEN", "~", self._entries_max, "*", "m", entry)
            self._unheard.append((answer, count))
            answer.add_done_callback(self._was_told)

    def _was_told(self, answer: asyncio.Future[Any]) -> None:
        if not self._unheard or self._unheard[0][0] is not answer:
            return  # of a link that was lost: counted as such
        _, count = self._unheard.popleft()
        if answer.cancelled() or answer.exception() is not None:
            self.counts.dropped += count
        else:
            self.counts.told += count
        if self._waiting:
            self._leave_soon()

    def _count_lost(self) -> None:
        """What was on its way may have arrived: told again, it could be heard twice."""
        for answer, count in self._unheard:
            self.counts.dropped += count
            _unminded(answer)
        self._unheard.clear()

    # --- hearing ---------------------------------------------------------------------------------------------------

    async def _keep_hearing(self) -> None:
        """Reads on from what was heard last, over one link after the other."""
        troubles = 0
        while True:
            try:
                patience = BLOCK_MS / 1000 + REPLY_SECONDS_MAX
                link = await Link.open(self._url, lambda *_: None, reply_seconds_max=patience)
                self._listening = link
                troubles = 0
                self._heard_id = await self._place(link)
                while True:
                    await self._hear(link)
            except (LinkLostError, hiredis.HiredisError) as trouble:
                troubles += 1
                self._note(troubles, trouble)
            finally:
                if self._listening is not None:
                    self._listening.close()
                    self._listening = None
            await asyncio.sleep(min(0.05 * 2**troubles, RETRY_SECONDS_MAX))

    async def _place(self, link: Link) -> bytes:
        """Where to read on: an hour ago at first; never later than the server's now, for another server may have taken
        its place, whose clock is behind."""
        seconds, micros = await link.send("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        if not self._heard_id:
            return b"%d-0" % max(0, now_ms - PAST_SECONDS * 1000)
        heard_ms = int(self._heard_id.partition(b"-")[0])
        return self._heard_id if heard_ms <= now_ms else b"%d-0" % now_ms

    async def _hear(self, link: Link) -> None:
        command = ("XREAD", "COUNT", READ_ENTRIES_MAX, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._heard_id)
        answer = await link.send(*command)
        if not answer:
            return
        entries = answer[0][1]
        self._heard_id = entries[-1][0]  # before it is believed: nothing is heard twice, whatever it does to us
        now = self._clock.now()
        for entry_id, members in entries:
            self._take(members)
            told_at_ms = int(entry_id.partition(b"-")[0])
            self.counts.lag_seconds = max(0.0, now.timestamp() - told_at_ms / 1000)
        if len(entries) == READ_ENTRIES_MAX:
            await asyncio.sleep(0)  # a long past is heard between requests

    def _take(self, members: list[bytes]) -> None:
        """One entry; our own is no news."""
        try:
            entry = _decode_entry(members[1])
            if entry.version != VERSION:
                self.counts.skipped += 1
                return
            if entry.worker == self._worker:
                return
            messages = _decode_messages(entry.messages)
        except (msgspec.MsgspecError, IndexError, TypeError):
            self.counts.skipped += 1
            return
        self.counts.heard += len(messages)
        for message in messages:
            for callback in self._callbacks:
                callback(message)

    def _note(self, troubles: int, trouble: Exception) -> None:
        level = logging.WARNING if troubles == 1 else logging.DEBUG
        why = str(trouble).partition(" ")[0] if isinstance(trouble, hiredis.ReplyError) else str(trouble)
        LOGGER.log(level, "other replicas cannot be told or heard: %s", why)


def _unminded(answer: asyncio.Future[Any]) -> None:
    """Nobody waits for this answer; that it failed is no defect."""
    answer.add_done_callback(lambda done: done.cancelled() or done.exception())

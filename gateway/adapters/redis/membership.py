"""A worker's membership of the shared state: nothing is admitted from a state that not everybody has told his part.

Shared state belongs to a generation, a number that PostgreSQL hands out. A Redis that was emptied has none; one that
was restarted or replaced, perhaps with an older copy, says so by its run. Then the next generation is founded: every
worker tells it all that it knows, and it opens when all that live have done so. Whoever loses the connection enters
again, in the same way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

import hiredis

from gateway.adapters.redis.books import Books
from gateway.adapters.redis.link import Link, LinkLostError
from gateway.adapters.redis.packing import RefusedByRedisError, accepted, pack, unpack
from gateway.adapters.redis.scripts import all_scripts, script
from gateway.pipeline.ports import SharedState, Sighting, StoreUnavailableError

LOGGER: Final = logging.getLogger("gateway.shared_state")
BEAT_SECONDS: Final = 1.0
SEEN_SECONDS: Final = 2.0
OPEN_WAIT_MS_MAX: Final = 4_000
"""Workers that live are waited for so long; service is back within five seconds."""
OPEN_AGAIN_SECONDS: Final = 0.1
RENEW_SECONDS: Final = 15.0
JOIN_SECONDS_MAX: Final = 5.0
RETRY_SECONDS_MAX: Final = 1.0
SWEEP_AFTER_SECONDS: Final = 5.0
"""Whoever enters does not sweep at once: after a long silence of the server, others that live enter a moment later and
tell again what they hold."""
TOLD_AT_ONCE_MAX: Final = 500
SWEPT_AT_ONCE_MAX: Final = 1_000

_TROUBLES: Final = (
    LinkLostError,
    RefusedByRedisError,
    StoreUnavailableError,
    TimeoutError,
    hiredis.HiredisError,
)


class State(StrEnum):
    """What a worker can do with the shared state."""

    OK = "ok"
    REBUILDING = "rebuilding"
    AWAY = "away"


class Session:
    """One stay in one generation, over one link: what may be called there, and with which token."""

    def __init__(
        self, link: Link, *, prefix: str, number: int, worker_id: str, token: str, now_ms: Callable[[], int] | None
    ) -> None:
        self.link = link
        self.number = number
        base = f"{{{prefix}}}:"
        self._keys = (f"{base}generation", f"{base}{number}:worker:{worker_id}")
        self._about = (base, str(number), worker_id, token)
        self._now_ms = now_ms
        self._digests: dict[str, str] = {}

    def call(self, name: str, payload: bytes) -> asyncio.Future[Any]:
        """Calls a script; for what the future may hold see ``Link.send``."""
        digest = self._digests.get(name)
        if digest is None:
            digest = self._digests[name] = script(name).digest
        now = "" if self._now_ms is None else str(self._now_ms())
        return self.link.send("EVALSHA", digest, 2, *self._keys, *self._about, now, payload)


class Membership:
    """Keeps a worker in the generation that is in force. ``session`` is None while it is in none."""

    def __init__(
        self,
        url: str,
        worker_id: str,
        shared: SharedState,
        books: Books,
        *,
        prefix: str,
        now_ms: Callable[[], int] | None,
    ) -> None:
        assert prefix.replace("-", "").isalnum(), "the prefix is a plain word"
        assert "/" not in worker_id
        self._url = url
        self._worker_id = worker_id
        self._shared = shared
        self._books = books
        self._prefix = prefix
        self._now_ms = now_ms
        self._sessions = 0
        self._least = 0
        self._entered_at = self._renewed_at = 0.0
        self._wake = asyncio.Event()
        self._usable = asyncio.Event()
        self._open = asyncio.Event()
        self._away_since: float | None = None
        self._clearing: asyncio.Task[None] | None = None
        self.session: Session | None = None
        self.state = State.AWAY
        self.generation = 0
        self.founded_ms = 0
        self.founded_here = False

    # --- for those who ask -----------------------------------------------------------------------------------------

    async def wait(self, *, is_open: bool, patience: float) -> bool:
        """Whether the state can be asked (for budgets: ``is_open``); waits for it, but not longer than ``patience``
        since it was well."""
        event = self._open if is_open else self._usable
        if event.is_set():
            return True
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
        try:
            async with asyncio.timeout_at(self._away_since + patience):
                await event.wait()
        except TimeoutError:
            return False
        return True

    def lose(self, session: Session, why: str) -> None:
        """This session is worth nothing any more; a new one is looked for at once."""
        if self.session is session:
            session.link.close()
            self._lost(why)

    def close(self) -> None:
        """Ends the session, if there is one."""
        self.state = State.AWAY
        if self.session is not None:
            self.lose(self.session, "closed")

    # --- the life of a member --------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event, *, before_leaving: Callable[[], Awaitable[None]]) -> None:
        """Enters, stays and enters again until ``stop``; then leaves."""
        self._wake.clear()
        staying = asyncio.create_task(self._keep_in(stop), name="shared-state-stay")
        seeing = asyncio.create_task(self._keep_seen(), name="shared-state-seen")
        stopping = asyncio.create_task(self._wake_when(stop), name="shared-state-stop")
        try:
            done, _ = await asyncio.wait((staying, seeing), return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
            seeing.cancel()  # a word under way that this worker lives would undo that it has left
            await asyncio.gather(seeing, return_exceptions=True)
            await self._leave(before_leaving)
        finally:
            tasks = [staying, seeing, stopping, *([] if self._clearing is None else [self._clearing])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.close()

    async def _keep_in(self, stop: asyncio.Event) -> None:
        troubles = 0
        while not stop.is_set():
            self._wake.clear()
            session, pause = self.session, BEAT_SECONDS
            try:
                if session is None:
                    await self.join()
                    troubles, pause = 0, 0.0
                elif self.state is State.REBUILDING:
                    await self.try_to_open(session)
                    pause = OPEN_AGAIN_SECONDS
                else:
                    await self.renew(session)
                    await self._beat(session)
            except _TROUBLES as trouble:
                if session is not None:
                    self.lose(session, _words(trouble))
                else:
                    troubles += 1
                    level = logging.WARNING if troubles == 1 else logging.DEBUG
                    LOGGER.log(level, "the shared state cannot be entered: %s", _words(trouble))
                pause = min(0.02 * 2**troubles, RETRY_SECONDS_MAX)
            if pause and not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)

    async def _keep_seen(self) -> None:
        """Says that this worker lives, and hears of later generations."""
        while True:
            with suppress(StoreUnavailableError):
                sighting = await self._shared.seen(self._worker_id)
                self._least = max(self._least, sighting.generation)
                if self.session is not None and self.session.number < self._least:
                    self.lose(self.session, "a later generation was founded")
            await asyncio.sleep(SEEN_SECONDS)

    async def _wake_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _leave(self, before_leaving: Callable[[], Awaitable[None]]) -> None:
        """Nobody waits for this worker any more, and it holds nothing that is not under way."""
        if self.session is not None:
            with suppress(*_TROUBLES):
                async with asyncio.timeout(1.0):
                    await before_leaving()
                    self._sessions += 1
                    _, kept = self._books.snapshot()
                    accepted(await self.session.call("finish", pack((self._sessions, kept))))
        with suppress(StoreUnavailableError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._shared.leave(self._worker_id)

    # --- entering --------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """A new link and a new session, in which everything is told once more. Raises what ``_TROUBLES`` names."""
        sighting = await self._sighting()
        link = await Link.open(self._url, self._link_lost)
        try:
            async with asyncio.timeout(JOIN_SECONDS_MAX):
                run = await _run_of(link)
                await asyncio.gather(*(link.send("SCRIPT", "LOAD", each.text) for each in all_scripts()))
                number, founded_ms, is_open = await self._enter(link, run, sighting)
                await self._tell_all(link, number)
            if not link.is_open:
                raise LinkLostError("lost while entering")
        except BaseException:
            link.close()
            self._books.stop_noting()
            raise
        self._entered(self._session(link, number, is_member=True), founded_ms, is_open=is_open)
        if self.founded_here:
            self.founded_here = False
            self._clearing = asyncio.create_task(self._clear_older(link, number), name="shared-state-clear")

    async def _sighting(self) -> Sighting | None:
        """None while the database is away: then a generation can be entered, but not founded."""
        try:
            sighting = await self._shared.seen(self._worker_id)
        except StoreUnavailableError:
            return None
        self._least = max(self._least, sighting.generation)
        return sighting

    async def _enter(self, link: Link, run: str, sighting: Sighting | None) -> tuple[int, int, bool]:
        """The generation in force, founded if there is none."""
        self._sessions += 1
        asked = pack((run, self._least, self._sessions))
        nowhere = self._session(link, 0, is_member=False)
        answer = unpack(await nowhere.call("enter", asked))
        if answer[0] == 0:
            if sighting is None:
                raise StoreUnavailableError("a new generation needs the database")
            number = await self._shared.next_generation(after=sighting.generation, above=answer[1])
            if number is None:
                raise RefusedByRedisError("another worker founds a generation")
            LOGGER.warning("the shared state is new or was lost; it is told again, as generation %s", number)
            self.founded_here = True
            await nowhere.call("found", pack((number, run)))
            answer = unpack(await nowhere.call("enter", asked))
        if answer[0] == 0:
            raise RefusedByRedisError("a later generation was founded")
        return answer[0], answer[1], answer[2] == 1

    async def _tell_all(self, link: Link, number: int) -> None:
        session = self._session(link, number, is_member=False)
        told, kept = self._books.snapshot()
        answers = [
            session.call("tell", pack(told[start : start + TOLD_AT_ONCE_MAX]))
            for start in range(0, len(told), TOLD_AT_ONCE_MAX)
        ]
        answers.append(session.call("finish", pack((self._sessions, kept))))
        for answer in await asyncio.gather(*answers):
            accepted(answer)

    def _session(self, link: Link, number: int, *, is_member: bool) -> Session:
        return Session(
            link,
            prefix=self._prefix,
            number=number,
            worker_id=self._worker_id,
            token=f"{self._sessions}:{int(is_member)}",
            now_ms=self._now_ms,
        )

    def _entered(self, session: Session, founded_ms: int, *, is_open: bool) -> None:
        self.session = session
        self.generation, self.founded_ms = session.number, founded_ms
        self._entered_at = self._renewed_at = asyncio.get_running_loop().time()
        self._usable.set()
        if is_open:
            self._opened()
        else:
            self._is(State.REBUILDING)

    def _opened(self) -> None:
        self._is(State.OK)
        self._away_since = None
        self._open.set()

    def _link_lost(self, link: Link, why: str) -> None:
        if self.session is not None and self.session.link is link:
            self._lost(why)

    def _lost(self, why: str) -> None:
        self.session = None
        self._books.stop_noting()
        self._usable.clear()
        self._open.clear()
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()
        self._is(State.AWAY, why)
        self._wake.set()

    def _is(self, state: State, why: str = "") -> None:
        if state is not self.state:
            level = logging.WARNING if state is State.AWAY else logging.INFO
            fields = {"generation": self.generation, "why": why}
            LOGGER.log(level, "shared state: %s", state.value, extra={"fields": fields})
        self.state = state

    # --- staying ---------------------------------------------------------------------------------------------------

    async def try_to_open(self, session: Session) -> None:
        sighting = await self._sighting()
        live = None if sighting is None else sorted(sighting.live)
        answer = accepted(await session.call("open", pack((OPEN_WAIT_MS_MAX, live))))
        if answer[1] == 1 and self.session is session:
            self._opened()

    async def renew(self, session: Session, *, now: bool = False) -> None:
        """Says that this worker's holds are still under way; tells them again if somebody has released them."""
        moment = asyncio.get_running_loop().time()
        if not now and moment - self._renewed_at < RENEW_SECONDS:
            return
        self._renewed_at = moment
        hold_ids = list(self._books.holds)
        for start in range(0, len(hold_ids), TOLD_AT_ONCE_MAX):
            answer = accepted(await session.call("renew", pack(hold_ids[start : start + TOLD_AT_ONCE_MAX])))
            if any(hold_id in self._books.holds for hold_id in answer[1]):
                raise RefusedByRedisError("holds that are under way have expired")

    async def _beat(self, session: Session) -> None:
        """Says that this worker is there, and sweeps after those that are not."""
        if asyncio.get_running_loop().time() - self._entered_at >= SWEEP_AFTER_SECONDS:
            await self.sweep(session)
        else:
            accepted(await session.call("sweep", pack(0)))

    async def sweep(self, session: Session) -> list[str]:
        """Releases holds whose owners are no more; returns their identities."""
        swept: list[str] = []
        while True:
            answer = accepted(await session.call("sweep", pack(SWEPT_AT_ONCE_MAX)))
            swept += answer[1]
            if len(answer[1]) < SWEPT_AT_ONCE_MAX:
                return swept

    async def _clear_older(self, link: Link, number: int) -> None:
        """Removes what older generations have left; nobody reads it any more."""
        base, cursor = f"{{{self._prefix}}}:", b"0"
        with suppress(LinkLostError, hiredis.ReplyError):
            while True:
                cursor, names = await link.send("SCAN", cursor, "MATCH", f"{base}*", "COUNT", 1000)
                older = [name for name in names if _is_older(name, base, number)]
                if older:
                    await link.send("UNLINK", *older)
                if cursor == b"0":
                    return


def _is_older(name: bytes, base: str, number: int) -> bool:
    generation = name.removeprefix(base.encode()).partition(b":")[0]
    return generation.isdigit() and int(generation) < number


async def _run_of(link: Link) -> str:
    """The server's name for its present life; empty where it does not tell."""
    try:
        lines: bytes = await link.send("INFO", "server")
    except hiredis.ReplyError:
        return ""
    return next((line[7:].decode() for line in lines.splitlines() if line.startswith(b"run_id:")), "")


def _words(trouble: BaseException) -> str:
    """Of the server's errors only the first word: the rest may quote what was sent."""
    if isinstance(trouble, hiredis.ReplyError):
        return str(trouble).partition(" ")[0]
    return str(trouble) or type(trouble).__name__

"""The parent of the workers: as many as were asked for run until it is told to stop, and none when it has ended.

A worker that dies is started again, at once and then after ever longer waits. One that cannot start ends everything,
with its own words, as long as the others are not serving yet; later it is tried again while they serve on, because a
mistake in a file that nobody has asked to be read must not take down what runs. A parent that is killed cannot tell
anybody: its workers see their link close and stop by themselves, in order.

Workers tell ``ready`` (with what they run by) or ``refused`` (why they cannot start), and ask for ``metrics``,
``reload`` and ``flush``; the parent asks them for ``snapshot``, ``reload`` and ``flush``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from gateway.adapters.workers.address import Address
from gateway.adapters.workers.link import AnswerError, Link, LinkLostError

LOGGER: Final = logging.getLogger("gateway")
SNAPSHOT_EVERY_SECONDS: Final = 2.0
SNAPSHOT_SECONDS_MAX: Final = 2.0
RELOAD_SECONDS_MAX: Final = 20.0
LAST_WORDS_SECONDS_MAX: Final = 5.0
RESTART_SECONDS: Final = 0.5
RESTART_SECONDS_MAX: Final = 30.0
WELL_SECONDS: Final = 60.0
"""A worker that has run for so long is started again without a wait."""
START_TRIES_MAX: Final = 3
"""So many deaths in a row before the first worker serves are taken for a mistake that will not go away."""
STOP_SECONDS_MAX: Final = 100.0
"""A worker ends by itself long before: streams 25 s, then their settlement and the journal's way to the database."""


class Counts(Protocol):
    """The figures of all workers together."""

    def update(self, worker: int, content: bytes) -> None: ...

    def ended(self, worker: int) -> None: ...

    def render(self) -> str: ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    """One process in one of the places; a restart is another one."""

    number: int
    process: asyncio.subprocess.Process
    link: Link
    started: float
    digest: str | None = None
    refused: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.digest is not None and self.process.returncode is None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """``command`` starts a worker, followed by the descriptor of its link and those of its listening sockets; ``given``
    is what the worker of that number reads on its standard input."""

    count: int
    command: Sequence[str]
    given: Callable[[int], bytes]
    address: Address
    counts: Counts
    restarted: Callable[[], None] = lambda: None
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _has_served: bool = False
    _fault: str | None = None
    _reloading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def ready(self) -> int:
        """How many workers serve."""
        return sum(worker.is_ready for worker in self._workers.values())

    async def run(self) -> str | None:
        """Until a signal, or a fault that ends everything. Answers that fault, None for an orderly end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        reloads: set[asyncio.Task[None]] = set()
        loop.add_signal_handler(signal.SIGHUP, lambda: reloads.add(loop.create_task(self._reload_told())))
        keepers = [loop.create_task(self._keep(number)) for number in range(self.count)]
        for keeper in keepers:
            keeper.add_done_callback(self._kept)
        await self._stopping.wait()
        _, late = await asyncio.wait(keepers, timeout=STOP_SECONDS_MAX)
        if late:
            self._fault = f"{len(late)} workers did not end within {STOP_SECONDS_MAX:g} s and were killed."
            for worker in self._workers.values():
                worker.signal(signal.SIGKILL)
        await asyncio.gather(*keepers, return_exceptions=True)
        for task in reloads:
            task.cancel()
        return self._fault

    # -- one worker --------------------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Keeps one place filled until the end of everything."""
        deaths = 0
        while not self._stopping.is_set():
            worker = await self._start(number)
            await self._live(worker)
            self.counts.ended(number)
            lived = asyncio.get_running_loop().time() - worker.started
            deaths = 1 if worker.digest is not None and lived >= WELL_SECONDS else deaths + 1
            fault = self._fault_of(worker, deaths)
            if fault is not None:
                self._give_up(fault)
            elif not self._stopping.is_set():
                await self._mourn(worker, deaths)

    def _fault_of(self, worker: _Worker, deaths: int) -> str | None:
        """Why everything ends with this worker; None where it does not."""
        status = worker.process.returncode
        assert status is not None
        if self._stopping.is_set():
            was_told = worker.digest is None and status < 0  # by a signal, before it could know what that means
            return None if status == 0 or was_told else f"worker {worker.number} stopped with status {status}."
        if worker.digest is not None or (self._has_served and self.ready):
            return None
        if worker.refused is not None:
            return worker.refused
        if status > 0 or deaths >= START_TRIES_MAX:
            return f"worker {worker.number} ended with status {status} before it served; the log says why."
        return None

    async def _mourn(self, worker: _Worker, deaths: int) -> None:
        """Tells of a death, and waits until it is time for the next life."""
        wait = 0.0 if deaths == 1 else min(RESTART_SECONDS_MAX, RESTART_SECONDS * 2 ** min(deaths - 2, 10))
        fields = {"number": worker.number, "status": worker.process.returncode, "again_in_seconds": wait}
        why = "" if worker.refused is None else f": {worker.refused}"
        LOGGER.error("a worker ended%s", why, extra={"fields": fields})
        self.restarted()
        if wait:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)

    async def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        listeners = self.address.sockets()
        descriptors = [each.fileno() for each in (theirs, *listeners)]
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                *map(str, descriptors),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which then tells its workers
            )
        finally:
            for each in (theirs, *listeners):
                each.close()
        assert process.stdin is not None
        process.stdin.write(self.given(number))
        process.stdin.close()

        async def take(what: str, content: Any) -> object:
            return await self._take(worker, what, content)

        link = await Link.open(ours, take)
        worker = _Worker(
            number=number, process=process, link=link, started=asyncio.get_running_loop().time()
        )  # fmt: skip
        self._workers[number] = worker
        if self._stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _live(self, worker: _Worker) -> None:
        """Until the process has ended and everything that it said is heard."""
        hearing = asyncio.create_task(worker.link.run())
        counting = asyncio.create_task(self._count_on(worker))
        await worker.process.wait()
        counting.cancel()
        await asyncio.wait({hearing}, timeout=LAST_WORDS_SECONDS_MAX)
        hearing.cancel()
        await asyncio.gather(hearing, counting, return_exceptions=True)

    async def _take(self, worker: _Worker, what: str, content: Any) -> object:
        """What a worker says or asks."""
        match what:
            case "ready":
                worker.digest = str(content)
                self._tell_ready(worker)
            case "refused":
                worker.refused = str(content)
            case "metrics":
                return await self._metrics()
            case "reload":
                return await self.reload()
            case "flush":
                return await self._flush(float(content))
            case _:
                raise AnswerError(f"nobody here knows of {what!r}")
        return None

    def _tell_ready(self, worker: _Worker) -> None:
        others = {each.digest for each in self._workers.values() if each.is_ready and each is not worker}
        if others - {worker.digest}:
            LOGGER.warning("worker %d runs by other files than the others do: reload", worker.number)
        if self.ready < self.count:
            return
        self._has_served = True
        fields = {"url": self.address.url, "workers": self.count, "parent": os.getpid()}
        LOGGER.info("all workers are ready", extra={"fields": fields})

    # -- all of them -------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """A first signal lets open streams run on; a second one is passed on too, and ends them."""
        self._stopping.set()
        LOGGER.info("stopping the workers", extra={"fields": {"workers": len(self._workers)}})
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def _give_up(self, fault: str) -> None:
        if self._fault is None:
            self._fault = fault
        if not self._stopping.is_set():
            self._stop()

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """A place that is kept no more, though nobody has said stop, ends everything."""
        error = keeper.exception()
        if error is not None:
            LOGGER.error("defect", exc_info=error)
            self._give_up(f"the workers cannot be kept running: {error}.")

    async def _count_on(self, worker: _Worker) -> None:
        """Keeps the figures of a worker fresh, so that little of them is lost when it dies."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), SNAPSHOT_EVERY_SECONDS)
            await self._count(worker)

    async def _count(self, worker: _Worker) -> None:
        """Takes one snapshot; of a worker that does not answer, the one before stands."""
        if worker.is_ready:
            with contextlib.suppress(LinkLostError, AnswerError):
                content = await worker.link.ask("snapshot", answer=msgspec.Raw, seconds_max=SNAPSHOT_SECONDS_MAX)
                self.counts.update(worker.number, bytes(content))

    async def _metrics(self) -> str:
        await asyncio.gather(*(self._count(worker) for worker in list(self._workers.values())))
        return self.counts.render()

    async def _flush(self, seconds: float) -> bool:
        """Whether every worker has brought what is durable to the database."""
        workers = [worker for worker in self._workers.values() if worker.is_ready]
        asked = (worker.link.ask("flush", seconds, answer=bool, seconds_max=1.5 * seconds) for worker in workers)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return all(answer is True for answer in answers)

    async def reload(self) -> dict[str, object]:
        """Has every worker read the configuration again. Raises AnswerError where one of them could not."""
        async with self._reloading:
            workers = [worker for _, worker in sorted(self._workers.items()) if worker.is_ready]
            answers = await asyncio.gather(*(_reloaded(worker) for worker in workers))
        refusals = [answer for answer in answers if isinstance(answer, str)]
        done = [answer for answer in answers if not isinstance(answer, str)]
        if refusals and not done:
            raise AnswerError(refusals[0])
        if refusals or not done or len({answer["digest"] for answer in done}) > 1:
            told = refusals[0] if refusals else "the files changed meanwhile"
            raise AnswerError(f"Only {len(done)} of {self.count} workers have reloaded; reload again. {told}")
        return {**done[0], "workers": self.count, "reloaded": len(done)}

    async def _reload_told(self) -> None:
        try:
            answer = await self.reload()
        except AnswerError as error:
            LOGGER.error("configuration not reloaded: %s", error)  # noqa: TRY400
            return
        LOGGER.info("configuration reloaded by all workers", extra={"fields": {"reloaded": answer["reloaded"]}})


async def _reloaded(worker: _Worker) -> dict[str, Any] | str:
    """What one worker answers to a reload, or its reason why not."""
    try:
        answer = await worker.link.ask("reload", answer=dict[str, Any], seconds_max=RELOAD_SECONDS_MAX)
    except (AnswerError, LinkLostError) as error:
        return str(error)
    worker.digest = str(answer["digest"])
    return answer

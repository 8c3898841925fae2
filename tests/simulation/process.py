"""The gateway as one simulated process: its own root and face, over ports that end with the process's life."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from pydantic import SecretStr

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.gossip import NoGossip
from gateway.adapters.health import MemoryHealthBook
from gateway.adapters.journal import JournalWriter, journal_id
from gateway.adapters.journal.outbox import Outbox
from gateway.adapters.memory import MemoryApiKeys
from gateway.adapters.postgres.shipper import Shipper
from gateway.adapters.telemetry import PrometheusTelemetry
from gateway.app import CLOSE_SECONDS_MAX, SHUTDOWN_SECONDS, Gateway
from gateway.core import api_key
from gateway.core.exchange import Principal
from gateway.http.chat import chat_route
from gateway.http.services import Services
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.experience import Experience
from gateway.pipeline.noting import Noting
from gateway.pipeline.probe import Probes
from gateway.pipeline.turns import Turns
from tests.pipeline.world import configuration
from tests.simulation.balances import SimulatedBalances
from tests.simulation.clients import Connection
from tests.simulation.committer import DrivenCommitter
from tests.simulation.disk import DiskCalls
from tests.simulation.evidence import Closing
from tests.simulation.life import Life

LISTENS_SECONDS: Final = 0.1
"""A server that was told to stop still takes a connection for so long."""


class _Keys(MemoryApiKeys):
    """The key store of this process, which needs no refreshing."""

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()

    def replace(self, principal: Principal) -> None:
        """The key's limits and budgets have been changed."""
        self._keys[principal.key_id] = principal


class _Idle:
    """A service that has nothing to do."""

    async def run(self, stop: asyncio.Event) -> None:
        await stop.wait()


class _Closable:
    async def close(self) -> None:
        pass


class SimulatedGateway(Gateway):
    """One worker on simulated ports."""

    def __init__(self, world: Any, life: Life) -> None:
        """Opens a journal of its own. Raises OSError."""
        self._life = life
        self._stop = asyncio.Event()
        self.loop = self.deadline = None
        self.clock = world.clock
        self.committer = DrivenCommitter(world.disk.sync_time, world.disk.chance)
        self.calls = DiskCalls(world.disk, life, self.committer)
        name = journal_id(self.clock.now(), world.chance.randbytes(4))
        self.journal = JournalWriter.open(
            world.folder,
            name,
            syscalls=self.calls,
            committer=self.committer,
            segment_bytes_max=world.scenario.segment_bytes_max,
        )
        outbox = Outbox(world.folder, self.journal, syscalls=DiskCalls(world.disk, life))
        self.shipper = Shipper(
            "", outbox, clock=self.clock, chance=world.chance.random, connect=world.database.connector(life)
        )
        self.keys = _Keys(self.clock)  # type: ignore[assignment]
        for holder, principal in world.principals():
            self.keys.add(api_key.digest(holder.secret), principal)  # type: ignore[attr-defined]
        self.administration = self.reports = self.shared_state = _Closable()  # type: ignore[assignment]
        self.alerts = _Idle()  # type: ignore[assignment]
        self.siblings = None
        self.balances = SimulatedBalances(world.database, life, world.balance_chance)  # type: ignore[assignment]
        self.telemetry = PrometheusTelemetry()
        self.gossip = NoGossip()
        self.noting = Noting(gossip=self.gossip, clock=self.clock)
        self.health = MemoryHealthBook(self.clock, world.chance.random)
        self.upstreams = world.providers.upstreams(life)
        self.allowances = LocalAllowances(name, self.balances, clock=self.clock, caught_up=self.shipper.caught_up)
        self.conductor = Conductor(
            configuration=configuration(world.scenario.catalogue),
            keys=self.keys,
            journal=self.journal,
            upstreams=self.upstreams,
            health=self.health,
            experience=Experience(),
            telemetry=self.telemetry,
            clock=self.clock,
            ids=world.ids,
            allowances=self.allowances,
            noting=self.noting,
            turns=Turns(
                waiting_max=world.scenario.rights.waiting_max,
                waiting_of_key_max=world.scenario.rights.waiting_of_key_max,
            ),
        )
        self.probes = Probes(
            configuration=lambda: self.conductor.configuration,
            health=self.health,
            inquiries=self.upstreams,
            gossip=self.gossip,
            claims=self.gossip,
            clock=self.clock,
            chance=world.providers.free_chance.random,
        )
        self.services = Services(
            conductor=self.conductor,
            admin_token=SecretStr("unused"),
            administration=self.administration,  # type: ignore[arg-type]
            reports=self.reports,  # type: ignore[arg-type]
            readiness=self.readiness,
            metrics=self.metrics,
            metrics_type=self.telemetry.METRICS_TYPE,
            provider_states=self.provider_states,
            reload=self.reload_all,
            flush=self.shipper.flush,
        )
        self._route: Callable[..., Awaitable[None]] = chat_route(self.services).fn
        self._requests: set[asyncio.Task[None]] = set()
        self._serving: asyncio.Task[None] | None = None
        self._told_to_stop = asyncio.Event()
        self.is_listening = False

    def start(self) -> None:
        """Serves until it is told to stop."""
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        async with self.lifespan(None):  # type: ignore[arg-type]
            self.is_listening = True
            await self._told_to_stop.wait()
            self.begin_shutdown()
            await asyncio.sleep(LISTENS_SECONDS)
            self.is_listening = False
            if self._requests:
                _, late = await asyncio.wait(list(self._requests), timeout=SHUTDOWN_SECONDS + CLOSE_SECONDS_MAX)
                for task in late:
                    task.cancel()

    async def terminate(self) -> None:
        """SIGTERM, and the wait for the end of it."""
        self._told_to_stop.set()
        assert self._serving is not None
        ending = asyncio.ensure_future(self._life.ended.wait())
        await asyncio.wait({self._serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        with suppress(asyncio.CancelledError):
            await ending
        if self._life.is_alive:
            self._serving.result()

    def accept(self, connection: Connection) -> asyncio.Task[None]:
        """One request, served in a task of its own."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": connection.headers,
        }
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(
            self._route(scope, connection.receive, connection.send)  # type: ignore[arg-type]
        )
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return task

    def change(self, principals: Iterable[Principal]) -> None:
        """Limits and budgets are others from now on."""
        for principal in principals:
            self.keys.replace(principal)  # type: ignore[attr-defined]

    def kill(self) -> None:
        """What the kernel does for a process that is no more."""
        self.committer.kill()
        self.calls.close_all()
        self.journal._claimed.release()


def closing(gateway: SimulatedGateway, life: Life) -> Closing:
    """What a process that ends in order still holds, and what it knows to be spent."""
    book = gateway.allowances.book
    return Closing(
        life=life,
        holds=tuple(book.holds),
        running={scope: state.running for scope, state in book._scopes.items() if state.running},
        waiting=gateway.conductor.turns.waiting,
        held={key: state.held for key, state in book.windows.items()},
        spent={
            (state.window.scope, state.window.period.value, state.window.first_day): state.spent
            for state in book.windows.values()
        },
    )

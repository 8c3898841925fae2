"""One seed, one world: providers, clients, a disk, a database, and a gateway that is killed and started again.

Everything that happens follows from the seed. ``simulate`` runs a world to its end and has it audited.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from gateway.adapters.logs import JsonFormatter
from gateway.core import api_key
from gateway.core.exchange import Principal
from tests.pipeline.virtual_time import START_SECONDS, NothingWillHappenError
from tests.pipeline.world import CountingIds
from tests.simulation.auditor import audit
from tests.simulation.clients import Connection, Manners, numbered, request
from tests.simulation.database import SimulatedDatabase, Troubles
from tests.simulation.disk import SimulatedDisk
from tests.simulation.evidence import Closing, Evidence
from tests.simulation.life import Life
from tests.simulation.loop import OWNER, SimulationLoop
from tests.simulation.process import LISTENS_SECONDS, SimulatedGateway, closing
from tests.simulation.providers import Call, SimulatedProviders
from tests.simulation.rights import KeyHolder, Policy, principal
from tests.simulation.scenario import ClientPlan, LifePlan, Scenario, scenario

SECONDS_MAX: Final = 3_000.0
"""Nothing in a world may take longer."""
QUIET_SECONDS: Final = 2.0
HEALED_SECONDS: Final = 5.0
BORROWED: Final = api_key.new_secret(bytes(range(1, 33)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a seed went. ``trace_hash`` is the same for the same seed."""

    seed: int
    violations: tuple[str, ...]
    trace_hash: str
    trace: tuple[str, ...]
    virtual_seconds: float
    calls: int
    lives: int

    def without_trace(self) -> Result:
        return replace(self, trace=())


def simulate(seed: int) -> Result:
    """Runs one seed to its end."""
    loop = SimulationLoop()
    folder = Path(tempfile.mkdtemp(prefix="kimi-gateway-simulation-", dir=_memory()))
    world = None
    try:
        with _captured_logs() as logs:
            world = loop.run_until_complete(_built(seed, folder, loop, logs))
            loop.run_until_complete(world.run())
            world.check_leftovers()
            world.violations += audit(world.evidence())
    except (Exception, NothingWillHappenError) as error:
        if world is None:
            raise
        world.violations.append(f"the simulation broke: {type(error).__name__}: {error}")
        world.give_up()
    finally:
        loop.close_quietly()
        shutil.rmtree(folder, ignore_errors=True)
    return world.result()


async def _built(seed: int, folder: Path, loop: SimulationLoop, logs: list[str]) -> World:
    return World(seed, folder, loop, logs)


def _memory() -> str | None:
    """Where files cost least; nothing in a simulation has to outlive it."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() else None


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def _captured_logs() -> Iterator[list[str]]:
    """Every line that the gateway logs meanwhile, and nothing on the terminal."""
    lines: list[str] = []
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [_Lines(lines)]
    root.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.handlers[:] = before
        root.setLevel(level)


class WorldClock:
    """The port ``Clock``: virtual seconds from the moment at which the world begins."""

    def __init__(self, loop: asyncio.AbstractEventLoop, begins: datetime) -> None:
        self._loop = loop
        self._begins = begins

    def now(self) -> datetime:
        return self._begins + timedelta(seconds=self._loop.time() - START_SECONDS)

    def monotonic(self) -> float:
        return self._loop.time()


class World:
    """Everything there is in one simulation."""

    def __init__(self, seed: int, folder: Path, loop: SimulationLoop, logs: list[str]) -> None:
        self.scenario: Scenario = scenario(seed)
        self.folder = folder
        self.loop = loop
        self.logs = logs
        self.chance = Random(f"gateway {seed}")
        self.clock = WorldClock(loop, self.scenario.begins)
        self.ids = CountingIds()
        self.balance_chance = Random(f"balances {seed}")
        self.trace: list[str] = []
        self.violations: list[str] = []
        self.lives: list[Life] = []
        self.gateways: list[SimulatedGateway] = []
        self.connections: list[Connection] = []
        self.current: SimulatedGateway | None = None
        self._moments = 0
        self.disk = SimulatedDisk(chance=Random(f"disk {seed}"), now=self.now, note=self.note)
        self.disk.troubles = list(self.scenario.disk)
        self.disk.sync_seconds = self.scenario.sync_seconds
        self.database = SimulatedDatabase(
            chance=Random(f"database {seed}"),
            time_zone=self.scenario.rights.time_zone,
            now=self.now,
            note=self.note,
        )
        self.database.troubles = self.scenario.database
        self.providers = SimulatedProviders(
            chance=Random(f"providers {seed}"), free_chance=Random(f"free {seed}"), now=self.now, note=self.note
        )
        self.providers.models = {
            deployment.upstream
            for each in self.scenario.catalogue.providers.values()
            for deployment in each.deployments.values()
        }
        self.providers.characters = self.scenario.characters
        self.providers.on_open = self._opened
        self._client_chance = Random(f"clients {seed}")
        self.closings: list[Closing] = []
        self._returned: list[asyncio.Future[None]] = []
        self._policy = self.scenario.rights.policies[0]

    # --- for the parts -----------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.loop.time() - START_SECONDS

    def order(self) -> int:
        """The next moment's number: what happened before what, also within one virtual instant."""
        self._moments += 1
        return self._moments

    def note(self, *what: object) -> None:
        self.trace.append(f"{self.now():10.4f} {' '.join(map(str, what))}")

    def principals(self) -> Iterator[tuple[KeyHolder, Principal]]:
        """Every key as it is just now."""
        allowed = self.scenario.rights
        for holder in allowed.holders:
            yield holder, principal(holder, self._policy, allowed.time_zone)

    def _change(self, policy: Policy) -> None:
        self._policy = policy
        self.note("limits and budgets are changed")
        if self.current is not None:
            self.current.change(made for _, made in self.principals())

    def _opened(self, call: Call) -> None:
        """Law L2, as it happens: the intent is on the disk before an upstream is called."""
        call.order = self.order()
        manners = self.connections[call.connection - 1].manners
        call.slow_reader = bool(manners.read_seconds) or manners.deaf_at is not None
        if "intent" not in self.disk.durable[call.attempt_id]:
            self.violations.append(f"L2: {call.attempt_id} was dispatched before its intent was durable")

    def _answered(self, connection: Connection) -> None:
        """Law L3, as it happens: the settlement is on the disk before the last byte leaves."""
        self.note("answered", connection.number, connection.status, len(connection.bytes))
        settled = (attempt_id for attempt_id, kinds in self.disk.durable.items() if "settle" in kinds)
        connection.durable_at_end = set(settled)

    # --- the course of things ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lives one after another until every client has gone, then a quiet one that brings the books up to date."""
        async with asyncio.timeout(SECONDS_MAX):
            planned = sorted(self.scenario.clients, key=lambda plan: plan.arrives)
            clients = [asyncio.ensure_future(self._client(plan)) for plan in planned]
            later = self.scenario.rights.policies[1:]
            changes = [self.loop.call_later(policy.since, self._change, policy) for policy in later]
            for plan in self.scenario.lives:
                await self._live(plan)
            self._calm_down()
            gateway = await self._start(None)
            self._returned += self._returning()
            await asyncio.gather(*clients, *self._returned)
            await self._shipped(gateway)
            await self._stop(gateway, "term")
            await self._replay()
            for change in changes:
                change.cancel()

    def _calm_down(self) -> None:
        """From now on nothing goes wrong but what clients and providers have begun."""
        self.disk.troubles = []
        self.database.troubles = Troubles()
        self.providers.is_calm = True
        self.note("calm")

    async def _live(self, plan: LifePlan) -> None:
        """One process, and if it is stopped by a signal, a client that comes too late for it."""
        gateway = await self._start(plan)
        life = self.lives[-1]
        self._returned += self._returning()
        with suppress(TimeoutError):
            async with asyncio.timeout(plan.seconds):
                await life.ended.wait()
        late = self._late() if plan.end == "term" and life.is_alive else None
        await self._stop(gateway, plan.end if plan.end == "power" or life.is_alive else "kill")
        if late is not None:
            await late
        if plan.end == "power":
            self.disk.lose_power()
        await asyncio.sleep(plan.down_seconds)

    def _returning(self) -> list[asyncio.Future[None]]:
        """Those who could hardly wait for a process that has just started again."""
        if len(self.lives) == 1:
            return []
        return [asyncio.ensure_future(self._client(plan)) for plan in self.scenario.returning]

    def _late(self) -> asyncio.Future[None]:
        arrives = ClientPlan(arrives=LISTENS_SECONDS / 2, manners=Manners())
        return asyncio.ensure_future(self._client(arrives))

    async def _start(self, plan: LifePlan | None) -> SimulatedGateway:
        doom = None if plan is None else plan.doom
        life = Life(number=len(self.lives) + 1, now=self.now, doom=doom, started_at=self.now())
        self.lives.append(life)
        self.note("start", life.number)
        token = OWNER.set(life)
        try:
            gateway = SimulatedGateway(self, life)
            gateway.start()
        finally:
            OWNER.reset(token)
        self.gateways.append(gateway)
        self.current = gateway
        await asyncio.sleep(0)
        return gateway

    async def _stop(self, gateway: SimulatedGateway, how: str) -> None:
        life = self.lives[-1]
        if how == "term":
            self.note("term", life.number)
            await self._terminate(gateway, life)
        self.current = None
        if how == "term" and life.is_alive:
            self._check_ended(gateway, life)
            life.die()
            self.note("ended", life.number)
        else:
            life.end = "power" if how == "power" else "kill"
            life.die()
            self.note("killed", life.number)
            gateway.kill()
            self.providers.hang_up(life)
        await self.loop.bury(life)

    async def _terminate(self, gateway: SimulatedGateway, life: Life) -> None:
        begun = life.stopping_at = self.now()
        token = OWNER.set(life)
        try:
            stopping = asyncio.get_running_loop().create_task(gateway.terminate())
        finally:
            OWNER.reset(token)
        life.tasks.remove(stopping)
        await stopping
        life.disk_is_well_again = self.disk.healed_for(HEALED_SECONDS)  # what it refused was held, and written since
        if self.now() - begun > 90:
            self.violations.append(f"shutdown: process {life.number} took {self.now() - begun:.0f} s to stop")

    def _check_ended(self, gateway: SimulatedGateway, life: Life) -> None:
        """A process that ended by itself leaves nothing behind."""
        left = self.loop.leftovers_of(life)
        deaf = any(each.life is life and each.deaf and each.left_at is None for each in self.connections)
        if left and not deaf:  # one who never reads keeps the end of an answer waiting for longer than a shutdown
            self.violations.append(f"leftovers: process {life.number} left {left}")
        if not deaf:
            self.closings.append(closing(gateway, life))
        probes = [subject for subject, health in gateway.health if health.probe_until is not None]
        if probes:
            self.violations.append(f"leftovers: process {life.number} left probes {probes}")
        for call in self.providers.calls:
            if call.life is life and call.released_at is None:
                self.violations.append(f"leftovers: call {call.number} was never released")

    async def _shipped(self, gateway: SimulatedGateway) -> None:
        """Waits until the journals, those of the dead as well, are in the database."""
        await asyncio.sleep(QUIET_SECONDS)
        if not await gateway.shipper.flush(QUIET_SECONDS):
            self.violations.append("L3: the books were not shipped in time")

    async def _replay(self) -> None:
        """Law L4: every journal once more, from its beginning, adds nothing."""
        if not self.scenario.replays:
            return
        self.note("replay")
        before = self.database.tables
        self.database.tables.offsets.clear()
        for mark in sorted(self.folder.glob("journal/*/shipped")):
            mark.unlink()
        gateway = await self._start(None)
        await self._shipped(gateway)
        await self._stop(gateway, "term")
        after = self.database.tables
        if len(after.ledger) != len(before.ledger):
            self.violations.append(
                f"L4: a replay took the ledger from {len(before.ledger)} to {len(after.ledger)} rows"
            )
        if after.rollup != before.rollup or after.postings != before.postings:
            self.violations.append("L4: a replay changed the roll-ups or the postings")

    # --- clients -----------------------------------------------------------------------------------------------------

    async def _client(self, plan: ClientPlan) -> None:
        await asyncio.sleep(plan.arrives)
        body, asked = request(self._client_chance)
        holder = None if self._client_chance.random() < 0.02 else self.scenario.rights.holders[plan.holder]
        secret = BORROWED if holder is None else holder.secret
        headers = [(b"authorization", b"Bearer " + secret.encode()), (b"content-type", b"application/json")]
        asked = None if holder is None else asked
        if asked is not None and plan.limit is not None:
            asked.setdefault("max_tokens", plan.limit)
        for _ in range(1 + plan.manners.retries):
            connection = await self._connect(plan, body, asked, headers, holder)
            if connection is not None and connection.is_satisfied:
                return
            await asyncio.sleep(self._client_chance.uniform(0.1, 3.0))

    async def _connect(
        self, plan: ClientPlan, body: bytes, asked: Any, headers: list[tuple[bytes, bytes]], holder: KeyHolder | None
    ) -> Connection | None:
        gateway = self.current
        if gateway is None or not gateway.is_listening:
            self.note("nobody listens")
            return None
        life = gateway._life
        which = len(self.connections) + 1
        connection = Connection(
            number=which,
            life=life,
            body=numbered(body, asked, which),
            asked=asked,
            headers=headers,
            manners=plan.manners,
            holder=holder,
            now=self.now,
            order=self.order,
            opened_at=self.now(),
            on_end=self._answered,
        )
        self.connections.append(connection)
        self.note("connected", connection.number)
        token = OWNER.set(life)
        try:
            serving = gateway.accept(connection)
        finally:
            OWNER.reset(token)
        leaving = None
        if plan.manners.leaves_after is not None:
            leaving = self.loop.call_later(plan.manners.leaves_after, connection.leave)
        await asyncio.wait({serving})
        if leaving is not None:
            leaving.cancel()
        connection.ended_at = self.now()
        self.note("ended", connection.number, connection.status, "finished" if connection.finished else "cut")
        return connection

    # --- the end -----------------------------------------------------------------------------------------------------

    def check_leftovers(self) -> None:
        if self.loop.leftovers():
            self.violations.append(f"leftovers: {self.loop.leftovers()}")
        self.violations += [f"trouble: {trouble}" for trouble in self.loop.troubles]

    def evidence(self) -> Evidence:
        return Evidence(
            scenario=self.scenario,
            calls=self.providers.calls,
            connections=self.connections,
            tables=self.database.tables,
            refused=self.database.refused,
            segments=self.disk.segments(),
            logs=self.logs,
            secrets=(BORROWED, *(holder.secret for holder in self.scenario.rights.holders)),
            closings=self.closings,
            lives=self.lives,
        )

    def give_up(self) -> None:
        """Ends what a broken simulation left on the loop."""
        for life, gateway in zip(self.lives, self.gateways, strict=False):
            life.die()
            gateway.kill()
        self.loop.abandon()

    def result(self) -> Result:
        trace = tuple(self.trace)
        return Result(
            seed=self.scenario.seed,
            violations=tuple(self.violations),
            trace_hash=hashlib.sha256("\n".join(trace).encode()).hexdigest()[:16],
            trace=trace,
            virtual_seconds=self.now(),
            calls=len(self.providers.calls),
            lives=len(self.lives),
        )

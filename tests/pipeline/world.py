"""A gateway without a network: the real verbs over ports in memory, upstreams and clients that follow a script.

After every exchange the laws are checked (``World.check``): one settlement for every intent, every answer released
once, no probe left behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Final

from gateway.adapters.allowances import LocalAllowances
from gateway.adapters.gossip import NoGossip
from gateway.adapters.health import MemoryHealthBook
from gateway.adapters.memory import MemoryApiKeys, MemoryBalances, MemoryJournal
from gateway.core.catalogue import (
    Account,
    Catalogue,
    Deployment,
    Model,
    OnClientAbort,
    OnModelMismatch,
    OnRetired,
    ProviderCard,
    Timeouts,
)
from gateway.core.exchange import Principal
from gateway.core.failure import Failure, FailureClass
from gateway.core.ledger import Intent, LedgerEntry, Record
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price, PriceTable
from gateway.core.refusal import RefusedError
from gateway.core.shedding import Shed
from gateway.pipeline.conduct import Conductor
from gateway.pipeline.exchange import Configuration, Exchange
from gateway.pipeline.experience import Experience
from gateway.pipeline.noting import Noting
from gateway.pipeline.ports import MeteringUnavailableError, UpstreamCall, UpstreamFailedError
from gateway.pipeline.telling import refuse
from gateway.pipeline.watch import Watch
from gateway.surfaces.chat_completions import HEARTBEAT
from tests.pipeline.virtual_time import START, VirtualClock
from tests.wire.transcripts import ANSWER, DONE, closing, finish, totals, whole

MODEL: Final = "kimi-k2-thinking"
HEIR: Final = "kimi-k2.6"
NAMES: Final = ("evolink", "moonshot", "cometapi")
"""The providers in the order of their prices."""
USD: Final = {
    "evolink": ("0.556", "0.139", "2.222"),
    "moonshot": ("0.60", "0.15", "2.50"),
    "cometapi": ("1.10", None, "4.40"),
}
TIMEOUTS: Final = Timeouts(connect=5, first_byte=30, idle=20, total=300)
WAIT: Final = 0.25
USAGE: Final = totals(146, 26, cached_tokens=128)
ALICE: Final = Principal(key_id="key_alice", key_name="alice", team="team-a", tags={"env": "test"})

SSE_HEADERS: Final = {"content-type": "text/event-stream", "x-request-id": "up-1", "msh-request-id": "up-1"}
JSON_HEADERS: Final = {"content-type": "application/json", "x-request-id": "up-1", "msh-request-id": "up-1"}


# --- what upstreams do -----------------------------------------------------------------------------------------------


class Forever:
    """A wait that only an interruption ends."""


FOREVER: Final = Forever()
Step = bytes | float | Exception | Forever | Callable[[], None]
"""Bytes that come, seconds that pass, a failure, silence for ever, or something that happens elsewhere meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """One upstream answer. ``opening`` happens before the head comes, ``body`` after it."""

    opening: tuple[Step, ...] = (WAIT,)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: SSE_HEADERS)
    body: tuple[Step, ...] = ()


def stream(*body: Step, **more: Any) -> Script:
    return Script(body=body, **more)


def answer(*, usage: object = USAGE) -> Script:
    """A whole streamed answer with a closing usage chunk."""
    return stream(ANSWER, WAIT, finish(), closing(usage), DONE)


def unstreamed(body: bytes | None = None, **more: Any) -> Script:
    return Script(headers=JSON_HEADERS, body=(body if body is not None else whole(USAGE),), **more)


def refusal(
    status: int, *, kind: str | None = None, code: object = None, message: str = "upstream words", **headers: str
) -> Script:
    error = {"message": message, "type": kind, "code": code}
    body = json.dumps({"error": {name: value for name, value in error.items() if value is not None}}).encode()
    return Script(status=status, headers={**JSON_HEADERS, **headers}, body=(body,))


def broken(kind: FailureClass = FailureClass.BROKEN) -> UpstreamFailedError:
    return UpstreamFailedError(Failure(kind=kind, message="secret transport words"))


@dataclass(eq=False)
class ScriptedAnswer:
    """The port ``UpstreamAnswer``."""

    script: Script
    steps: list[Step]
    status: int
    headers: Mapping[str, str]
    released: list[bool] = field(default_factory=list)

    async def read(self) -> bytes:
        assert not self.released, "read after release"
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, bytes):
                return step
            await _happen(step)
        return b""

    def release(self, *, reusable: bool) -> None:
        self.released.append(reusable)


async def _happen(step: Step) -> None:
    match step:
        case Exception():
            raise step
        case Forever():
            await asyncio.get_running_loop().create_future()
        case float() | int():
            await asyncio.sleep(step)
        case _ if callable(step):
            step()
        case _:
            raise AssertionError(step)


class ScriptedUpstreams:
    """The port ``Upstreams``. Per provider the scripts of its calls in order; the last one repeats."""

    def __init__(self, journal: MemoryJournal, clock: VirtualClock) -> None:
        self._journal = journal
        self._clock = clock
        self.scripts: dict[str, list[Script]] = {}
        self.calls: list[UpstreamCall] = []
        self.called_at: list[float] = []
        self.answers: list[ScriptedAnswer] = []

    async def open(self, call: UpstreamCall) -> ScriptedAnswer:
        self.calls.append(call)
        self.called_at.append(self._clock.monotonic())
        self._check_intent(call)
        scripts = self.scripts.get(f"{call.provider}/{call.account}") or self.scripts[call.provider]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        for step in script.opening:
            await _happen(step)
        answered = ScriptedAnswer(
            script=script, steps=list(script.body), status=script.status, headers=dict(script.headers)
        )
        self.answers.append(answered)
        return answered

    def _check_intent(self, call: UpstreamCall) -> None:
        """Law L2: the intent is on the disk before an upstream is called."""
        wanted = call.headers["x-gateway-attempt-id"]
        positions = range(len(self._journal.records) - 1, -1, -1)
        at = next(index for index in positions if getattr(self._journal.records[index], "attempt_id", None) == wanted)
        assert isinstance(self._journal.records[at], Intent)
        assert at < self._journal.durable_count


# --- what clients see ------------------------------------------------------------------------------------------------


class RecordingReply:
    """The port ``Reply``: keeps what was written, when, and whether the books were durable by then."""

    def __init__(self, journal: MemoryJournal, clock: VirtualClock) -> None:
        self._journal = journal
        self._clock = clock
        self.started = False
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.parts: list[tuple[float, bytes]] = []
        self.tail: bytes | None = None
        self.tail_was_durable = False
        self.gone = False
        self.on_write: Callable[[int], None] = lambda _: None
        self.blocked: asyncio.Event | None = None

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        if not self.started:
            self._start(status, headers)

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        self.status = status
        self.headers = dict(headers)

    async def write(self, data: bytes) -> None:
        assert self.started
        assert self.tail is None, "written after the end"
        self.on_write(len(self.parts) + 1)
        if self.blocked is not None:
            await self.blocked.wait()
        if not self.gone:
            self.parts.append((self._clock.monotonic(), data))

    async def finish(self, data: bytes = b"") -> None:
        assert self.started
        assert self.tail is None, "finished twice"
        self.tail = data
        settled = [index for index, record in enumerate(self._journal.records) if isinstance(record, LedgerEntry)]
        self.tail_was_durable = bool(settled) and settled[-1] < self._journal.durable_count

    def heartbeat(self) -> None:
        assert self.tail is None
        if not self.started:
            self._start(200, {"content-type": "text/event-stream"})
        self.parts.append((self._clock.monotonic(), HEARTBEAT))

    @property
    def relayed(self) -> bytes:
        """What left before the end, without heartbeats."""
        return b"".join(data for _, data in self.parts if data != HEARTBEAT)

    @property
    def body(self) -> bytes:
        return self.relayed + (self.tail or b"")

    @property
    def heartbeats(self) -> list[float]:
        return [at for at, data in self.parts if data == HEARTBEAT]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        lines = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    @property
    def error(self) -> dict[str, Any]:
        """The error of an answer, or of the last event of a stream."""
        payload = self.json if self.headers["content-type"].startswith("application/json") else self.events[-1]
        error = payload["error"]
        assert isinstance(error, dict)
        return error


class RecordingTelemetry:
    """The port ``Telemetry``."""

    def __init__(self) -> None:
        self.settled: list[LedgerEntry] = []
        self.defects: list[Exception] = []
        self.statuses: list[int] = []

    def attempt_settled(self, entry: LedgerEntry) -> None:
        self.settled.append(entry)

    def defect(self, error: Exception, *, request_id: str) -> None:
        self.defects.append(error)

    def refused(self, *, request_id: str, path: str, code: str, status: int) -> None:
        raise AssertionError("refusals before an exchange are the face's")

    def shed(self, reason: Shed) -> None:
        raise AssertionError("only the face turns anybody away")

    def exchange_ended(
        self, *, request_id: str, key_id: str, model: str, surface: str, status: int, code: str, seconds: float
    ) -> None:
        self.statuses.append(status)


class SlowJournal(MemoryJournal):
    """A journal whose disk takes a while, may refuse settlements, and tells what happens during a sync."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_seconds = 0.0
        self.refuses_settlements = False
        self.refuses_progress = False
        self.on_sync: Callable[[int], None] = lambda _: None
        self.syncs = 0

    def append(self, record: Record) -> int:
        if self.refuses_settlements and isinstance(record, LedgerEntry):
            raise MeteringUnavailableError("the disk is full")
        if self.refuses_progress and not isinstance(record, LedgerEntry) and type(record).__name__ == "Progress":
            raise MeteringUnavailableError("the disk is full")
        return super().append(record)

    async def durable(self, position: int) -> None:
        self.syncs += 1
        self.on_sync(self.syncs)
        if self.sync_seconds:
            await asyncio.sleep(self.sync_seconds)
        await super().durable(position)


class CountingIds:
    """The port ``Ids``."""

    def __init__(self) -> None:
        self._count = 0

    def request_id(self) -> str:
        return self._next("req")

    def attempt_id(self) -> str:
        return self._next("att")

    def _next(self, what: str) -> str:
        self._count += 1
        return f"{what}_{self._count:06}"


# --- the catalogue ---------------------------------------------------------------------------------------------------


def deployment(provider: str, model: str = MODEL, **more: Any) -> Deployment:
    return Deployment(
        **{
            "provider": provider,
            "model": model,
            "upstream": model,
            "context": 262_144,
            "max_output": 262_144,
            "capabilities": frozenset({"tools", "json_object", "json_schema", "partial"}),
            **more,
        }
    )


def card(
    name: str, *, models: tuple[str, ...] = (MODEL,), accounts: tuple[str, ...] = ("main",), **more: Any
) -> ProviderCard:
    return ProviderCard(
        **{
            "name": name,
            "dialect": name if name in NAMES else "openai",
            "base_url": f"https://{name}.test/v1",
            "timeouts": TIMEOUTS,
            "accounts": tuple(Account(provider=name, name=account) for account in accounts),
            "deployments": {model: deployment(name, model) for model in models},
            **more,
        }
    )


def price(provider: str, model: str = MODEL, usd: tuple[str, str | None, str] | None = None) -> Price:
    missed, hit, output = usd or USD.get(provider, ("1", None, "2"))
    return Price(
        provider=provider,
        model=model,
        effective_from=datetime(2025, 11, 6, tzinfo=UTC),
        input=UnitPrice.from_usd_per_million(missed),
        cached_input=None if hit is None else UnitPrice.from_usd_per_million(hit),
        output=UnitPrice.from_usd_per_million(output),
    )


def catalogue(
    *cards: ProviderCard, models: tuple[Model, ...] = (), prices: tuple[Price, ...] | None = None
) -> Catalogue:
    known = models or (Model(name=MODEL, successor=HEIR),)
    rows = tuple(price(each.name, name) for each in cards for name in each.deployments) if prices is None else prices
    return Catalogue(
        providers={each.name: each for each in cards},
        models={model.name: model for model in known},
        prices=PriceTable(rows),
        digest="test",
        loaded_at=START,
        aliases={alias: model.name for model in known for alias in model.aliases},
    )


# --- the world -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Run:
    """One exchange under way, or over."""

    world: World
    exchange: Exchange
    reply: RecordingReply
    watch: Watch
    task: asyncio.Task[None]

    def hang_up(self) -> None:
        self.reply.gone = True
        self.watch.hang_up()

    @property
    def entries(self) -> list[LedgerEntry]:
        return [entry for entry in self.world.journal.entries() if entry.request_id == self.exchange.request_id]

    @property
    def entry(self) -> LedgerEntry:
        """Its only ledger entry."""
        (entry,) = self.entries
        return entry

    @property
    def cost(self) -> Money:
        return Money(sum(entry.cost_pico for entry in self.entries))

    async def ended(self) -> Run:
        """Waits for the end and checks the laws."""
        await self.task
        self.world.check()
        return self


class World:
    """One gateway in memory on the running loop."""

    def __init__(
        self, *, names: tuple[str, ...] = NAMES, in_force: Catalogue | None = None, jitter: float = 0.0
    ) -> None:
        loop = asyncio.get_running_loop()
        self.clock = VirtualClock(loop)
        self.journal = SlowJournal()
        self.upstreams = ScriptedUpstreams(self.journal, self.clock)
        self.health = MemoryHealthBook(self.clock, lambda: jitter)
        self.telemetry = RecordingTelemetry()
        self.keys = MemoryApiKeys(self.clock)
        self.experience = Experience()
        self.noting = Noting(gossip=NoGossip(), clock=self.clock)
        self.balances = MemoryBalances()
        self.allowances = LocalAllowances("world", self.balances, clock=self.clock)
        self.catalogue = in_force or catalogue(*map(card, names))
        self.conductor = Conductor(
            configuration=configuration(self.catalogue),
            keys=self.keys,
            journal=self.journal,
            upstreams=self.upstreams,
            health=self.health,
            experience=self.experience,
            telemetry=self.telemetry,
            clock=self.clock,
            ids=CountingIds(),
            allowances=self.allowances,
            noting=self.noting,
        )

    def scripted(self, **scripts: Script | list[Script]) -> World:
        """What each provider answers, call by call."""
        for provider, given in scripts.items():
            self.upstreams.scripts[provider] = list(given) if isinstance(given, list) else [given]
        return self

    def prepared(
        self,
        *,
        stream: bool,
        usage: bool = False,
        principal: Principal = ALICE,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> Exchange:
        """A chat completion request, admitted and planned for. Raises RefusedError where no exchange comes about."""
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}], **members}
        if stream:
            body["stream"] = True
        if usage:
            body["stream_options"] = {"include_usage": True}
        request_id = self.conductor.ids.request_id()
        return self.conductor.prepare(request_id, principal, json.dumps(body).encode(), headers or {})

    def begin(self, *, stream: bool = True, **asked: Any) -> Run:
        """The same on its way."""
        exchange = self.prepared(stream=stream, **asked)
        reply = RecordingReply(self.journal, self.clock)
        watch = Watch(heartbeat=reply.heartbeat if stream else None)
        task = asyncio.get_running_loop().create_task(self.conductor.run(exchange, reply, watch))
        return Run(world=self, exchange=exchange, reply=reply, watch=watch, task=task)

    async def ask(self, **asked: Any) -> Run:
        """And to its end."""
        return await self.begin(**asked).ended()

    async def refused(self, **asked: Any) -> RecordingReply:
        """What a client sees who is refused before an exchange comes about."""
        try:
            self.begin(**asked)
        except RefusedError as error:
            reply = RecordingReply(self.journal, self.clock)
            await refuse(reply, error.refusal, request_id="req_refused")
            return reply
        raise AssertionError("the request was not refused")

    def check(self) -> None:
        """The laws that hold whenever no exchange is under way."""
        intents = [intent.attempt_id for intent in self.journal.intents()]
        entries = [entry.attempt_id for entry in self.journal.entries()]
        assert len(set(entries)) == len(entries), "settled twice"
        if not self.journal.refuses_settlements:
            assert sorted(intents) == sorted(entries), "one settlement for every intent"
            self._check_finals()
        assert all(len(each.released) == 1 for each in self.upstreams.answers), "every answer is released once"
        assert self.allowances.book.holds == {}, "no hold is left behind"
        leases = [subject for subject, health in self.health if health.probe_until is not None]
        assert leases == [], "no probe is left behind"
        assert self.telemetry.settled == self.journal.entries()

    def _check_finals(self) -> None:
        by_request: dict[str, list[LedgerEntry]] = {}
        for entry in self.journal.entries():
            by_request.setdefault(entry.request_id, []).append(entry)
        for entries in by_request.values():
            assert [entry.is_final for entry in entries] == [False] * (len(entries) - 1) + [True]
            assert [entry.attempt for entry in entries] == list(range(1, len(entries) + 1))
            assert len({(entry.provider, entry.account) for entry in entries}) == len(entries)
            assert len(entries) <= 4


def configuration(in_force: Catalogue) -> Configuration:
    """Every account has a credential."""
    accounts = frozenset((each.name, account.name) for each in in_force.providers.values() for account in each.accounts)
    return Configuration(catalogue=in_force, usable_accounts=accounts)


__all__ = [
    "ALICE",
    "FOREVER",
    "HEIR",
    "JSON_HEADERS",
    "MODEL",
    "NAMES",
    "SSE_HEADERS",
    "TIMEOUTS",
    "USAGE",
    "WAIT",
    "Failure",
    "FailureClass",
    "OnClientAbort",
    "OnModelMismatch",
    "OnRetired",
    "Run",
    "Script",
    "World",
    "answer",
    "broken",
    "card",
    "catalogue",
    "configuration",
    "date",
    "deployment",
    "price",
    "refusal",
    "replace",
    "stream",
    "unstreamed",
]

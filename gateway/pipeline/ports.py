"""Ports are what the verbs need of the world, in the verbs' words; adapters implement them, tests too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

import msgspec

from gateway.core.alert import Alert
from gateway.core.allowance import Balance, Demand, Posting, Verdict
from gateway.core.audit import AuditEntry, AuditVerdict, Facts
from gateway.core.budget import BudgetWindow, Period
from gateway.core.budget_terms import BudgetRecord, BudgetTerms
from gateway.core.catalogue import Timeouts
from gateway.core.exchange import Principal
from gateway.core.failure import Failure
from gateway.core.focus import BillingAccount, ChargeFact
from gateway.core.grants import Administrator
from gateway.core.happenings import Checked, Happening
from gateway.core.health import Health, HealthChanged, Subject
from gateway.core.keys import KeyChange, KeyGrant, KeyRecord
from gateway.core.ledger import LedgerEntry, Record
from gateway.core.organisation import Organisation
from gateway.core.shadow import PastRequest
from gateway.core.shedding import Shed
from gateway.core.spend import Selection, SpendQuery, SpendRow
from gateway.core.teams import TeamChange, TeamRecord, TeamTerms


class Clock(Protocol):
    """Time as the verbs see it."""

    def now(self) -> datetime:
        """The moment in UTC, with microseconds."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, from an arbitrary start."""
        ...


class Ids(Protocol):
    """Fresh identifiers, sortable by time."""

    def request_id(self) -> str: ...

    def attempt_id(self) -> str: ...


class HealthBook(Protocol):
    """Every subject's health, as far as this process knows it. ``began`` is when the attempt in question was sent."""

    def of(self, subject: Subject) -> Health: ...

    def out(self) -> Sequence[tuple[Subject, Health]]:
        """Those that are not in, by name."""
        ...

    def answering(self, subjects: Iterable[Subject], *, began: datetime) -> None:
        """The first byte of an answer was relayed: who probes has its answer, long before the end."""
        ...

    def succeeded(self, subjects: Iterable[Subject], *, began: datetime) -> None:
        """An attempt worked with all of these."""
        ...

    def failed(self, subject: Subject, failure: Failure, *, began: datetime, billed: bool) -> None: ...

    def asked_for_free(self, subjects: Iterable[Subject], *, ok: bool) -> None:
        """A question that costs nothing was answered as it would be by these in health, or was not."""
        ...

    async def claim_probe(self, subjects: Iterable[Subject]) -> bool:
        """Whether this request may go to see whether these are well again, where they wait for that: one request at a
        time, over all replicas. At once where nobody waits."""
        ...

    def release_probe(self, subjects: Iterable[Subject]) -> None:
        """The probe ended without a lesson."""
        ...


class BalanceTold(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="b"):
    """What a provider said is left on an account at ``at`` (Unix seconds); ``unit`` is USD, CNY or credits."""

    provider: str
    account: str
    available: Decimal
    unit: str
    at: float


Message = Happening | Checked | HealthChanged | BalanceTold
"""What replicas tell each other. None of it decides about money that is held or charged."""


class Gossip(Protocol):
    """What replicas tell each other, in each one's order and at most once; nobody waits for it."""

    def tell(self, message: Message) -> None:
        """Tells all others soon. Immediate, and never raises; what cannot be told is forgotten, the oldest first."""
        ...

    def on_heard(self, callback: Callable[[Message], None]) -> None:
        """Whom to tell what others have told. Before ``run``."""
        ...

    async def run(self, stop: asyncio.Event) -> None:
        """Tells and hears until ``stop``, first what was told lately."""
        ...


class Claims(Protocol):
    """What one of all replicas does at a time. A claim ends by itself; without shared state each has its own."""

    async def claim(self, what: str, seconds: float) -> bool:
        """Whether it is now this one's. Never raises, and does not wait for long."""
        ...

    def give_back(self, what: str) -> None:
        """It is over. Immediate."""
        ...


class StoreUnavailableError(Exception):
    """The store that was asked cannot answer now; nothing was learned."""


class ApiKeys(Protocol):
    """The virtual keys, by digest. An implementation may answer from memory what it has looked up before."""

    async def find(self, digest: bytes) -> Principal | None:
        """Who holds the key with this SHA-256 digest; None = unknown, revoked or expired. Raises
        StoreUnavailableError when the key is not known and cannot be looked up."""
        ...


class MeteringUnavailableError(Exception):
    """The journal cannot take a record: nothing may be bought until it can."""


class Journal(Protocol):
    """The durable note of attempts. ``append`` is immediate and cannot be cancelled; ``durable`` waits for the disk."""

    def append(self, record: Record) -> int:
        """Writes a record and returns its position. Raises MeteringUnavailableError."""
        ...

    async def durable(self, position: int) -> None:
        """Returns when everything up to ``position`` is on the disk. Raises MeteringUnavailableError."""
        ...


class Balances(Protocol):
    """What the database has posted, by window and journal."""

    async def of(self, windows: Sequence[BudgetWindow]) -> Mapping[str, Mapping[str, Balance]]:
        """By the window's key and the journal; a window without postings has none. Raises StoreUnavailableError."""
        ...

    async def moved(self, *, seconds: float, but: str) -> frozenset[str]:
        """The scopes in which another journal than ``but`` has posted during the last so many seconds. Raises
        StoreUnavailableError."""
        ...


LIVE_SECONDS: Final = 6
"""A worker that was seen within so many seconds lives."""


class Sighting(NamedTuple):
    """The last generation of shared state that anybody has founded, and the workers that live."""

    generation: int
    live: frozenset[str]


class SharedState(Protocol):
    """What must survive the loss of shared state. Everything raises StoreUnavailableError."""

    async def seen(self, worker_id: str) -> Sighting:
        """This worker lives; what others have said of themselves."""
        ...

    async def next_generation(self, *, after: int, above: int) -> int | None:
        """The number of a new generation, greater than both; None where ``after`` is not the last one any more."""
        ...

    async def leave(self, worker_id: str) -> None:
        """This worker is no more; nobody need wait for it."""
        ...


class Allowances(Protocol):
    """Limits, budgets and the room of provider accounts: one state, in process or shared."""

    async def take(self, demand: Demand) -> Verdict:
        """Everything that a request asks for, as one hold, or nothing. Never raises."""
        ...

    async def retry(self, demand: Demand) -> Verdict:
        """The same hold for one more attempt at one of the demand's accounts. Never raises."""
        ...

    def post(self, posting: Posting) -> None:
        """An attempt has cost so much: it is spent from now on. Immediate; nobody waits for it."""
        ...

    def release(self, hold_id: str, tokens: int) -> None:
        """The request is over and has used so many tokens: what is still held is free again. Immediate; for a hold
        that does not exist nothing happens."""
        ...


class UpstreamFailedError(Exception):
    """An upstream call ended without (the rest of) an answer; carries what that says."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamCall:
    """One HTTP request to an account: the adapter adds the credential."""

    provider: str
    account: str
    url: str
    body: bytes
    headers: Mapping[str, str]
    timeouts: Timeouts
    stream: bool


class UpstreamAnswer(Protocol):
    """An upstream's answer, whose head has come. Owned by its attempt, which must close it."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""
        ...

    async def read(self) -> bytes:
        """The next bytes, b"" at a proper end. Raises UpstreamFailedError for a cut or a silence past a deadline."""
        ...

    def release(self, *, reusable: bool) -> None:
        """Gives the connection back if the answer was read to its end, else closes it; immediate and idempotent."""
        ...


class Upstreams(Protocol):
    """The providers' HTTP endpoints. No redirect is followed, no retry is made."""

    async def open(self, call: UpstreamCall) -> UpstreamAnswer:
        """Sends the request and waits for the head of the answer. Raises UpstreamFailedError."""
        ...


class FreeAnswer(NamedTuple):
    """What came of a free question."""

    status: int
    body: bytes


class Inquiries(Protocol):
    """The providers' endpoints that cost nothing: lists of models, balances."""

    async def ask(self, provider: str, account: str, url: str, *, key_member: str | None = None) -> FreeAnswer:
        """GET with the account's credential, in the query under ``key_member`` where the provider wants it there.
        Bounded in time and size. Raises UpstreamFailedError."""
        ...


class Reply(Protocol):
    """The client's side of an exchange. What is written after the client has hung up is dropped."""

    @property
    def started(self) -> bool:
        """Whether the status line is out (an answer's first bytes, or a heartbeat)."""
        ...

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """The status line and headers; nothing happens if a heartbeat has sent them."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def finish(self, data: bytes = b"") -> None:
        """The last bytes; the answer is complete."""
        ...


class Telemetry(Protocol):
    """What operators watch. Never blocks, never raises, never sees content."""

    def attempt_settled(self, entry: LedgerEntry) -> None: ...

    def defect(self, error: Exception, *, request_id: str) -> None:
        """The gateway's own code broke; a trace for its developers."""
        ...

    def refused(self, *, request_id: str, path: str, code: str, status: int) -> None:
        """A request was answered before it became an exchange."""
        ...

    def shed(self, reason: Shed) -> None:
        """A request was turned away because too many are open."""
        ...

    def exchange_ended(
        self, *, request_id: str, key_id: str, model: str, surface: str, status: int, code: str, seconds: float
    ) -> None:
        """``code`` is the error's that the gateway has told the client, empty where it told none."""
        ...


class AlertTeller(Protocol):
    """Whoever is told of budget alerts. ``name`` is written beside an alert that has arrived."""

    @property
    def name(self) -> str: ...

    async def tell(self, alert: Alert) -> str | None:
        """None when it has arrived; else why not, without a secret. Has a deadline, and never raises."""
        ...


class AlertTelemetry(Protocol):
    """What operators see of budget alerts. Never blocks, never raises."""

    def alert_raised(self, share: int) -> None: ...

    def alert_told(self, *, by: str, outcome: str) -> None:
        """A try to tell ended: ``delivered``, ``failed``, or ``given_up`` when it was the last one."""
        ...


class KeyAdministration(Protocol):
    """Virtual keys, as administrators see them. ``team`` and the administrator's own team bound what exists.

    Here and in all of the administration everything raises StoreUnavailableError, and a write raises FieldError for
    what is beyond the team's ceilings, NotGrantedError for what is beyond the administrator's own rights."""

    async def create(self, grant: KeyGrant, *, digest: bytes, hint: str, by: Administrator) -> tuple[KeyRecord, bool]:
        """A new key; whether its team was created with it."""
        ...

    async def list_keys(self, *, after: str | None, limit: int, team: str | None = None) -> Sequence[KeyRecord]:
        """Keys by id, after a cursor."""
        ...

    async def show(self, key: str, *, team: str | None = None) -> KeyRecord | None:
        """By id, or by name where only one key has it."""
        ...

    async def update(self, key_id: str, make: KeyChange, *, by: Administrator) -> KeyRecord | None:
        """None for an unknown or revoked key."""
        ...

    async def revoke(self, key_id: str, *, by: Administrator) -> KeyRecord | None: ...

    async def rotate(
        self, key_id: str, *, digest: bytes, hint: str, grace: timedelta, by: Administrator
    ) -> KeyRecord | None:
        """A new secret; the old ones end after ``grace``. None for an unknown or revoked key."""
        ...


class TeamAdministration(Protocol):
    """Teams, as administrators see them."""

    async def create(self, terms: TeamTerms, *, by: Administrator) -> TeamRecord:
        """A new team; raises FieldError where there is one of its name."""
        ...

    async def list_teams(self, *, after: str | None, limit: int) -> Sequence[TeamRecord]:
        """Teams by name, after a cursor."""
        ...

    async def show(self, name: str) -> TeamRecord | None: ...

    async def update(self, name: str, make: TeamChange, *, by: Administrator) -> TeamRecord | None: ...


class BudgetAdministration(Protocol):
    """Budgets of keys, teams and the organisation."""

    async def list_budgets(
        self, *, after: tuple[str, str] | None, limit: int, scope: str | None = None, team: str | None = None
    ) -> Sequence[BudgetRecord]:
        """By scope and period, after a cursor; of one scope, and of one tenant, where they are named."""
        ...

    async def put(self, terms: BudgetTerms, *, by: Administrator) -> BudgetRecord | None:
        """The budget of this scope and period from now on; None for a scope that does not exist."""
        ...

    async def remove(self, scope: str, period: Period, *, by: Administrator) -> BudgetRecord | None: ...


class OrganisationAdministration(Protocol):
    """The organisation: its name and its time zone."""

    async def show(self) -> Organisation: ...

    async def update(self, *, name: str | None, time_zone: str | None, by: Administrator) -> Organisation:
        """None = as before."""
        ...


class AuditTrail(Protocol):
    """Who changed what, in a chain that cannot be edited unseen."""

    async def list_entries(
        self,
        *,
        before: int | None,
        limit: int,
        action: str | None = None,
        target: str | None = None,
        team: str | None = None,
    ) -> Sequence[AuditEntry]:
        """Newest first, before a cursor."""
        ...

    async def verify(self) -> AuditVerdict:
        """Whether the chain is whole."""
        ...

    async def record(
        self, action: str, target: str, *, before: Facts | None, after: Facts | None, by: Administrator
    ) -> None:
        """An entry about what is not in the database."""
        ...


class Administration(Protocol):
    """Everything that administrators change."""

    @property
    def keys(self) -> KeyAdministration: ...
    @property
    def teams(self) -> TeamAdministration: ...
    @property
    def budgets(self) -> BudgetAdministration: ...
    @property
    def organisation(self) -> OrganisationAdministration: ...
    @property
    def audit(self) -> AuditTrail: ...


class MoneyReports(Protocol):
    """The ledger and its sums, as finance sees them; of one team where it is named. What has to be waited for raises
    StoreUnavailableError. Whoever stops reading before the end closes what is being read."""

    def spend(self, query: SpendQuery) -> AsyncIterator[SpendRow]:
        """The cells of a report, in the order of its groups; none where there is nothing."""
        ...

    def ledger(self, selection: Selection) -> AsyncIterator[dict[str, object]]:
        """One attempt or correction at a time, in order of start, as INTERFACE §4 names its fields."""
        ...

    def charges(self, start: datetime, end: datetime, *, team: str | None = None) -> AsyncIterator[ChargeFact]:
        """What each class of tokens cost in each hour, in one order for ever: what a FOCUS file is made of."""
        ...

    async def billing_account(self, start: datetime, end: datetime) -> BillingAccount:
        """Whose charges of a period they are: of a closed month, under the name that it was closed with."""
        ...

    def past(
        self, start: datetime, end: datetime, *, model: str | None = None, team: str | None = None
    ) -> AsyncGenerator[PastRequest, None]:
        """One request at a time with what it cost and the prefixes that were kept of it, in order of time."""
        ...

    async def explain(self, request_id: str, *, team: str | None = None) -> dict[str, object] | None:
        """INTERFACE §1: candidates, attempts with their lines, cost; None for an unknown request."""
        ...

"""A request is one connection with the calls made for it, and what it must and what it may have been held for.

Everything here is the auditor's own arithmetic over the client's body, the price rows and the rights. Where it cannot
know, it has two bounds: ``least`` never exceeds what the product holds, ``most`` never falls short of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo

from gateway.core.money import Money
from tests.simulation.clients import Connection
from tests.simulation.evidence import Auditor, Row
from tests.simulation.providers import Call
from tests.simulation.rights import KeyHolder, Policy
from tests.simulation.scenario import PriceRow, Scenario

DEFAULT_LIMIT: Final = 32_768
"""The output limit of a request that names none."""
FRAME_BYTES: Final = 64
"""What a request may weigh besides its messages, at the most."""
CLAMPED_MIN: Final = 256
ROUNDING_SECONDS: Final = 0.001
FOREVER: Final = float("inf")
ADMISSION_CODES: Final = ("budget_exceeded", "rate_limit_exceeded", "overloaded")
UNKNOWN_WORDS: Final = "is not known just now"

Window = tuple[date | None, date | None]


@dataclass(eq=False, slots=True)
class Request:
    """One connection of a known key that asked for something."""

    auditor: Auditor
    connection: Connection
    holder: KeyHolder
    calls: list[Call]
    policy: Policy = field(init=False)
    code: str | None = field(init=False)
    message: str = field(init=False)

    def __post_init__(self) -> None:
        self.policy = self.scenario.rights.policy_at(self.opened)
        self.code, self.message = _refusal(self.connection)

    @property
    def scenario(self) -> Scenario:
        return self.auditor.evidence.scenario

    @property
    def number(self) -> int:
        return self.connection.number

    @property
    def life(self) -> int:
        return self.connection.life.number

    @property
    def opened(self) -> float:
        return self.connection.opened_at

    @property
    def ended(self) -> float:
        """When nothing was done for it any more."""
        died = self.connection.life.died_at
        ended = FOREVER if self.connection.ended_at is None else self.connection.ended_at
        return ended if died is None else min(ended, died)

    @property
    def began(self) -> float:
        """When its first call was made, or it ended without one."""
        return self.calls[0].opened_at if self.calls else self.ended

    @property
    def was_refused(self) -> bool:
        """Whether it was told that there is no room for it, and nothing was taken."""
        return not self.calls and (self.code in ADMISSION_CODES or self.is_unknowable)

    @property
    def is_unknowable(self) -> bool:
        """Whether it was told that nobody knows what is spent."""
        return self.code == "metering_unavailable" and UNKNOWN_WORDS in self.message

    # --- money -------------------------------------------------------------------------------------------------------

    def row(self, call: Call) -> Row | None:
        return self.auditor.rows.get(call.attempt_id)

    def cost(self, call: Call) -> int:
        row = self.row(call)
        return 0 if row is None else int(row["cost_pico"])

    def is_settled(self, call: Call) -> bool:
        """Whether what the process posted for it is what its row says: recovery may have estimated it otherwise."""
        row = self.row(call)
        return row is not None and "recovered" not in row["flags"]

    def over_at(self, call: Call) -> float:
        """When its cost was posted at the latest."""
        row = self.row(call)
        released = FOREVER if call.released_at is None else call.released_at
        return released if row is None else max(released, self.seconds(row["finished_at"]))

    def seconds(self, moment: datetime) -> float:
        return (moment - self.scenario.begins).total_seconds()

    def least(self, call: Call) -> int:
        """The largest cost of this very call: its text at a token a byte, all of it uncached or all written, and its
        whole output limit, at the price of when it was planned."""
        price = self._price(call.provider)
        return _cost(price, self.text_bytes, call.limit * call.n)

    def most(self, limit: int | None = None) -> int:
        """The largest cost that the dearest provider could have, whoever was planned for."""
        output = (self.limit if limit is None else min(limit, self.limit)) * self.n
        size = self.text_bytes + FRAME_BYTES
        return max(_cost(self._price(row.provider), size, output) for row in self.scenario.prices)

    def _price(self, provider: str) -> PriceRow:
        at = self.scenario.begins + timedelta(seconds=self.opened)
        known = [row for row in self.scenario.prices if row.provider == provider and row.since <= at]
        return max(known, key=lambda row: row.since)

    # --- tokens ------------------------------------------------------------------------------------------------------

    @property
    def asked(self) -> dict[str, object]:
        assert self.connection.asked is not None
        return self.connection.asked

    @property
    def text_bytes(self) -> int:
        """The messages as they were sent, with the JSON around their texts: documented as the most that they can be."""
        return len(json.dumps(json.loads(self.connection.body)["messages"]).encode())

    @property
    def limit(self) -> int:
        limit = self.asked.get("max_tokens", DEFAULT_LIMIT)
        assert isinstance(limit, int)
        return limit

    @property
    def n(self) -> int:
        n = self.asked.get("n", 1)
        assert isinstance(n, int)
        return n

    @property
    def tokens_most(self) -> int:
        return self.text_bytes + FRAME_BYTES + self.limit * self.n

    def tokens_least(self, call: Call) -> int:
        """What was asked for with this call: input is estimated within a factor of three."""
        return max(0, call.prompt // 3 - 20) + call.limit * call.n

    @property
    def tokens_used(self) -> int | None:
        """By the rows of all its calls; None where that is not known for certain."""
        rows = [self.row(call) for call in self.calls]
        if any(row is None or "recovered" in row["flags"] for row in rows):
            return None
        return sum(row["input_tokens"] + row["output_tokens"] for row in rows if row is not None)

    # --- windows -----------------------------------------------------------------------------------------------------

    def window(self, period: str) -> Window:
        return window_of(self.scenario, self.opened, period)


def requests(auditor: Auditor) -> list[Request]:
    """Every request of a known key, in the order in which they came."""
    return [
        Request(auditor, connection, connection.holder, auditor.by_connection[connection.number])
        for connection in auditor.evidence.connections
        if connection.holder is not None and connection.asked is not None
    ]


def is_calm(scenario: Scenario) -> bool:
    """Whether the database can be asked at any time and journals are read at once."""
    return scenario.database.are_none and not scenario.disk


def window_of(scenario: Scenario, at: float, period: str) -> Window:
    """The window's first day and the day after its last one; (None, None) for the whole of time."""
    zone = ZoneInfo(scenario.rights.time_zone)
    return window_of_day((scenario.begins + timedelta(seconds=at)).astimezone(zone).date(), period)


def window_of_day(day: date, period: str) -> Window:
    match period:
        case "day":
            return day, day + timedelta(days=1)
        case "week":
            monday = day - timedelta(days=day.isoweekday() - 1)
            return monday, monday + timedelta(days=7)
        case "month":
            return day.replace(day=1), (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return None, None


def highest(policies: Iterable[Policy], limit_of: str, scope: str) -> int | None:
    """The highest of the limits that one scope had; None if it had none at any time."""
    limits = [getattr(policy.rates_of(scope), limit_of) for policy in policies]
    return None if None in limits or not limits else max(limits)


def _cost(price: PriceRow, input_tokens: int, output_tokens: int) -> int:
    each = max(Decimal(price.input), Decimal(price.write or price.input))
    usd = (each * input_tokens + Decimal(price.output) * output_tokens) / 10**6
    return Money.from_usd(usd).pico


def _refusal(connection: Connection) -> tuple[str | None, str]:
    """The error that the client was told, by status or in the stream."""
    text = connection.bytes.replace(b": keep-alive\n\n", b"").strip().removeprefix(b"data: ")
    if not text.startswith(b'{"error"'):
        return None, ""
    try:
        error = json.loads(text)["error"]
    except ValueError:
        return None, ""
    return error.get("code"), error.get("message", "")

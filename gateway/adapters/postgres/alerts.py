"""A budget's share is told once it is passed: raised by whoever sees it first, told until it arrives, at least once.

Any number of workers may run, and any of them may be killed. The table's key lets an alert be raised once for a budget,
a window, a share and a limit. Whoever tells an alert has it for LEASE_SECONDS, after which another one takes it over;
so an alert may be told twice, under the same id, and is never left untold while somebody runs.

A limit that is raised is another promise: its shares are told again when they are passed again. One that is lowered
tells only of shares that were not told yet in that window.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any, Final

import psycopg

from gateway.adapters.postgres.connections import Connections
from gateway.adapters.postgres.sql import statement
from gateway.core.alert import TELL_SECONDS_MAX, Alert, retry_seconds
from gateway.core.budget import BudgetMode, Period, window_of, zone_of
from gateway.core.money import Money
from gateway.pipeline.ports import AlertTelemetry, AlertTeller, Clock, StoreUnavailableError

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS: Final = 2.0
OVERLAP_SECONDS: Final = 5.0
"""A posting is looked for again for so long, because its transaction commits a moment later."""
WIDE_EVERY_SECONDS: Final = 60.0
WIDE_OVERLAP_SECONDS: Final = 65.0
"""Once a minute for so long: no statement of the shipper's transaction, and no pause in it, is longer."""
FIRST_LOOK_SECONDS: Final = 86_400.0
"""What moved in the last day may have moved while nobody was looking."""
LEASE_SECONDS: Final = 60.0
"""For so long an alert is one worker's to tell: longer than a teller's deadline and the note of its end together."""
RECENT_MAX: Final = 1_000

_DELIVERED: Final = """
UPDATE budget_alerts SET delivered_at = clock_timestamp(), delivered_by = %s, last_error = NULL, given_up_at = NULL
WHERE alert_id = %s AND delivered_at IS NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertState:
    """An alert, and how far telling it has come. ``delivered_by`` is ``webhook`` or ``log``."""

    alert: Alert
    tries: int
    last_error: str | None
    delivered_at: datetime | None
    delivered_by: str | None
    given_up_at: datetime | None


class AlertBook:
    """Every budget alert: raises, tells and lists them."""

    def __init__(
        self,
        database_url: str,
        teller: AlertTeller,
        telemetry: AlertTelemetry,
        *,
        clock: Clock,
        chance: Callable[[], float],
    ) -> None:
        """``chance`` answers numbers from 0 to 1."""
        self._connections = Connections(database_url, connections_max=2)
        self._teller = teller
        self._telemetry = telemetry
        self._clock = clock
        self._chance = chance
        self._looked_at: float | None = None
        self._looked_wide_at: float | None = None
        self._raised = asyncio.Event()
        self._is_away = False

    async def run(self, stop: asyncio.Event) -> None:
        """Raises and tells until ``stop``. Telling may take its time; a telling that ``stop`` cuts short is done
        again, by another worker or the next one."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._raise_again_and_again(), name="alerts-raise"),
                    group.create_task(self._tell_again_and_again(), name="alerts-tell"),
                ]
                await stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self.close()

    async def raise_passed(self) -> list[int]:
        """Raises an alert for each share that was passed since the last look; answers the shares. Raises
        StoreUnavailableError."""
        now = self._clock.monotonic()
        is_wide, seconds = self._look_back(now)
        asked = {"now": self._clock.now(), "all": self._looked_at is None, "seconds": seconds}
        async with self._connections.transaction() as db:
            rows = await (await db.execute(statement("raise_alerts"), asked)).fetchall()
        self._looked_at = now
        if is_wide:
            self._looked_wide_at = now
        for row in rows:
            self._telemetry.alert_raised(row["share"])
        if rows:
            self._raised.set()
        return [row["share"] for row in rows]

    async def tell_next(self) -> bool:
        """Tells the alert that has waited longest; whether there was one. Raises StoreUnavailableError."""
        async with self._connections.transaction() as db:
            row = await (await db.execute(statement("claim_alert"), {"lease_seconds": LEASE_SECONDS})).fetchone()
        if row is None:
            return False
        error = await self._teller.tell(_alert(row))
        if error is None:
            async with self._connections.transaction() as db:
                await db.execute(_DELIVERED, (self._teller.name, row["alert_id"]))
            self._telemetry.alert_told(by=self._teller.name, outcome="delivered")
        else:
            await self._failed(row["alert_id"], row["tries"], error)
        return True

    async def recent(self, *, limit: int = 100, before: str | None = None) -> Sequence[AlertState]:
        """Alerts, the latest first; ``before`` is the id of the alert that the page before ended with. Raises
        StoreUnavailableError."""
        asked = {"limit": min(limit, RECENT_MAX), "before": before}
        async with self._connections.transaction() as db:
            rows = await (await db.execute(statement("recent_alerts"), asked)).fetchall()
        return [
            AlertState(
                alert=_alert(row),
                tries=row["tries"],
                last_error=row["last_error"],
                delivered_at=row["delivered_at"],
                delivered_by=row["delivered_by"],
                given_up_at=row["given_up_at"],
            )
            for row in rows
        ]

    async def close(self) -> None:
        await self._connections.close()

    def _look_back(self, now: float) -> tuple[bool, float]:
        """Whether this look is a wide one, and for how many seconds it goes back."""
        if self._looked_at is None or self._looked_wide_at is None:
            return True, FIRST_LOOK_SECONDS
        if now - self._looked_wide_at >= WIDE_EVERY_SECONDS:
            return True, now - self._looked_wide_at + WIDE_OVERLAP_SECONDS
        return False, now - self._looked_at + OVERLAP_SECONDS

    async def _failed(self, alert_id: str, tries: int, error: str) -> None:
        asked = {
            "alert_id": alert_id,
            "tries": tries,
            "error": error,
            "seconds": retry_seconds(tries, self._chance()),
            "seconds_max": TELL_SECONDS_MAX,
        }
        async with self._connections.transaction() as db:
            row = await (await db.execute(statement("fail_alert"), asked)).fetchone()
        outcome = "given_up" if row is not None and row["is_given_up"] else "failed"
        self._telemetry.alert_told(by=self._teller.name, outcome=outcome)
        fields = {"alert_id": alert_id, "tries": tries, "outcome": outcome}
        log.warning("a budget alert was not delivered: %s", error, extra={"fields": fields})

    async def _raise_again_and_again(self) -> None:
        while True:
            with self._patience():
                await self.raise_passed()
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def _tell_again_and_again(self) -> None:
        while True:
            self._raised.clear()
            with self._patience():
                while await self.tell_next():
                    pass
            with suppress(TimeoutError):
                await asyncio.wait_for(self._raised.wait(), LOOK_EVERY_SECONDS)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """A database that is away, or refuses, is told once and asked again at the next turn."""
        try:
            yield
        except (StoreUnavailableError, psycopg.Error) as error:
            if not self._is_away:
                log.warning("budget alerts wait for the database: %s", type(error).__name__)
            self._is_away = True
        else:
            self._is_away = False


def _alert(row: Mapping[str, Any]) -> Alert:
    scope, period, time_zone = row["scope"], Period(row["period"]), row["time_zone"]
    first_day = row["first_day"] or row["raised_at"].date()  # any day falls into the whole of time
    noon = datetime.combine(first_day, time(12), zone_of(time_zone))
    window = window_of(scope, period, noon, time_zone)
    return Alert(
        alert_id=row["alert_id"],
        budget_id=row["budget_id"],
        scope=scope,
        name=row["name"],
        period=period,
        mode=BudgetMode(row["mode"]),
        limit=Money(int(row["limit_pico"])),
        begins_at=window.begins_at,
        ends_at=window.ends_at,
        share=row["share"],
        spent=Money(int(row["spent_pico"])),
        raised_at=row["raised_at"],
    )

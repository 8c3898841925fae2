"""An alert is told until it arrives: signed, by one worker at a time, whatever the receiver does or is killed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from pydantic import SecretStr

from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.alerts import AlertBook
from gateway.adapters.telemetry import PrometheusTelemetry
from gateway.adapters.webhook import LogTeller, WebhookTeller
from tests.integration.alerting import ALERT, Counts, Notebook, StillClock, add_budget, alerts, book, post
from tests.integration.receiver import Receiver, receiving, status, without_end

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

SECRET = "a-Secret-of-both-9f2c"
WAIT_SECONDS_MAX = 60

WORKER = """
import asyncio, sys
from pydantic import SecretStr
from gateway.adapters.clock import SystemClock
from gateway.adapters.postgres.alerts import AlertBook
from gateway.adapters.telemetry import PrometheusTelemetry
from gateway.adapters.webhook import WebhookTeller

async def main() -> None:
    database_url, url, secret = sys.argv[1:]
    clock = SystemClock()
    teller = WebhookTeller(SecretStr(url), SecretStr(secret), clock=clock, user_agent="test")
    await AlertBook(database_url, teller, PrometheusTelemetry(), clock=clock, chance=lambda: 0.5).run(asyncio.Event())

asyncio.run(main())
"""


@pytest.fixture
def db(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def passed(db: psycopg.Connection, *, scope: str = "team:blue") -> None:
    """A budget of which 100 % was spent just now."""
    add_budget(db, scope, "10", "total", alert_at=[100])
    post(db, scope, "12")


def webhook(receiver: Receiver, *, seconds_max: float = 10.0) -> WebhookTeller:
    return WebhookTeller(
        SecretStr(receiver.url), SecretStr(SECRET), clock=SystemClock(), user_agent="test/1", seconds_max=seconds_max
    )


def later(db: psycopg.Connection) -> None:
    """The next try, or the end of a lease, has come."""
    db.execute("UPDATE budget_alerts SET next_try_at = now()")


async def test_it_is_told_again_until_it_arrives(
    anyio_backend: str, database_url: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer of 500, then 204: the same body and id twice, each under a signature that a receiver verifies."""
    passed(db)
    async with receiving(status(500)) as receiver:
        worker = book(database_url, webhook(receiver))
        await worker.raise_passed()
        assert await worker.tell_next()
        assert alerts(db, "tries, last_error, delivered_at") == [(1, "HTTP 500", None)]
        waits = db.execute("SELECT extract(epoch FROM next_try_at - now()) FROM budget_alerts").fetchone()
        assert waits is not None
        assert 0 < waits[0] <= 5
        assert not await worker.tell_next()
        later(db)
        assert await worker.tell_next()
        assert not await worker.tell_next()
        await worker.close()
    first, second = receiver.deliveries
    assert first.body == second.body
    for delivery in (first, second):
        signed = delivery.headers["x-gateway-timestamp"].encode() + b"." + delivery.body
        assert delivery.headers["x-gateway-signature"] == (
            "v1=" + hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        )
        assert abs(int(delivery.headers["x-gateway-timestamp"]) - datetime.now(UTC).timestamp()) < WAIT_SECONDS_MAX
        assert delivery.headers["x-gateway-alert-id"] == json.loads(delivery.body)["id"]
    assert alerts(db, "tries, last_error, delivered_by, delivered_at IS NULL") == [(2, None, "webhook", False)]
    assert "HTTP 500" in caplog.text
    assert "very-private" not in caplog.text
    assert SECRET not in caplog.text


async def test_a_redirect_is_not_followed(anyio_backend: str, database_url: str, db: psycopg.Connection) -> None:
    """Whoever may answer for the address may not send the alert elsewhere."""
    passed(db)
    async with receiving(status(307, location="/elsewhere")) as receiver:
        worker = book(database_url, webhook(receiver))
        await worker.raise_passed()
        assert await worker.tell_next()
        await worker.close()
    assert [delivery.path for delivery in receiver.deliveries] == ["/hook/very-private"]
    assert alerts(db, "last_error, delivered_at") == [("HTTP 307, a redirect, which is not followed", None)]


async def test_a_receiver_that_does_not_answer_is_left(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """The deadline is for the whole of it, and the alert waits for its next try."""
    passed(db)
    async with receiving() as receiver:
        receiver.answers.append(receiver.hold)
        worker = book(database_url, webhook(receiver, seconds_max=0.2))
        await worker.raise_passed()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            assert await worker.tell_next()
        await worker.close()
    assert alerts(db, "last_error, delivered_at") == [("no answer within 0.2 s", None)]


async def test_a_receiver_that_answers_a_byte_at_a_time_is_left(anyio_backend: str) -> None:
    """The deadline is for the whole head of the answer, not for each of its bytes."""

    ended = asyncio.Event()

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nx-long: ")
        try:
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        except ConnectionError:
            writer.close()
            ended.set()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server, asyncio.timeout(WAIT_SECONDS_MAX):
        receiver = Receiver(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
        assert await webhook(receiver, seconds_max=0.3).tell(ALERT) == "no answer within 0.3 s"
        await ended.wait()


async def test_an_answer_without_end_is_not_read(anyio_backend: str, database_url: str, db: psycopg.Connection) -> None:
    """2xx is all that is asked of an answer."""
    passed(db)
    async with receiving(without_end) as receiver:
        worker = book(database_url, webhook(receiver))
        await worker.raise_passed()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            assert await worker.tell_next()
        await worker.close()
    assert alerts(db, "delivered_by") == [("webhook",)]


async def test_a_receiver_that_is_away_is_tried_again(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """Nobody listens there: the reason names no address."""
    passed(db)
    async with receiving() as receiver:
        gone = webhook(receiver)
    worker = book(database_url, gone)
    await worker.raise_passed()
    assert await worker.tell_next()
    await worker.close()
    assert alerts(db, "last_error, delivered_at") == [("not reached: ConnectError", None)]


async def test_a_worker_that_is_killed_leaves_it_to_another(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """SIGKILL between the request and its answer: after the lease the alert is told again, under the same id."""
    passed(db)
    async with receiving() as receiver:
        receiver.answers.append(receiver.hold)
        arguments = (sys.executable, "-c", WORKER, database_url, receiver.url, SECRET)
        process = await asyncio.create_subprocess_exec(*arguments)
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await receiver.came.wait()
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        heir = book(database_url, webhook(receiver))
        assert not await heir.tell_next()  # the lease is not over
        later(db)
        assert await heir.tell_next()
        await heir.close()
    first, second = receiver.deliveries
    assert first.headers["x-gateway-alert-id"] == second.headers["x-gateway-alert-id"]
    assert first.body == second.body
    assert alerts(db, "tries, delivered_by") == [(2, "webhook")]


async def test_one_worker_at_a_time_tells_an_alert(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """Twenty alerts, four workers at once: each alert once, and each worker's own while it is telling."""
    for number in range(20):
        passed(db, scope=f"key:{number}")
    notebook = Notebook()
    workers = [book(database_url, notebook) for _ in range(4)]
    await workers[0].raise_passed()

    async def tell_all(worker: AlertBook) -> None:
        while await worker.tell_next():
            pass

    await asyncio.gather(*map(tell_all, workers))
    for worker in workers:
        await worker.close()
    assert len(notebook.alerts) == len({alert.alert_id for alert in notebook.alerts}) == 20


async def test_a_worker_whose_lease_is_over_does_not_push_back_the_next_one(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """A late failure of a first try says nothing about a second one that is under way, or has arrived."""
    passed(db)
    heir_notes = Notebook()
    heir = book(database_url, heir_notes)

    class Slow:
        name = "slow"

        async def tell(self, _: object) -> str | None:
            later(db)
            assert await heir.tell_next()
            return "too late"

    worker = book(database_url, Slow())
    await worker.raise_passed()
    assert await worker.tell_next()
    await worker.close()
    await heir.close()
    assert alerts(db, "tries, last_error, delivered_by, given_up_at") == [(2, None, "notebook", None)]


async def test_after_a_day_it_is_given_up(anyio_backend: str, database_url: str, db: psycopg.Connection) -> None:
    """By then it is no news; it stays in the list, with the last reason."""
    passed(db)
    counts = Counts()
    worker = AlertBook(database_url, Notebook("HTTP 500", "HTTP 502"), counts, clock=StillClock(), chance=lambda: 1.0)
    await worker.raise_passed()
    db.execute("UPDATE budget_alerts SET raised_at = now() - interval '23 hours 59 minutes'")
    assert await worker.tell_next()
    db.execute("UPDATE budget_alerts SET raised_at = now() - interval '23 hours 59 minutes 55 seconds'")
    later(db)
    assert await worker.tell_next()
    later(db)
    assert not await worker.tell_next()
    (told,) = await worker.recent()
    await worker.close()
    assert counts.told == [("notebook", "failed"), ("notebook", "given_up")]
    assert (told.tries, told.last_error, told.delivered_at) == (2, "HTTP 502", None)
    assert told.given_up_at is not None


async def test_a_budget_that_was_removed_since_is_told_as_it_was(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """What the alert says was true when it was raised."""
    passed(db)
    notebook = Notebook()
    worker = book(database_url, notebook)
    await worker.raise_passed()
    db.execute("DELETE FROM budgets")
    assert await worker.tell_next()
    await worker.close()
    (alert,) = notebook.alerts
    assert (alert.name, str(alert.limit), str(alert.spent)) == ('team "blue"', "10", "12")


async def test_without_an_address_it_is_a_warning_in_the_log(
    anyio_backend: str, database_url: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The sentence for people, and the figures as fields."""
    passed(db)
    worker = book(database_url, LogTeller())
    await worker.raise_passed()
    assert await worker.tell_next()
    await worker.close()
    (record,) = [record for record in caplog.records if record.name == "gateway.alert"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith('budget alert: The team "blue" has spent $12 of its budget of $10 in total')
    assert record.__dict__["fields"]["share"] == 100
    assert alerts(db, "delivered_by") == [("log",)]


async def test_the_background_task_raises_and_tells_and_stops_at_once(
    anyio_backend: str, database_url: str, db: psycopg.Connection
) -> None:
    """Two alerts arrive while it runs; a telling that hangs does not hold up the stop, and is not forgotten."""
    passed(db, scope="key:1")
    telemetry = PrometheusTelemetry()
    async with receiving(status(200)) as receiver:
        receiver.answers.append(receiver.hold)
        worker = AlertBook(database_url, webhook(receiver), telemetry, clock=SystemClock(), chance=lambda: 0.5)
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await receiver.came.wait()
            receiver.came.clear()
            passed(db, scope="key:2")
            await receiver.came.wait()
            stop.set()
            await running
    assert alerts(db, "scope, delivered_by, tries") == [("key:1", "webhook", 1), ("key:2", None, 1)]
    text = telemetry.render().decode()
    assert 'gateway_budget_alerts_total{share="100"} 2.0' in text
    assert 'gateway_budget_alert_deliveries_total{by="webhook",outcome="delivered"} 1.0' in text


async def test_recent_alerts_come_in_pages(anyio_backend: str, database_url: str, db: psycopg.Connection) -> None:
    """The latest first; a page begins after the alert that the one before ended with."""
    for number in range(5):
        passed(db, scope=f"key:{number}")
    worker = book(database_url)
    await worker.raise_passed()
    db.execute("UPDATE budget_alerts SET raised_at = now() - substr(scope, 5)::integer / 2 * interval '1 minute'")
    pages, before = [], None
    while len(pages) < 9 and (page := await worker.recent(limit=2, before=before)):
        pages.append([told.alert.alert_id for told in page])
        before = page[-1].alert.alert_id
    await worker.close()
    assert [len(page) for page in pages] == [2, 2, 1]
    newest_first = db.execute("SELECT alert_id FROM budget_alerts ORDER BY raised_at DESC, alert_id DESC").fetchall()
    assert [alert_id for page in pages for alert_id in page] == [alert_id for (alert_id,) in newest_first]

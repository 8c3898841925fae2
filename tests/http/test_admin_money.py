"""The books from outside: names, order and periods to the letter, and every sum equal to the rows it sums."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest

from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry
from gateway.core.usage import NO_USAGE, UsageSource
from gateway.simulator import Fault
from tests.http.house import ADMIN_TOKEN, House, chat, eventually, exact
from tests.http.test_bad_input import refused
from tests.integration.samples import entry, usage

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

FIELDS = """attempt_id, request_id, attempt, key_id, key_name, team, tags, surface, model, provider, account,
upstream_model, served_model, upstream_request_id, started_at, finished_at, ttft_ms, status, http_status, error_type,
usage_source, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, reasoning_source,
price_id, input_cost, cached_cost, cache_write_cost, output_cost, fee_cost, cost, list_cost,
corrects""".replace("\n", " ").split(", ")
PARTS = ("input_cost", "cached_cost", "cache_write_cost", "output_cost", "fee_cost")
TOKENS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
MEASURES = ["requests", "attempts", *TOKENS, "cost", "estimated_cost"]
PLAIN_DECIMAL = re.compile(r"-?(0|[1-9]\d*)(\.\d*[1-9])?")
PAST = {"from": "2025-10-01", "to": "2025-12-01"}
"""Everything that is booked below; nothing else is."""


def booked() -> list[LedgerEntry]:
    """Attempts of two months, at the edges of quarter hours, days and months in several zones."""
    moments = [
        datetime(2025, 10, 31, 22, 59, 59, 999_999, tzinfo=UTC),  # October in Berlin
        datetime(2025, 10, 31, 23, 0, tzinfo=UTC),  # November there, October in UTC
        datetime(2025, 11, 1, 0, 0, tzinfo=UTC),
        datetime(2025, 11, 1, 0, 14, 59, 999_999, tzinfo=UTC),
        datetime(2025, 11, 1, 0, 15, tzinfo=UTC),
        datetime(2025, 11, 1, 0, 20, tzinfo=UTC),
        datetime(2025, 11, 2, 18, 29, tzinfo=UTC),  # before midnight in Kolkata
        datetime(2025, 11, 2, 18, 31, tzinfo=UTC),
        datetime(2025, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC),
    ]
    entries = []
    for number, moment in enumerate(moments * 3):
        team = None if number % 4 == 3 else f"team {number % 3}"
        changes: dict[str, Any] = {
            "request_id": f"req_{number // 2:08d}",
            "key_id": f"key_{number % 5}",
            "key_name": f"name {number % 4}",
            "team": team,
            "tags": {} if number % 3 == 0 else {"env": f"e{number % 2}", "a b": "x"},
            "started_at": moment,
            "account": f"account {number % 2}",
        }
        used = usage(prompt=1_000 + number, completion=number * 7, cached=number if number % 2 else None)
        if number % 7 == 6:
            made = entry(number, used=NO_USAGE, status=AttemptStatus.FAILED, source=UsageSource.NONE, is_final=False,
                         **changes)  # fmt: skip
        else:
            source = UsageSource.ESTIMATED if number % 5 == 4 else UsageSource.PROVIDER
            made = entry(number, used=used, source=source, **changes)
        entries.append(made)
    return entries


@pytest.fixture(scope="module")
async def books(module_house: House) -> House:
    """A gateway that has a past."""
    journal = module_house.gateway.journal
    for each in booked():
        position = journal.append(each)
    await journal.durable(position)
    return module_house


async def ledger(house: House, form: str = "jsonl", **query: str) -> str:
    answer = await house.admin("GET", "/ledger", params={**PAST, "format": form, **query})
    assert answer.status_code == 200, answer.text
    return answer.text


async def rows_of(house: House, **query: str) -> list[dict[str, Any]]:
    return [exact(line) for line in (await ledger(house, **query)).splitlines()]


# -- ledger ------------------------------------------------------------------------------------------------------------


async def test_fields_and_their_order(books: House):
    """A row has the documented fields in the documented order, amounts as plain decimal strings, tags as an object."""
    rows = await rows_of(books)
    assert len(rows) == 27
    for row in rows:
        assert list(row) == FIELDS
        assert all(PLAIN_DECIMAL.fullmatch(row[name]) for name in (*PARTS, "cost", "list_cost"))
        assert isinstance(row["tags"], dict)
        assert row["started_at"].endswith("Z")
        assert sum(Decimal(row[name]) for name in PARTS) == Decimal(row["cost"])


async def test_a_row_of_a_real_request(books: House):
    """What a real request leaves has every value of its type, and its parts are tokens times price."""
    answer = await books.ask(chat("Hello [[out=100]] " + "word " * 2_000))
    (row,) = await books.rows(answer.headers["x-request-id"])
    assert list(row) == FIELDS
    assert row["surface"] == "chat_completions"
    assert row["corrects"] is None
    assert row["upstream_model"] == row["served_model"] == "kimi-k2-thinking"
    assert row["upstream_request_id"]
    assert row["ttft_ms"] >= 0
    assert (row["http_status"], row["error_type"], row["attempt"]) == (200, None, 1)
    fresh = row["input_tokens"] - (row["cached_tokens"] or 0)
    assert Decimal(row["input_cost"]) == fresh * Decimal("0.556") / 10**6
    assert Decimal(row["output_cost"]) == 100 * Decimal("2.222") / 10**6
    assert row["cost"] == row["list_cost"]
    assert row["price_id"]


async def test_the_three_formats_say_the_same(books: House):
    """JSON, JSON Lines and CSV carry the same rows in the same order."""
    lines = await rows_of(books)
    document = await books.admin("GET", "/ledger", params={**PAST, "format": "json"})
    assert exact(document.text) == {"data": lines}
    assert document.headers["content-type"].startswith("application/json")
    text = await ledger(books, "csv")
    assert text.splitlines()[0] == ",".join(FIELDS)
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(table) == len(lines)
    for cells, row in zip(table, lines, strict=True):
        assert exact(cells.pop("tags")) == row["tags"]
        assert cells == {name: "" if row[name] is None else str(row[name]) for name in FIELDS if name != "tags"}


PERIODS = [
    ({"from": "2025-11-01T00:00:00Z", "to": "2025-11-01T00:15:00Z"}, 6),
    ({"from": "2025-11-01T00:00:00.000001Z", "to": "2025-11-01T00:15:00Z"}, 3),
    ({"from": "2025-11-01", "to": "2025-11-01T00:15:00.000001Z"}, 9),
    ({"from": "2025-11-01T01:00:00+01:00", "to": "2025-11-01T00:00:00.000001Z"}, 3),
    ({"from": "2025-11-01", "to": "2025-11-02"}, 12),
    ({"from": "2025-11-01", "to": "2025-12-01"}, 21),
    ({"from": "2025-10-01", "to": "2025-11-01"}, 6),
    ({"from": "2025-11-01", "to": "2025-11-01"}, 0),
    ({"from": "2025-11-01T00:16:00Z", "to": "2025-11-01T00:29:00Z"}, 3),
]


@pytest.mark.parametrize(("query", "count"), PERIODS)
async def test_periods(books: House, query: dict[str, str], count: int):
    """``from`` is inclusive and ``to`` is not, to the microsecond, in the ledger and in the report alike."""
    rows = await rows_of(books, **query)
    assert len(rows) == count
    report = await spend(books, **query)
    assert report["total"]["attempts"] == count
    assert Decimal(report["total"]["cost"]) == sum(Decimal(row["cost"]) for row in rows)


async def test_without_a_period_it_is_this_month(books: House):
    """Without from and to the current month so far is meant, which is not 2025."""
    answer = await books.ask(chat())
    request_id = answer.headers["x-request-id"]
    for path in ("/ledger", "/reports/spend"):
        assert request_id is not None
        text = (await books.admin("GET", path, params={"format": "json"})).text
        assert "2025" not in re.findall(r'"started_at":"(\d{4})', text)
    rows = exact((await books.admin("GET", "/ledger", params={"format": "json"})).text)["data"]
    assert request_id in {row["request_id"] for row in rows}
    report = exact((await books.admin("GET", "/reports/spend")).text)
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert datetime.fromisoformat(report["from"]) == month
    assert report["total"]["attempts"] == len(rows)


WRONG = [
    ({"from": "yesterday"}, "from"), ({"to": "2025-13-01"}, "to"), ({"to": "2025-02-30"}, "to"), ({"from": ""}, "from"),
    ({"from": "2025-11-02", "to": "2025-11-01"}, "to"), ({"format": "xml"}, "format"),
    ({"from": "0001-01-01T00:00:00+14:00"}, "from"), ({"to": "9999-12-31T23:59:59-14:00"}, "to"),
]  # fmt: skip

WRONG_CONDITIONS = [
    ({"where": text}, "where")
    for text in ("key", "colour=red", "=", "tag:=x", "month=2025", "day=2025-02-30", "status=lost")
]


@pytest.mark.parametrize("path", ["/ledger", "/reports/spend"])
@pytest.mark.parametrize(("query", "param"), [*WRONG, *WRONG_CONDITIONS])
async def test_wrong_periods(books: House, path: str, query: dict[str, str], param: str):
    """A period or a format that is none is 400 and names its parameter."""
    refused(await books.admin("GET", path, params=query), 400, "invalid_request_error", param)


@pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
async def test_all_of_time(books: House, tz: str):
    """The longest period there is holds everything, in every zone."""
    query = {"from": "0001-01-02", "to": "9999-12-31T23:59:59.999999Z", "tz": tz, "group_by": "month"}
    report = await spend(books, **query)
    assert report["total"]["attempts"] >= 27


# -- spend -------------------------------------------------------------------------------------------------------------


async def spend(house: House, **query: str) -> dict[str, Any]:
    answer = await house.admin("GET", "/reports/spend", params={**PAST, **query})
    assert answer.status_code == 200, answer.text
    return exact(answer.text)


def column(row: dict[str, Any], group: str, zone: ZoneInfo) -> Any:
    """What a ledger row has under a group of the report."""
    at = datetime.fromisoformat(row["started_at"]).astimezone(zone)
    match group:
        case "key":
            return row["key_name"]
        case "month" | "day" | "hour":
            return at.strftime({"month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00"}[group])
        case _ if group.startswith("tag:"):
            return row["tags"].get(group[4:])
        case _:
            return row[group]


GROUPS = [
    ["key"], ["team"], ["model"], ["provider"], ["account"], ["month"], ["day"], ["hour"], ["tag:env"], ["tag:a b"],
    ["tag:none"], ["key", "team"], ["provider", "model", "account"], ["day", "team"], ["month", "key", "tag:env"],
    ["key", "team", "model", "provider", "account", "month", "day", "hour", "tag:env", "tag:a b"], [],
]  # fmt: skip
FINAL = {each.attempt_id for each in booked() if each.is_final}


@pytest.mark.parametrize("tz", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
@pytest.mark.parametrize("groups", GROUPS, ids=",".join)
async def test_groups(books: House, groups: list[str], tz: str):
    """Every mix of groups, in every zone, sums what the ledger has, to the pico-dollar."""
    zone = ZoneInfo(tz)
    query = {"from": "2025-10-05T00:00:00Z", "to": "2025-12-01T00:00:00Z"}
    report = await spend(books, group_by=",".join(groups), tz=tz, **query)
    expected: defaultdict[tuple[Any, ...], dict[str, Any]] = defaultdict(lambda: dict.fromkeys(MEASURES, Decimal(0)))
    for row in await rows_of(books, **query):
        key_id = (row["key_id"],) if "key" in groups else ()
        sums = expected[(*(column(row, group, zone) for group in groups), *key_id)]
        sums["requests"] += row["attempt_id"] in FINAL
        sums["attempts"] += 1
        for name in TOKENS:
            sums[name] += row[name] or 0
        sums["cost"] += Decimal(row["cost"])
        sums["estimated_cost"] += Decimal(row["cost"]) if row["usage_source"] == "estimated" else 0
    found = {}
    for row in report["rows"]:
        assert list(row)[-len(MEASURES) :] == MEASURES
        key_id = (row["key_id"],) if "key" in groups else ()
        found[(*(row[group] for group in groups), *key_id)] = {name: Decimal(row[name]) for name in MEASURES}
    assert found == dict(expected)
    assert list(report["total"]) == MEASURES
    for name in MEASURES:
        assert Decimal(report["total"][name]) == sum(sums[name] for sums in expected.values())


async def test_conditions(books: House):
    """Of one group any value, of several groups all; the report and the ledger mean the same by them."""
    query: dict[str, Any] = {**PAST, "where": ["key=name 1", "key=name 2", "team=team 1", "month=2025-11"]}
    lines = (await books.admin("GET", "/ledger", params=query)).text.splitlines()
    rows = [exact(line) for line in lines]
    expected = [
        row["attempt_id"]
        for row in await rows_of(books)
        if row["key_name"] in ("name 1", "name 2") and row["team"] == "team 1" and row["started_at"] >= "2025-11"
    ]
    assert [row["attempt_id"] for row in rows] == expected != []
    report = exact((await books.admin("GET", "/reports/spend", params=query)).text)
    assert Decimal(report["total"]["cost"]) == sum(Decimal(row["cost"]) for row in rows)


async def test_a_date_is_midnight_in_the_zone(books: House):
    """With a zone, from and to are its midnights."""
    query = {"from": "2025-11-01", "to": "2025-11-02"}
    assert (await spend(books, tz="Europe/Berlin", **query))["total"]["attempts"] == 15
    assert (await spend(books, tz="UTC", **query))["total"]["attempts"] == 12
    report = await spend(books, tz="Europe/Berlin", **query)
    assert datetime.fromisoformat(report["from"]) == datetime(2025, 11, 1, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("groups", ["key,team", "", "day,tag:env"])
async def test_the_report_in_three_formats(books: House, groups: str):
    """JSON Lines and CSV have the rows and columns of the JSON."""
    report = await spend(books, group_by=groups)
    query = {**PAST, "group_by": groups}
    lines = (await books.admin("GET", "/reports/spend", params={**query, "format": "jsonl"})).text
    assert [exact(line) for line in lines.splitlines()] == report["rows"]
    text = (await books.admin("GET", "/reports/spend", params={**query, "format": "csv"})).text
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert table == [{name: "" if row[name] is None else str(row[name]) for name in row} for row in report["rows"]]


async def test_a_report_about_nothing(books: House):
    """A period without traffic has no rows, a total of zeros, and in CSV the same header as any other."""
    query = {"from": "2020-01-01", "to": "2020-02-01", "group_by": "key,day"}
    report = await spend(books, **query)
    assert report["rows"] == []
    assert report["total"] == dict.fromkeys(MEASURES, 0) | {"cost": "0", "estimated_cost": "0"}
    empty = (await books.admin("GET", "/reports/spend", params={**query, "format": "csv"})).text
    full = (await books.admin("GET", "/reports/spend", params={**query, **PAST, "format": "csv"})).text
    assert empty.splitlines() == full.splitlines()[:1]
    assert await ledger(books, "csv", **{"from": "2020-01-01", "to": "2020-02-01"}) == ",".join(FIELDS) + "\r\n"


WRONG_GROUPS = [
    ({"group_by": "colour"}, "group_by"), ({"group_by": "key;team"}, "group_by"), ({"group_by": "tag:"}, "group_by"),
    ({"group_by": "key,keys"}, "group_by"), ({"detail": "perhaps"}, "detail"),
    ({"tz": "Mars/Base"}, "tz"), ({"tz": "../etc/passwd"}, "tz"), ({"tz": ""}, "tz"), ({"tz": "localtime"}, "tz"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "param"), WRONG_GROUPS)
async def test_wrong_groups(books: House, query: dict[str, str], param: str):
    """A group or a zone that does not exist is 400 and is named."""
    refused(await books.admin("GET", "/reports/spend", params=query), 400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "group", ["tag:%s", "tag:'; DROP TABLE ledger; --", 'tag:"', "tag:%(start)s", "tag:{}", "tag:ä"]
)
async def test_tags_with_a_sting(books: House, group: str):
    """A tag's name is data, whatever it looks like."""
    report = await spend(books, group_by=group)
    assert [row[group] for row in report["rows"]] == [None]


async def test_every_zone_that_python_knows(books: House):
    """No zone breaks a report: the database knows it, too, or it is refused by name."""
    room = asyncio.Semaphore(8)

    async def ask(tz: str) -> int:
        async with room:
            return (
                await books.admin("GET", "/reports/spend", params={**PAST, "tz": tz, "group_by": "hour"})
            ).status_code

    odd = {tz for tz in available_timezones() if "/" not in tz} | {"America/Argentina/Ushuaia", "Etc/GMT+5"}
    assert set(await asyncio.gather(*map(ask, sorted(odd)))) <= {200, 400}


async def test_a_name_that_a_spreadsheet_would_run(books: House):
    """In CSV a name that begins like a formula is text; in JSON it is what it is."""
    made = await books.make_key(name="=HYPERLINK(1)", tags={"env": "@SUM(1)"})
    answer = await books.ask(chat(), key=made["key"])
    (row,) = await books.rows(answer.headers["x-request-id"])
    assert row["key_name"] == "=HYPERLINK(1)"
    text = (await books.admin("GET", "/ledger", params={"format": "csv"})).text
    names = {cells["key_name"] for cells in csv.DictReader(io.StringIO(text, newline=""))}
    assert "'=HYPERLINK(1)" in names
    query = {"group_by": "key,tag:env", "format": "csv"}
    assert "'@SUM(1)" in (await books.admin("GET", "/reports/spend", params=query)).text


# -- explain -----------------------------------------------------------------------------------------------------------


async def test_a_request_explained(books: House):
    """A request that was tried twice shows every candidate, both attempts, and lines that add up to the cost."""
    books.simulators["evolink"].faults.add(Fault(kind="server_error"), now=0.0)
    answer = await books.ask(chat("Hello [[out=50]]"))
    books.simulators["evolink"].faults.clear()
    books.gateway.health._states.clear()
    request_id = answer.headers["x-request-id"]
    explained = exact((await books.admin("GET", f"/requests/{request_id}")).text)
    assert explained["request_id"] == request_id
    assert {each["provider"] for each in explained["candidates"]} == {"evolink", "moonshot", "cometapi"}
    assert all(isinstance(each["expected_cost_usd"], Decimal) for each in explained["candidates"])
    assert [each["status"] for each in explained["attempts"]] == ["failed", "succeeded"]
    assert explained["attempts"][0]["lines"] == []
    for attempt in explained["attempts"]:
        assert sum(Decimal(line["cost"]) for line in attempt["lines"]) == Decimal(attempt["cost"])
        for line in attempt["lines"]:
            assert Decimal(line["usd_per_million"]) * line["tokens"] / 10**6 == Decimal(line["cost"])
    assert Decimal(explained["cost"]) == sum(Decimal(each["cost"]) for each in explained["attempts"]) > 0
    rows = await books.rows(request_id)
    assert [each["attempt_id"] for each in explained["attempts"]] == [row["attempt_id"] for row in rows]


async def test_a_request_that_nobody_knows(books: House):
    """An unknown request is 404."""
    refused(await books.admin("GET", "/requests/req_none"), 404, "not_found")


# -- size --------------------------------------------------------------------------------------------------------------


async def test_downloads_that_are_given_up(books: House):
    """A client that leaves a long download gives its connection back: after ten of each reports still answer."""
    journal, position = books.gateway.journal, 0
    for number in range(5_000):
        moment = datetime(2024, 5, 1, tzinfo=UTC) + timedelta(seconds=number)
        changes = {"key_id": f"key_{number}", "key_name": f"{'x' * 400} {number}"}
        position = journal.append(entry(100_000 + number, started_at=moment, **changes))
    await journal.durable(position)
    query = {"from": "2024-05-01", "to": "2024-06-01"}
    headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}

    async def is_shipped() -> bool:
        return (await spend(books, **query))["total"]["attempts"] == 5_000

    await eventually(is_shipped)
    for path in ("/admin/ledger", "/admin/reports/spend") * 10:
        async with books.client.stream("GET", path, params=query, headers=headers) as answer:
            async for _ in answer.aiter_raw():
                break
    async with asyncio.timeout(4):
        assert (await spend(books, **query))["total"]["attempts"] == 5_000
        assert len(await rows_of(books, **query)) == 5_000

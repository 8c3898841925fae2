"""The spend report as FOCUS: the rows of the period as a CSV file, of those who may see them."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gateway.core.usage import UsageSource
from tests.focus.checker import Found, check
from tests.http.house import House, exact
from tests.http.test_bad_input import refused
from tests.integration.samples import entry

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PAST = {"from": "2025-10-01", "to": "2025-12-01"}
ROWS = 600


@pytest.fixture(scope="module")
async def books(module_house: House) -> House:
    """A gateway with two months behind it, of two teams."""
    first = datetime(2025, 10, 20, tzinfo=UTC)
    for number in range(ROWS):
        position = module_house.gateway.journal.append(
            entry(
                number,
                team=("blue", "red")[number % 2],
                key_id=f"key_{number % 3}",
                source=UsageSource.ESTIMATED if number % 7 == 0 else UsageSource.PROVIDER,
                started_at=first + timedelta(hours=number),
            )
        )
    await module_house.gateway.journal.durable(position)
    return module_house


async def report(house: House, *, token: str | None = None, version: str = "1.2", **query: str) -> Found:
    asked = {**PAST, "format": "focus", **({} if version == "1.2" else {"focus_version": version}), **query}
    answer = await house.admin("GET", "/reports/spend", params=asked, **({} if token is None else {"token": token}))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    header, *lines = csv.reader(io.StringIO(answer.text, newline=""))
    return check(header, lines, version=version)


@pytest.mark.parametrize("version", ["1.2", "1.3", "1.4", "1.5"])
async def test_the_report_as_focus(books: House, version: str):
    """Every row is right in every version, and their sum is that of the report."""
    found = await report(books, version=version)
    assert (found.problems, found.rows) == ([], ROWS * 3)
    total = exact((await books.admin("GET", "/reports/spend", params=PAST)).text)["total"]
    assert found.billed == Decimal(total["cost"])


async def test_a_part_of_an_hour(books: House):
    """A ragged period has the rows of its attempts and no others."""
    found = await report(books, **{"from": "2025-10-20T00:00:00.000001Z", "to": "2025-10-20T01:00:00.000001Z"})
    assert (found.problems, found.rows) == ([], 3)


async def test_nothing_spent_is_a_header(books: House):
    """A period without charges is a file without rows."""
    found = await report(books, **{"from": "2025-01-01", "to": "2025-02-01"})
    assert (found.problems, found.rows) == ([], 0)


async def test_a_team_sees_its_own(books: House):
    """A key of one team's finance gets the charges of that team."""
    assert (await books.admin("POST", "/teams", json={"name": "blue"})).status_code == 201
    key = (await books.make_key(name="finance", team="blue", role="finance"))["key"]
    found = await report(books, token=key)
    assert (found.problems, found.rows) == ([], ROWS * 3 // 2)


async def test_an_unknown_version(books: House):
    """It is 400, by the name of its parameter, and says which versions there are."""
    query = {**PAST, "format": "focus", "focus_version": "1.1"}
    answer = await books.admin("GET", "/reports/spend", params=query)
    error = refused(answer, 400, "invalid_request_error", "focus_version")
    assert "1.2, 1.3, 1.4, 1.5 (draft)" in error["message"]

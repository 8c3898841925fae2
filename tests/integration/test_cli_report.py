"""`gateway report`: the same figures as the administration's, for eyes and for programs."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.root import cli
from gateway.core.spend import COSTS_BY_CLASS, DETAIL, MEASURES, ratio
from gateway.simulator import Fault
from tests.http.house import CONFIG, House, around_now, chat, exact, open_house

pytestmark = [pytest.mark.anyio, pytest.mark.integration]


@dataclass(frozen=True)
class Desk:
    """A running gateway with some traffic behind it, and the command line beside it."""

    house: House
    request_id: str

    async def run(self, *arguments: str, status: int = 0) -> Result:
        """One command, in a thread: it has an event loop of its own."""
        environment = {
            "GATEWAY_DATABASE_URL": self.house.database_url,
            "GATEWAY_DATA_DIR": str(self.house.settings.data_dir),
            "GATEWAY_CONFIG_DIR": str(CONFIG),
        }
        words = list(arguments if arguments[0] in cli.commands else ["report", *arguments])
        done = await asyncio.to_thread(lambda: CliRunner().invoke(cli, words, env=environment))
        assert done.exit_code == status, done.output
        return done

    async def said(self, path: str, **query: Any) -> bytes:
        """What the administration answers."""
        answer = await self.house.admin("GET", path, params={**PERIOD, **query})
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture(scope="module")
async def desk(
    anyio_backend: str, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Desk]:
    async with open_house(module_database_url, tmp_path_factory.mktemp("desk")) as house:
        for number in range(6):
            body = chat(f"Hello {number} [[out={10 + number}]]", stream=number % 2 == 0)
            assert (await house.ask(body, x_gateway_tags=f"run={number % 2}")).status_code == 200
        house.simulators["evolink"].faults.add(Fault(kind="server_error", count=1), now=0.0)
        answer = await house.ask(chat("The story [[out=50]] " + "word " * 1_000))
        yield Desk(house, answer.headers["x-request-id"])


PERIOD = around_now()
OPTIONS = ("--from", PERIOD["from"], "--to", PERIOD["to"])
GROUPS = ["key", "provider,model", "day,team", "tag:run,provider", ""]


CONDITIONS = [[], ["provider=evolink", "provider=moonshot", "tag:run=1"], ["status=failed"], ["team="]]


@pytest.mark.parametrize("where", CONDITIONS, ids=",".join)
@pytest.mark.parametrize("groups", GROUPS)
async def test_the_bytes_of_the_administration(desk: Desk, groups: str, where: list[str]):
    """JSON, JSON Lines and CSV are byte for byte what the administration says, and --json is --format json."""
    options = ("spend", *OPTIONS, "--group-by", groups, *(word for each in where for word in ("--where", each)))
    for form in ("json", "jsonl", "csv"):
        for detail in (False, True):
            said = await desk.said("/reports/spend", group_by=groups, where=where, format=form, detail=detail)
            more = ["--detail"] if detail else []
            assert (await desk.run(*options, *more, "--format", form)).stdout_bytes == said
    plain = await desk.said("/reports/spend", group_by=groups, where=where)
    assert (await desk.run(*options, "--json")).stdout_bytes == plain
    assert (Decimal(exact(plain.decode())["total"]["cost"]) > 0) == (where != ["status=failed"])


@pytest.mark.parametrize("where", CONDITIONS, ids=",".join)
async def test_the_rows_of_the_administration(desk: Desk, where: list[str]):
    """The ledger listed is byte for byte the administration's, and costs what the report of the same says."""
    options = ("ledger", "list", *OPTIONS, *(word for each in where for word in ("--where", each)))
    for form in ("json", "jsonl", "csv"):
        said = await desk.said("/ledger", where=where, format=form)
        assert (await desk.run(*options, "--format", form)).stdout_bytes == said
    assert (await desk.run(*options, "--json")).stdout_bytes == await desk.said("/ledger", where=where, format="json")
    rows = [exact(line) for line in (await desk.run(*options)).stdout.splitlines()]
    total = exact((await desk.said("/reports/spend", where=where)).decode())["total"]
    assert (len(rows), sum(Decimal(row["cost"]) for row in rows)) == (total["attempts"], Decimal(total["cost"]))
    table = (await desk.run(*options, "--format", "table")).stdout
    assert f"{len(rows)} rows" in table
    assert total["cost"] in table


async def test_no_rows(desk: Desk):
    """A table of nothing says so."""
    empty = ("ledger", "list", "--from", "2020-01-01", "--to", "2020-02-01", "--format", "table")
    assert (await desk.run(*empty)).stdout == "There are no rows.\n"


async def test_the_detail(desk: Desk):
    """Classes add up to the cost, and what failed is told apart from what the caller paid for."""
    said = exact((await desk.run("spend", *OPTIONS, "--group-by", "provider", "--detail", "--json")).stdout)
    assert list(said["total"]) == [*MEASURES, *DETAIL]
    for row in (*said["rows"], said["total"]):
        assert sum(Decimal(row[name]) for name in COSTS_BY_CLASS) == Decimal(row["cost"])
    assert said["total"]["failed_attempts"] == 1
    assert said["total"]["cache_hit_rate"] == ratio(said["total"]["cached_tokens"], said["total"]["input_tokens"])
    table = (await desk.run("spend", *OPTIONS, "--detail")).stdout
    assert said["total"]["usd_per_million"] in table


async def test_the_chart(desk: Desk):
    """Bars are plain text in a pipe: a line for each provider, and the total."""
    said = exact((await desk.run("spend", *OPTIONS, "--group-by", "provider", "--json")).stdout)
    lines = (await desk.run("spend", *OPTIONS, "--group-by", "provider", "--chart")).stdout.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == {row["provider"] for row in said["rows"]}
    assert "█" in lines[1]
    assert "\x1b" not in "".join(lines)
    rounded = Decimal(lines[-1].split()[1])
    assert abs(rounded - Decimal(said["total"]["cost"])) < Decimal("0.001")


async def test_the_table(desk: Desk):
    """The table shows every group and the exact total."""
    said = exact((await desk.run("spend", *OPTIONS, "--group-by", "provider", "--json")).stdout)
    table = (await desk.run("spend", *OPTIONS, "--group-by", "provider")).stdout
    for row in said["rows"]:
        assert row["provider"] in table
        assert row["cost"] in table
    assert said["total"]["cost"] in table


async def test_without_a_period(desk: Desk):
    """Without a period it is this month, up to now."""
    said = exact((await desk.run("spend", "--json")).stdout)
    assert said["from"][8:10] == "01"
    assert said["total"]["requests"] == 7


async def test_a_month_without_traffic(desk: Desk):
    """A report about nothing says so, and has its columns."""
    empty = ("spend", "--from", "2020-01-01", "--to", "2020-02-01")
    assert "Nothing" in (await desk.run(*empty)).stdout
    header = (await desk.run(*empty, "--format", "csv")).stdout
    assert header.startswith("key,")
    assert next(csv.reader(io.StringIO(header)))[-1] == "estimated_cost"


BAD = [
    (["--from", "soon"], "--from"), (["--to", "2026-13-01"], "--to"), (["--tz", "Mars/Base"], "--tz"),
    (["--from", "2026-02-01", "--to", "2026-01-01"], "--to"), (["--group-by", "colour"], "--group-by"),
    (["--format", "xml"], "--format"), (["--colour"], "--colour"), (["--where", "colour=red"], "--where"),
    (["--where", "key"], "GROUP=VALUE"), (["--where", "month=soon"], "2026-10"), (["--chart", "--json"], "--chart"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named"), BAD)
async def test_bad_usage(desk: Desk, options: list[str], named: str):
    """What makes no sense is bad usage and is named."""
    done = await desk.run("spend", *options, status=2)
    assert "Usage:" in done.stderr
    assert done.stdout == ""
    assert named in done.stderr


async def test_a_request_explained(desk: Desk):
    """The explanation has the administration's figures, and its lines add up."""
    said = exact((await desk.house.admin("GET", f"/requests/{desk.request_id}")).text)
    told: dict[str, Any] = exact((await desk.run("explain", desk.request_id, "--json")).stdout)
    assert told == said
    assert [attempt["status"] for attempt in told["attempts"]] == ["failed", "succeeded"]
    assert {"request_id", "candidates", "attempts", "cost"} <= set(told)
    lines = [line for attempt in told["attempts"] for line in attempt["lines"]]
    assert all(set(line) == {"class", "tokens", "usd_per_million", "cost"} for line in lines)
    assert sum(Decimal(line["cost"]) for line in lines) == Decimal(told["cost"]) > 0


async def test_a_request_explained_to_people(desk: Desk):
    """The text names every candidate, both attempts and the exact cost."""
    told = exact((await desk.run("explain", desk.request_id, "--json")).stdout)
    text = (await desk.run("explain", desk.request_id)).stdout
    assert told["cost"] in text
    for candidate in told["candidates"]:
        assert candidate["provider"] in text
    assert "Attempt 1" in text
    assert "Attempt 2" in text
    assert "transient" in text.lower()


async def test_the_price_row_behind_an_attempt(desk: Desk):
    """An explanation names where a price comes from, and its amounts are those of the lines."""
    told: dict[str, Any] = exact((await desk.run("explain", desk.request_id, "--json")).stdout)
    text = (await desk.run("explain", desk.request_id)).stdout
    attempt = told["attempts"][-1]
    assert attempt["price"]["source"] in text
    assert attempt["price_id"] in text
    units = {line["class"]: line["usd_per_million"] for line in attempt["lines"]}
    assert units == {name: attempt["price"][name] for name in units} != {}


async def test_a_request_found_by_the_name_on_a_bill(desk: Desk):
    """The provider's own id leads to the same explanation; one that nobody has used, or two names, to none."""
    told: dict[str, Any] = exact((await desk.run("explain", desk.request_id, "--json")).stdout)
    theirs = told["attempts"][-1]["upstream_request_id"]
    assert theirs in (await desk.run("explain", desk.request_id)).stdout
    assert exact((await desk.run("explain", "--upstream", theirs, "--json")).stdout) == told
    done = await desk.run("explain", "--upstream", theirs, "--to", "2026-01-01", "--from", "2025-12-01", status=1)
    assert theirs in done.stderr
    assert "2025-12-01" in done.stderr
    assert "--upstream" in (await desk.run("explain", status=2)).stderr
    assert "--upstream" in (await desk.run("explain", desk.request_id, "--upstream", theirs, status=2)).stderr


async def test_a_request_that_nobody_knows(desk: Desk):
    """An unknown request is status 1 and a line on standard error."""
    for options in ([], ["--json"]):
        done = await desk.run("explain", "req_none", *options, status=1)
        assert "req_none" in done.stderr
        assert done.stdout == ""


async def test_without_a_database(tmp_path: Path):
    """A database that is away is told in a line."""
    environment = {"GATEWAY_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "GATEWAY_DATA_DIR": str(tmp_path)}
    done = CliRunner().invoke(cli, ["report", "spend", "--json"], env=environment)
    assert done.exit_code == 1
    assert "GATEWAY_DATABASE_URL" in done.stderr
    assert json.loads(done.stdout or "null") is None

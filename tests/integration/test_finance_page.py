"""Every command of `docs/finance.md` runs as it stands there, in order, over a month of attempts that has one of everything."""

from __future__ import annotations

import asyncio
import csv
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from gateway.catalog import load
from gateway.core.exchange import AttemptStatus
from gateway.core.ledger import LedgerEntry, PinnedPrice, PlanRecord
from gateway.core.money import Money
from gateway.core.prefix import Prompt
from gateway.core.usage import NO_USAGE, UsageSource
from gateway.simulator import PROVIDERS, Simulator, running
from gateway.simulator import Settings as Simulated
from tests.http.house import ADMIN_TOKEN, CONFIG, CREDENTIALS, exact, write_config
from tests.integration.samples import entry, plan, usage
from tests.integration.test_reports import ship

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PAGE = Path(__file__).parents[2] / "docs" / "finance.md"
BLOCK = re.compile(r"^```(sh|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OCTOBER = datetime(2026, 10, 1, tzinfo=UTC)
MODEL = "kimi-k2-thinking"
DRIFTED, ESTIMATED, MISSING_THERE = 7, 8, 21
"""Of Moonshot's attempts the one whose tokens the statement tells otherwise, the one that was an estimate, and the one
that the statement does not have."""


def blocks() -> Iterator[tuple[str, str]]:
    """What a reader types, and what he puts into `prices.toml`."""
    for kind, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind == "toml":
            yield kind, text
        else:
            yield from (("sh", line) for line in text.splitlines() if line.strip())


def attempts() -> list[LedgerEntry]:
    """Four a day: of two keys of two teams, at two providers, most of them told, one estimated, one in ten failed."""
    prices = load(CONFIG, now=OCTOBER).catalogue.prices
    made = []
    for number in range(1, 121):
        provider = "moonshot" if number % 3 else "evolink"
        price = prices.in_force(provider, MODEL, OCTOBER)
        assert price is not None
        is_ci, is_bad = number % 2 == 0, number % 10 == 0
        settled = entry(
            number,
            used=NO_USAGE if is_bad else usage(prompt=1_000 + number, completion=100 + number),
            status=AttemptStatus.FAILED if is_bad else AttemptStatus.SUCCEEDED,
            source=UsageSource.NONE
            if is_bad
            else UsageSource.ESTIMATED
            if number == ESTIMATED
            else UsageSource.PROVIDER,
            is_final=not is_bad,
            started_at=OCTOBER + timedelta(hours=6 * (number - 1), minutes=number % 50),
            key_id="key_ci" if is_ci else "key_agent",
            key_name="ci" if is_ci else "agent",
            team="platform" if is_ci else "research",
            tags={"env": "prod" if number % 4 else "test"},
            provider=provider,
            price=PinnedPrice.of(price),
        )
        made.append(msgspec.structs.replace(settled, upstream_request_id=f"chatcmpl-{number:06}"))
    return made


def plans(made: list[LedgerEntry]) -> list[PlanRecord]:
    return [
        plan(
            number,
            made_at=each.started_at,
            key_id=each.key_id,
            prompt=Prompt((7, number), (400, each.input_tokens), family=7),
            tenant=each.team,
        )
        for number, each in enumerate(made, start=1)
        if each.input_tokens
    ]


def write_statement(path: Path, made: list[LedgerEntry]) -> None:
    """Moonshot's lines of the month, in the columns of its console."""
    names = ("Request ID", "Time", "Model", "Prompt Tokens", "Cached Tokens", "Completion Tokens", "Amount (USD)")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for number, each in enumerate(made, start=1):
            if each.provider != "moonshot" or each.usage_source == "none" or number == MISSING_THERE:
                continue
            output = each.output_tokens + (50 if number == DRIFTED else 0)
            amount = Money(each.cost_pico + 2_500_000 * (output - each.output_tokens)).usd()
            writer.writerow(
                (
                    each.upstream_request_id, each.started_at.strftime("%Y-%m-%dT%H:%M:%SZ"), each.model,
                    each.input_tokens, each.cached_tokens, output, f"{amount:.8f}",
                )
            )  # fmt: skip


@dataclass
class Reader:
    """Somebody with a shell who follows the page."""

    folder: Path
    environment: dict[str, str]
    names: dict[str, str]
    printed: dict[str, str] = field(default_factory=dict)

    async def type(self, line: str) -> str:
        """What the line prints; it must succeed."""
        for name, value in self.names.items():
            line = re.sub(rf"\b{name}\b", value, line)
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", line, cwd=self.folder, env=self.environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, f"{line}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    async def spent(self, *options: str) -> dict[str, Any]:
        told: dict[str, Any] = exact(await self.type(" ".join(("gateway report spend --json", *options))))
        return told


async def test_the_page_runs(database_url: str, tmp_path: Path) -> None:
    """From the report to the archive; the figures that the page promises to stay, stay."""
    made = attempts()
    ship(database_url, tmp_path / "var", *made, *plans(made))
    write_statement(tmp_path / "moonshot-2026-10.csv", made)
    simulators = [Simulator(provider, Simulated(seed=3)) for provider in PROVIDERS]
    async with running(simulators) as addresses:
        config = write_config(tmp_path, addresses)
        environment = {
            **os.environ,
            **CREDENTIALS,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GATEWAY_DATABASE_URL": database_url,
            "GATEWAY_DATA_DIR": str(tmp_path / "var"),
            "GATEWAY_CONFIG_DIR": str(config),
            "GATEWAY_ADMIN_TOKEN": ADMIN_TOKEN,
        }
        names = {
            "ATTEMPT_ID": made[1].attempt_id,
            "REQUEST_ID": made[1].request_id,
            "PROVIDERS_REQUEST_ID": made[1].upstream_request_id or "",
        }
        reader = Reader(tmp_path, environment, names)
        october = ("--from 2026-10-01", "--to 2026-11-01")
        closed: dict[str, Any] = {}
        for kind, text in blocks():
            if kind == "toml":
                with (config / "prices.toml").open("a", encoding="utf-8") as prices:
                    prices.write(f"\n{text}")
                continue
            reader.printed[text] = await reader.type(text)
            if text.startswith("gateway ledger close"):
                closed = await reader.spent(*october)
        assert await reader.spent(*october) == closed
    check_what_was_printed(reader, made, closed)
    check_what_was_exported(tmp_path, closed)
    check_the_books(database_url, made)


def check_what_was_printed(reader: Reader, made: list[LedgerEntry], closed: dict[str, Any]) -> None:
    """A few of the words that the page speaks of."""
    told = {line.partition(" --")[0]: text for line, text in reader.printed.items()}
    first_report = next(iter(reader.printed.values()))
    assert str(Money(sum(each.cost_pico for each in made))) in first_report
    assert made[1].attempt_id not in first_report
    assert "2026-10" in told["gateway ledger months"]
    explained = told["gateway report explain REQUEST_ID"]
    assert "ticket 4711" in explained
    assert "ticket 4712" in explained
    assert closed["total"]["cost"] in told["gateway ledger close 2026-10"]
    assert "ledger.close" in told["gateway audit list"]


def check_what_was_exported(folder: Path, closed: dict[str, Any]) -> None:
    """The closed month exports the same bytes before and after what came later, and sums to the report."""
    (signed,) = (folder / "october").glob("focus-1.2*.csv")
    (again,) = (folder / "october-again").glob("focus-1.2*.csv")
    assert signed.read_bytes() == again.read_bytes()
    with signed.open(encoding="utf-8", newline="") as file:
        billed = sum(Decimal(row["BilledCost"]) for row in csv.DictReader(file))
    assert billed == Decimal(closed["total"]["cost"])
    assert {path.suffix for path in (folder / "october").iterdir()} >= {".csv", ".parquet", ".json"}
    assert (folder / "october.csv").read_text("utf-8").startswith("team,tag:env,requests,")


def check_the_books(database_url: str, made: list[LedgerEntry]) -> None:
    """The month has left the database, and the one refund that came later counts in the month after."""
    with psycopg.connect(database_url) as db:
        db.execute("SET TIME ZONE 'UTC'")
        rows = db.execute("SELECT corrects, started_at, restates, cost_pico FROM ledger").fetchall()
    late = made[1]
    assert rows == [(late.attempt_id, datetime(2026, 11, 1, tzinfo=UTC), late.started_at, -100_000_000)]

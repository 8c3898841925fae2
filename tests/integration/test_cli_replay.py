"""`gateway replay --from --to`: the ledger's own past, against the providers as they are configured."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.root import cli
from tests.http.house import CONFIG, House, around_now, chat, open_house

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PERIOD = around_now()
OPTIONS = ("replay", "--from", PERIOD["from"], "--to", PERIOD["to"])


async def run(house: House, *arguments: str, status: int = 0, config: Path = CONFIG) -> Result:
    """One command, in a thread: it has an event loop of its own."""
    environment = {
        "GATEWAY_DATABASE_URL": house.database_url,
        "GATEWAY_DATA_DIR": str(house.settings.data_dir),
        "GATEWAY_CONFIG_DIR": str(config),
    }
    done = await asyncio.to_thread(lambda: CliRunner().invoke(cli, arguments, env=environment))
    assert done.exit_code == status, done.output
    return done


async def test_the_past_is_replayed_beside_what_was_paid(database_url: str, tmp_path: Path):
    """Six requests through the gateway: every policy answers all six, and what was paid is the report's own sum."""
    async with open_house(database_url, tmp_path) as house:
        for number in range(6):
            answer = await house.ask(chat("The same beginning. " + "word " * 2_000 + f"{number} [[out=20]]"))
            assert answer.status_code == 200
        spend = json.loads((await run(house, "report", "spend", *OPTIONS[1:], "--json")).stdout, parse_float=Decimal)
        found = json.loads((await run(house, *OPTIONS, "--json")).stdout)
        assert found["source"]["requests"] == 6
        assert found["source"]["input_tokens"] == spend["total"]["input_tokens"]
        assert {each["requests"] for each in (*found["policies"], *found["providers_alone"])} == {6}
        assert Decimal(found["actual"]["spend_usd"]) == Decimal(str(spend["total"]["cost"]))
        table = (await run(house, *OPTIONS)).stdout
        assert "as it was" in table


async def test_a_new_price_row_is_tried_on_the_past(database_url: str, tmp_path: Path):
    """With --at a date after a new row has begun, the past costs what that row asks: here everything ten times."""
    config = tmp_path / "raised"
    config.mkdir()
    for file in CONFIG.glob("*.toml"):
        (config / file.name).write_text(file.read_text("utf-8"), "utf-8")
    rows = "".join(
        f'\n[[prices]]\nprovider = "{provider}"\nmodel = "kimi-k2-thinking"\neffective_from = 2099-01-01\n'
        'input = "6.00"\ncached_input = "1.50"\noutput = "25.00"\nconfirmed = true\n'
        for provider in ("moonshot", "cometapi", "evolink")
    )
    with (config / "prices.toml").open("a", encoding="utf-8") as prices:
        prices.write(rows)
    async with open_house(database_url, tmp_path) as house:
        for number in range(3):
            assert (await house.ask(chat(f"A question {number} [[out=20]]"))).status_code == 200
        before = json.loads((await run(house, *OPTIONS, "--json", config=config)).stdout, parse_float=Decimal)
        after = json.loads(
            (await run(house, *OPTIONS, "--at", "2099-01-02", "--json", config=config)).stdout, parse_float=Decimal
        )
        costs = [
            {each["provider"]: Decimal(each["spend_usd"]) for each in found["providers_alone"]}
            for found in (before, after)
        ]
        assert costs[1]["moonshot"] == 10 * costs[0]["moonshot"] > 0
        assert len(set(costs[1].values())) == 1
        assert after["actual"] == before["actual"]


async def test_a_past_without_requests_cannot_be_replayed(database_url: str, tmp_path: Path):
    """It says for which model and time there is nothing."""
    async with open_house(database_url, tmp_path) as house:
        done = await run(house, *OPTIONS, status=1)
        assert "the ledger has no request for kimi-k2-thinking from " in done.output

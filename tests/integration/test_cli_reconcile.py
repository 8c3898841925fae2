"""`gateway reconcile`: statements of real simulators about real traffic, with every fault that was planted in them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from bench.process import free_ports
from gateway.cli.root import cli
from gateway.simulator import PROVIDERS, Simulator
from gateway.simulator import Settings as Simulated
from tests.http.house import CREDENTIALS, House, around_now, chat, eventually, exact, open_house

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

CALLS = 24
RATE = {"evolink": ("--usd-per-unit", "1")}
PERIOD = around_now()
OPTIONS = ("--from", PERIOD["from"], "--to", PERIOD["to"])


@dataclass(frozen=True)
class Desk:
    """A gateway with traffic at every provider, their consoles, and the command line."""

    house: House
    folder: Path

    async def run(self, *arguments: str, status: int = 0) -> Result:
        """One command, in a thread: it has an event loop of its own."""
        environment = {
            **CREDENTIALS,
            "GATEWAY_DATABASE_URL": self.house.database_url,
            "GATEWAY_DATA_DIR": str(self.house.settings.data_dir),
            "GATEWAY_CONFIG_DIR": str(self.house.settings.config_dir),
        }
        done = await asyncio.to_thread(lambda: CliRunner().invoke(cli, ["reconcile", *arguments], env=environment))
        assert done.exit_code == status, (done.output, done.exception)
        return done

    async def compared(self, provider: str, *options: str, form: str | None = None) -> dict[str, Any]:
        """The statement of this moment against the ledger."""
        path = await self.statement(provider, form)
        arguments = ("--provider", provider, "--statement", str(path), *OPTIONS, *RATE.get(provider, ()), *options)
        said = exact((await self.run(*arguments, "--json")).stdout)
        assert Decimal(said["residual"]) == 0
        steps = sum(Decimal(step) for step in said["steps"].values())
        assert Decimal(said["ledger"]["total"]) + steps == Decimal(said["statement"]["total"])
        return said

    async def statement(self, provider: str, form: str | None = None) -> Path:
        answer = await self.console(provider, "GET", "/statement", params={} if form is None else {"format": form})
        path = self.folder / f"{provider}.{form or 'statement'}"
        path.write_bytes(answer.content)
        return path

    async def plant(self, provider: str, *drifts: dict[str, Any]) -> list[dict[str, Any]]:
        """Plants drifts instead of those that are there; what they do, line by line."""
        await self.console(provider, "DELETE", "/statement")
        await self.console(provider, "POST", "/statement", json=list(drifts))
        planted = await self.console(provider, "GET", "/statement/planted")
        return [json.loads(line) for line in planted.text.splitlines()]

    async def console(self, provider: str, method: str, path: str, **arguments: Any) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.request(method, f"{self.house.addresses[provider]}/__sim{path}", **arguments)
        assert answer.status_code == 200, answer.text
        return answer

    def bill(self, provider: str) -> list[Any]:
        simulator: Simulator = self.house.simulators[provider]
        return list(simulator.bill.lines)


def with_console(text: str) -> str:
    """CometAPI's quota, where the simulator serves it: its key travels in the address."""
    base = text.partition("[providers.cometapi]")[2].partition("base_url")[2].partition('"')[2].partition("/v1")[0]
    return text.replace("[providers.cometapi]\n", f'[providers.cometapi]\nbalance_url = "{base}/user/quota"\n')


@pytest.fixture
async def empty_desk(anyio_backend: str, database_url: str, tmp_path: Path) -> AsyncIterator[Desk]:
    """Nobody has asked for anything yet."""
    simulated = Simulated(seed=11, restate_after_seconds=3_600)
    edits = {"providers.toml": with_console}
    async with open_house(database_url, tmp_path, simulated=simulated, edits=edits) as house:
        folder = tmp_path / "statements"
        folder.mkdir()
        yield Desk(house, folder)


@pytest.fixture
async def desk(empty_desk: Desk) -> Desk:
    for number in range(CALLS):
        await asyncio.gather(*(_ask(empty_desk.house, provider, number) for provider in PROVIDERS))
    return empty_desk


async def _ask(house: House, provider: str, number: int) -> None:
    content = f"Call {number} [[out={20 + 7 * number}]] " + "word " * (40 + 9 * number * number % 700)
    answer = await house.ask(chat(content, provider={"only": [provider]}))
    assert answer.status_code == 200, answer.text


def found(said: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter((each["class"], each["request_id"]) for each in said["findings"])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_true_statement_has_no_finding(desk: Desk, provider: str) -> None:
    """In either form of the provider's, and also where nobody says for which period."""
    for form in ("csv", "json"):
        said = await desk.compared(provider, form=form)
        assert said["classes"]["matched"]["count"] == said["statement"]["lines"] == CALLS
        assert (said["findings"], said["statement"]["format"]) == ([], form)
    path = await desk.statement(provider)
    shown = await desk.run("--provider", provider, "--statement", str(path), *RATE.get(provider, ()))
    assert "matched" in shown.stdout and "Nothing was written" not in shown.stdout
    assert any("has no line before" in hint for hint in said["hints"])


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_every_planted_fault_is_found_and_nothing_else(desk: Desk, provider: str) -> None:
    """Tokens, a line left out, one that nobody asked for and one there twice, by request id and to the amount."""
    ids = [line.request_id for line in desk.bill(provider)]
    planted = await desk.plant(
        provider,
        {"kind": "tokens", "tokens": 3, "request_ids": [ids[4], ids[9]]},
        {"kind": "missing", "request_ids": [ids[0], ids[15]]},
        {"kind": "extra", "request_ids": [ids[7]]},
        {"kind": "duplicate", "request_ids": [ids[21]]},
    )
    said = await desk.compared(provider)
    names = {"tokens": "tokens", "missing": "missing_there", "extra": "missing_here", "duplicate": "duplicate"}
    assert found(said) == Counter((names[each["kind"]], each["stated_request_id"]) for each in planted)
    for each in said["findings"]:
        if each["class"] == "tokens":
            assert each["statement_tokens"]["output"] == each["ledger_tokens"]["output"] + 3
    shown = (await desk.run("--provider", provider, "--statement", str(await desk.statement(provider)), *OPTIONS,
                            *RATE.get(provider, ()))).stdout  # fmt: skip
    for request_id in (ids[0], ids[4], ids[21]):
        assert request_id in shown
    assert "Nothing was written" in shown


async def test_half_the_price_since_a_moment_is_one_price(desk: Desk) -> None:
    """The lines are explained by one factor, whose row can be pasted; applying leaves them to a reprice."""
    lines = desk.bill("cometapi")
    since = (lines[8].arrived_at + lines[7].arrived_at) / 2
    moment = datetime.fromtimestamp(since, UTC).isoformat()
    await desk.plant("cometapi", {"kind": "price", "factor": "0.5", "since": moment})
    said = await desk.compared("cometapi")
    (price,) = said["prices"]
    assert (price["factor"], price["lines"], price["drifted"]) == ("0.5", CALLS - 8, CALLS - 8)
    assert price["usd_per_million"]["input"] == "0.55" and price["usd_per_million"]["output"] == "2.2"
    assert 'input = "0.55"' in price["row"] and "cometapi charged 0.5 x the price row" in price["text"]
    assert {each["explained_by"] for each in said["findings"]} == {0}
    applied = (await desk.compared("cometapi", "--apply", "--reason", "half price"))["applied"]
    assert applied["rows"] == 0 and sum(applied["left"].values()) == CALLS - 8
    applied = (await desk.compared("cometapi", "--apply", "--reason", "half price", "--adjust-prices"))["applied"]
    assert (applied["findings"], applied["rows"]) == (CALLS - 8, CALLS - 8)
    assert (await desk.compared("cometapi"))["findings"] == []


@pytest.mark.parametrize("provider", ["moonshot", "evolink"])
async def test_applied_once_there_is_nothing_left_to_apply(desk: Desk, provider: str) -> None:
    """Tokens and unknown lines are booked; what a person has to decide is left; the second time changes nothing, and
    another figure later only by its difference."""
    ids = [line.request_id for line in desk.bill(provider)]
    faults: list[dict[str, Any]] = [
        {"kind": "tokens", "tokens": 5, "request_ids": [ids[3]]},
        {"kind": "tokens", "tokens": 40, "token_class": "input", "request_ids": [ids[5]]},
        {"kind": "price", "factor": "1.25", "request_ids": [ids[8]]},
        {"kind": "missing", "request_ids": [ids[11]]},
        {"kind": "extra", "request_ids": [ids[12]]},
        {"kind": "duplicate", "request_ids": [ids[13]]},
    ]
    await desk.plant(provider, *faults)
    before = await desk.compared(provider)
    said = await desk.compared(provider, "--apply", "--reason", "the statement of today")
    assert (said["applied"]["findings"], sum(said["applied"]["left"].values())) == (4, 2)
    assert said["applied"]["rows"] == 6
    rows = await desk.house.ledger(**PERIOD)
    assert sum(Decimal(row["cost"]) for row in rows if row["corrects"]) == Decimal(said["applied"]["cost"])
    after = await desk.compared(provider)
    assert {each["class"] for each in after["findings"]} == {"missing_there", "duplicate"}
    moved = Decimal(after["ledger"]["total"]) - Decimal(before["ledger"]["total"])
    assert moved == Decimal(said["applied"]["cost"])
    again = await desk.compared(provider, "--apply", "--reason", "once more")
    assert (again["applied"]["rows"], again["applied"]["findings"]) == (0, 0)
    faults[0]["tokens"] = 2
    await desk.plant(provider, *faults)
    await desk.compared(provider, "--apply", "--reason", "they have restated it")
    assert {each["class"] for each in (await desk.compared(provider))["findings"]} == {"missing_there", "duplicate"}
    audit = (await desk.house.admin("GET", "/audit")).json()["data"]
    assert [entry["after"]["reason"] for entry in audit if entry["action"] == "ledger.correct"] == [
        "they have restated it",
        "the statement of today",
    ]


async def test_bad_lines_are_named_and_end_it_unless_they_are_counted_out(desk: Desk) -> None:
    """Each with its number and the reason; what is left of the statement is compared where somebody says so."""
    path = await desk.statement("moonshot")
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(",kimi", ",kimi,more")
    lines[5] = lines[5].rpartition(",")[0] + ",free"
    path.write_text("\n".join(lines))
    arguments = ("--provider", "moonshot", "--statement", str(path), *OPTIONS)
    done = await desk.run(*arguments, status=1)
    assert "line 4: it has 8 columns, and the header 7" in done.stderr
    assert "line 6: the amount 'free' is not a decimal number" in done.stderr
    said = exact((await desk.run(*arguments, "--skip-bad-lines", "--json")).stdout)
    assert (said["statement"]["bad_lines"], said["classes"]["missing_there"]["count"]) == (2, 2)


BAD = [
    (["--provider", "nobody", "--balance"], 2, "is not configured; known: cometapi, evolink, moonshot"),
    (["--provider", "moonshot"], 2, "either --statement FILE or --balance"),
    (["--provider", "moonshot", "--balance", "--account", "x"], 2, "no account 'x'; known: main"),
    (["--provider", "moonshot", "--statement", "gone.csv"], 1, "gone.csv cannot be read: No such file"),
    (["--provider", "evolink", "--statement", "gone.csv"], 1, "write usd_per_unit in [providers.evolink.statement]"),
    (["--provider", "moonshot", "--statement", "gone.csv", "--apply"], 2, "--apply needs --reason"),
]


@pytest.mark.parametrize(("arguments", "status", "words"), BAD)
async def test_what_cannot_be_done_says_what_to_do(desk: Desk, arguments: list[str], status: int, words: str) -> None:
    """Bad usage is 2 and names the option; what is not there is 1 and names the mend."""
    assert words in (await desk.run(*arguments, status=status)).stderr


async def test_a_figure_that_is_restated_later_is_booked_by_its_difference(empty_desk: Desk) -> None:
    """A stream that was cut off is billed as planned at first, and as delivered in the end; the ledger follows."""
    desk = empty_desk
    for number in range(3):
        await _ask(desk.house, "moonshot", number)
    desk.house.simulators["moonshot"].configure(Simulated(seed=11, chunk_ms=2, restate_after_seconds=3_600))
    body = chat("A long story [[out=2000]]", stream=True, provider={"only": ["moonshot"]})
    headers = {"authorization": f"Bearer {desk.house.key}"}
    async with desk.house.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        async for line in answer.aiter_lines():
            if '"content":"' in line:
                break
    await eventually(lambda: len(desk.bill("moonshot")) == 4)
    (cut,) = [line for line in desk.bill("moonshot") if line.aborted]
    rows = await eventually(lambda: _rows(desk, 4))
    assert [row["usage_source"] for row in rows].count("estimated") == 1
    early = await desk.compared("moonshot", "--apply", "--reason", "the first statement")
    assert found(early) == Counter({("tokens", cut.request_id): 1})
    assert any("estimated here and have a line now" in hint for hint in early["hints"])
    assert (await desk.compared("moonshot"))["findings"] == []
    desk.house.simulators["moonshot"].configure(Simulated(seed=11))
    late = await desk.compared("moonshot", "--apply", "--reason", "they restated it")
    (restated,) = late["findings"]
    assert restated["ledger_tokens"]["output"] == cut.early_output_tokens
    assert restated["statement_tokens"]["output"] == cut.output_tokens
    final = await desk.compared("moonshot")
    assert final["findings"] == []
    assert Decimal(final["ledger"]["total"]) == Decimal(sum(line.cost_pico for line in desk.bill("moonshot"))).scaleb(
        -12
    )


async def _rows(desk: Desk, count: int) -> list[dict[str, Any]]:
    rows = await desk.house.ledger(**PERIOD)
    return rows if len(rows) == count else []


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_balance_falls_by_what_the_ledger_says(empty_desk: Desk, provider: str) -> None:
    """The first reading says so; the next is held against the ledger; what was charged beyond it is drift, and told."""
    desk = empty_desk
    arguments = ("--provider", provider, "--balance", *RATE.get(provider, ()))
    assert "first reading" in (await desk.run(*arguments)).stdout
    for number in range(6):
        await _ask(desk.house, provider, number)
    (told,) = exact((await desk.run(*arguments, "--json")).stdout)["accounts"]
    assert (told["drift"], told["within"], told["readings"]) == ("0", True, 2)
    assert Decimal(told["ledger"]) == Decimal(sum(line.cost_pico for line in desk.bill(provider))).scaleb(-12) > 0
    await desk.plant(provider, {"kind": "price", "factor": "1.5", "since": datetime.now(UTC).isoformat()})
    for number in range(6, 12):
        await _ask(desk.house, provider, number)
    (told,) = exact((await desk.run(*arguments, "--tolerance", "5", "--json", status=1)).stdout)["accounts"]
    assert not told["within"] and 40 < Decimal(told["percent"]) <= 50
    (told,) = exact((await desk.run(*arguments, "--since", "2020-01-01", "--tolerance", "60", "--json")).stdout)[
        "accounts"
    ]
    assert told["within"] and told["readings"] == 4 and 0 < Decimal(told["percent"]) < 50


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_money_that_was_paid_in_is_no_drift(empty_desk: Desk, provider: str) -> None:
    """Told with its amount where a counter says what was used, left out where none does."""
    desk = empty_desk
    arguments = ("--provider", provider, "--balance", *RATE.get(provider, ()))
    await desk.run(*arguments)
    await _ask(desk.house, provider, 3)
    (account,) = {line.credential for line in desk.bill(provider)}
    await desk.console(provider, "POST", "/topup", json={"credential": account, "usd": "50"})
    (told,) = exact((await desk.run(*arguments, "--json")).stdout)["accounts"]
    assert told["within"] and told["drift"] == "0"
    if provider == "moonshot":
        assert (told["untold"], told["topped_up"]) == (1, "0")
    else:
        assert (told["untold"], told["topped_up"]) == (0, "50")


async def test_no_word_about_a_balance_has_the_key_in_it(empty_desk: Desk) -> None:
    """Neither when the provider refuses it, nor when it cannot be reached, nor when there is no address to ask."""
    desk, key = empty_desk, CREDENTIALS["COMETAPI_KEY"]
    arguments = ("--provider", "cometapi", "--balance", "--json")
    desk.house.simulators["cometapi"].configure(Simulated(accounts={"sk-another": "main"}))
    refused = await desk.run(*arguments, status=1)
    assert "cometapi (main) answers HTTP 401" in refused.stderr
    providers = desk.house.settings.config_dir / "providers.toml"
    text = providers.read_text()
    address = desk.house.addresses["cometapi"]
    providers.write_text(text.replace(f"{address}/user/quota", f"http://127.0.0.1:{free_ports()}/user/quota"))
    gone = await desk.run(*arguments, status=1)
    assert "The balance of cometapi (main) cannot be read: cometapi: ClientConnectorError" in gone.stderr
    providers.write_text(text.replace(f'balance_url = "{address}/user/quota"\n', ""))
    unknown = await desk.run(*arguments, status=1)
    assert "it has to be configured, as balance_url in [providers.cometapi]" in unknown.stderr
    for done in (refused, gone, unknown):
        assert key not in done.output + done.stderr

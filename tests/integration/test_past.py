"""What was kept of a request comes back from the ledger in order of time, and the report is made of that alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from click.testing import CliRunner

from gateway.adapters.journal import JournalWriter
from gateway.adapters.journal.segments import decode
from gateway.adapters.postgres.reports import Reports
from gateway.cli.root import cli
from gateway.core.corrections import adjusted
from gateway.core.exchange import AttemptStatus
from gateway.core.grants import COMMAND_LINE
from gateway.core.ledger import PlanRecord, Record
from gateway.core.money import Money
from gateway.core.prefix import Prompt
from gateway.core.shadow import PastRequest
from gateway.core.usage import NO_USAGE, UsageSource
from gateway.replay.rows import Row, Served
from tests.http.house import CONFIG
from tests.integration.bookkeeping import batch, correct, in_force
from tests.integration.samples import T0, entry, plan, usage
from tests.integration.test_shipper import SteppedClock, ship_once

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)
FIRST = Prompt((2**64 - 1, 7), (100, 1_000), family=2**63)
SECOND = Prompt((2**64 - 1, 7, 8), (100, 1_000, 1_500), family=2**63, anchored_tokens=1_000)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalWriter]:
    writer = JournalWriter.open(tmp_path, "j1")
    yield writer
    writer.close()


def records() -> list[Record]:
    """Two turns of a conversation, the second with a failed attempt before; a request from before prefixes were kept;
    one that nobody answered; one of another model and team. Shipped out of order."""
    failed = entry(2, used=NO_USAGE, status=AttemptStatus.FAILED, source=UsageSource.ESTIMATED, is_final=False,
                   provider="moonshot")  # fmt: skip
    failed = msgspec.structs.replace(failed, output_pico=5, cost_pico=5, list_pico=5)
    second = {"attempt": 2, "request_id": "req_00000002", "started_at": T0 + timedelta(seconds=65)}
    nothing = entry(4, used=NO_USAGE, status=AttemptStatus.FAILED, source=UsageSource.NONE)
    return [
        plan(2, made_at=T0 + timedelta(seconds=2), prompt=SECOND, tenant="blue", turn=1),
        failed,
        entry(20, used=usage(prompt=2_000, cached=1_000), **second),
        entry(1, used=usage(prompt=1_000, cached=None)),
        plan(1, prompt=FIRST, tenant="blue"),
        plan(3),
        entry(3),
        plan(4, prompt=FIRST, tenant="blue"),
        nothing,
        plan(5, prompt=FIRST, tenant="red"),
        entry(5, model="kimi-k2.6", team="red"),
    ]


def read(url: str, **asked: Any) -> list[PastRequest]:
    async def ask() -> list[PastRequest]:
        reports = Reports(url)
        try:
            return [each async for each in reports.past(T0 - DAY, T0 + DAY, **asked)]
        finally:
            await reports.close()

    return asyncio.run(ask())


def test_what_corrects_an_answer_is_no_failure(journal: JournalWriter, database_url: str):
    """A refund makes the request cheaper, and what failed on the way to its answer stays what it was."""
    ship_once(journal, database_url, SteppedClock(), *records())
    before = {each.request_id: each for each in read(database_url)}["req_00000002"]
    now = in_force(database_url, T0, T0 + DAY)["att_00000020"]
    refund = adjusted(now, correction_id="cor_1", amount=Money(-7), closed_until=None)
    correct(database_url, lambda store: store.write(batch(), [refund], by=COMMAND_LINE))
    after = {each.request_id: each for each in read(database_url)}["req_00000002"]
    assert (after.cost.pico, after.failed_cost) == (before.cost.pico - 7, before.failed_cost)


def test_a_request_comes_back_with_all_of_its_attempts(journal: JournalWriter, database_url: str):
    """In order of the first attempt; figures of the last; the cost of all; prefixes as they were."""
    ship_once(journal, database_url, SteppedClock(), *records())
    found = read(database_url)
    assert [each.request_id for each in found] == [f"req_0000000{number}" for number in (1, 2, 3, 4, 5)]
    first, second, before, unanswered, other = found
    assert (first.prompt, first.tenant, first.turn, first.cached_tokens) == (FIRST, "blue", 0, 0)
    assert (first.at, first.is_read, first.is_told) == (T0 + timedelta(seconds=1), True, True)
    assert (second.prompt, second.turn, second.provider, second.input_tokens) == (SECOND, 1, "evolink", 2_000)
    assert second.at == T0 + timedelta(seconds=2)
    assert (second.cost.pico - second.final_cost.pico, second.failed_cost.pico) == (5, 5)
    assert (before.prompt, before.tenant, before.turn) == (None, "blue", 0)
    assert (unanswered.is_read, unanswered.is_told) == (False, False)
    assert (unanswered.cost.pico, unanswered.failed_cost.pico) == (0, 0)
    assert (other.model, other.tenant) == ("kimi-k2.6", "red")
    assert [each.request_id for each in read(database_url, team="red")] == ["req_00000005"]
    assert len(read(database_url, model="kimi-k2-thinking")) == 4


def test_a_correction_is_in_the_cost(journal: JournalWriter, database_url: str):
    """What a request cost is what its rows come to, corrections among them; it is still one request."""
    made = entry(1)
    correction = msgspec.structs.replace(
        made, attempt_id="cor_1", corrects=made.attempt_id, input_tokens=0, cached_tokens=0, output_tokens=0,
        input_pico=-7, cached_pico=0, output_pico=0, cost_pico=-7, list_pico=-7, reasoning_tokens=None,
    )  # fmt: skip
    ship_once(journal, database_url, SteppedClock(), plan(1, prompt=FIRST), made, correction)
    (found,) = read(database_url)
    assert found.cost.pico == made.cost_pico - 7
    assert (found.final_cost.pico, found.input_tokens) == (made.cost_pico, made.input_tokens)


def test_the_period_is_half_open(journal: JournalWriter, database_url: str):
    """From inclusive, to exclusive, by the first attempt."""
    ship_once(journal, database_url, SteppedClock(), *records())

    async def ask(start: int, end: int) -> list[str]:
        reports = Reports(database_url)
        moments = T0 + timedelta(seconds=start), T0 + timedelta(seconds=end)
        try:
            return [each.request_id[-1] async for each in reports.past(*moments)]
        finally:
            await reports.close()

    assert asyncio.run(ask(2, 4)) == ["2", "3"]


def test_the_past_as_rows_to_replay(journal: JournalWriter, database_url: str):
    """Those that were read and whose prefixes are on record, with the tokens that were billed."""
    ship_once(journal, database_url, SteppedClock(), *records())

    async def ask() -> list[Row]:
        reports = Reports(database_url)
        try:
            return [row async for row in reports.past_rows(T0 - DAY, T0 + DAY, model="kimi-k2-thinking")]
        finally:
            await reports.close()

    first, second = asyncio.run(ask())
    assert first.at == T0.timestamp() + 1
    assert first.prompt.tokens == (100, 1_000)
    assert (second.input_tokens, second.prompt.tokens) == (2_000, (100, 1_000, 2_000))
    assert second.prompt.digests == SECOND.digests
    assert isinstance(second.served, Served)
    assert (second.served.provider, second.served.cached_tokens) == ("evolink", 1_000)


def test_a_journal_from_before_still_ships(journal: JournalWriter, database_url: str):
    """Its plans have no prefixes, and nothing else is different."""
    made = plan(1)
    fields = {"t": "plan", "request_id": made.request_id, "made_at": made.made_at, "key_id": made.key_id}
    old = decode(msgspec.msgpack.encode(fields | {"plan": bytes(made.plan)}))
    assert isinstance(old, PlanRecord)
    assert (old, old.prompt) == (made, None)
    ship_once(journal, database_url, SteppedClock(), old, entry(1))
    with psycopg.connect(database_url) as db:
        rows = db.execute("SELECT request_id, prompt, tenant, turn FROM exchanges").fetchall()
    assert rows == [(made.request_id, None, None, None)]


def test_the_report_on_the_command_line(journal: JournalWriter, database_url: str, tmp_path: Path):
    """JSON has every figure exactly, the table the same for eyes with what each is; nothing is drawn into a pipe."""
    ship_once(journal, database_url, SteppedClock(), *records())
    environment = {
        "GATEWAY_DATABASE_URL": database_url,
        "GATEWAY_DATA_DIR": str(tmp_path / "elsewhere"),
        "GATEWAY_CONFIG_DIR": str(CONFIG),
    }

    def run(*options: str, status: int = 0) -> str:
        asked = ["report", "savings", "--from", "2025-11-22", "--to", "2025-11-23", *options]
        done = CliRunner().invoke(cli, asked, env=environment)
        assert done.exit_code == status, done.output
        assert "Adding up" not in done.stderr
        return done.output

    said = json.loads(run("--json", "--model", "kimi-thinking"))
    assert (said["requests"], said["requests_left_out"]) == (4, 2)
    (model,) = said["models"]
    assert (model["model"], model["requests"]) == ("kimi-k2-thinking", 2)
    baselines = {each["baseline"]: each for each in model["baselines"]}
    assert list(baselines) == ["cometapi", "evolink", "moonshot", "list price"]
    for each in baselines.values():
        assert Decimal(each["actual"]) + Decimal(each["saved"]) == Decimal(each["cost"])
    assert baselines["evolink"]["measured"]
    assert not baselines["moonshot"]["measured"]
    assert baselines["cometapi"]["cost_low"] == baselines["cometapi"]["cost_high"]
    assert Decimal(model["failed"]) == Decimal("0.000000000005")
    table = run("--model", "kimi-k2-thinking")
    for word in ("cometapi", "the lowest list price", "assumed", "2 of 4 requests", model["actual"], "95 % band"):
        assert word in table
    assert "nothing to compare" in run("--model", "kimi-k3")
    assert "Usage:" in run("--tz", "Mars/Base", status=2)

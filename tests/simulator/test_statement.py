"""A statement is the bill in the provider's own columns, units and rounding."""

from __future__ import annotations

import csv
import io
import json
import time
from decimal import Decimal
from typing import Any

import pytest

from gateway.providers import dialect
from gateway.simulator import PROVIDERS, Order, Settings, Simulator, filler
from gateway.simulator.bill import Bill, rounded
from tests.simulator.bills import ARRIVED_AT, bill_line, bill_lines, planted, rows, statement

HEADS = {
    "moonshot": "Request ID,Time,Model,Prompt Tokens,Cached Tokens,Completion Tokens,Amount (USD)",
    "cometapi": "id,created_at,token_name,model_name,prompt_tokens,completion_tokens,quota,request_id",
    "evolink": "request_id,created_at,api_key,model,usage.prompt_tokens,usage.completion_tokens,"
    "usage.prompt_tokens_details.cached_tokens,credits",
}
LINES = {
    "moonshot": "{id},1970-01-01T00:16:40Z,kimi-k2-thinking,604,604,100,0.00034060",
    "cometapi": "200,1000,{key},kimi-k2-thinking,604,100,552,{id}",
    "evolink": "{id},1970-01-01T00:16:40.000Z,{key},kimi-k2-thinking,604,100,604,0.000306",
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_line_of_each_provider_worked_by_hand(direct, ask, provider):
    """604 cached and 100 output tokens: 340.6, 1,104.4 and 306.156 millionths of a dollar, rounded as each rounds."""
    simulator = direct.simulator(provider)
    for _ in range(2):
        reply = direct.ask(simulator, ask(filler(597, seed=1) + "[[out=100]]"))
    head, _, line = statement(simulator, format="csv").decode().splitlines()
    request_id = next(reply.headers[name] for name in dialect(provider).request_id_headers if name in reply.headers)
    key = simulator.bill.lines[0].credential
    assert head == HEADS[provider]
    assert line == LINES[provider].format(id=request_id, key=key)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_json_says_what_csv_says(provider):
    """The same lines in both, amounts to the last digit; dotted names are members of members."""
    simulator = Simulator(provider)
    bill_lines(simulator, 1_200)
    document = json.loads(statement(simulator, format="json"), parse_float=Decimal)
    flat = [
        {name: str(_member(line, name)) for name in HEADS[provider].split(",")} for line in document["data"]
    ]  # fmt: skip
    assert len(flat) == 1_200
    assert flat == rows(simulator)


def _member(line: dict[str, Any], name: str) -> Any:
    return line[name] if name in line else _member(line[name.split(".")[0]], name.partition(".")[2])


def test_without_a_format_each_gives_its_own():
    """Moonshot and CometAPI hand out CSV, EvoLink JSON; an empty period is a statement too."""
    types = {each: Simulator(each).statements().written(Order())[0].split(b";")[0] for each in PROVIDERS}
    assert types == {"moonshot": b"text/csv", "cometapi": b"text/csv", "evolink": b"application/json"}
    assert json.loads(statement(Simulator("evolink")))["data"] == []
    assert statement(Simulator("cometapi")).decode() == HEADS["cometapi"] + "\r\n"


@pytest.mark.parametrize(
    ("numerator", "whole"), [(0, 0), (4, 0), (5, 0), (6, 1), (14, 1), (15, 2), (25, 2), (-5, 0), (-15, -2), (-14, -1)]
)
def test_of_two_whole_numbers_as_near_the_even_one_counts(numerator, whole):
    """Half to even, below nothing too."""
    assert rounded(numerator, 10) == whole


def test_every_amount_is_within_half_of_its_last_place():
    """What a reader may rely on: the amount as printed is at most half a unit from the bill."""
    units = {"moonshot": ("Amount (USD)", 1), "cometapi": ("quota", 500_000), "evolink": ("credits", 1)}
    for provider, (column, per_usd) in units.items():
        simulator = Simulator(provider)
        lines = bill_lines(simulator, 300)
        for line, row in zip(lines, rows(simulator), strict=True):
            printed = Decimal(row[column])
            half = Decimal(1).scaleb(int(printed.as_tuple().exponent)) / 2
            assert abs(printed - Decimal(line.cost_pico).scaleb(-12) * per_usd) <= half


def test_a_period_is_by_arrival_from_inclusive_to_exclusive():
    """A date is its midnight UTC, a moment without a zone is UTC, and a credential has its own lines."""
    simulator = Simulator("moonshot")
    midnight = 1_790_035_200.0
    for at, credential in ((-0.001, "one"), (0, "one"), (0.5, "two"), (86_399.9, "one"), (86_400, "one")):
        bill_line(simulator, arrived_at=midnight + at, credential=credential)

    def found(**query: str) -> list[int]:
        return [int(row["Request ID"], 16) for row in rows(simulator, **query)]

    assert found(from_="2026-09-22", to="2026-09-23") == [2, 3, 4]
    assert found(from_="2026-09-22T02:00:00+02:00", to="2026-09-22T00:00:01") == [2, 3]
    assert found(to="2026-09-22T00:00:00Z") == [1]
    assert found(from_="2026-09-22", to="2026-09-23", credential="two") == [3]
    assert found(credential="three") == []


def test_a_date_is_midnight_utc_wherever_the_simulator_runs(monkeypatch):
    """The zone of the machine is nobody's business."""
    simulator = Simulator("moonshot")
    bill_line(simulator, arrived_at=1_790_035_200.0)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        found = rows(simulator, from_="2026-09-22", to="2026-09-22T00:00:01")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [row["Time"] for row in found] == ["2026-09-22T00:00:00Z"]


def test_a_statement_is_of_the_moment_in_which_it_was_asked_for():
    """What is billed while it is written is on the next one."""
    simulator = Simulator("moonshot")
    bill_lines(simulator, 700)
    _, parts = simulator.statements().written(Order())
    first = next(parts)
    bill_lines(simulator, 700)
    assert len((first + b"".join(parts)).splitlines()) == 1 + 700
    assert len(rows(simulator)) == 1_400


def test_a_bill_keeps_its_newest_lines_and_a_statement_never_hides_that():
    """Numbers go on, and a period of which lines are gone is refused rather than told in part."""
    simulator = Simulator("moonshot")
    simulator.bill = Bill("moonshot", lines_max=16)
    lines = bill_lines(simulator, 40)
    bill = simulator.bill
    assert (bill.numbered, bill.dropped + len(bill.lines)) == (40, 40)
    assert 14 <= len(bill.lines) <= 16
    assert bill.between(0, 100) == bill.between(bill.dropped - 3, 100) == bill.lines == lines[bill.dropped :]
    assert [line.line for line in bill.between(38, 39)] == [39]
    assert bill.as_json(lines_since=38)["lines"] == lines[38:]
    assert bill.as_json(lines_since=None)["total_pico"] == sum(line.cost_pico for line in lines)
    with pytest.raises(ValueError, match=f"oldest {bill.dropped} lines are no longer kept"):
        statement(simulator)
    with pytest.raises(ValueError, match="no longer kept"):
        statement(simulator, from_=f"2026-09-21T14:13:{20 + bill.dropped}Z")
    later = f"2026-09-21T14:13:{20 + bill.dropped + 1}Z"
    assert len(rows(simulator, from_=later)) == len(bill.lines)


# -- late restatement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("provider", "early", "final"), [("moonshot", 90, 4), ("evolink", 4, 90)])
def test_an_aborted_answer_is_restated_later(direct, ask, provider, early, final):
    """Planned first where the sent is charged, sent first where the planned is; the bill has the final one at once."""
    simulator = direct.simulator(provider, Settings(chunk_ms=20, restate_after_seconds=60))
    direct.ask(simulator, ask("[[out=90]]", stream=True), leave_after=5)
    direct.ask(simulator, ask("[[out=50]]", stream=True))
    cut, whole = simulator.bill.lines
    assert (cut.output_tokens, cut.early_output_tokens) == (final, early)
    assert (whole.output_tokens, whole.early_output_tokens) == (50, 50)
    column = "Completion Tokens" if provider == "moonshot" else "usage.completion_tokens"
    direct.time.now = cut.arrived_at + 59.5
    assert [int(row[column]) for row in rows(simulator)] == [early, 50]
    (deviation,) = planted(simulator)
    price = simulator.prices[cut.model].output
    assert (deviation["kind"], deviation["drift"], deviation["line"]) == ("early", 0, 1)
    assert (deviation["tokens"], deviation["amount_pico"]) == (early - final, (early - final) * price)
    direct.time.now = cut.arrived_at + 60
    assert [int(row[column]) for row in rows(simulator)] == [final, 50]
    assert planted(simulator) == []


def test_an_early_amount_is_of_the_early_tokens():
    """100 fresh and 90 output tokens at first, 4 in the end: 285 and 70 millionths of a dollar."""
    now = [ARRIVED_AT + 30]
    simulator = Simulator("moonshot", Settings(restate_after_seconds=60), wall=lambda: now[0])
    bill_line(simulator, fresh=100, output=4, early_output=90, ended="aborted")
    assert rows(simulator)[0]["Amount (USD)"] == "0.00028500"
    now[0] += 60
    assert rows(simulator)[0]["Amount (USD)"] == "0.00007000"


def test_without_the_setting_nothing_is_restated():
    """The final figure stands there from the start."""
    simulator = Simulator("moonshot", wall=lambda: ARRIVED_AT)
    bill_line(simulator, fresh=100, output=4, early_output=90, ended="aborted")
    assert rows(simulator)[0]["Completion Tokens"] == "4"
    with pytest.raises(ValueError, match="not negative"):
        Settings(restate_after_seconds=-1)


# -- over HTTP -------------------------------------------------------------------------------------------------------


def test_a_statement_over_http(over_http, ask):
    """It takes the parameters of a period, streams, and refuses what it does not know, with the reason."""
    simulator = Simulator("evolink", Settings(accounts={"sk-test": "main"}))

    async def scenario(http: Any) -> None:
        for _ in range(3):
            assert (await http.ask(ask())).status == 200
        reply = await http.get("/__sim/statement?credential=main&from=2020-01-01")
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
        assert len(reply.json["data"]) == 3
        reply = await http.get("/__sim/statement?format=csv")
        assert len(list(csv.DictReader(io.StringIO(reply.body.decode())))) == 3
        assert (await http.get("/__sim/statement?to=2020-01-01")).json["data"] == []
        for query, reason in (
            ("format=xml", "format is csv or json, not 'xml'."),
            ("from=yesterday", "'yesterday' is no date and no RFC 3339 moment, like 2026-10-12T08:30:00Z."),
            ("form=csv", "Unknown parameter 'form'. Known: from, to, credential, format."),
        ):
            reply = await http.get(f"/__sim/statement?{query}")
            assert (reply.status, reply.json["error"]) == (400, reason)

    over_http(simulator, scenario)

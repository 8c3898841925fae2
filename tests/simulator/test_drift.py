"""Planted drift is exactly what was asked for, told line by line, and gone when it is cleared."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.simulator import DRIFTS, PROVIDERS, Drift, Settings, Simulator
from tests.simulator.bills import ARRIVED_AT, bill_line, planted, rows, statement


def simulator_with(count: int, *drifts: Drift, provider: str = "moonshot") -> Simulator:
    """A bill of that many lines of 500 fresh, 200 cached and 100 output tokens, and a drifted statement of it."""
    simulator = Simulator(provider)
    for _ in range(count):
        bill_line(simulator, fresh=500, cached=200)
    simulator.drifts.plant(drifts, lines=simulator.bill.lines)
    return simulator


def told(row: dict[str, str]) -> tuple[int, int, int, str]:
    names = ("Prompt Tokens", "Cached Tokens", "Completion Tokens")
    prompt, cached, output = (int(row[name]) for name in names)
    return prompt, cached, output, row["Amount (USD)"]


@pytest.mark.parametrize(
    ("drift", "line", "tokens", "amount_pico"),
    [
        pytest.param(Drift(kind="tokens", tokens=8), (700, 200, 108, "0.00060000"), 8, 20_000_000, id="output"),
        pytest.param(
            Drift(kind="tokens", tokens=-300), (700, 200, 0, "0.00033000"), -100, -250_000_000, id="not below nothing"
        ),
        pytest.param(
            Drift(kind="tokens", tokens=10, token_class="input"), (710, 200, 100, "0.00058600"), 10, 6_000_000,
            id="input",
        ),
        pytest.param(
            Drift(kind="tokens", tokens=-50, token_class="cached"), (700, 150, 100, "0.00060250"), -50, 22_500_000,
            id="fewer hits",
        ),
        pytest.param(
            Drift(kind="tokens", tokens=900, token_class="cached"), (700, 700, 100, "0.00035500"), 500, -225_000_000,
            id="no more hits than fresh tokens",
        ),
        pytest.param(Drift(kind="price", factor="0.5"), (700, 200, 100, "0.00029000"), 0, -290_000_000, id="half"),
        pytest.param(
            Drift(kind="price", factor="4", token_class="cached"), (700, 200, 100, "0.00067000"), 0, 90_000_000,
            id="hits at the price of misses",
        ),
    ],
)  # fmt: skip
def test_a_drifted_line_worked_by_hand(drift, line, tokens, amount_pico):
    """500 x 0.6, 200 x 0.15 and 100 x 2.5 millionths of a dollar are 580; the drift is told to the pico-dollar."""
    simulator = simulator_with(1, drift)
    assert told(rows(simulator)[0]) == line
    (deviation,) = planted(simulator)
    assert (deviation["kind"], deviation["drift"], deviation["line"]) == (drift.kind, 1, 1)
    assert (deviation["tokens"], deviation["amount_pico"]) == (tokens, amount_pico)
    assert deviation["token_class"] == (drift.token_class or ("output" if drift.kind == "tokens" else None))


def test_a_missing_line_is_not_there():
    """Whatever else was planted for it, it is missing and nothing more."""
    simulator = simulator_with(4, Drift(kind="tokens"), Drift(kind="missing", every=3), Drift(kind="extra", every=3))
    assert [int(row["Request ID"], 16) for row in rows(simulator)] == [1, 2, 4]
    assert Counter(each["kind"] for each in planted(simulator)) == {"tokens": 3, "missing": 1}
    (missing,) = [each for each in planted(simulator) if each["kind"] == "missing"]
    assert (missing["line"], missing["amount_pico"]) == (3, -580_000_000)


def test_a_duplicate_is_the_same_line_again():
    """To the byte, with its drift."""
    simulator = simulator_with(3, Drift(kind="duplicate", every=2), Drift(kind="tokens", tokens=2), provider="cometapi")
    _, first, second, again, third = statement(simulator, format="csv").splitlines()
    assert second == again
    assert len({first, second, third}) == 3
    (deviation,) = [each for each in planted(simulator) if each["kind"] == "duplicate"]
    assert deviation["stated_request_id"] == deviation["request_id"] == simulator.bill.lines[1].request_id
    assert deviation["amount_pico"] == simulator.bill.lines[1].cost_pico + 2 * 4_400_000


def test_an_extra_line_has_a_request_id_that_nobody_was_told():
    """Its own id and number, and the same ones whenever the statement is asked for."""
    simulator = simulator_with(4, Drift(kind="extra", every=2), Drift(kind="extra", every=4), provider="cometapi")
    lines = rows(simulator)
    assert len(lines) == 4 + 2 + 1
    assert len({row["request_id"] for row in lines}) == len({row["id"] for row in lines}) == 7
    known = {line.request_id for line in simulator.bill.lines}
    nobodys = [row["request_id"] for row in lines if row["request_id"] not in known]
    assert nobodys == [each["stated_request_id"] for each in planted(simulator)]
    assert rows(simulator) == lines


@pytest.mark.parametrize(
    ("chosen", "lines"),
    [
        pytest.param({}, [1, 2, 3, 4, 5, 6], id="all"),
        pytest.param({"every": 3}, [3, 6], id="every"),
        pytest.param({"request_ids": frozenset({f"{2:024x}", f"{5:024x}", "unknown"})}, [2, 5], id="request ids"),
        pytest.param({"model": "kimi-k2.6"}, [6], id="model"),
        pytest.param({"credential": "other"}, [5], id="credential"),
        pytest.param({"since": "2026-09-21T14:13:23Z"}, [3, 4, 5, 6], id="since, inclusive"),
        pytest.param({"until": "2026-09-21T16:13:23+02:00"}, [1, 2], id="until, exclusive"),
        pytest.param({"since": "2026-09-22"}, [], id="a day later"),
        pytest.param({"every": 2, "until": "2026-09-21T14:13:25Z"}, [2, 4], id="both"),
        pytest.param({"share": 0.0}, [], id="none"),
    ],
)
def test_which_lines_drift(chosen, lines):
    """All that is given must hold."""
    simulator = simulator_with(4, Drift(kind="missing", **chosen))
    bill_line(simulator, credential="other")
    bill_line(simulator, model="kimi-k2.6")
    assert [each["line"] for each in planted(simulator)] == lines


def test_a_share_is_drawn_by_the_seed_and_the_request():
    """About that many, the same ones every time, others by another seed, and as many in any period."""
    simulator = simulator_with(4_000, Drift(kind="missing", share=0.1, seed=1))
    drawn = [each["line"] for each in planted(simulator)]
    assert 320 <= len(drawn) <= 480
    assert [each["line"] for each in planted(simulator)] == drawn
    later = planted(simulator, from_="2026-09-21T14:30:00Z")
    assert [each["line"] for each in later] == [line for line in drawn if ARRIVED_AT + line >= 1_790_001_000]
    other = simulator_with(4_000, Drift(kind="missing", share=0.1, seed=2))
    assert [each["line"] for each in planted(other)] != drawn


drifts = st.builds(
    Drift,
    kind=st.sampled_from(sorted(DRIFTS)),
    every=st.integers(1, 5),
    share=st.sampled_from([1.0, 0.5]),
    seed=st.integers(0, 9),
    tokens=st.integers(-400, 400),
    token_class=st.sampled_from([None, "input", "cached", "output"]),
    factor=st.sampled_from(["0", "0.5", "0.333333", "1", "2.000001"]),
    charged=st.sampled_from([None, True, False]),
)


@settings(max_examples=150)
@given(provider=st.sampled_from(PROVIDERS), first=st.lists(drifts, max_size=3), then=st.lists(drifts, max_size=3))
def test_the_statement_is_the_bill_and_what_was_planted(provider, first, then):
    """To the pico-dollar, whatever was planted together, when, and how often it is asked for."""
    simulator = Simulator(provider, Settings(restate_after_seconds=15), wall=lambda: ARRIVED_AT + 20)
    for n in range(12):
        bill_line(simulator, fresh=40 * n, cached=100, output=30, early_output=7 * n)
    bill = simulator.bill.as_json(lines_since=0)
    clean = statement(simulator, format="json")
    simulator.drifts.plant(first, lines=simulator.bill.lines)
    for n in range(12):
        bill_line(simulator, fresh=40 * n, cached=100, output=30)
    simulator.drifts.plant(then, lines=simulator.bill.lines)
    stated = [simulator.drifts.state(line, is_early=n >= 5) for n, line in enumerate(simulator.bill.lines)]
    total = sum(each.amount_pico for lines, _ in stated for each in lines)
    assert total == simulator.bill.spent_pico["main"] + sum(each["amount_pico"] for each in planted(simulator))
    assert all(each.cached_tokens <= each.prompt_tokens and each.output_tokens >= 0 for x, _ in stated for each in x)
    assert statement(simulator) == statement(simulator)
    assert simulator.bill.as_json(lines_since=0)["lines"][:12] == bill["lines"]
    at_once = Simulator(provider, Settings(restate_after_seconds=15), wall=lambda: ARRIVED_AT + 20)
    at_once.bill = simulator.bill
    at_once.drifts.plant(first + then, lines=at_once.bill.lines)
    assert at_once.drifts.difference_pico == simulator.drifts.difference_pico
    assert statement(at_once) == statement(simulator)
    simulator.drifts.clear()
    assert statement(simulator, format="json", to="2026-09-21T14:13:33Z") == clean
    assert simulator.spent_pico("main") == simulator.bill.spent_pico["main"]


# -- what is really charged ------------------------------------------------------------------------------------------


def test_a_price_that_drifted_is_really_charged():
    """The balance falls by half since then, for lines before and after it was planted; the bill knows nothing of it."""
    simulator = Simulator("cometapi", Settings(balance_pico=10**12))
    cost = bill_line(simulator).cost_pico
    bill_line(simulator)
    since = Drift(kind="price", factor="0.5", since="2026-09-21T14:13:22Z")
    simulator.drifts.plant([since], lines=simulator.bill.lines)
    bill_line(simulator)
    bill_line(simulator, credential="other")
    assert simulator.bill.spent_pico["main"] == 3 * cost
    assert (simulator.spent_pico("main"), simulator.spent_pico("other")) == (2 * cost, cost // 2)
    assert simulator.left_pico("main") == 10**12 - 2 * cost
    simulator.drifts.clear()
    assert simulator.spent_pico("main") == 3 * cost


@pytest.mark.parametrize("kind", sorted(DRIFTS))
def test_every_drift_can_be_charged_or_be_a_mistake_of_the_statement_alone(kind):
    """Only a price is charged without saying so."""
    for charged in (None, True, False):
        simulator = simulator_with(2, Drift(kind=kind, every=2, charged=charged))
        (deviation,) = planted(simulator)
        is_charged = kind == "price" if charged is None else charged
        expected = deviation["amount_pico"] if is_charged else 0
        assert simulator.spent_pico("main") - simulator.bill.spent_pico["main"] == expected
        assert deviation["amount_pico"] != 0


# -- over HTTP -------------------------------------------------------------------------------------------------------


def test_drift_over_http(over_http, ask):
    """One drift, a list, or an order with ``clear``; it is told, cleared, and gone after a reset."""
    simulator = Simulator("evolink")

    async def scenario(http: Any) -> None:
        for _ in range(4):
            await http.ask(ask())
        before = (await http.get("/__sim/statement")).body
        bill = (await http.get("/__sim/bill")).body
        first = (await http.post("/__sim/statement", {"kind": "tokens", "every": 2})).json["drifts"]
        assert first == [{"number": 1, "drift": {"kind": "tokens", "every": 2}}]
        ids = [simulator.bill.lines[0].request_id]
        await http.post("/__sim/statement", [{"kind": "missing", "request_ids": ids}, {"kind": "extra", "every": 4}])
        lines = [json.loads(line) for line in (await http.get("/__sim/statement/planted")).body.splitlines()]
        assert [(each["drift"], each["kind"], each["line"]) for each in lines] == [
            (2, "missing", 1), (1, "tokens", 2), (1, "tokens", 4), (3, "extra", 4)
        ]  # fmt: skip
        assert len((await http.get("/__sim/statement")).json["data"]) == 4
        assert (await http.get("/__sim/bill")).body == bill
        await http.post("/__sim/statement", {"clear": True, "set": [{"kind": "duplicate", "every": 4}]})
        (line,) = (await http.get("/__sim/statement/planted")).body.splitlines()
        assert (json.loads(line)["kind"], json.loads(line)["drift"]) == ("duplicate", 4)
        assert len((await http.get("/__sim/statement")).json["data"]) == 5
        async with http.session.delete(f"{http.address}/__sim/statement") as reply:
            assert (await reply.json()) == {"drifts": []}
        assert (await http.get("/__sim/statement")).body == before
        await http.post("/__sim/statement", {"kind": "duplicate"})
        await http.post("/__sim/reset", {})
        assert (await http.get("/__sim/statement/planted")).body == b""
        await http.ask(ask())
        assert len((await http.get("/__sim/statement")).json["data"]) == 1

    over_http(simulator, scenario)


@pytest.mark.parametrize(
    ("drift", "reason"),
    [
        ({"kind": "colour"}, "Unknown drift 'colour'. Known: tokens, price, missing, duplicate, extra."),
        ({"kind": "price", "factor": "-1"}, "'-1' is no number from 0 up, of at most 30 digits."),
        ({"kind": "price", "factor": "half"}, "'half' is no decimal number."),
        ({"kind": "price", "factor": "NaN"}, "'NaN' is no number from 0 up, of at most 30 digits."),
        ({"kind": "price", "factor": "1e99999"}, "'1e99999' is no number from 0 up, of at most 30 digits."),
        ({"kind": "price", "since": "then"}, "'then' is no date and no RFC 3339 moment, like 2026-10-12T08:30:00Z."),
        ({"kind": "missing", "every": 0}, "every is at least 1, not 0."),
        ({"kind": "missing", "share": 2}, "share is a probability from 0 to 1, not 2.0."),
        ({"kind": "tokens", "token_class": "cache_write"}, "token_class of a token drift is input, cached or output."),
        ({"kind": "tokens", "token": 1}, "Object contains unknown field `token`"),
    ],
)
def test_a_drift_that_is_none_is_refused(over_http, drift, reason):
    """With the reason, and nothing is planted."""
    simulator = Simulator("moonshot")

    async def scenario(http: Any) -> None:
        reply = await http.post("/__sim/statement", [{"kind": "missing"}, drift])
        assert reply.status == 400
        assert reply.json["error"].startswith(reason)
        assert (await http.post("/__sim/statement", [])).json == {"drifts": []}

    over_http(simulator, scenario)

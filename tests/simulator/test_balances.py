"""A balance moves with the bill and with top-ups, in the provider's own precision, as the gateway reads it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.providers import dialect
from gateway.providers.dialect import Balance
from gateway.simulator import PROVIDERS, Settings, Simulator
from tests.simulator.bills import bill_line

PATH = {"moonshot": "/v1/users/me/balance", "cometapi": "/user/quota?key=sk-main", "evolink": "/v1/credits"}
ACCOUNTS = {"sk-main": "main", "sk-other": "other"}


async def balance(http: Any, provider: str) -> Balance:
    reply = await http.get(PATH[provider], key="sk-main")
    assert reply.status == 200
    return dialect(provider).read_balance(reply.body)


@pytest.mark.parametrize(
    ("provider", "left", "used"),
    [("moonshot", "4.97562", None), ("cometapi", "4.956546", "0.043454"), ("evolink", "4.97805", "0.02195")],
)
def test_a_balance_worked_by_hand(over_http, provider, left, used):
    """24,380.7, 43,453.3 and 21,950.09 millionths of 5 dollars: to 5 decimals, in 1/500,000, and to 6 decimals."""
    simulator = Simulator(provider, Settings(balance_pico=5 * 10**12, accounts=ACCOUNTS))
    bill_line(simulator, fresh=12_347, output=6_789)
    bill_line(simulator, fresh=10**6, credential="other")

    async def scenario(http: Any) -> None:
        told = await balance(http, provider)
        assert told.available == Decimal(left)
        assert told.used == (None if used is None else Decimal(used))

    over_http(simulator, scenario)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_top_up_lets_an_empty_account_go_on(over_http, ask, provider):
    """It adds to what is left and not to what was used, on its own account alone."""
    simulator = Simulator(provider, Settings(balance_pico=100, accounts=ACCOUNTS))

    async def scenario(http: Any) -> None:
        assert (await http.ask(ask("[[out=9]]"), key="sk-main")).status == 200
        assert (await http.ask(ask(), key="sk-main")).status in (402, 403, 429)
        cost = simulator.bill.lines[0].cost_pico
        reply = await http.post("/__sim/topup", {"credential": "main", "usd": "2.5"})
        assert reply.json == {"credential": "main", "left_pico": 2_500_000_000_100 - cost}
        told = await balance(http, provider)
        assert abs(told.available - (Decimal("2.5") - Decimal(cost).scaleb(-12))) < Decimal("0.00001")
        assert (told.used or 0) < Decimal("0.001")
        assert (await http.ask(ask(), key="sk-main")).status == 200
        await http.ask(ask(), key="sk-other")
        accounts = (await http.get("/__sim/stats")).json["accounts"]
        assert accounts["main"]["left_pico"] == 2_500_000_000_100 - accounts["main"]["spent_pico"] > 0
        assert accounts["other"]["left_pico"] < 0
        await http.post("/__sim/reset", {})
        assert simulator.left_pico("main") == 100

    over_http(simulator, scenario)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"credential": "nobody", "usd": "1"}, "No account 'nobody'. Known: main, other."),
        ({"credential": "main", "usd": "0"}, "'0' is no amount above 0 of at most 12 decimals."),
        ({"credential": "main", "usd": "1.0000000000001"}, "'1.0000000000001' is no amount above 0"),
        ({"credential": "main", "usd": "-1"}, "'-1' is no number from 0 up"),
        ({"credential": "main", "usd": 1}, "Expected `str`, got `int`"),
        ({"usd": "1"}, "Object missing required field `credential`"),
    ],
)
def test_a_top_up_that_is_none_is_refused(over_http, order, reason):
    """With the reason, and nothing arrives."""
    simulator = Simulator("moonshot", Settings(balance_pico=7, accounts=ACCOUNTS))

    async def scenario(http: Any) -> None:
        reply = await http.post("/__sim/topup", order)
        assert reply.status == 400
        assert reply.json["error"].startswith(reason)
        assert simulator.left_pico("main") == 7

    over_http(simulator, scenario)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_price_that_drifted_shows_on_the_balance(over_http, ask, provider):
    """Half the printed price takes half as much, of what comes later too; a statement's own mistake takes nothing."""
    simulator = Simulator(provider, Settings(balance_pico=5 * 10**12, accounts=ACCOUNTS))
    cost = bill_line(simulator, fresh=10**6, output=10**5).cost_pico

    async def scenario(http: Any) -> None:
        await http.post("/__sim/statement", [{"kind": "price", "factor": "0.5"}, {"kind": "duplicate"}])
        told = await balance(http, provider)
        assert told.available == 5 - Decimal(cost // 2).scaleb(-12)
        if told.used is not None:
            assert told.used == Decimal(cost // 2).scaleb(-12)
        assert (await http.ask(ask(), key="sk-main")).status == 200
        assert simulator.spent_pico("main") == simulator.bill.spent_pico["main"] // 2 > cost // 2

    over_http(simulator, scenario)

"""A model that certainly ends soon is announced with every answer, and ends at midnight UTC."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

import pytest

from gateway.core.catalogue import Model, OnRetired
from gateway.core.exchange import Principal
from tests.pipeline.virtual_time import START, on_virtual_time
from tests.pipeline.world import HEIR, MODEL, World, answer, card, catalogue, deployment, price

TODAY = START.date()
NOON_TO_MIDNIGHT = 12 * 3600.0
HINT = f"{MODEL} is retired here on {{}}; move to {HEIR}"


def world(*ends: date | None, policy: OnRetired = OnRetired.ERROR) -> World:
    """The model at as many providers, each with an end or none, and its heir at all of them."""
    names = ("evolink", "moonshot", "cometapi")[: len(ends)]
    cards = [
        card(name, deployments={MODEL: deployment(name, available_until=end), HEIR: deployment(name, HEIR)})
        for name, end in zip(names, ends, strict=True)
    ]
    models = (Model(name=MODEL, successor=HEIR, on_retired=policy), Model(name=HEIR))
    prices = tuple(price(name, model) for name in names for model in (MODEL, HEIR))
    made = World(in_force=catalogue(*cards, models=models, prices=prices))
    return made.scripted(**{name: answer() for name in names})


@pytest.mark.parametrize(
    ("days", "is_told"), [((30,), True), ((31,), False), ((1,), True), ((3, 20), True), ((3, 31), False)]
)
@on_virtual_time
async def test_the_end_is_announced_thirty_days_before(days: tuple[int, ...], *, is_told: bool) -> None:
    """The day on which the last provider ends, and where to go."""
    ends = [TODAY + timedelta(days=each) for each in days]
    run = await world(*ends).ask()
    assert run.reply.status == 200
    told = HINT.format(max(ends).isoformat()) if is_told else None
    assert run.reply.headers.get("x-gateway-warnings") == told


@on_virtual_time
async def test_while_somebody_goes_on_nothing_ends() -> None:
    """But for a key that may not use that provider."""
    soon = TODAY + timedelta(days=5)
    made = world(soon, None)
    assert "x-gateway-warnings" not in (await made.ask()).reply.headers
    bound = Principal(key_id="k", key_name="k", providers=frozenset({"evolink"}))
    run = await made.ask(principal=bound)
    assert run.reply.headers["x-gateway-warnings"] == HINT.format(soon.isoformat())


@on_virtual_time
async def test_it_ends_at_midnight_utc() -> None:
    """Served to the last second of the day before; from then on a 404 with date and successor."""
    tomorrow = TODAY + timedelta(days=1)
    made = world(tomorrow)
    await asyncio.sleep(NOON_TO_MIDNIGHT - 1)
    assert (await made.ask()).reply.status == 200
    await asyncio.sleep(START.replace(hour=0).timestamp() + 86_400 - made.clock.now().timestamp())
    assert made.clock.now().date() == tomorrow
    reply = await made.refused()
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert tomorrow.isoformat() in reply.error["message"]
    assert HEIR in reply.error["message"]


@on_virtual_time
async def test_its_successor_takes_over_at_midnight() -> None:
    """Where the policy says so; with a warning that names both."""
    made = world(TODAY + timedelta(days=1), policy=OnRetired.SUCCESSOR)
    assert (await made.ask()).entry.model == MODEL
    await asyncio.sleep(NOON_TO_MIDNIGHT)
    run = await made.ask()
    assert run.entry.model == HEIR
    assert run.reply.headers["x-gateway-warnings"] == f"{MODEL} is retired; {HEIR} answers"

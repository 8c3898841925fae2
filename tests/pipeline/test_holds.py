"""A request waits for a cheaper account whose minute is used up, if that saves more than its time is worth."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.catalogue import Account, RoutingTerms
from gateway.pipeline.turns import WAIT_SECONDS_MAX
from tests.pipeline.reservations import ask, world_of
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import ALICE, Run, World, answer

CENT_IN_A_MINUTE = 0.0001


def world_with(**terms: float) -> World:
    """EvoLink takes one request a minute; Moonshot costs about $0.0003 more an answer and takes any number."""
    world = world_of(Account(provider="evolink", name="main", rpm=1), Account(provider="moonshot", name="main"))
    in_force = replace(world.catalogue, routing=RoutingTerms(**terms))
    world.conductor.configuration = replace(world.conductor.configuration, catalogue=in_force)
    return world.scripted(evolink=answer(), moonshot=answer())


async def second_after(world: World, seconds: float) -> tuple[Run, float]:
    """A second request, so long after the first one took EvoLink's minute; and how long it took to be sent."""
    began = world.clock.now().timestamp()
    await ask(world, ALICE)
    await asyncio.sleep(began + seconds - world.clock.now().timestamp())
    asked = world.clock.monotonic()
    run = await ask(world, ALICE)
    return run, world.upstreams.called_at[-1] - asked


@on_virtual_time
async def test_what_saves_more_than_it_takes_is_waited_for() -> None:
    """Five seconds are worth less here than what EvoLink saves; the client is told."""
    run, waited = await second_after(world_with(hold_usd_per_second=CENT_IN_A_MINUTE / 6), 55.0)
    assert run.reply.headers["x-gateway-provider"] == "evolink"
    assert waited == pytest.approx(5.0, abs=1.1)
    assert "s for room at a cheaper account" in run.reply.headers["x-gateway-warnings"]


@pytest.mark.parametrize(
    ("terms", "seconds"),
    [
        ({}, 55.0),
        ({"hold_usd_per_second": 0.01}, 55.0),
        ({"hold_usd_per_second": CENT_IN_A_MINUTE / 6}, 40.0),
        ({"hold_usd_per_second": CENT_IN_A_MINUTE / 6, "hold_seconds_max": 3.0}, 55.0),
    ],
    ids=["not asked for", "time is dear", "too long to wait", "longer than may be"],
)
@on_virtual_time
async def test_nothing_else_is(terms: dict[str, float], seconds: float) -> None:
    """Whoever has room is asked at once."""
    run, waited = await second_after(world_with(**terms), seconds)
    assert run.reply.headers["x-gateway-provider"] == "moonshot"
    assert waited == pytest.approx(0.0, abs=0.3)
    assert "x-gateway-warnings" not in run.reply.headers


@on_virtual_time
async def test_who_never_fits_an_account_does_not_wait_for_it() -> None:
    """What may take more tokens than EvoLink allows in a minute goes to whoever has room, and is not refused."""
    world = world_of(Account(provider="evolink", name="main", tpm=500), Account(provider="moonshot", name="main"))
    terms = RoutingTerms(hold_usd_per_second=CENT_IN_A_MINUTE / 600, hold_seconds_max=60.0)
    in_force = replace(world.catalogue, routing=terms)
    world.conductor.configuration = replace(world.conductor.configuration, catalogue=in_force)
    world.scripted(evolink=answer(), moonshot=answer())
    await world.ask(principal=ALICE, max_tokens=100)
    await asyncio.sleep(55.0)
    run = await ask(world, ALICE)
    assert run.reply.status == 200
    assert run.reply.headers["x-gateway-provider"] == "moonshot"


@on_virtual_time
async def test_who_holds_out_for_nothing_cheaper_does_not_wait_longer() -> None:
    """Both minutes are used up: it is told so by a status as soon as where nobody may hold."""
    world = world_of(
        Account(provider="evolink", name="main", rpm=1), Account(provider="moonshot", name="main", rpm=1)
    ).scripted(evolink=answer(), moonshot=answer())
    in_force = replace(world.catalogue, routing=RoutingTerms(hold_usd_per_second=CENT_IN_A_MINUTE / 6))
    world.conductor.configuration = replace(world.conductor.configuration, catalogue=in_force)
    for _ in range(2):
        await ask(world, ALICE)
    asked = world.clock.monotonic()
    run = await ask(world, ALICE)
    assert run.reply.error["code"] == "overloaded"
    assert world.clock.monotonic() - asked == pytest.approx(WAIT_SECONDS_MAX, abs=0.1)

"""Who may ask for what, and where it may go: everything that is decided before money is spent."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from gateway.core import api_key
from gateway.core.catalogue import Model, OnRetired
from gateway.core.exchange import Role
from gateway.core.happenings import Answered, Sent
from gateway.core.refusal import RefusedError
from gateway.pipeline.authenticate import authenticate_administrator
from gateway.pipeline.exchange import Configuration
from tests.pipeline.virtual_time import START, on_virtual_time
from tests.pipeline.world import (
    ALICE,
    HEIR,
    MODEL,
    Run,
    World,
    answer,
    card,
    catalogue,
    deployment,
    price,
    refusal,
)

TODAY = START.date()
SECRET = api_key.new_secret(bytes(range(32)))


def order_of(run: Run) -> list[str]:
    return [candidate.provider for candidate in run.exchange.plan.routable]


def reasons(run: Run) -> dict[str, str]:
    return {each.provider: each.excluded for each in run.exchange.plan.candidates if each.excluded is not None}


def teach_pace(world: World, provider: str, *, first_chunk_seconds: float, tokens_per_second: float) -> None:
    """As if the provider had answered once, at this pace."""
    at = world.clock.now().timestamp()
    sent = Sent(
        attempt_id=f"taught-{provider}", provider=provider, account="main", model=MODEL, tenant="t", at=at,
        digests=(1,), tokens=(1,), family=0, turn=0, follows=0, output_tokens=1,
    )  # fmt: skip
    answered = Answered(
        attempt_id=sent.attempt_id, at=at, input_tokens=1, cached_tokens=0, output_tokens=10,
        seconds=10 / tokens_per_second, first_chunk_seconds=first_chunk_seconds,
    )  # fmt: skip
    world.noting.beliefs.apply(sent)
    world.noting.beliefs.apply(answered)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer kgw_short"},
        {"x-api-key": SECRET[:-1] + ("0" if SECRET[-1] != "0" else "1")},
        {"authorization": f"Bearer {api_key.new_secret(bytes(32))}"},
    ],
    ids=["none", "empty", "another scheme", "short", "mistyped", "unknown"],
)
@on_virtual_time
async def test_without_a_good_key_there_is_no_entry(headers: dict[str, str]) -> None:
    """401 ``invalid_api_key``, which never repeats what was sent."""
    world = World()
    world.keys.add(api_key.digest(SECRET), ALICE)
    with pytest.raises(RefusedError) as caught:
        await world.conductor.authenticate(headers)
    assert (caught.value.refusal.http_status, caught.value.refusal.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("headers", [{"authorization": f"bearer  {SECRET}"}, {"x-api-key": SECRET}])
@on_virtual_time
async def test_a_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    """Bearer in any case, or ``x-api-key``."""
    world = World()
    world.keys.add(api_key.digest(SECRET), ALICE)
    assert await world.conductor.authenticate(headers) == ALICE


@on_virtual_time
async def test_revoked_and_expired_keys_are_unknown() -> None:
    """From the moment on, and not a moment earlier."""
    world = World()
    world.keys.add(api_key.digest(SECRET), replace(ALICE, expires_at=START + timedelta(seconds=1)))
    headers = {"x-api-key": SECRET}
    assert (await world.conductor.authenticate(headers)).key_id == ALICE.key_id
    world.keys.revoke(ALICE.key_id)
    with pytest.raises(RefusedError):
        await world.conductor.authenticate(headers)


@on_virtual_time
async def test_a_key_that_cannot_be_looked_up_is_not_wrong() -> None:
    """503 with a wait while the store is away; a key that was seen before goes on (INTERFACE §3)."""
    world = World()
    world.keys.add(api_key.digest(SECRET), ALICE)
    world.keys.is_away = True
    with pytest.raises(RefusedError) as caught:
        await world.conductor.authenticate({"x-api-key": SECRET})
    assert (caught.value.refusal.http_status, caught.value.refusal.retry_after) == (503, 5)
    world.keys.is_away = False
    await world.conductor.authenticate({"x-api-key": SECRET})
    world.keys.is_away = True
    assert await world.conductor.authenticate({"x-api-key": SECRET}) == ALICE


@on_virtual_time
async def test_the_admin_token_is_an_administrator() -> None:
    """And nothing that only looks like it is."""
    world = World()
    admin = await authenticate_administrator(
        {"authorization": "Bearer a-long-enough-token"}, world.keys, "a-long-enough-token"
    )
    assert admin.role is Role.ADMIN
    for wrong in ("a-long-enough-toke", "a-long-enough-token2", "ä"):
        with pytest.raises(RefusedError):
            await authenticate_administrator({"x-api-key": wrong}, world.keys, "a-long-enough-token")


@pytest.mark.parametrize(
    ("principal", "asked", "status", "code"),
    [
        (replace(ALICE, role=Role.FINANCE), {}, 403, "role_not_allowed"),
        (ALICE, {"model": "gpt-17"}, 404, "model_not_found"),
        (replace(ALICE, models=frozenset({"other"})), {}, 403, "model_not_allowed"),
        (ALICE, {"temperature": 1.5}, 400, "invalid_request_error"),
        (ALICE, {"messages": []}, 400, "invalid_request_error"),
        (ALICE, {"max_tokens": 300_000}, 400, "invalid_request_error"),
        (ALICE, {"messages": [{"role": "user", "content": "x" * 1_500_000}]}, 400, "context_length_exceeded"),
    ],
    ids=["role", "model", "rights", "temperature", "messages", "limit", "context"],
)
@on_virtual_time
async def test_what_is_refused_before_anything_is_planned(
    principal: Any, asked: dict[str, Any], status: int, code: str
) -> None:
    """With the code of INTERFACE §3, and nothing in the books."""
    world = World().scripted(evolink=answer())
    reply = await world.refused(principal=principal, **asked)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert world.journal.records == []


@on_virtual_time
async def test_a_key_for_one_provider_goes_there() -> None:
    """Rights come before price, and the plan says so."""
    run = await World().scripted(moonshot=answer()).ask(principal=replace(ALICE, providers=frozenset({"moonshot"})))
    assert order_of(run) == ["moonshot"]
    assert reasons(run) == {"cometapi": "this key may not use cometapi", "evolink": "this key may not use evolink"}


@on_virtual_time
async def test_a_key_without_any_provider_may_not() -> None:
    """403 ``provider_not_allowed``: waiting does not help."""
    run = await World().ask(principal=replace(ALICE, providers=frozenset({"nobody"})))
    assert (run.reply.status, run.reply.error["code"]) == (403, "provider_not_allowed")
    assert "retry-after" not in run.reply.headers


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        ({}, ["evolink", "moonshot", "cometapi"]),
        ({"order": ["cometapi"]}, ["cometapi", "evolink", "moonshot"]),
        ({"order": ["CometAPI", "Moonshot"]}, ["cometapi", "moonshot", "evolink"]),
        ({"order": ["cometapi"], "allow_fallbacks": False}, ["cometapi"]),
        ({"allow_fallbacks": False}, ["evolink"]),
        ({"only": ["moonshot", "cometapi"]}, ["moonshot", "cometapi"]),
        ({"ignore": ["evolink"]}, ["moonshot", "cometapi"]),
        ({"max_price": {"prompt": 0.6}}, ["evolink", "moonshot"]),
        ({"max_price": {"completion": "2.3"}}, ["evolink"]),
        ({"sort": "price"}, ["evolink", "moonshot", "cometapi"]),
        ({"sort": "latency"}, ["cometapi", "moonshot", "evolink"]),
        ({"sort": "throughput"}, ["cometapi", "moonshot", "evolink"]),
        ({"sort": "latency", "order": ["evolink"]}, ["evolink", "cometapi", "moonshot"]),
    ],
    ids=json.dumps,
)
@on_virtual_time
async def test_preferences_are_followed(wanted: dict[str, Any], order: list[str]) -> None:
    """``provider`` as on OpenRouter: order, only, ignore, fallbacks, prices and sorts (INTERFACE §3)."""
    world = World().scripted(evolink=answer(), moonshot=answer(), cometapi=answer())
    for name, seconds in (("evolink", 3.0), ("moonshot", 2.0), ("cometapi", 1.0)):
        teach_pace(world, name, first_chunk_seconds=seconds, tokens_per_second=10 / seconds)
    run = await world.ask(provider=wanted)
    assert order_of(run) == order
    assert [entry.provider for entry in run.entries] == order[:1]
    assert set(reasons(run)) == {"evolink", "moonshot", "cometapi"} - set(order)


@on_virtual_time
async def test_without_fallbacks_the_named_one_is_the_last_one() -> None:
    """Its open circuit is tried all the same: the others are not there for this request."""
    world = World().scripted(evolink=answer(), moonshot=[refusal(500)] * 5 + [answer()])
    only = {"order": ["moonshot"], "allow_fallbacks": False}
    for _ in range(5):
        assert (await world.ask(provider=only)).reply.status == 502
    run = await world.ask(provider=only)
    assert (run.reply.status, run.entry.provider) == (200, "moonshot")


@on_virtual_time
async def test_the_price_decides_with_the_expected_answer() -> None:
    """A dear answer and a cheap prompt go elsewhere than the other way round."""
    cheap_out = price("a", usd=("3", None, "1"))
    cheap_in = price("b", usd=("1", None, "3"))
    world = World(in_force=catalogue(card("a"), card("b"), prices=(cheap_out, cheap_in)))
    world.scripted(a=answer(), b=answer())
    short = await world.ask(max_tokens=10_000)
    assert order_of(short) == ["a", "b"]
    long = await world.ask(messages=[{"role": "user", "content": "x" * 100_000}], max_tokens=100)
    assert order_of(long) == ["b", "a"]


@on_virtual_time
async def test_the_unpriced_and_the_keyless_are_not_routable() -> None:
    """Each says what to do; a gateway without any of the rest refuses."""
    in_force = catalogue(card("evolink"), card("moonshot"), prices=(price("moonshot"),))
    world = World(in_force=in_force)
    world.conductor.configuration = Configuration(catalogue=in_force, usable_accounts=frozenset({("evolink", "main")}))
    run = await world.ask()
    assert (run.reply.status, run.reply.error["code"]) == (503, "no_provider_available")
    assert [record.request_id for record in run.world.journal.plans()] == [run.exchange.request_id], (
        "it can be explained"
    )
    assert "prices.toml" in reasons(run)["evolink"]
    assert "no credential" in reasons(run)["moonshot"]
    assert "retry-after" in run.reply.headers
    for name, why in reasons(run).items():
        assert f"{name} (main): {why}" in run.reply.error["message"]


@on_virtual_time
async def test_a_price_of_tomorrow_is_not_todays() -> None:
    """A row that is not in force yet does not price anything."""
    later = replace(price("evolink"), effective_from=START + timedelta(seconds=1))
    run = await World(in_force=catalogue(card("evolink"), prices=(later,))).ask()
    assert run.reply.status == 503


@on_virtual_time
async def test_what_a_deployment_cannot_do_excludes_it() -> None:
    """Capabilities, output limit and context of each provider; the first that can does it."""
    cards = (
        card("evolink", deployments={MODEL: deployment("evolink", capabilities=frozenset())}),
        card("moonshot", deployments={MODEL: deployment("moonshot", max_output=1_000)}),
        card("cometapi", deployments={MODEL: deployment("cometapi", context=2_000)}),
        card("spare"),
    )
    world = World(in_force=catalogue(*cards)).scripted(spare=answer())
    run = await world.ask(response_format={"type": "json_object"}, max_tokens=3_000)
    assert order_of(run) == ["spare"]
    assert reasons(run) == {
        "evolink": "does not support json_object for this model",
        "moonshot": "answers at most 1000 tokens",
        "cometapi": "its context is 2000 tokens",
    }


@pytest.mark.parametrize(
    ("days", "is_routable"),
    [
        ({"available_from": TODAY + timedelta(days=1)}, False),
        ({"available_from": TODAY}, True),
        ({"available_until": TODAY}, False),
        ({"available_until": TODAY + timedelta(days=1)}, True),
        ({"retirement_reported": TODAY - timedelta(days=90)}, True),
    ],
    ids=["from tomorrow", "from today", "until today", "until tomorrow", "reported"],
)
@on_virtual_time
async def test_certain_dates_are_kept_and_reports_are_not_believed(days: dict[str, date], is_routable: bool) -> None:
    """Dates are days in UTC; who is not there is skipped in silence while somebody else is."""
    first = card("evolink", deployments={MODEL: deployment("evolink", **days)})
    world = World(in_force=catalogue(first, card("moonshot"))).scripted(evolink=answer(), moonshot=answer())
    run = await world.ask()
    assert order_of(run)[0] == ("evolink" if is_routable else "moonshot")


def retired_world(policy: OnRetired, **days: date) -> World:
    """A model that is over at its providers, and an heir that is not."""
    cards = [
        card(
            name,
            deployments={MODEL: deployment(name, **days), HEIR: deployment(name, HEIR)},
        )
        for name in ("evolink", "moonshot")
    ]
    models = (Model(name=MODEL, successor=HEIR, on_retired=policy), Model(name=HEIR))
    return World(in_force=catalogue(*cards, models=models)).scripted(evolink=answer(), moonshot=answer())


@on_virtual_time
async def test_a_model_retired_by_date_is_not_found() -> None:
    """404 with the date and the successor."""
    reply = await retired_world(OnRetired.ERROR, available_until=date(2026, 1, 1)).refused()
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert "2026-01-01" in reply.error["message"]
    assert HEIR in reply.error["message"]


@on_virtual_time
async def test_a_model_that_is_still_to_come_is_not_retired() -> None:
    """404 that says from when on."""
    reply = await retired_world(OnRetired.ERROR, available_from=date(2027, 1, 1)).refused()
    assert reply.status == 404
    assert "not available here before 2027-01-01" in reply.error["message"]


@on_virtual_time
async def test_a_model_that_every_provider_denies_is_not_found() -> None:
    """Nobody told us of a date, but all say 404: so does this answer, and every one after it."""
    world = retired_world(OnRetired.ERROR, retirement_reported=date(2026, 2, 2))
    world.scripted(evolink=refusal(404), moonshot=refusal(404))
    run = await world.ask()
    for reply in (run.reply, await world.refused()):
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "2026-02-02" in reply.error["message"]
        assert HEIR in reply.error["message"]
    assert [entry.error_type for entry in run.entries] == ["model_gone", "model_gone"]


@on_virtual_time
async def test_denied_by_one_and_broken_at_another_is_an_upstream_error() -> None:
    """404 would be a lie while somebody may still serve it."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=refusal(404))
    assert (await world.ask()).reply.status == 502


@pytest.mark.parametrize("by", ["date", "word"])
@on_virtual_time
async def test_a_successor_answers_where_the_policy_says_so(by: str) -> None:
    """It is asked for by its own name, priced as itself, and a warning says so."""
    days = {"available_until": date(2026, 1, 1)} if by == "date" else {}
    world = retired_world(OnRetired.SUCCESSOR, **days)
    if by == "word":
        world.scripted(evolink=refusal(404), moonshot=refusal(404))
        await world.ask()
        world.scripted(evolink=answer(), moonshot=answer())
    run = await world.ask()
    assert run.reply.status == 200
    assert run.reply.headers["x-gateway-warnings"] == f"{MODEL} is retired; {HEIR} answers"
    assert run.entry.model == HEIR
    assert json.loads(world.upstreams.calls[-1].body)["model"] == HEIR


@on_virtual_time
async def test_a_successor_needs_the_right_too() -> None:
    """A key for the old model alone gets the 404."""
    world = retired_world(OnRetired.SUCCESSOR, available_until=date(2026, 1, 1))
    reply = await world.refused(principal=replace(ALICE, models=frozenset({MODEL})))
    assert reply.status == 404


@on_virtual_time
async def test_tags_reach_the_books() -> None:
    """The key's own and the request's, the request's winning."""
    run = await World().scripted(evolink=answer()).ask(headers={"x-gateway-tags": "env=prod,job=7"})
    assert run.entry.tags == {"env": "prod", "job": "7"}

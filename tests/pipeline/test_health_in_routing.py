"""A provider that fails is left alone for a growing while, and comes back by one probe at a time."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from gateway.core.failure import FailureClass
from gateway.core.health import WELL, Subject
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import (
    FOREVER,
    MODEL,
    USAGE,
    Run,
    Script,
    World,
    answer,
    broken,
    card,
    catalogue,
    refusal,
    stream,
)
from tests.wire.transcripts import ANSWER, DONE, closing, finish

CIRCUIT = Subject("evolink", "main", MODEL)
ACCOUNT = Subject("evolink", "main", None)
MODEL_THERE = Subject("evolink", None, MODEL)


EVOLINK_FIRST: dict[str, Any] = {"order": ["evolink"]}
"""Whatever its failures and another one's warm cache weigh: here it is only health that keeps a request from it."""


async def ask(world: World) -> Run:
    return await world.ask(provider=EVOLINK_FIRST)


def begin(world: World) -> Run:
    return world.begin(provider=EVOLINK_FIRST)


def providers(run: Run) -> list[str]:
    return [entry.provider for entry in run.entries]


def out_seconds(world: World, subject: Subject) -> float:
    until = world.health.of(subject).out_until
    assert until is not None
    return (until - world.clock.now()) / timedelta(seconds=1)


def excluded(run: Run) -> dict[str, Any]:
    (record,) = (each for each in run.world.journal.plans() if each.request_id == run.exchange.request_id)
    return {each["provider"]: each["excluded"] for each in json.loads(bytes(record.plan))["candidates"]}


@on_virtual_time
async def test_two_failures_in_a_row_open_a_circuit() -> None:
    """The first two requests try it, the third does not and says why."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=answer())
    for _ in range(2):
        assert providers(await ask(world)) == ["evolink", "moonshot"]
    run = await ask(world)
    assert providers(run) == ["moonshot"]
    assert "keeps failing; out until" in excluded(run)["evolink"]


@on_virtual_time
async def test_a_success_starts_the_count_again() -> None:
    """A failure, a success and a failure, over and over, leave the circuit closed."""
    script = [refusal(500), answer()] * 5
    world = World(names=("evolink", "moonshot")).scripted(evolink=script, moonshot=answer())
    for _ in range(10):
        await ask(world)
        await asyncio.sleep(31)
    assert len([call for call in world.upstreams.calls if call.provider == "evolink"]) == 10


@on_virtual_time
async def test_time_out_grows_and_a_success_ends_it() -> None:
    """3, 4.5, 6.75 s …, each probed once; the first success closes the circuit and forgets."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=answer())
    for _ in range(2):
        await ask(world)
    for times in range(12):
        assert out_seconds(world, CIRCUIT) == pytest.approx(min(120, 3 * 1.5**times), abs=0.6)
        await asyncio.sleep(out_seconds(world, CIRCUIT))
        assert providers(await ask(world)) == ["evolink", "moonshot"]
    await asyncio.sleep(121)
    world.scripted(evolink=answer())
    assert providers(await ask(world)) == ["evolink"]
    assert world.health.of(CIRCUIT).out_until is None
    assert world.health.of(CIRCUIT).times_out == 0


@on_virtual_time
async def test_one_probe_at_a_time() -> None:
    """While one request sees whether the provider is well again, all others go elsewhere."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=answer())
    for _ in range(2):
        await ask(world)
    await asyncio.sleep(20)
    slow = stream(5.0, ANSWER, 60.0, finish(), closing(USAGE), DONE)
    world.scripted(evolink=[slow, answer()])
    probe = begin(world)
    await asyncio.sleep(1)
    others = [begin(world) for _ in range(5)]
    await asyncio.gather(*(other.task for other in others))
    assert [providers(other) for other in others] == [["moonshot"]] * 5
    assert "a probe is under way" in excluded(others[0])["evolink"]
    await asyncio.sleep(5)
    soon = begin(world)
    await soon.task
    assert providers(soon) == ["evolink"], "the first byte of an answer proves it, long before its end"
    assert not probe.task.done()
    await probe.ended()


@on_virtual_time
async def test_two_requests_of_one_moment_send_one_probe() -> None:
    """The plan of both saw a circuit that may be probed; the second looks again and goes elsewhere."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=answer())
    for _ in range(2):
        await ask(world)
    await asyncio.sleep(20)
    world.scripted(evolink=answer())
    runs = [begin(world), begin(world)]
    for run in runs:
        await run.task
    assert [providers(run) for run in runs] == [["evolink"], ["moonshot"]]
    world.check()


@on_virtual_time
async def test_a_rate_limit_lasts_as_long_as_the_provider_says() -> None:
    """``after 7 seconds`` is seven seconds, for the account and all its models; then everybody may go again at once."""
    limited = refusal(429, kind="rate_limit_reached_error", message="max RPM: 3, please try again after 7 seconds")
    world = World(names=("evolink", "moonshot")).scripted(evolink=[limited, answer()], moonshot=answer())
    assert providers(await ask(world)) == ["evolink", "moonshot"]
    assert out_seconds(world, ACCOUNT) == pytest.approx(7, abs=1)
    run = await ask(world)
    assert providers(run) == ["moonshot"]
    assert "rate limit" in excluded(run)["evolink"]
    await asyncio.sleep(7)
    runs = [begin(world) for _ in range(3)]
    for each in runs:
        await each.task
    assert [providers(each) for each in runs] == [["evolink"]] * 3
    world.check()


@on_virtual_time
async def test_an_answer_that_began_before_a_rate_limit_does_not_lift_it() -> None:
    """A long stream ends well while the account is out: the limit stands."""
    long = stream(ANSWER, 5.0, finish(), closing(USAGE), DONE)
    limited = refusal(429, kind="rate_limit_reached_error", message="max RPM: 3, please try again after 60 seconds")
    world = World(names=("evolink", "moonshot")).scripted(evolink=[long, limited, answer()], moonshot=answer())
    first = begin(world)
    await asyncio.sleep(1)
    await begin(world).task
    await first.ended()
    assert providers(await ask(world)) == ["moonshot"]


@on_virtual_time
async def test_the_longest_wait_that_was_named_counts() -> None:
    """Two requests of one moment hear of two waits; the account is out for the longer one."""
    waits = [refusal(429, kind="rate_limit_error", **{"retry-after": seconds}) for seconds in ("3", "40")]
    world = World(names=("evolink", "moonshot")).scripted(evolink=waits, moonshot=answer())
    runs = [begin(world), begin(world)]
    for run in runs:
        await run.task
    assert out_seconds(world, ACCOUNT) == pytest.approx(40, abs=1)


@pytest.mark.parametrize(("status", "seconds"), [(401, 600), (402, 300)], ids=["credential", "quota"])
@on_virtual_time
async def test_a_useless_account_is_out_for_all_its_models(status: int, seconds: float) -> None:
    """A refused credential, or an empty purse, takes the account out at once; the other account serves on."""
    world = World(in_force=catalogue(card("evolink", accounts=("main", "other")), card("moonshot")))
    world.upstreams.scripts = {"evolink/main": [refusal(status)], "evolink/other": [answer()], "moonshot": [answer()]}
    first = await ask(world)
    assert [entry.account for entry in first.entries] == ["main", "other"]
    assert out_seconds(world, ACCOUNT) == pytest.approx(seconds, abs=1)
    second = await ask(world)
    assert [entry.account for entry in second.entries] == ["other"]


@on_virtual_time
async def test_a_missing_model_is_out_for_a_growing_while() -> None:
    """404 takes provider x model out: ten minutes, twenty, and so on up to six hours, and longer while it is not
    listed: no client's request goes to see."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(404), moonshot=answer())
    for minutes in (10, 20, 40, 80, 160, 320, 360, 360):
        assert providers(await ask(world)) == ["evolink", "moonshot"]
        assert out_seconds(world, MODEL_THERE) == pytest.approx(minutes * 60, abs=1)
        await asyncio.sleep(out_seconds(world, MODEL_THERE))
        assert providers(await ask(world)) == ["moonshot"]
        world.health.asked_for_free([MODEL_THERE], ok=True)


@on_virtual_time
async def test_the_last_one_is_never_ejected() -> None:
    """A sole provider with an open circuit is tried all the same; one without money is not."""
    world = World(names=("evolink",)).scripted(evolink=[refusal(500)] * 2 + [answer()])
    for _ in range(2):
        await ask(world)
    assert (await ask(world)).reply.status == 200
    broke = World(names=("evolink",)).scripted(evolink=refusal(402))
    await broke.ask()
    run = await broke.ask()
    assert (run.reply.status, run.reply.error["code"]) == (503, "no_provider_available")
    assert "no money left" in run.reply.error["message"]
    assert 290 <= int(run.reply.headers["retry-after"]) <= 331
    assert len(broke.upstreams.calls) == 1


@on_virtual_time
async def test_an_open_circuit_is_tried_when_all_others_have_failed() -> None:
    """Rather than nobody; not where the caller wants no fallback, and not an account without money."""
    world = World().scripted(evolink=refusal(500), moonshot=answer(), cometapi=refusal(402))
    for _ in range(2):
        await ask(world)
    world.scripted(evolink=answer(), moonshot=refusal(503))
    run = await world.ask()
    assert providers(run) == ["moonshot", "cometapi", "evolink"]
    assert run.reply.status == 200
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=answer())
    for _ in range(2):
        await ask(world)
    world.scripted(evolink=answer(), moonshot=refusal(503))
    assert providers(await world.ask(provider={"allow_fallbacks": False})) == ["moonshot"]
    assert providers(await world.ask(provider={"order": ["moonshot"], "allow_fallbacks": False})) == ["moonshot"]


@on_virtual_time
async def test_a_provider_that_fails_too_often_is_left_alone() -> None:
    """One failure in three, never two in a row: after twenty attempts in half a minute the circuit opens."""
    script = [refusal(500), answer(), answer()] * 20
    world = World(names=("evolink", "moonshot")).scripted(evolink=script, moonshot=answer())
    for _ in range(30):
        await ask(world)
    tried = [call for call in world.upstreams.calls if call.provider == "evolink"]
    assert 20 <= len(tried) <= 25


@pytest.mark.parametrize("trouble", ["refuses", "is_stuck"])
@on_virtual_time
async def test_a_probe_that_never_went_is_given_back(trouble: str) -> None:
    """The journal takes no intent: another request may see whether the provider is well again."""
    world = World(names=("evolink",)).scripted(evolink=[refusal(500)] * 2 + [answer()])
    for _ in range(2):
        await ask(world)
    await asyncio.sleep(20)
    setattr(world.journal, trouble, True)
    assert (await ask(world)).reply.status == 503
    assert world.health.of(CIRCUIT).probe_until is None
    setattr(world.journal, trouble, False)
    assert (await ask(world)).reply.status == 200


@on_virtual_time
async def test_a_probe_that_was_to_be_a_retry_is_given_back() -> None:
    """The first attempt cannot be settled, so no second one goes: another request may be the probe."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=refusal(500), moonshot=refusal(500))
    for _ in range(2):
        await world.ask(provider={"only": ["moonshot"]})
    await asyncio.sleep(20)
    world.journal.refuses_settlements = True
    run = await world.ask(provider={"order": ["evolink"]})
    assert run.reply.error["code"] == "metering_unavailable"
    assert [call.provider for call in world.upstreams.calls[2:]] == ["evolink"]
    assert world.health.of(Subject("moonshot", "main", MODEL)).awaits_probe(world.clock.now())
    assert world.health.of(Subject("moonshot", "main", MODEL)).probe_until is None


@pytest.mark.parametrize(
    "script",
    [
        refusal(400),
        refusal(400, kind="content_filter"),
        Script(opening=(LookupError("ours"),)),
        stream(ANSWER, finish(), DONE),
    ],
    ids=["caller", "content", "defect", "success"],
)
@on_virtual_time
async def test_what_says_nothing_about_a_provider_teaches_nothing(script: Script) -> None:
    """A caller's fault or a defect of ours, ten times over, leaves the provider in."""
    world = World(names=("evolink",)).scripted(evolink=script)
    for _ in range(10):
        await ask(world)
    health = world.health.of(CIRCUIT)
    assert health.consecutive_failures == 0
    assert health.out_until is None
    assert world.health.of(ACCOUNT) == WELL


@pytest.mark.parametrize(
    "script",
    [
        refusal(503),
        Script(opening=(broken(FailureClass.UNREACHABLE),)),
        stream(broken()),
        stream(ANSWER, broken()),
        stream(FOREVER),
    ],
    ids=["overloaded", "unreachable", "cut", "cut in the answer", "silent"],
)
@on_virtual_time
async def test_every_breakage_counts(script: Script) -> None:
    """Two of any kind open the circuit, also those that were told in the stream."""
    world = World(names=("evolink", "moonshot")).scripted(evolink=script, moonshot=answer())
    for _ in range(2):
        await ask(world)
    assert world.health.of(CIRCUIT).is_out(world.clock.now())

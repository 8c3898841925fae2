"""A failure before the first byte moves on to the next candidate, within bounds; the caller's own fault does not."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping

import pytest

from gateway.core.failure import FailureClass
from gateway.core.retry_budget import RetryBudget
from gateway.surfaces.chat_completions import HEARTBEAT
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import (
    FOREVER,
    JSON_HEADERS,
    SSE_HEADERS,
    USAGE,
    WAIT,
    Run,
    Script,
    World,
    answer,
    broken,
    card,
    catalogue,
    refusal,
    stream,
    unstreamed,
)
from tests.wire.transcripts import ANSWER, DONE, HELLO, ROLE, closing, delta, encoded, finish, sse

OTHERS = {
    "credential": refusal(401, kind="invalid_authentication_error"),
    "wrong key": refusal(401, kind="incorrect_api_key_error"),
    "forbidden": refusal(403, kind="permission_denied_error"),
    "quota by type": refusal(429, kind="exceeded_current_quota_error"),
    "quota by message": refusal(403, message="insufficient balance, please recharge"),
    "quota by status": refusal(402),
    "gone": refusal(404, kind="resource_not_found_error"),
    "rate": refusal(429, kind="rate_limit_reached_error", message="max RPM: 3, please try again after 7 seconds"),
    "overloaded": refusal(429, kind="engine_overloaded_error"),
    "server": refusal(500, kind="server_error"),
    "unexpected": refusal(500, kind="unexpected_output"),
    "bad gateway": Script(status=502, headers={"content-type": "text/html"}, body=(b"<html>nginx</html>",)),
    "unavailable": refusal(503),
    "gateway timeout": refusal(504),
    "overload": refusal(529),
    "conflict": refusal(409),
    "request timeout": refusal(408),
    "redirect": refusal(307),
    "unreachable": Script(opening=(broken(FailureClass.UNREACHABLE),)),
    "cut before the head": Script(opening=(broken(),)),
    "cut before content": stream(ROLE, broken()),
    "said hello and ended": stream(ROLE),
    "error in the first event": stream(sse({"error": {"message": "busy", "type": "engine_overloaded_error"}})),
    "error as a body with 200": Script(
        headers=JSON_HEADERS, body=(encoded({"error": {"message": "no", "code": 500}}),)
    ),
    "not JSON": stream(b"data: <html>\n\n"),
}
CALLERS = {
    "invalid request": ("moonshot", refusal(400, kind="invalid_request_error"), 400),
    "too long": (
        "moonshot",
        refusal(400, kind="invalid_request_error", message="Your request exceeded model token limit : 262144"),
        400,
    ),
    "content filter": ("moonshot", refusal(400, kind="content_filter"), 400),
    "too large": ("moonshot", refusal(413), 413),
    "unprocessable": ("moonshot", refusal(422), 422),
    "cometapi's 500": ("cometapi", refusal(500, kind="comet_api_error", code="invalid_request"), 400),
    "evolink's": ("evolink", refusal(400, kind="invalid_request_error", code=400), 400),
}


@pytest.mark.parametrize("script", OTHERS.values(), ids=OTHERS)
@on_virtual_time
async def test_another_provider_is_tried(script: Script) -> None:
    """The client gets a whole answer and never learns of the first one (providers §10.4)."""
    world = World().scripted(evolink=refusal(500), moonshot=script, cometapi=answer())
    run = await world.ask()
    assert run.reply.status == 200
    assert run.reply.body == ANSWER + finish() + DONE
    assert [entry.provider for entry in run.entries] == ["evolink", "moonshot", "cometapi"]
    assert run.reply.headers["x-gateway-attempts"] == "3"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("name", "script", "status"), CALLERS.values(), ids=CALLERS)
@on_virtual_time
async def test_the_callers_fault_is_returned_in_the_upstreams_words(
    name: str, script: Script, status: int, streamed: bool
) -> None:
    """4xx with what the upstream said; nobody else is asked, and nothing is billed."""
    world = World(in_force=catalogue(card(name), card("spare"))).scripted(**{name: script, "spare": answer()})
    run = await world.ask(stream=streamed, provider={"order": [name]})
    assert run.reply.status == status
    said = run.reply.error["message"]
    assert "upstream words" in said or "model token limit" in said
    assert len(world.upstreams.calls) == 1
    assert run.entry.cost_pico == 0


@pytest.mark.parametrize(
    "script", [refusal(401), refusal(402), refusal(403), refusal(429)], ids=lambda s: str(s.status)
)
@on_virtual_time
async def test_what_is_wrong_with_our_account_stays_with_us(script: Script) -> None:
    """401, 402, 403 and 429 of providers end as 502, in our words (INTERFACE §3)."""
    run = await World().scripted(evolink=script, moonshot=script, cometapi=script).ask()
    assert (run.reply.status, run.reply.error["code"]) == (502, "upstream_error")
    for name in ("evolink", "moonshot", "cometapi"):
        assert name in run.reply.error["message"]
    assert "upstream words" not in run.reply.error["message"]


@on_virtual_time
async def test_all_failed_names_every_kind() -> None:
    """502 with one reason for each provider that was tried."""
    world = World().scripted(
        evolink=refusal(401), moonshot=refusal(429, kind="engine_overloaded_error"), cometapi=refusal(500)
    )
    message = (await world.ask()).reply.error["message"]
    for words in ("refused our credential", "is overloaded", "keeps failing"):
        assert words in message


@on_virtual_time
async def test_one_attempt_an_account_and_four_a_request() -> None:
    """Six accounts at two providers, all failing: four different ones are tried (INTERFACE §3)."""
    names = ("a", "b", "c")
    world = World(in_force=catalogue(card("evolink", accounts=names), card("moonshot", accounts=names)))
    world.scripted(evolink=refusal(500), moonshot=refusal(500))
    run = await world.ask()
    tried = [(entry.provider, entry.account) for entry in run.entries]
    assert tried == [("evolink", "a"), ("evolink", "b"), ("evolink", "c"), ("moonshot", "a")]
    assert run.reply.status == 502


@on_virtual_time
async def test_a_gone_model_takes_its_provider_out_at_once() -> None:
    """After a 404 the provider's other accounts are not tried for it."""
    world = World(in_force=catalogue(card("evolink", accounts=("a", "b")), card("moonshot")))
    world.scripted(evolink=refusal(404), moonshot=answer())
    run = await world.ask()
    assert [entry.provider for entry in run.entries] == ["evolink", "moonshot"]
    again = await world.ask()
    assert [entry.provider for entry in again.entries] == ["moonshot"]


@on_virtual_time
async def test_what_others_learned_meanwhile_is_heeded() -> None:
    """A candidate whose credential was refused since the plan is not the next; with none left it is over."""
    world = World(names=("evolink", "moonshot")).scripted(
        evolink=[Script(opening=(1.0,), status=500), refusal(500)], moonshot=[refusal(401)]
    )
    slow = world.begin(provider={"order": ["evolink"]})
    quick = world.begin(provider={"only": ["moonshot"]})
    await quick.task
    run = await slow.ended()
    assert [entry.provider for entry in run.entries] == ["evolink"]
    assert run.reply.status == 502
    assert world.conductor.retry_budget.fifths == 500


@on_virtual_time
async def test_an_open_circuit_is_better_than_nothing() -> None:
    """When only circuits that opened since the plan are left, the first of them is tried all the same."""
    world = World(names=("evolink", "moonshot"))
    world.scripted(evolink=Script(opening=(5.0,), status=500), moonshot=[refusal(500)] * 5 + [answer()])
    slow = world.begin(provider={"order": ["evolink"]})
    for _ in range(5):
        await world.begin(provider={"only": ["moonshot"]}).task
    run = await slow.ended()
    assert [entry.provider for entry in run.entries] == ["evolink", "moonshot"]
    assert run.reply.status == 200


@on_virtual_time
async def test_without_budget_nothing_is_retried() -> None:
    """An exhausted retry budget ends a request at its first failure, which is then final."""
    world = World().scripted(evolink=refusal(500), moonshot=answer())
    world.conductor.retry_budget = RetryBudget(fifths=0, advanced=0)
    run = await world.ask()
    assert len(run.entries) == 1
    assert run.reply.status == 502
    for _ in range(4):
        world.conductor.retry_budget = world.conductor.retry_budget.earn()
    assert (await world.ask()).reply.status == 200


@pytest.mark.parametrize("pause", [0.0, 3.0], ids=["in a rush", "at leisure"])
@pytest.mark.parametrize("bad", [{"evolink": 1.0}, {"evolink": 0.3}, {"evolink": 1.0, "moonshot": 0.3}], ids=str)
@on_virtual_time
async def test_amplification_stays_within_a_fifth(bad: Mapping[str, float], pause: float) -> None:
    """A thousand requests make at most 1,200 attempts, however slowly they come (L9)."""
    chance = random.Random(7)
    scripts = {
        name: [refusal(500) if chance.random() < share else answer() for _ in range(1_500)]
        for name, share in (dict.fromkeys(("evolink", "moonshot", "cometapi"), 0.0) | dict(bad)).items()
    }
    world = World().scripted(**scripts)
    lost = 0
    for _ in range(1_000):
        run = world.begin()
        await run.task
        lost += run.reply.status != 200
        await asyncio.sleep(pause)
    assert len(world.journal.entries()) <= 1_200
    assert lost <= 150
    world.check()


# --- silence ---------------------------------------------------------------------------------------------------------


@on_virtual_time
async def test_a_silent_upstream_is_heard_of() -> None:
    """A comment at least every 15 seconds commits the status line, and the answer follows whole (INTERFACE §3)."""
    world = World(names=("moonshot",)).scripted(moonshot=stream(28.0, ANSWER, 19.0, HELLO, finish(), DONE))
    run = await world.ask()
    times = [world.upstreams.called_at[0], *(at for at, _ in run.reply.parts)]
    assert max(later - sooner for sooner, later in itertools.pairwise(times)) <= 15
    assert run.reply.body == ANSWER + HELLO + finish() + DONE
    assert len(run.reply.heartbeats) == 3


@on_virtual_time
async def test_a_heartbeat_does_not_forbid_a_failover() -> None:
    """A comment is not a byte of the answer: after a silence of 30 s the next provider answers, in the open stream."""
    world = World().scripted(evolink=stream(FOREVER), moonshot=answer())
    run = await world.ask()
    assert run.reply.heartbeats
    assert run.reply.status == 200
    assert run.reply.body == ANSWER + finish() + DONE
    assert [(entry.status, entry.error_type) for entry in run.entries] == [
        ("abandoned", "timed_out"),
        ("succeeded", None),
    ]
    assert run.entries[0].usage_source == "estimated"


@on_virtual_time
async def test_a_failure_after_a_heartbeat_is_told_in_the_stream() -> None:
    """The status line says 200 already; the error is an event, and no end mark follows it."""
    run = (
        await World()
        .scripted(evolink=stream(FOREVER), moonshot=refusal(500), cometapi=refusal(400, code="invalid_request"))
        .ask()
    )
    assert run.reply.status == 200
    assert run.reply.parts[0][1] == HEARTBEAT
    assert run.reply.error["code"] == "invalid_request_error"
    assert run.world.telemetry.statuses == [400]


@on_virtual_time
async def test_an_unstreamed_answer_has_no_heartbeats() -> None:
    """A JSON body cannot begin with a comment."""
    run = await World().scripted(evolink=unstreamed(opening=(25.0,))).ask(stream=False)
    assert run.reply.heartbeats == []
    assert run.reply.status == 200


@on_virtual_time
async def test_every_deadline_of_a_failed_over_request_is_its_own() -> None:
    """A timeout of one attempt does not poison the next, which has all of its own time."""
    late = Script(opening=(29.0,), headers=SSE_HEADERS, body=(ANSWER, 19.0, finish(), closing(USAGE), DONE))
    run = await World().scripted(evolink=stream(FOREVER), moonshot=stream(FOREVER), cometapi=late).ask()
    assert [entry.status for entry in run.entries] == ["abandoned", "abandoned", "succeeded"]
    assert run.reply.body.endswith(DONE)


@on_virtual_time
async def test_after_the_deadline_nobody_is_tried() -> None:
    """A request that is older than its provider's ``total`` ends with the attempt under way (L9)."""
    slow = Script(opening=(29.0,), status=500)
    cards = [card("evolink", accounts=("a", "b", "c", "d"), timeouts=card("evolink").timeouts)]
    world = World(in_force=catalogue(*cards)).scripted(evolink=slow)
    run = world.begin()
    object.__setattr__(run.exchange, "started", run.exchange.started - 250)
    await run.ended()
    assert len(run.entries) == 2


@on_virtual_time
async def test_no_second_attempt_after_the_first_byte() -> None:
    """Once a piece of an answer has left, its failure is told and not mended (L9)."""
    world = World().scripted(evolink=stream(ANSWER, broken()), moonshot=answer())
    run = await world.ask()
    assert len(world.upstreams.calls) == 1
    assert run.reply.relayed == ANSWER
    assert "broke off" in run.reply.error["message"]


@on_virtual_time
async def test_a_long_preamble_leaves_in_the_end() -> None:
    """What comes without content is held back only up to a bound."""
    idle = delta(role="assistant", note="n" * 1_000)
    run = await World().scripted(evolink=stream(*([idle] * 80), broken()), moonshot=answer()).ask()
    assert len(run.reply.relayed) > 64 * 1024
    assert run.entry.status == "failed"


def of(run: Run) -> list[str]:
    return [entry.provider for entry in run.entries]


@on_virtual_time
async def test_a_reload_does_not_change_the_ground_under_a_request() -> None:
    """A request goes on under the configuration it began with, also when its provider is gone from the new one."""
    world = World().scripted(evolink=Script(opening=(WAIT,), status=500), moonshot=answer())
    run = world.begin()
    world.conductor.configuration = World(names=("cometapi",)).conductor.configuration
    await run.ended()
    assert of(run) == ["evolink", "moonshot"]

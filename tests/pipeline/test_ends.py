"""However an attempt ends, it is settled once, as INTERFACE §4 says, and its client is told the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gateway.core.catalogue import OnClientAbort, OnModelMismatch
from gateway.core.exchange import Attempt
from gateway.core.failure import Failure, FailureClass
from gateway.core.ledger import Intent, LedgerEntry
from gateway.pipeline.attempt import Attempting, attempt
from gateway.pipeline.ports import UpstreamCall
from gateway.pipeline.watch import Watch
from gateway.providers import DIALECTS
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import (
    FOREVER,
    JSON_HEADERS,
    SSE_HEADERS,
    TIMEOUTS,
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
from tests.wire.transcripts import (
    ANSWER,
    DONE,
    HELLO,
    ROLE,
    THOUGHT,
    closing,
    delta,
    encoded,
    finish,
    sse,
    totals,
    whole,
)

SHUTDOWN = Failure(kind=FailureClass.SHUTDOWN, message="stopping")
RATE_ERROR = {"error": {"message": "reached max RPM: 3", "type": "rate_limit_reached_error"}}
Act = Callable[[Run], None]


@dataclass(frozen=True, kw_only=True)
class End:
    """One way to end: what the upstream does, what happens to the client meanwhile, and what the books say then."""

    script: Script
    status: str
    source: str = "estimated"
    error: str | None = None
    http_status: int | None = 200
    code: str | None = None
    """The error code the client sees; None = an answer, or nobody is there to see."""
    client_status: int | None = 200
    logged: int | None = None
    acts: tuple[tuple[float, Act], ...] = ()
    drain: bool = False
    reject: bool = False
    streamed: bool = True


def hang_up(run: Run) -> None:
    run.hang_up()


def shut_down(run: Run) -> None:
    run.watch.interrupt(SHUTDOWN)


def refused(status: int, kind: str, *, seen: int = 502, code: str = "upstream_error", **more: Any) -> End:
    return End(
        script=refusal(status, **more),
        status="failed",
        source="none",
        error=kind,
        http_status=status,
        code=code,
        client_status=seen,
    )


CALLER = "invalid_request_error"
REFUSALS = {
    "caller fault": refused(400, "caller_fault", seen=400, code=CALLER),
    "too long": refused(413, "caller_fault", seen=413, code=CALLER),
    "content": End(
        script=refusal(400, kind="content_filter"),
        status="failed",
        source="none",
        error="content_filtered",
        http_status=400,
        code=CALLER,
        client_status=400,
    ),
    "credential": refused(401, "credential"),
    "forbidden": refused(403, "credential"),
    "quota": refused(402, "quota"),
    "gone": refused(404, "model_gone", seen=404, code="model_not_found"),
    "rate": refused(429, "rate_limited"),
    "overloaded": refused(503, "overloaded"),
    "transient": refused(500, "transient"),
    "redirect": refused(302, "transient"),
    "unreachable": End(
        script=Script(opening=(broken(FailureClass.UNREACHABLE),)),
        status="failed",
        source="none",
        error="unreachable",
        http_status=None,
        code="upstream_error",
        client_status=502,
    ),
    "rate in the first event": End(
        script=stream(sse(RATE_ERROR)),
        status="failed",
        source="none",
        error="rate_limited",
        code="upstream_error",
        client_status=502,
    ),
    "error as a body": End(
        script=Script(headers=JSON_HEADERS, body=(encoded(RATE_ERROR),)),
        status="failed",
        source="none",
        error="rate_limited",
        code="upstream_error",
        client_status=502,
    ),
}

BREAKS = {
    "cut before the head": End(
        script=Script(opening=(WAIT, broken())),
        status="failed",
        error="broken",
        http_status=None,
        code="upstream_error",
        client_status=502,
    ),
    "cut after the head": End(
        script=stream(broken()), status="failed", error="broken", code="upstream_error", client_status=502
    ),
    "cut after hello": End(
        script=stream(ROLE, broken()), status="failed", error="broken", code="upstream_error", client_status=502
    ),
    "cut in the answer": End(script=stream(ANSWER, broken()), status="failed", error="broken", code="upstream_error"),
    "cut inside an event": End(
        script=stream(ANSWER, HELLO[:30], broken()), status="failed", error="broken", code="upstream_error"
    ),
    "ended too soon": End(script=stream(ANSWER), status="failed", error="broken", code="upstream_error"),
    "ended at once": End(script=stream(), status="failed", error="broken", code="upstream_error", client_status=502),
    "done without an answer": End(
        script=stream(ROLE, DONE), status="failed", error="broken", code="upstream_error", client_status=502
    ),
    "an error that poses as text": End(
        script=Script(headers={"content-type": "text/plain"}, body=(encoded(RATE_ERROR),)),
        status="failed",
        source="none",
        error="rate_limited",
        code="upstream_error",
        client_status=502,
    ),
    "malformed at first": End(
        script=stream(b"data: {oops\n\n", FOREVER),
        status="failed",
        error="broken",
        code="upstream_error",
        client_status=502,
    ),
    "malformed later": End(
        script=stream(ANSWER, b"data: {oops\n\n", FOREVER), status="failed", error="broken", code="upstream_error"
    ),
    "not an answer": End(
        script=Script(headers=JSON_HEADERS, body=(b"[]",)),
        status="failed",
        error="broken",
        code="upstream_error",
        client_status=502,
    ),
    "error in the answer": End(
        script=stream(ANSWER, sse(RATE_ERROR)), status="failed", error="rate_limited", code="upstream_error"
    ),
    "error with content": End(
        script=stream(ANSWER + sse(RATE_ERROR)),
        status="failed",
        error="rate_limited",
        code="upstream_error",
        client_status=502,
    ),
    "caller's error in the answer": End(
        script=stream(ANSWER, sse({"error": {"message": "too long", "type": CALLER}})),
        status="failed",
        error="caller_fault",
        code=CALLER,
    ),
    "another model": End(
        script=stream(sse({"model": "kimi-mini", "choices": [{"index": 0, "delta": {"content": "x"}}]}), FOREVER),
        status="failed",
        error="model_mismatch",
        code="upstream_error",
        client_status=502,
        reject=True,
    ),
    "whole body for a stream": End(
        script=Script(headers=JSON_HEADERS, body=(whole(USAGE),)),
        status="failed",
        source="provider",
        error="broken",
        code="upstream_error",
        client_status=502,
    ),
}

WHOLE = {
    "success": End(script=answer(), status="succeeded", source="provider"),
    "no usage": End(script=stream(ANSWER, finish(), DONE), status="succeeded"),
    "zero usage": End(script=stream(ANSWER, finish(), closing(totals(0, 0)), DONE), status="succeeded"),
    "negative usage": End(script=stream(ANSWER, finish(), closing(totals(-1, 5)), DONE), status="succeeded"),
    "done without a finish": End(script=stream(ANSWER, DONE), status="succeeded"),
    "no end mark": End(script=stream(ANSWER, finish(), closing(USAGE)), status="succeeded", source="provider"),
    "no end mark, no usage": End(script=stream(ANSWER, finish()), status="succeeded"),
    "reset after the finish": End(script=stream(ANSWER, finish(), broken()), status="succeeded"),
    "reset after the usage": End(
        script=stream(ANSWER, finish(), closing(USAGE), broken()), status="succeeded", source="provider"
    ),
    "silent after the finish": End(
        script=stream(ANSWER, finish(in_choice=USAGE), FOREVER), status="succeeded", source="provider"
    ),
    "another model, flagged": End(
        script=stream(sse({"model": "kimi-mini", "choices": [{"index": 0, "delta": {"content": "x"}}]}), finish()),
        status="succeeded",
    ),
    "unstreamed": End(script=unstreamed(), status="succeeded", source="provider", streamed=False),
    "unstreamed, no usage": End(script=unstreamed(whole(None)), status="succeeded", streamed=False),
}

GONE = {
    "before the head": End(
        script=Script(opening=(FOREVER,)), status="aborted", http_status=None, acts=((1.0, hang_up),)
    ),
    "before the first byte": End(script=stream(FOREVER), status="aborted", acts=((1.0, hang_up),)),
    "after the first chunk": End(script=stream(ANSWER, FOREVER), status="aborted", acts=((1.0, hang_up),)),
    "in the middle": End(
        script=stream(ANSWER, 1.0, HELLO, 1.0, HELLO, FOREVER), status="aborted", acts=((2.9, hang_up),)
    ),
    "after the finish": End(script=stream(ANSWER, finish(), FOREVER), status="aborted", acts=((1.0, hang_up),)),
    "after the usage": End(
        script=stream(ANSWER, finish(), closing(USAGE), FOREVER),
        status="aborted",
        source="provider",
        acts=((1.0, hang_up),),
    ),
    "unstreamed": End(
        script=Script(opening=(FOREVER,), headers=JSON_HEADERS),
        status="aborted",
        http_status=None,
        acts=((1.0, hang_up),),
        streamed=False,
    ),
    "unstreamed, body coming": End(
        script=Script(headers=JSON_HEADERS, body=(b"{", FOREVER)),
        status="aborted",
        acts=((1.0, hang_up),),
        streamed=False,
    ),
    "drained to the usage": End(
        script=stream(ANSWER, 5.0, finish(), closing(USAGE), DONE),
        status="aborted",
        source="provider",
        acts=((1.0, hang_up),),
        drain=True,
    ),
    "drained before the head": End(
        script=Script(opening=(5.0,), body=(ANSWER, finish(), closing(USAGE), DONE)),
        status="aborted",
        source="provider",
        acts=((1.0, hang_up),),
        drain=True,
    ),
    "drained into silence": End(
        script=stream(ANSWER, FOREVER), status="aborted", error="timed_out", acts=((1.0, hang_up),), drain=True
    ),
    "drained without end": End(
        script=stream(*([HELLO, 10.0] * 100)), status="aborted", error="timed_out", acts=((1.0, hang_up),), drain=True
    ),
    "stopped while drained": End(
        script=stream(ANSWER, FOREVER),
        status="abandoned",
        error="shutdown",
        drain=True,
        acts=((1.0, hang_up), (2.0, shut_down)),
        logged=503,
    ),
}

GIVEN_UP = {
    "no head": End(
        script=Script(opening=(FOREVER,)),
        status="abandoned",
        error="timed_out",
        http_status=None,
        code="upstream_error",
    ),
    "no first byte": End(script=stream(FOREVER), status="abandoned", error="timed_out", code="upstream_error"),
    "only comments": End(
        script=stream(*([b": wait\n\n", 9.0] * 9)), status="abandoned", error="timed_out", code="upstream_error"
    ),
    "silence": End(script=stream(ANSWER, FOREVER), status="abandoned", error="timed_out", code="upstream_error"),
    "too long in all": End(
        script=stream(*([HELLO, 10.0] * 99)), status="abandoned", error="timed_out", code="upstream_error"
    ),
    "unstreamed, no head": End(
        script=Script(opening=(FOREVER,), headers=JSON_HEADERS),
        status="abandoned",
        error="timed_out",
        http_status=None,
        code="upstream_error",
        client_status=502,
        streamed=False,
    ),
    "unstreamed, silence": End(
        script=Script(headers=JSON_HEADERS, body=(b"{", FOREVER)),
        status="abandoned",
        error="timed_out",
        code="upstream_error",
        client_status=502,
        streamed=False,
    ),
    "shutdown before the head": End(
        script=Script(opening=(FOREVER,)),
        status="abandoned",
        error="shutdown",
        http_status=None,
        code="overloaded",
        client_status=503,
        acts=((1.0, shut_down),),
    ),
    "shutdown in the answer": End(
        script=stream(ANSWER, FOREVER),
        status="abandoned",
        error="shutdown",
        code="overloaded",
        acts=((1.0, shut_down),),
    ),
    "a defect before the head": End(
        script=Script(opening=(LookupError("ours"),)),
        status="abandoned",
        error="defect",
        http_status=None,
        code="internal_error",
        client_status=500,
    ),
    "a defect in the answer": End(
        script=stream(ANSWER, LookupError("ours")), status="abandoned", error="defect", code="internal_error"
    ),
}

ENDS = {
    f"{group}: {name}": end
    for group, ends in {
        "refused": REFUSALS,
        "broken": BREAKS,
        "whole": WHOLE,
        "gone": GONE,
        "given up": GIVEN_UP,
    }.items()
    for name, end in ends.items()
}


def world_of(end: End) -> World:
    only = card(
        "moonshot",
        on_client_abort=OnClientAbort.DRAIN if end.drain else OnClientAbort.CANCEL,
        on_model_mismatch=OnModelMismatch.REJECT if end.reject else OnModelMismatch.FLAG,
    )
    return World(in_force=catalogue(only)).scripted(moonshot=end.script)


async def happened(end: End) -> Run:
    world = world_of(end)
    run = world.begin(stream=end.streamed, usage=end.streamed)
    for after, act in end.acts:
        run.task.get_loop().call_later(after, act, run)
    return await run.ended()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@on_virtual_time
async def test_every_end_is_in_the_books(end: End) -> None:
    """One entry, with the status, the source of its usage, its error and its cost as INTERFACE §4 says (L2)."""
    run = await happened(end)
    entry = run.entry
    seen = (entry.status, entry.usage_source, entry.error_type, entry.http_status)
    assert seen == (end.status, end.source, end.error, end.http_status)
    assert entry.is_final
    assert (entry.cost_pico == 0) == (entry.usage_source == "none")
    assert (entry.input_tokens == 0) == (entry.usage_source == "none")
    assert run.world.telemetry.settled == [entry]


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@on_virtual_time
async def test_every_end_is_told_to_the_client(end: End) -> None:
    """An answer is whole, or ends in an error; never in silence, and never with the provider's words about us."""
    run = await happened(end)
    reply = run.reply
    if end.status == "aborted":
        assert run.world.telemetry.statuses == [499]
        return
    if end.logged is not None:
        assert run.world.telemetry.statuses == [end.logged]
        return
    assert reply.status == end.client_status
    assert reply.tail is not None
    assert reply.tail_was_durable
    if end.code is None:
        assert reply.events[-1] == "[DONE]" if end.streamed else reply.json["choices"]
        return
    assert reply.error["code"] == end.code
    assert run.exchange.request_id in reply.error["message"]
    if end.code != CALLER:
        assert "upstream words" not in reply.error["message"]
        assert "secret transport words" not in reply.error["message"]
    assert DONE not in reply.body


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@on_virtual_time
async def test_nothing_is_left_when_it_ends(end: End) -> None:
    """The upstream's connection is given back only after an answer that was read to its end."""
    run = await happened(end)
    for each in run.world.upstreams.answers:
        assert len(each.released) == 1
        if end.status != "succeeded" and not end.drain:
            assert each.released == [False]
    assert run.world.telemetry.defects == ([] if end.error != "defect" else run.world.telemetry.defects[:1])
    assert run.world.conductor.retry_budget.fifths == 500


def estimated_output(entry: LedgerEntry, world: World, text: bytes) -> None:
    assert entry.usage_source == "estimated"
    assert entry.output_tokens == world.experience.output_tokens(entry.model, len(text))


@on_virtual_time
async def test_an_estimate_counts_bytes_and_not_chunks() -> None:
    """A hundred pieces of one character cost what one piece of a hundred costs, by what this model's tokens weigh."""
    text = "wörtlich " * 40
    pieces = tuple(delta(content=character) for character in text)
    once = await World().scripted(evolink=stream(delta(content=text), broken())).ask()
    often = await World().scripted(evolink=stream(*pieces, broken())).ask()
    assert once.entry.output_tokens == often.entry.output_tokens
    estimated_output(once.entry, once.world, text.encode())


@on_virtual_time
async def test_estimates_learn_from_what_was_told() -> None:
    """After answers of one token a byte, a cut one is estimated at about one token a byte."""
    text = "x" * 20_000
    taught = stream(delta(content=text), finish(), closing(totals(50, 20_000)), DONE)
    world = World().scripted(evolink=[taught] * 40 + [stream(delta(content=text), FOREVER)])
    for _ in range(40):
        await world.ask()
    run = world.begin()
    run.task.get_loop().call_later(1.0, run.hang_up)
    await run.ended()
    assert abs(run.entry.output_tokens - 20_000) <= 400


@on_virtual_time
async def test_an_unstreamed_answer_that_was_cut_is_estimated_by_pace() -> None:
    """Nothing was seen of it: so many seconds at the account's pace, and never more than an answer's usual length."""
    pace = unstreamed(whole(totals(100, 400)), opening=(10.0,))
    cut = Script(opening=(FOREVER,))
    world = World(names=("moonshot",)).scripted(moonshot=[pace, cut])
    await world.ask(stream=False)
    run = world.begin(stream=False)
    run.task.get_loop().call_later(5.0, run.hang_up)
    await run.ended()
    assert run.entries[0].output_tokens == pytest.approx(200, abs=2)


@on_virtual_time
async def test_the_first_byte_may_take_its_time_and_the_rest_its_own() -> None:
    """A whole body that begins within the first deadline may take longer than that to come (INTERFACE §2)."""
    body = whole(USAGE)
    slow = Script(opening=(29.0,), headers=JSON_HEADERS, body=(body[:10], 15.0, body[10:20], 15.0, body[20:]))
    run = await World(names=("moonshot",)).scripted(moonshot=slow).ask(stream=False)
    assert run.reply.status == 200
    assert run.entry.ttft_ms == 29_000


@pytest.mark.parametrize(("end", "seconds"), [("no head", 30), ("silence", 20.25), ("too long in all", 300)])
@on_virtual_time
async def test_deadlines_are_kept(end: str, seconds: float) -> None:
    """First byte, silence and the whole, each at its time and not at the next heartbeat."""
    run = await happened(GIVEN_UP[end])
    assert (run.entry.finished_at - run.entry.started_at).total_seconds() == pytest.approx(seconds, abs=0.01)


@on_virtual_time
async def test_a_short_idle_deadline_is_noticed_in_time() -> None:
    """A timer that was set for the first byte does not put off the silence after it."""
    run = await happened(End(script=unstreamed(b"{", opening=(0.0,)), status="failed", streamed=False, http_status=200))
    assert run.entry.status == "failed"
    silent = Script(opening=(0.0,), headers=JSON_HEADERS, body=(b"{", FOREVER))
    run = await World(names=("moonshot",)).scripted(moonshot=silent).ask(stream=False)
    assert (run.entry.finished_at - run.entry.started_at).total_seconds() == pytest.approx(20)


@on_virtual_time
async def test_a_drain_has_an_end() -> None:
    """Ten minutes after its client an upstream that goes on for ever is let go, if its own deadline allows so long."""
    run = await happened(GONE["drained without end"])
    assert (run.entry.finished_at - run.entry.started_at).total_seconds() == pytest.approx(300, abs=0.1)


@on_virtual_time
async def test_a_full_journal_refuses_before_anything_is_bought() -> None:
    """503 ``metering_unavailable`` with a wait; no provider sees the request."""
    world = World().scripted(evolink=answer())
    world.journal.refuses = True
    run = await world.ask()
    assert (run.reply.status, run.reply.error["code"]) == (503, "metering_unavailable")
    assert run.reply.headers["retry-after"] == "5"
    assert world.upstreams.calls == []
    assert world.journal.intents() == []


@on_virtual_time
async def test_an_intent_that_does_not_reach_the_disk_is_void() -> None:
    """Nobody is called, and should the intent reach the disk after all, its settlement does too: for nothing."""
    world = World().scripted(evolink=answer())
    world.journal.is_stuck = True
    run = await world.ask()
    assert (run.reply.status, run.reply.error["code"]) == (503, "metering_unavailable")
    assert world.upstreams.calls == []
    entry = run.entry
    assert (entry.status, entry.usage_source, entry.error_type) == ("abandoned", "none", "metering_unavailable")
    assert entry.cost_pico == 0


@pytest.mark.parametrize("streamed", [True, False])
@on_virtual_time
async def test_an_answer_that_cannot_be_booked_does_not_end_well(streamed: bool) -> None:
    """The journal takes no settlement: no end mark and no body leave; recovery will settle the intent (L3)."""
    world = World().scripted(evolink=answer() if streamed else unstreamed())
    world.journal.refuses_settlements = True
    run = await world.ask(stream=streamed)
    assert run.reply.error["code"] == "metering_unavailable"
    assert run.reply.status == (200 if streamed else 503)
    assert DONE not in run.reply.body
    assert len(world.journal.intents()) == 1
    assert world.upstreams.answers[0].released == [True]


@on_virtual_time
async def test_a_settlement_that_does_not_reach_the_disk_holds_the_end_back() -> None:
    """It is written but not durable: the client hears so instead of the end of its answer."""
    world = World().scripted(evolink=answer())

    def stuck(sync: int) -> None:
        world.journal.is_stuck = sync == 2

    world.journal.on_sync = stuck
    run = await world.ask()
    assert run.entry.status == "succeeded"
    assert run.reply.relayed == ANSWER + finish()
    assert run.reply.error["code"] == "metering_unavailable"


@on_virtual_time
async def test_a_progress_mark_that_cannot_be_written_costs_nobody_an_answer() -> None:
    """It is for the crash that may come; the answer goes on without it."""
    world = World().scripted(evolink=stream(ANSWER, 2.0, HELLO, 2.0, finish(), closing(USAGE), DONE))
    world.journal.refuses_progress = True
    run = await world.ask()
    assert run.reply.body.endswith(DONE)
    world.journal.refuses_progress = False
    await world.ask()
    assert [mark.output_tokens for mark in world.journal.progress()] == [9, 9]


@on_virtual_time
async def test_a_dialect_that_breaks_buys_nothing() -> None:
    """A request that cannot be written in a provider's words has no intent, and its probe is given back."""
    world = World(in_force=catalogue(card("moonshot", dialect="klingon"))).scripted(moonshot=answer())
    run = await world.ask()
    assert (run.reply.status, run.reply.error["code"]) == (500, "internal_error")
    assert world.journal.intents() == []
    assert len(world.telemetry.defects) == 1


def breaking(*_: object) -> Any:
    raise LookupError("a dialect's own fault")


@pytest.mark.parametrize(
    ("script", "fault", "ended"),
    [
        (answer(), {"read_usage": breaking}, ("succeeded", "estimated", None)),
        (refusal(500), {"classify_failure": breaking}, ("abandoned", "estimated", "defect")),
        (stream(ANSWER, sse(RATE_ERROR)), {"classify_failure": breaking}, ("abandoned", "estimated", "defect")),
    ],
    ids=["over usage", "over a refusal", "over an error event"],
)
@on_virtual_time
async def test_a_dialect_that_breaks_over_an_answer_is_an_end_too(
    script: Script, fault: dict[str, Any], ended: tuple[str, str, str | None]
) -> None:
    """What was sent has an outcome, estimated; an answer that came is not lost over its figures."""
    world = World(names=("moonshot",)).scripted(moonshot=script)
    exchange = world.prepared(stream=True)
    (candidate,) = exchange.plan.routable
    assert candidate.price is not None
    this = Attempt(
        attempt_id="att_1", request_id="req_1", number=1, candidate=candidate, price=candidate.price,
        started_at=world.clock.now(), output_limit=100, input_tokens_estimate=9, admitted_at=world.clock.now(),
    )  # fmt: skip
    world.journal.append(Intent.of(this, exchange.admitted.request, exchange.principal))
    await world.journal.durable(1)
    needs = Attempting(
        upstreams=world.upstreams, journal=world.journal, clock=world.clock, experience=world.experience,
        telemetry=world.telemetry, pace={},
    )  # fmt: skip
    call = UpstreamCall(
        provider="moonshot", account="main", url="", body=b"", headers={"x-gateway-attempt-id": "att_1"},
        timeouts=TIMEOUTS, stream=True,
    )  # fmt: skip
    relayed: list[bytes] = []

    async def relay(data: bytes) -> None:
        relayed.append(data)

    watch = Watch(heartbeat=None)
    watch.begin_attempt(TIMEOUTS, drain=False)
    only = world.catalogue.providers["moonshot"]
    dialect = replace(DIALECTS["moonshot"], **fault)
    outcome = await attempt(needs, this, exchange.admitted.request, only, dialect, call, watch, relay)
    watch.end()
    kind = None if outcome.failure is None else outcome.failure.kind.value
    assert (outcome.status, outcome.usage_source, kind) == ended
    assert [str(defect) for defect in world.telemetry.defects] == ["a dialect's own fault"]
    assert world.upstreams.answers[-1].released == [ended[0] == "succeeded"]


@on_virtual_time
async def test_what_the_provider_calls_the_request_is_kept() -> None:
    """The ledger row carries the provider's own id and the model that answered."""
    run = (
        await World(names=("moonshot",))
        .scripted(
            moonshot=stream(ANSWER, finish(), closing(USAGE), DONE, headers={**SSE_HEADERS, "msh-request-id": "msh-9"})
        )
        .ask()
    )
    assert (run.entry.upstream_request_id, run.entry.served_model) == ("msh-9", "kimi-k2-thinking")
    assert json.loads(THOUGHT[6:])["model"] == run.entry.served_model

"""A client receives what the upstream said, and its end only when the books have it."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from gateway.core.money import Money
from tests.pipeline.virtual_time import on_virtual_time
from tests.pipeline.world import USAGE, WAIT, World, answer, broken, refusal, stream, unstreamed
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


def cost_written(body: bytes) -> Decimal:
    """The last ``cost`` of an answer, as it is written."""
    return Decimal(body.rpartition(b'"cost":')[2].partition(b"}")[0].decode())


@on_virtual_time
async def test_a_stream_passes_as_it_came() -> None:
    """Events keep their bytes; the closing usage chunk is for clients who asked for it (L7)."""
    world = World().scripted(evolink=answer())
    run = await world.ask()
    assert run.reply.status == 200
    assert run.reply.body == ANSWER + finish() + DONE
    assert run.entry.status == "succeeded"
    assert run.entry.usage_source == "provider"
    assert (run.entry.input_tokens, run.entry.cached_tokens, run.entry.output_tokens) == (146, 128, 26)


@on_virtual_time
async def test_a_stream_is_the_same_however_it_was_cut() -> None:
    """Every cut of the same bytes gives the same answer and the same entry (L7)."""
    wire = ANSWER + finish(in_choice=USAGE) + closing(USAGE) + DONE
    seen = set()
    for size in (1, 2, 7, 64, len(wire)):
        pieces = [wire[start : start + size] for start in range(0, len(wire), size)]
        run = await World().scripted(evolink=stream(*pieces)).ask(usage=True)
        seen.add((run.reply.body, run.entry.cost_pico, run.entry.usage_source))
    assert len(seen) == 1


@on_virtual_time
async def test_unknown_events_and_comments_survive() -> None:
    """What we do not understand passes too; a comment before the answer is dropped, one inside it stays."""
    odd = b'event: note\nid: 7\ndata: {"object":"x.note"}\n\n'
    wire = (b": hello\n\n", ROLE, HELLO, b": still here\n\n", odd, finish(), closing(USAGE), DONE)
    run = await World().scripted(evolink=stream(*wire)).ask()
    assert run.reply.body == ROLE + HELLO + b": still here\n\n" + odd + finish() + DONE


@on_virtual_time
async def test_headers_say_who_answered() -> None:
    """Request id, provider, attempts and warnings are in the head of an answer."""
    world = World().scripted(evolink=refusal(500), moonshot=answer())
    run = await world.ask(seed=7)
    headers = run.reply.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-request-id"] == run.exchange.request_id == run.entries[0].request_id
    assert headers["x-gateway-provider"] == "moonshot"
    assert headers["x-gateway-attempts"] == "2"
    assert "seed was not sent" in headers["x-gateway-warnings"]
    assert "x-gateway-cost-usd" not in headers


@on_virtual_time
async def test_an_unstreamed_answer_says_its_cost() -> None:
    """Its ``usage`` is normalised and priced, the header says the same, and the other members keep their bytes."""
    body = whole({**USAGE, "extra": 1}, reasoning_content="想", refusal=None)
    run = await World().scripted(evolink=unstreamed(body)).ask(stream=False)
    assert run.reply.status == 200
    assert run.reply.headers["content-type"] == "application/json"
    assert run.reply.headers["x-gateway-cost-usd"] == str(run.cost)
    told = run.reply.json
    usage = told.pop("usage")
    original = json.loads(body)
    del original["usage"]
    assert told == original
    assert usage["prompt_tokens_details"] == {"cached_tokens": 128}
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (146, 26, 172)
    assert usage["extra"] == 1
    assert cost_written(run.reply.body) == run.cost.usd()


@pytest.mark.parametrize("streamed", [True, False])
@on_virtual_time
async def test_an_answer_costs_the_same_either_way(streamed: bool) -> None:
    """18 x 0.556 + 128 x 0.139 + 26 x 2.222 per million, streamed or not (L8)."""
    world = World().scripted(evolink=answer() if streamed else unstreamed())
    run = await world.ask(stream=streamed, usage=streamed)
    assert str(run.cost) == "0.000085572"
    assert cost_written(run.reply.body) == Decimal("0.000085572")


@on_virtual_time
async def test_the_cost_is_the_sum_of_all_attempts() -> None:
    """What a cut attempt may have cost is in ``usage.cost`` too, to the pico-dollar (L1)."""
    world = World().scripted(evolink=stream(broken()), moonshot=stream(broken()), cometapi=answer())
    run = await world.ask(usage=True)
    assert [entry.usage_source for entry in run.entries] == ["estimated", "estimated", "provider"]
    assert all(entry.cost_pico > 0 for entry in run.entries)
    assert cost_written(run.reply.body) == Money(sum(entry.cost_pico for entry in run.entries)).usd()


@on_virtual_time
async def test_the_closing_chunk_is_rewritten_for_who_asked() -> None:
    """The upstream's own chunk keeps its other members; usage is ours, with the cost."""
    theirs = sse(
        {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": USAGE, "system_fingerprint": "f"}
    )
    run = await World().scripted(evolink=stream(ANSWER, finish(), theirs, DONE)).ask(usage=True)
    chunk = run.reply.events[-2]
    assert (chunk["id"], chunk["choices"], chunk["system_fingerprint"]) == ("c1", [], "f")
    assert chunk["usage"]["prompt_tokens_details"] == {"cached_tokens": 128}
    assert cost_written(run.reply.body) == run.cost.usd()
    assert run.reply.events[-1] == "[DONE]"


@pytest.mark.parametrize("end", [finish(in_choice=USAGE), finish(on_top=USAGE)], ids=["in the choice", "on top"])
@on_virtual_time
async def test_a_closing_chunk_is_written_where_the_upstream_sent_none(end: bytes) -> None:
    """The finish chunk passes as it came, and who asked gets a closing chunk of ours after it."""
    world = World().scripted(evolink=stream(ANSWER, end, DONE))
    asked = await world.ask(usage=True)
    assert asked.reply.body.startswith(ANSWER + end)
    chunk = asked.reply.events[-2]
    assert (chunk["choices"], chunk["id"], chunk["model"]) == ([], "chatcmpl-7a8b", "kimi-k2-thinking")
    assert chunk["usage"]["prompt_tokens"] == 146
    not_asked = await world.ask()
    assert not_asked.reply.body == ANSWER + end + DONE


@pytest.mark.parametrize("streamed", [True, False])
@on_virtual_time
async def test_the_end_leaves_only_when_the_books_have_it(streamed: bool) -> None:
    """While the disk is slow, everything but the end of a stream has left, and nothing of a whole body (L3)."""
    world = World().scripted(evolink=answer() if streamed else unstreamed())
    world.journal.sync_seconds = 3.0
    run = await world.ask(stream=streamed, usage=streamed)
    assert run.reply.tail_was_durable
    assert run.reply.relayed == (ANSWER + finish() if streamed else b"")
    assert run.reply.tail is not None
    assert run.reply.tail.endswith(DONE) is streamed


@on_virtual_time
async def test_an_answer_without_content_is_held_and_given_whole() -> None:
    """A thinking answer cut by its limit before it said anything is an answer, and billed."""
    wire = (ROLE, finish("length"), closing(totals(100, 16)), DONE)
    run = await World().scripted(evolink=stream(*wire)).ask()
    assert run.reply.relayed == b""
    assert run.reply.body == ROLE + finish("length") + DONE
    assert run.entry.output_tokens == 16


@pytest.mark.parametrize("rest", [DONE[:-2], DONE[:-1], b"data: [DONE]\r\n"], ids=["no end", "one", "crlf"])
@on_virtual_time
async def test_a_last_event_without_its_blank_line_gets_one(rest: bytes) -> None:
    """Nothing that is written after an upstream's last bytes runs into them."""
    run = await World().scripted(evolink=stream(ANSWER, finish(), rest)).ask(usage=True)
    assert run.reply.events[-1] == "[DONE]"
    assert run.reply.events[-2]["usage"]["cost"] > 0
    assert run.reply.body.endswith((b"\n\n", b"\r\n\n"))


@on_virtual_time
async def test_a_finish_without_a_blank_line_stays_an_event() -> None:
    """A stream that stops in the middle of its last line end is whole, and its end is ours."""
    run = await World().scripted(evolink=stream(ANSWER, finish()[:-2])).ask()
    assert run.reply.body == ANSWER + finish() + DONE
    assert run.entry.usage_source == "estimated"


@on_virtual_time
async def test_several_choices_are_added_up() -> None:
    """Prompt once, completion for each choice, all in one stream (providers §1.5)."""
    wire = (
        delta(0, content="a"),
        delta(1, content="b"),
        finish(index=0, in_choice=totals(146, 26)),
        finish(index=1, in_choice=totals(146, 25)),
        DONE,
    )
    run = await World().scripted(evolink=stream(*wire)).ask(n=2, usage=True)
    assert (run.entry.input_tokens, run.entry.output_tokens) == (146, 51)


@on_virtual_time
async def test_a_cut_before_every_choice_has_finished_is_a_cut() -> None:
    """One of two answers is not the answer, even if nobody has seen the second begin."""
    for end in ((), (broken(),)):
        world = World(names=("moonshot",)).scripted(moonshot=stream(delta(0, content="a"), finish(), *end))
        run = await world.ask(n=2)
        assert run.entry.status == "failed"
        assert run.reply.error["code"] == "upstream_error"


@on_virtual_time
async def test_a_thought_counts_as_the_beginning_of_an_answer() -> None:
    """Reasoning leaves at once: it is what a client of a thinking model watches."""
    world = World().scripted(evolink=stream(ROLE, THOUGHT, 5.0, HELLO, finish(), closing(USAGE), DONE))
    run = await world.ask()
    assert run.reply.parts[0][1] == ROLE + THOUGHT
    assert run.reply.parts[1][0] - run.reply.parts[0][0] == pytest.approx(5.0)


@on_virtual_time
async def test_what_an_answer_taught_is_kept() -> None:
    """Bytes per token, answer length and pace come from answers whose tokens the provider told, and from no other."""
    world = World().scripted(evolink=[answer(), stream(ANSWER, finish(), DONE)])
    before = world.experience.output_tokens("kimi-k2-thinking", 10_000)
    await world.ask()
    taught = world.experience.output_tokens("kimi-k2-thinking", 10_000)
    pace = world.noting.beliefs.pace[("evolink", "main")]
    assert taught != before
    assert pace.first_chunk_seconds == pytest.approx(WAIT)
    await world.ask()
    assert world.experience.output_tokens("kimi-k2-thinking", 10_000) == taught
    assert world.noting.beliefs.pace[("evolink", "main")] == pace


@on_virtual_time
async def test_a_whole_body_teaches_nothing_of_first_chunks() -> None:
    """It comes at the end of its generation, which says nothing of how soon a stream begins."""
    world = World().scripted(evolink=unstreamed())
    await world.ask(stream=False)
    assert world.noting.beliefs.pace[("evolink", "main")].first_chunk_seconds == 0.0
    assert world.noting.beliefs.pace[("evolink", "main")].tokens_per_second == pytest.approx(26 / WAIT)


@on_virtual_time
async def test_the_plan_is_kept_for_explanations() -> None:
    """One plan record a request, before its first intent."""
    world = World().scripted(evolink=refusal(500), moonshot=answer())
    run = await world.ask()
    (record,) = world.journal.plans()
    assert record.request_id == run.exchange.request_id
    assert [each["provider"] for each in json.loads(bytes(record.plan))["candidates"]] == [
        "evolink",
        "moonshot",
        "cometapi",
    ]
    assert world.journal.records.index(record) < world.journal.records.index(world.journal.intents()[0])


@on_virtual_time
async def test_the_request_goes_out_in_the_providers_words() -> None:
    """The upstream's model name, usage asked for, our attempt's id, and none of our own extensions."""
    world = World().scripted(evolink=answer())
    await world.ask(provider={"order": ["evolink"]}, max_tokens=900)
    (call,) = world.upstreams.calls
    sent = json.loads(call.body)
    assert call.url == "https://evolink.test/v1/chat/completions"
    assert (sent["model"], sent["max_tokens"], sent["stream_options"]) == (
        "kimi-k2-thinking",
        900,
        {"include_usage": True},
    )
    assert "provider" not in sent
    assert encoded("Why?") in call.body

"""Every fault does on command what its name says, to the requests it was set for and to no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from gateway.simulator import KINDS, PROVIDERS, Fault, Settings, Simulator
from gateway.simulator.faults import CONTENT, CUTS, FORM, REFUSALS, TIMING, USAGE, Faults

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def struck(direct: Any, kind: str, provider: str = "moonshot", **parameters: Any) -> Simulator:
    simulator: Simulator = direct.simulator(provider)
    simulator.faults.add(Fault(kind=kind, **parameters), now=direct.time.now)
    return simulator


# -- whom a fault strikes ----------------------------------------------------------------------------------------------


def strikes(fault: Fault, count: int, *, model: str = "m", credential: str = "c", stream: bool = False) -> list[bool]:
    faults = Faults("seed")
    faults.add(fault, now=0)
    return [
        faults.strike(model=model, credential=credential, stream=stream, now=float(n)) is not None for n in range(count)
    ]


def test_a_count_ends():
    """The next three requests and no more."""
    assert strikes(Fault(kind="crlf", count=3), 5) == [True] * 3 + [False] * 2


def test_a_window_opens_and_closes():
    """From two seconds on, for three."""
    fault = Fault(kind="crlf", after_seconds=2, window_seconds=3)
    assert strikes(fault, 7) == [False] * 2 + [True] * 3 + [False] * 2


def test_a_share_is_the_seeds():
    """The same seed strikes the same requests, about as many as the share says."""
    fault = Fault(kind="crlf", share=0.3)
    assert strikes(fault, 1000) == strikes(fault, 1000)
    assert 250 < sum(strikes(fault, 1000)) < 350


def test_a_fault_can_be_for_one_model_credential_or_form():
    """Other requests pass."""
    for field, mine, other in [("model", "m", "n"), ("credential", "c", "d"), ("stream", True, False)]:
        fault = Fault(kind="crlf", **{field: mine})
        assert strikes(fault, 1, **{field: mine}) == [True]
        assert strikes(fault, 1, **{field: other}) == [False]


def test_a_wrong_fault_is_refused_with_the_reason(over_http):
    """An unknown kind or parameter sets nothing."""

    async def scenario(http: Any) -> None:
        for wrong in ({"kind": "gremlins"}, {"kind": "crlf", "often": True}, {"kind": "crlf", "share": 2}, "x"):
            assert (await http.post("/__sim/faults", wrong)).status == 400
        assert (await http.get("/__sim/faults")).json["faults"] == []
        await http.post("/__sim/faults", [{"kind": "crlf"}, {"kind": "missing_done", "count": 1}])
        left = (await http.post("/__sim/faults", {"clear": ["crlf"]})).json["faults"]
        assert [row["fault"]["kind"] for row in left] == ["missing_done"]
        async with http.session.delete(http.address + "/__sim/faults") as reply:
            assert await reply.json() == {"faults": []}

    over_http(Simulator("moonshot"), scenario)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("kind", [kind for kind in REFUSALS if "before_response" not in kind])
def test_a_refusal_is_not_billed(direct, ask, provider, kind):
    """Every kind of refusal answers something at every provider, streamed or not, and costs nothing."""
    simulator = struck(direct, kind, provider)
    for form in ({}, STREAM):
        reply = direct.ask(simulator, ask() | form)
        assert reply.status == 200 if kind in ("error_in_ok", "html_ok") else reply.status >= 400
        assert reply.body or kind == "status"
    assert not simulator.bill.lines
    assert [line.refused for line in simulator.requests] == [kind] * 2


@pytest.mark.parametrize(
    ("kind", "status", "type_", "words"),
    [
        ("engine_overloaded", 429, "engine_overloaded_error", "overloaded"),
        ("rate_limit_concurrency", 429, "rate_limit_reached_error", "max concurrency: 100, please try again after 7"),
        ("rate_limit_rpm", 429, "rate_limit_reached_error", "max RPM: 100, please try again after 7 seconds"),
        ("rate_limit_tpm", 429, "rate_limit_reached_error", "TPM rate limit, current: 101, limit: 100"),
        ("rate_limit_tpd", 429, "rate_limit_reached_error", "TPD rate limit"),
        ("quota_exceeded", 429, "exceeded_current_quota_error", "please check your account balance"),
        ("balance_exhausted", 429, "exceeded_current_quota_error", "please recharge your account"),
        ("content_filter", 400, "content_filter", "high risk"),
        ("invalid_key", 401, "invalid_authentication_error", "Invalid Authentication"),
        ("incorrect_key", 401, "incorrect_api_key_error", "Incorrect API key"),
        ("model_gone", 404, "resource_not_found_error", "kimi-k2-thinking or Permission denied"),
        ("unexpected_output", 500, "unexpected_output", "invalid state transition"),
    ],
)
def test_moonshots_refusals_have_its_types_and_words(direct, ask, kind, status, type_, words):
    """Four meanings share the status 429; only type and message tell them apart."""
    reply = direct.ask(struck(direct, kind, retry_seconds=7), ask())
    assert (reply.status, reply.json["error"]["type"]) == (status, type_)
    assert words in reply.json["error"]["message"]
    assert "retry-after" not in reply.headers


def test_a_retry_after_header_can_be_anything(direct, ask):
    """Zero, an HTTP date or nonsense."""
    for value in ("0", "Wed, 21 Oct 2026 07:28:00 GMT", "soon"):
        assert direct.ask(struck(direct, "engine_overloaded", retry_after=value), ask()).headers["retry-after"] == value


def test_html_and_free_answers(direct, ask):
    """A proxy's page, an error under 200, and whatever a test wants to see."""
    page = direct.ask(struck(direct, "bad_gateway_html"), ask())
    assert (page.status, page.headers["content-type"]) == (502, "text/html")
    assert page.body.startswith(b"<html>")
    assert "error" in direct.ask(struck(direct, "error_in_ok"), ask()).json
    free = direct.ask(struck(direct, "status", status=418, body="tea", content_type="text/tea"), ask())
    assert (free.status, free.body, free.headers["content-type"]) == (418, b"tea", "text/tea")


def test_a_lost_answer_can_be_billed(direct, ask):
    """With `billed` the request ran and is charged in full, though the client saw an error."""
    simulator = struck(direct, "gateway_timeout", billed=True)
    assert direct.ask(simulator, ask("[[out=50]]")).status == 504
    (line,) = simulator.bill.lines
    assert (line.output_tokens, line.told, line.ended) == (50, "untold", "broken")


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["close_before_response", "reset_before_response"])
def test_a_connection_that_ends_before_the_answer(over_http, ask, caplog, kind):
    """The client sees no status line; nothing is billed, and the next request is answered."""
    simulator = Simulator("moonshot")

    async def scenario(http: Any) -> None:
        await http.set_fault(kind, count=1)
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await http.ask(ask())
        assert (await http.ask(ask())).status == 200

    over_http(simulator, scenario)
    assert not caplog.records
    assert [line.status for line in simulator.requests] == [None, 200]
    assert len(simulator.bill.lines) == 1


@pytest.mark.parametrize("kind", ["reset_mid_body", "close_mid_body"])
@pytest.mark.parametrize(("after", "told"), [(6, "untold"), (-1, "told")])
def test_a_stream_that_breaks(over_http, ask, caplog, kind, after, told):
    """The client gets the chunks up to the break and knows that the body is not whole; what was sent is billed."""
    simulator = Simulator("moonshot")

    async def scenario(http: Any) -> None:
        await http.set_fault(kind, after_chunks=after)
        reply = await http.ask(ask("[[out=90]]", **STREAM))
        assert (reply.status, reply.whole) == (200, False)
        assert len(reply.events) == (6 if after > 0 else 90 + 3)
        assert "[DONE]" not in reply.events

    over_http(simulator, scenario)
    assert not caplog.records
    (line,) = simulator.bill.lines
    assert (line.ended, line.told, line.output_tokens) == ("broken", told, 5 if after > 0 else 90)


@pytest.mark.parametrize("kind", ["reset_mid_body", "close_mid_body"])
def test_a_body_that_breaks(over_http, ask, kind):
    """Half of the body arrives, less than content-length said."""
    simulator = Simulator("moonshot")

    async def scenario(http: Any) -> None:
        await http.set_fault(kind)
        reply = await http.ask(ask("[[out=90]]"))
        assert not reply.whole
        assert 0 < len(reply.body) < int(reply.headers["Content-Length"])

    over_http(simulator, scenario)
    assert simulator.bill.lines[0].output_tokens == 90


@pytest.mark.parametrize(("policy", "output"), [("none", None), ("stop", 2), ("full", 90)])
def test_a_break_is_billed_by_its_policy(direct, ask, policy, output):
    """What a provider charges for an answer it cut itself is a setting."""
    simulator = direct.simulator("moonshot", Settings(break_billing=policy))
    simulator.faults.add(Fault(kind="cut_stream", after_chunks=3), now=0)
    direct.ask(simulator, ask("[[out=90]]", stream=True))
    assert [line.output_tokens for line in simulator.bill.lines] == ([] if output is None else [output])


# -- time --------------------------------------------------------------------------------------------------------------


def test_stalls_and_slow_chunks_take_virtual_time(direct, ask):
    """Silence before the first byte, silence in the middle, and a slow pace."""
    direct.ask(struck(direct, "stall_before_first_byte", seconds=7), ask())
    direct.ask(struck(direct, "stall_mid_stream", seconds=9, after_chunks=2), ask(stream=True))
    direct.ask(struck(direct, "slow_chunks", ms=250), ask("[[out=3]]", stream=True))
    assert direct.time.slept == [7, 9] + [0.25] * 5


def test_comments_break_a_silence_without_being_progress(direct, ask):
    """Comments keep coming, chunks do not, for the time that was set."""
    simulator = struck(direct, "comments_mid_stream", seconds=1, ms=300, after_chunks=2)
    reply = direct.ask(simulator, ask("[[out=3]]", stream=True))
    assert reply.body.split(b"\n\n")[2:6] == [b": keep-alive"] * 4
    assert sum(direct.time.slept) == pytest.approx(1)
    assert reply.events[-1] == "[DONE]"


@pytest.mark.parametrize(("kind", "leave", "output"), [("stall_before_first_byte", 0, 0), ("stall_mid_stream", 1, 4)])
def test_a_stall_without_end_lasts_until_the_client_leaves(direct, ask, kind, leave, output):
    """The hang-up ends the wait at once, and the answer is billed as left."""
    simulator = struck(direct, kind, after_chunks=5)
    direct.ask(simulator, ask("[[out=90]]", stream=True), leave_after=leave)
    (line,) = simulator.bill.lines
    assert (line.ended, line.output_tokens) == ("aborted", output)


# -- the form of a stream ----------------------------------------------------------------------------------------------


def test_forms_of_a_stream(direct, ask):
    """Missing [DONE], an early end, an error event, a broken event, comments, CRLF and plain JSON."""

    def body(kind: str, **parameters: Any) -> bytes:
        answer: bytes = direct.ask(struck(direct, kind, **parameters), ask("[[out=5]]", **STREAM)).body
        return answer

    whole: bytes = direct.ask(direct.simulator(), ask("[[out=5]]", **STREAM)).body
    events = whole.split(b"\n\n")
    assert body("missing_done") == whole.removesuffix(b"data: [DONE]\n\n")
    assert body("cut_stream", after_chunks=3) == b"\n\n".join(events[:3]) + b"\n\n"
    assert body("cut_stream", after_chunks=-2) == b"\n\n".join(events[:-3]) + b"\n\n"
    failed = body("error_event", after_chunks=2, message="boom").split(b"\n\n")
    assert failed[:2] == events[:2]
    assert json.loads(failed[2][6:])["error"]["message"] == "boom"
    assert failed[3:] == [b""]
    broken = body("malformed_event", after_chunks=2).split(b"\n\n")
    assert broken[:2] + broken[3:] == events
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(broken[2][6:])
    assert body("crlf") == whole.replace(b"\n", b"\r\n")
    assert body("no_space") == whole.replace(b"data: ", b"data:")
    assert body("keepalive_comments").count(b": keep-alive\n\n") == len(events) - 1
    assert json.loads(body("json_for_stream"))["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("mode", "ends"),
    [("byte", lambda data: True), ("utf8", lambda data: data[-1] >= 0xC0), ("escape", lambda data: data[-1] == 0x5C)],
)
def test_a_stream_can_be_cut_anywhere(over_http, ask, mode, ends: Callable[[bytes], bool]):
    """Cuts at every byte, inside characters or inside escapes change no byte of the stream."""
    simulator = Simulator("moonshot", wall=lambda: 1e9)
    parts: list[bytes] = []

    async def scenario(http: Any) -> None:
        request = ask(f"[[out={50 if mode == 'byte' else 300}]] [[reasoning=0]]", stream=True)
        whole = (await http.ask(request)).body
        await http.set_fault("split", mode=mode)
        url = http.address + "/v1/chat/completions"
        async with http.session.post(url, json=request, headers={"authorization": "Bearer sk-test"}) as answer:
            async for part, _ in answer.content.iter_chunks():
                parts.append(part)
        ids = [json.loads(body.split(b"\n\n")[0][6:])["id"].encode() for body in (whole, b"".join(parts))]
        assert b"".join(parts).replace(ids[1], ids[0]).split(b'"usage"')[0] == whole.split(b'"usage"')[0]

    over_http(simulator, scenario)
    cut = [part for part in parts if part and ends(part)]
    assert len(cut) > 5
    if mode == "byte":
        assert max(len(part) for part in parts) <= 64


# -- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("placement", "places"),
    [("choice", (1, 0, 0)), ("chunk", (0, 1, 0)), ("both", (1, 1, 0)), ("finish", (0, 0, 1)), ("none", (0, 0, 0))],
)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_usage_can_be_placed_anywhere(direct, ask, provider, placement, places):
    """In the choice, in a closing chunk, both, on the finish chunk, or nowhere; the bill is the same."""
    simulator = struck(direct, "usage_placement", provider, placement=placement)
    reply = direct.ask(simulator, ask(**STREAM))
    events = [event for event in reply.events if isinstance(event, dict)]
    in_choice = sum(1 for event in events for choice in event["choices"] if choice.get("usage"))
    closing = sum(1 for event in events if not event["choices"] and event.get("usage"))
    on_finish = sum(1 for event in events if event["choices"] and event.get("usage"))
    assert (in_choice, closing, on_finish) == places
    (line,) = simulator.bill.lines
    assert (line.told, line.ended) == ("untold" if placement == "none" else "told", "complete")


@pytest.mark.parametrize("form", [{}, STREAM])
def test_usage_can_be_missing_zero_or_inflated(direct, ask, form):
    """The bill stays true, and says whether the client was told."""
    for kind, told in [("missing_usage", "untold"), ("zero_usage", "distorted"), ("inflated_prompt", "distorted")]:
        simulator = struck(direct, kind)
        reply = direct.ask(simulator, ask("[[out=30]]") | form)
        (line,) = simulator.bill.lines
        assert (line.told, line.output_tokens, line.prompt_tokens) == (told, 30, 7)
        if kind == "missing_usage":
            assert b'"prompt_tokens"' not in reply.body
        else:
            assert f'"prompt_tokens":{0 if kind == "zero_usage" else 10},'.encode() in reply.body


@pytest.mark.parametrize(
    ("spelling", "top", "nested"),
    [("top", 604, None), ("nested", None, 604), ("both", 604, 604), ("conflicting", 604, 302),
     ("over_prompt", 668, 668), ("none", None, None)],
)  # fmt: skip
def test_cached_tokens_can_be_spelled_any_way(direct, ask, spelling, top, nested):
    """At the top, nested, both, in conflict, more than the prompt, or not at all."""
    from gateway.simulator import filler

    simulator = direct.simulator()
    direct.ask(simulator, ask(filler(600, seed=1)))
    simulator.faults.add(Fault(kind="cached_spelling", spelling=spelling), now=0)
    usage = direct.ask(simulator, ask(filler(600, seed=1))).json["usage"]
    assert usage.get("cached_tokens") == top
    assert usage.get("prompt_tokens_details", {}).get("cached_tokens") == nested
    assert simulator.bill.lines[-1].cached_tokens == 604


# -- content -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, STREAM])
def test_content_faults(direct, ask, form):
    """Another model's name, tags, leaked tokens, no content, no reasoning."""

    def answer(kind: str, **parameters: Any) -> tuple[dict[str, Any], str, str]:
        """The message, its finish reason and the model named."""
        reply = direct.ask(
            struck(direct, kind, **parameters), ask("[[out=60]]", tools=[TOOL], tool_choice=choice) | form
        )
        if not form:
            first = reply.json["choices"][0]
            return first["message"], first["finish_reason"], reply.json["model"]
        finish = next(c["finish_reason"] for c in reply.choices if c["finish_reason"])
        message = {field: reply.text(field) for field in ("content", "reasoning_content")}
        if not any("reasoning_content" in c["delta"] for c in reply.choices):
            del message["reasoning_content"]
        return message, finish, reply.events[0]["model"]

    choice = "none"
    assert answer("served_model", served="kimi-k2.5")[2] == "kimi-k2.5"
    message, finish, _ = answer("think_in_content")
    assert message["content"].startswith("<think>")
    assert "</think>" in message["content"]
    assert "reasoning_content" not in message
    message, finish, _ = answer("empty_content")
    assert (message["content"], finish) == ("", "length")
    assert message["reasoning_content"]
    assert "reasoning_content" not in answer("no_reasoning")[0]
    choice = "auto"
    message, finish, _ = answer("special_tokens")
    assert finish == "stop"
    assert "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{" in message["content"]


def test_tool_call_pieces_can_come_without_their_index(direct, ask):
    """Only the order says which call a piece belongs to."""
    reply = direct.ask(struck(direct, "no_tool_index"), ask(tools=[TOOL], stream=True))
    pieces = [piece for choice in reply.choices for piece in choice["delta"].get("tool_calls", [])]
    assert len(pieces) > 2
    assert not any("index" in piece for piece in pieces)
    assert all(choice["index"] == 0 for choice in reply.choices)


@pytest.mark.parametrize("mode", ["truncated", "schema"])
def test_tool_arguments_can_be_wrong(direct, ask, mode):
    """Not JSON at all, or JSON that breaks the schema; the tokens billed are those told."""
    simulator = struck(direct, "invalid_tool_arguments", mode=mode)
    reply = direct.ask(simulator, ask(tools=[TOOL])).json
    arguments = reply["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    if mode == "truncated":
        with pytest.raises(ValueError, match="delimiter"):
            json.loads(arguments)
    else:
        assert "city" not in json.loads(arguments)
    assert simulator.bill.lines[0].output_tokens == reply["usage"]["completion_tokens"]


def test_a_call_of_a_function_that_nobody_has(direct, ask):
    """The arguments are right, the name is not; the tokens billed are those told."""
    simulator = struck(direct, "unknown_function")
    reply = direct.ask(simulator, ask(tools=[TOOL])).json
    called = reply["choices"][0]["message"]["tool_calls"][0]["function"]
    assert called["name"] not in {TOOL["function"]["name"]}
    assert "city" in json.loads(called["arguments"])
    assert simulator.bill.lines[0].output_tokens == reply["usage"]["completion_tokens"]


def test_an_answer_that_calls_and_says_stop(direct, ask):
    """Only where tools are called."""
    choice = direct.ask(struck(direct, "false_finish"), ask(tools=[TOOL])).json["choices"][0]
    assert (choice["finish_reason"], len(choice["message"]["tool_calls"])) == ("stop", 1)


def test_every_kind_is_described_once():
    """The kinds a client may set are those that this file tries out."""
    parts = (REFUSALS, TIMING, CUTS, FORM, USAGE, CONTENT)
    assert sum(len(part) for part in parts) == len(KINDS)

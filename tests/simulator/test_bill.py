"""The bill says to the pico-dollar what was owed, however an answer ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.simulator import PRICES, Fault, Price, Settings, Simulator, credential_label, filler


def test_a_line_is_tokens_times_price(direct, ask):
    """Worked by hand: 604 cached, 0 fresh and 100 output tokens of kimi-k2-thinking at Moonshot."""
    simulator = direct.simulator()
    body = ask(filler(597, seed=1) + "[[out=100]]")
    for _ in range(2):
        direct.ask(simulator, body)
    first, second = simulator.bill.lines
    assert (first.input_tokens, first.cached_tokens, first.output_tokens) == (604, 0, 100)
    assert first.cost_pico == 604 * 600_000 + 100 * 2_500_000 == 612_400_000
    assert (second.input_tokens, second.cached_tokens, second.output_tokens) == (0, 604, 100)
    assert second.cost_pico == 604 * 150_000 + 100 * 2_500_000 == 340_600_000
    assert (first.reasoning_tokens, first.ended, first.told) == (40, "complete", "told")


def test_cometapi_gives_no_discount_for_hits(direct, ask):
    """Cached tokens are reported and charged like any other."""
    simulator = direct.simulator("cometapi")
    body = ask(filler(597, seed=1) + "[[out=100]]")
    for _ in range(2):
        direct.ask(simulator, body)
    first, second = simulator.bill.lines
    assert second.cached_tokens == 604
    assert first.cost_pico == second.cost_pico == 604 * 1_100_000 + 100 * 4_400_000


def test_every_price_is_a_plausible_whole_number():
    """A hit is never dearer than a miss, nor output cheaper than input."""
    for rows in PRICES.values():
        for price in rows.values():
            assert 0 < (price.cached or price.input) <= price.input < price.output


def test_prices_can_be_replaced(direct, ask):
    """A new row serves a new model at its price."""
    simulator = direct.simulator("evolink", prices={"kimi-k9": Price(input=1, output=2)})
    direct.ask(simulator, ask("[[out=10]]") | {"model": "kimi-k9"})
    (line,) = simulator.bill.lines
    assert line.cost_pico == line.prompt_tokens + 2 * 10


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_costs_the_same_streamed_and_unstreamed(direct, ask, stream):
    """The form of the answer does not change what it costs."""
    simulator = direct.simulator()
    direct.ask(simulator, ask("[[out=77]]", stream=stream))
    (line,) = simulator.bill.lines
    assert (line.output_tokens, line.reasoning_tokens) == (77, 30)
    assert line.cost_pico == line.prompt_tokens * 600_000 + 77 * 2_500_000


@pytest.mark.parametrize(
    ("provider", "policy", "output"),
    [("moonshot", None, 4), ("moonshot", "full", 90), ("cometapi", None, 90), ("evolink", "stop", 4)],
)
def test_a_stream_that_the_client_left(direct, ask, provider, policy, output):
    """Stop bills what was sent until then, full all of it; the prompt is owed either way."""
    simulator = direct.simulator(provider, Settings(chunk_ms=20, abort_billing=policy))
    direct.ask(simulator, ask("[[out=90]]", stream=True), leave_after=5)
    (line,) = simulator.bill.lines
    assert (line.ended, line.aborted, line.told) == ("aborted", True, "untold")
    assert line.prompt_tokens == line.input_tokens > 0
    assert line.output_tokens == output


def test_a_stream_that_was_cut_after_its_usage_is_billed_as_told(over_http, ask):
    """Reasoning that no event carried was made all the same: what was told is what is owed, [DONE] or not."""
    simulator = Simulator("moonshot")
    for fault in (Fault(kind="no_reasoning"), Fault(kind="close_mid_body", after_chunks=-1)):
        simulator.faults.add(fault, now=0)

    async def scenario(http: Any) -> None:
        reply = await http.ask(ask("[[out=90]] [[reasoning=0.8]]", stream=True))
        assert not reply.whole

    over_http(simulator, scenario)
    (line,) = simulator.bill.lines
    assert (line.ended, line.told, line.output_tokens) == ("broken", "told", 90)


def test_an_answer_without_stream_that_the_client_left(direct, ask):
    """Generation takes its time without a stream too, and stops when the client is seen to leave."""
    simulator = direct.simulator("moonshot", Settings(chunk_ms=40))
    direct.ask(simulator, ask("[[out=90]]"), leave_after=0)
    (line,) = simulator.bill.lines
    assert line.aborted
    assert line.output_tokens < 90
    assert direct.time.slept == [pytest.approx(3.6)]


def test_time_to_first_byte_depends_on_what_was_cached(direct, ask):
    """Prefill is paid for what is not in the cache; a hit answers sooner."""
    simulator = direct.simulator("moonshot", Settings(first_byte_ms=500, prefill_tokens_per_second=1_000))
    body = ask(filler(2_044, seed=1))
    direct.ask(simulator, body)
    direct.ask(simulator, body)
    assert direct.time.slept == [pytest.approx(0.5 + 2.048), pytest.approx(0.5)]


def test_the_control_plane_tells_the_bill(over_http, ask):
    """Totals per credential, model and token class equal the sum of the lines, in all three forms."""
    simulator = Simulator("moonshot", Settings(accounts={"sk-one": "one", "sk-two": "two"}))

    async def scenario(http: Any) -> None:
        for n, (key, model) in enumerate([("sk-one", ""), ("sk-two", ""), ("sk-one", "-turbo"), ("sk-one", "")]):
            body = ask(filler(300, seed=n % 2)) | {"model": f"kimi-k2-thinking{model}"}
            assert (await http.ask(body, key=key)).status == 200
        bill = (await http.get("/__sim/bill")).json
        lines = [json.loads(line) for line in (await http.get("/__sim/bill.jsonl")).body.splitlines()]
        assert lines == bill["lines"]
        assert [line["line"] for line in lines] == [1, 2, 3, 4]
        assert bill["total_pico"] == sum(line["cost_pico"] for line in lines)
        for total in bill["totals"]:
            mine = [x for x in lines if (x["credential"], x["model"]) == (total["credential"], total["model"])]
            assert total["requests"] == len(mine)
            assert total["cost_pico"] == sum(line["cost_pico"] for line in mine)
            for name in ("input", "cached", "cache_write", "output"):
                assert total[name]["tokens"] == sum(line[f"{name}_tokens"] for line in mine)
                assert total[name]["pico"] == sum(line[f"{name}_pico"] for line in mine)
        assert {total["credential"] for total in bill["totals"]} == {"one", "two"}
        assert "lines" not in (await http.get("/__sim/bill?lines=0")).json
        assert [line["line"] for line in (await http.get("/__sim/bill?since=3")).json["lines"]] == [4]
        assert (await http.get("/__sim/stats")).json["answered"] == 4
        await http.post("/__sim/reset", {})
        empty = (await http.get("/__sim/bill")).json
        assert (empty["lines"], empty["totals"], empty["total_pico"]) == ([], [], 0)

    over_http(simulator, scenario)


def test_no_key_stands_on_the_bill(over_http, ask):
    """A key without an account name appears as its fingerprint everywhere."""
    simulator = Simulator("moonshot", Settings(accounts=None))

    async def scenario(http: Any) -> None:
        await http.ask(ask(), key="sk-very-secret")
        for path in ("bill", "bill.jsonl", "requests", "stats", "settings"):
            body = (await http.get(f"/__sim/{path}")).body
            assert b"very-secret" not in body
        assert simulator.bill.lines[0].credential == credential_label("sk-very-secret")

    over_http(simulator, scenario)


def test_settings_change_on_command(over_http, ask):
    """Pace, limits and retirement can be changed while it runs; an unknown setting is refused."""

    async def scenario(http: Any) -> None:
        reply = await http.post("/__sim/settings", {"retired": ["kimi-k2-thinking"], "limits": {"rpm": 1}})
        assert reply.status == 200
        assert (await http.ask(ask())).status == 404
        assert (await http.post("/__sim/settings", {"retired": []})).json["limits"]["rpm"] == 1
        assert [(await http.ask(ask())).status for _ in range(2)] == [200, 429]
        assert (await http.post("/__sim/settings", {"colour": 1})).status == 400
        assert (await http.get("/__sim/nothing")).status == 404

    over_http(Simulator("moonshot"), scenario)

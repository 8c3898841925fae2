"""The savings report from outside: the same figures as on the command line, a tenant's own alone, and bounded."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.prefix import Prompt
from tests.http.house import House, around_now, exact
from tests.http.test_bad_input import refused
from tests.integration.samples import T0, entry, plan, usage

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

PAST = {"from": "2025-11-22", "to": "2025-11-23"}
TURNS = 12


@pytest.fixture(scope="module")
async def past(module_house: House) -> House:
    """A gateway that has served a conversation of blue, one of red, and something from before prefixes were kept."""
    journal = module_house.gateway.journal
    for number in range(TURNS * 2):
        team = ("blue", "red")[number % 2]
        depth = number // 2 + 1
        prompt = Prompt(
            tuple(1_000 * (number % 2) + each for each in range(depth)),
            tuple(500 * (each + 1) for each in range(depth)),
        )
        made = T0 + timedelta(seconds=60 * number)
        journal.append(plan(number, made_at=made, prompt=prompt, tenant=team, turn=depth - 1))
        used = usage(prompt=500 * depth, cached=500 * (depth - 1), completion=100)
        journal.append(entry(number, used=used, team=team, started_at=made))
    await journal.durable(journal.append(entry(99, team="blue")))
    return module_house


async def report(house: House, **query: str) -> Any:
    answer = await house.admin("GET", "/reports/savings", params={**PAST, **query})
    assert answer.status_code == 200, answer.text
    return exact(answer.text)


async def test_the_report(past: House):
    """Everything is somewhere; every baseline adds up; who served it all is predicted as it was, within the band."""
    said = await report(past)
    assert (said["from"], said["requests"], said["requests_left_out"]) == ("2025-11-22T00:00:00Z", 25, 1)
    (model,) = said["models"]
    assert model["requests"] == 2 * TURNS
    spend = exact((await past.admin("GET", "/reports/spend", params=PAST)).text)["total"]["cost"]
    assert Decimal(model["actual"]) + Decimal(said["cost_left_out"]) == Decimal(spend)
    baselines = {each["baseline"]: each for each in model["baselines"]}
    for each in baselines.values():
        assert Decimal(each["actual"]) + Decimal(each["saved"]) == Decimal(each["cost"])
    evolink = baselines["evolink"]
    assert evolink["measured"]
    assert Decimal(evolink["cost_low"]) <= Decimal(evolink["actual"]) <= Decimal(evolink["cost_high"])
    assert evolink["accuracy"]["requests"] == 2 * TURNS
    assert evolink["accuracy"]["cached_tokens_billed"] == 2 * sum(500 * turn for turn in range(TURNS))
    # 66 blocks of 500 tokens in either conversation, at the difference of 0.556 and 0.139 USD per million
    assert Decimal(model["saved_by_provider_caches"]) == Decimal("0.417") * 2 * 66 * 500 / 1_000_000


async def test_one_model_by_any_of_its_names(past: House):
    """An alias is the model that it means; one that nobody used has nothing to compare."""
    everything = await report(past)
    assert await report(past, model="kimi-thinking") == everything == await report(past, model="kimi-k2-thinking")
    assert (await report(past, model="kimi-k2.6"))["models"] == []


async def test_a_tenant_sees_its_own(past: House):
    """Half of it is blue's, and nothing of red's is in there."""
    made = await past.admin("POST", "/teams", json={"name": "blue"})
    assert made.status_code == 201
    key = (await past.make_key(name="finance", team="blue", role="finance"))["key"]
    answer = await past.admin("GET", "/reports/savings", params=PAST, token=key)
    assert answer.status_code == 200
    said = exact(answer.text)
    assert (said["requests"], said["requests_left_out"], said["models"][0]["requests"]) == (TURNS + 1, 1, TURNS)


async def test_a_period_that_is_too_long(past: House, monkeypatch: pytest.MonkeyPatch):
    """A gateway that serves refuses what would keep it busy for minutes, and says what to do instead."""
    monkeypatch.setattr(past.gateway.services, "savings_requests_max", 25)
    assert (await report(past))["requests"] == 25
    monkeypatch.setattr(past.gateway.services, "savings_requests_max", 24)
    error = refused(await past.admin("GET", "/reports/savings", params=PAST), 400, "invalid_request_error", "from")
    assert "gateway report savings" in error["message"]
    assert "24 requests" in error["message"]


async def test_live_conversations(house: House):
    """What is kept of live requests is enough: every turn is compared, and the cached tokens that were billed are those
    that are predicted from the bills of other conversations, within the blocks that providers count in."""
    before = (await report(house, **around_now())).get("requests")
    for number in range(8):
        messages: list[dict[str, str]] = [{"role": "system", "content": "You answer briefly. " * 150}]
        for turn in range(4):
            messages.append({"role": "user", "content": f"Question {number}.{turn}: " + f"word{number} " * 900})
            body = {"model": "kimi-k2-thinking", "messages": messages, "max_tokens": 64}
            answer = await house.ask(body)
            assert answer.status_code == 200, answer.text
            messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    said = await report(house, **around_now())
    (model,) = said["models"]
    assert (said["requests"] - before, said["requests_left_out"], model["requests"]) == (32, 0, 32)
    evolink = next(each for each in model["baselines"] if each["baseline"] == "evolink")
    accuracy = evolink["accuracy"]
    assert accuracy["requests"] == 32
    assert accuracy["cached_tokens_predicted"] == pytest.approx(accuracy["cached_tokens_billed"], rel=0.01)
    assert abs(accuracy["error_percent"]) < 1
    assert Decimal(evolink["cost_low"]) <= Decimal(evolink["actual"]) <= Decimal(evolink["cost_high"])

"""Lists and balances are asked of faithful providers, with the account's own key, which is written down nowhere."""

from __future__ import annotations

import logging

import pytest
from pydantic import SecretStr

from gateway.adapters.upstream.aiohttp_client import FREE_BYTES_MAX, AiohttpUpstreams
from gateway.core.failure import FailureClass
from gateway.pipeline.ports import UpstreamFailedError
from gateway.providers import DIALECTS
from gateway.simulator import PROVIDERS, Simulator, running
from tests.http.fake_upstream import Call, fake_upstream, json_answer
from tests.http.house import House, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.integration]
SECRET = "sk-test-only-0123456789"


def upstreams(secret: str = SECRET) -> AiohttpUpstreams:
    return AiohttpUpstreams({("p", "main"): SecretStr(secret)}, user_agent="tests")


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_every_provider_lists_its_models(provider: str) -> None:
    """To who has a key; to nobody else."""
    async with running([Simulator(provider)]) as addresses:
        asking = upstreams()
        told = await asking.ask("p", "main", f"{addresses[provider]}/v1/models")
        assert told.status == 200
        assert b"kimi-k2-thinking" in told.body
        assert (await asking.ask("p", "another", f"{addresses[provider]}/v1/models")).status == 401
        await asking.close()


@pytest.mark.parametrize(
    ("provider", "path"),
    [("moonshot", "/v1/users/me/balance"), ("evolink", "/v1/credits"), ("cometapi", "/user/quota")],
)
async def test_every_provider_tells_its_balance(provider: str, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """In its own place and form; CometAPI wants the key in the query, and nobody logs it."""
    caplog.set_level(logging.DEBUG)
    dialect = DIALECTS[provider]
    async with running([Simulator(provider)]) as addresses:
        base = addresses[provider]
        assert dialect.balance_url(f"{base}/v1") in (None, f"{base}{path}")
        asking = upstreams()
        told = await asking.ask("p", "main", f"{base}{path}", key_member=dialect.balance_key_member)
        assert told.status == 200
        assert dialect.read_balance(told.body).available > 0
        await asking.close()
    assert SECRET not in caplog.text


async def test_what_goes_wrong_is_told_without_the_address() -> None:
    """It may carry the key: nobody there, too long an answer, no answer at all."""
    async with fake_upstream() as upstream:
        upstream.tells_of_questions = True

        async def too_long(call: Call) -> None:
            await call.send(json_answer(b"x" * (FREE_BYTES_MAX + 1)))

        async def cut(call: Call) -> None:
            call.cut()

        for url, script in (
            ("http://127.0.0.1:1/q", cut),
            (f"{upstream.address}/q", too_long),
            (f"{upstream.address}/q", cut),
        ):
            upstream.script = script
            asking = upstreams()
            with pytest.raises(UpstreamFailedError) as raised:
                await asking.ask("p", "main", url, key_member="key")
            assert raised.value.failure.kind is FailureClass.UNREACHABLE
            assert SECRET not in str(raised.value)
            assert "/q" not in str(raised.value)
            await asking.close()


async def test_balances_are_shown(house: House) -> None:
    """By account, with the moment; as a metric too."""
    house.gateway.probes._begin(next(house.gateway.probes._purses()), (), "balance:now", 60)

    async def shown() -> list[object]:
        states = (await house.admin("GET", "/providers")).json()["data"]
        return [each["balance"] for each in states if each["balance"] is not None]

    (balance,) = await eventually(shown)
    assert set(balance) == {"available", "unit", "at"}
    assert "gateway_account_balance{" in (await house.client.get("/metrics")).text

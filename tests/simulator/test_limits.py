"""An account is refused by the first limit it meets, in the provider's own words, and pays nothing for it."""

from __future__ import annotations

import asyncio
import re

import pytest

from gateway.simulator import Limits, Settings
from gateway.simulator.limits import Limiter


def test_requests_are_counted_over_a_sliding_minute():
    """The place of a request comes back one minute after it was taken."""
    limiter = Limiter(Limits(rpm=2))
    assert limiter.admit(tokens=1, now=0) is None
    assert limiter.admit(tokens=1, now=30) is None
    hit = limiter.admit(tokens=1, now=31)
    assert hit is not None
    assert (hit.kind, hit.limit, hit.retry_seconds) == ("rpm", 2, 29)
    assert limiter.admit(tokens=1, now=60) is None


def test_tokens_are_charged_at_admission_and_not_refunded():
    """Giving the place back frees concurrency and no tokens."""
    limiter = Limiter(Limits(tpm=100, concurrency=1))
    assert limiter.admit(tokens=80, now=0) is None
    limiter.release()
    hit = limiter.admit(tokens=30, now=1)
    assert hit is not None
    assert (hit.kind, hit.current, hit.limit) == ("tpm", 110, 100)


def test_a_refused_request_is_charged_nothing():
    """What the day refused did not use up the minute."""
    limiter = Limiter(Limits(tpm=100, tpd=150, rpm=10))
    assert limiter.admit(tokens=100, now=0) is None
    hit = limiter.admit(tokens=100, now=61)
    assert hit is not None
    assert hit.kind == "tpd"
    assert limiter.admit(tokens=50, now=61) is None


def test_the_output_limit_counts_against_tokens_a_minute(direct, ask):
    """An oversized output limit uses up the minute though the answer is short."""
    simulator = direct.simulator("moonshot", Settings(limits=Limits(tpm=50_000)))
    body = ask("hi", max_completion_tokens=30_000)
    assert direct.ask(simulator, body).status == 200
    refused = direct.ask(simulator, body)
    assert refused.status == 429
    assert refused.json["error"]["type"] == "rate_limit_reached_error"
    assert "TPM rate limit, current: 60010, limit: 50000" in refused.json["error"]["message"]
    direct.time.now += 60
    assert direct.ask(simulator, body).status == 200


@pytest.mark.parametrize("provider", ["moonshot", "cometapi", "evolink"])
def test_requests_a_minute_are_refused_in_each_providers_words(direct, ask, provider):
    """Moonshot names limit and wait, CometAPI hides both, EvoLink gives a numeric code and a hint."""
    simulator = direct.simulator(provider, Settings(limits=Limits(rpm=1)))
    assert direct.ask(simulator, ask()).status == 200
    refused = direct.ask(simulator, ask())
    error = refused.json["error"]
    assert refused.status == 429
    match provider:
        case "moonshot":
            assert re.search(r"max RPM: 1, please try again after 60 seconds", error["message"])
        case "cometapi":
            assert error["type"] == "comet_api_error"
            assert "(request id: " in error["message"]
        case _:
            assert (error["code"], error["fallback_suggestion"]) == (429, "retry after 60 seconds")
    assert len(simulator.bill.lines) == 1


def test_concurrency_is_given_back_at_the_end_of_an_answer(direct, ask):
    """Two at once are refused, two after each other are not, and a client that left gives its place back."""
    simulator = direct.simulator("moonshot", Settings(limits=Limits(concurrency=1), chunk_ms=10))

    async def both() -> list[int]:
        replies = await asyncio.gather(*(direct.call(simulator, ask(stream=True)) for _ in range(2)))
        return sorted(reply.status for reply in replies)

    assert asyncio.run(both()) == [200, 429]
    assert direct.ask(simulator, ask(stream=True), leave_after=3).status == 200
    assert direct.ask(simulator, ask(stream=True)).status == 200


def test_keys_of_one_account_share_its_limits(direct, ask):
    """Limits belong to the account, not to the key."""
    settings = Settings(limits=Limits(rpm=1), accounts={"one": "main", "two": "main", "three": "other"})
    simulator = direct.simulator("moonshot", settings)
    statuses = [direct.ask(simulator, ask(), key=key).status for key in ("one", "two", "three", "four")]
    assert statuses == [200, 429, 200, 401]

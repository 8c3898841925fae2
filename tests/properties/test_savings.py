"""A savings report is a function of the past: what was saved is the difference, whatever came at once or in pieces."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from datetime import timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gateway.adapters.postgres.prompts import packed, unpacked
from gateway.core.prefix import Prompt
from gateway.core.savings import Savings, savings
from gateway.core.shadow import PastRequest, Shadow
from gateway.http.savings import counted, rendered
from tests.unit.past_samples import START, catalogue, request

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


@st.composite
def pasts(draw: st.DrawFn) -> list[PastRequest]:
    """Requests in order of time, many of them in one moment, of a few conversations that share a beginning."""
    requests = []
    seconds = 0.0
    for number in range(draw(st.integers(1, 25))):
        seconds += draw(st.sampled_from((0, 0, 0, 1, 30, 400)))
        conversation, turns = draw(st.integers(0, 3)), draw(st.integers(1, 4))
        boundaries = {1: 100} | {100 * conversation + turn: 100 + 700 * turn for turn in range(2, 2 + turns)}
        provider = draw(st.sampled_from(("far", "near", "plain")))
        cached = 0 if provider == "plain" else draw(st.integers(0, max(boundaries.values())))
        account = draw(st.sampled_from(("main", "other")))
        kept = draw(st.sampled_from((True, True, True, False)))
        made = request(number, seconds, provider, boundaries, cached=cached, account=account)
        requests.append(made if kept else request(number, seconds, provider, boundaries, cached=cached, prompt=None))
    return requests


def report(requests: list[PastRequest]) -> Savings:
    shadow = Shadow(catalogue())
    for each in requests:
        shadow.add(each)
    return savings(shadow)


@given(pasts(), st.integers(0, 2**32))
def test_the_order_within_a_moment_does_not_matter(requests: list[PastRequest], seed: int):
    """Requests that came at once are added in any order to the same report, to the last digit."""
    mixed = list(requests)
    random.Random(seed).shuffle(mixed)
    assert report(sorted(mixed, key=lambda each: each.at)) == report(requests)


@given(pasts())
def test_actual_and_saved_are_the_baseline(requests: list[PastRequest]):
    """In the picodollars that go out, for every baseline; its bounds enclose it; every request is somewhere."""
    found = report(requests)
    for model in rendered(found, START, START + timedelta(days=1))["models"]:
        for each in model["baselines"]:
            assert Decimal(each["actual"]) + Decimal(each["saved"]) == Decimal(each["cost"])
            assert Decimal(each["cost_low"]) <= Decimal(each["cost"]) <= Decimal(each["cost_high"])
            assert Decimal(each["actual"]) <= Decimal(model["actual"])
    assert found.requests == len(requests)
    assert found.requests_left_out + sum(model.requests for model in found.models) == found.requests
    paid = sum(each.cost.pico for each in requests)
    assert paid == found.cost_left_out.pico + sum(model.actual.pico for model in found.models)


@given(pasts())
def test_a_stream_is_the_same_as_a_batch(requests: list[PastRequest]):
    """Read one at a time from a store, it is the same report."""

    async def stream() -> AsyncGenerator[PastRequest, None]:
        for each in requests:
            yield each

    assert asyncio.run(counted(stream(), catalogue())) == report(requests)


@given(st.lists(st.tuples(U64, U32), min_size=1, max_size=16), U64, U32)
def test_a_prompt_is_unpacked_as_it_was(boundaries: list[tuple[int, int]], family: int, anchored: int):
    """In 13 bytes and 12 per boundary."""
    digests, tokens = zip(*boundaries, strict=True)
    prompt = Prompt(digests, tokens, family, anchored)
    assert unpacked(packed(prompt)) == prompt
    assert len(packed(prompt)) == 13 + 12 * len(boundaries)


@given(st.binary(max_size=64) | st.binary(min_size=12, max_size=64).map(lambda rest: b"\x01" + rest))
def test_no_bytes_make_unpacking_raise(data: bytes):
    """What cannot be read is as good as not kept."""
    prompt = unpacked(data)
    assert prompt is None or packed(prompt) == data


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4), st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4))
def test_no_prompt_makes_packing_raise(digests: list[int], tokens: list[int]):
    """A record that is odd must not stop the ones behind it in the journal."""
    unpacked(packed(Prompt(tuple(digests), tuple(tokens), -1, -1)))

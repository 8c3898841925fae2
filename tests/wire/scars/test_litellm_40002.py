"""litellm #40002: held at the base rate, charged at a dearer one, so a long request was under-reserved."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.estimate import expected_cost, largest_cost
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price, rate
from gateway.core.usage import Usage

PRICE = Price(
    provider="moonshot",
    model="kimi-k3",
    effective_from=datetime(2026, 1, 1, tzinfo=UTC),
    input=UnitPrice.from_usd_per_million("3"),
    cached_input=UnitPrice.from_usd_per_million("0.3"),
    output=UnitPrice.from_usd_per_million("15"),
    cache_write={"5m": UnitPrice.from_usd_per_million("3.75"), "1h": UnitPrice.from_usd_per_million("6")},
)
TOKENS = st.integers(0, 1_048_576)


@given(prompt=TOKENS, cached=TOKENS, written=TOKENS, output=st.integers(0, 32_768), ttl=st.sampled_from(["5m", "1h"]))
def test_the_estimate_bounds_every_charge(prompt: int, cached: int, written: int, output: int, ttl: str) -> None:
    """L11: whatever share of the prompt is read from the cache or written to it, at whichever rate."""
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    used = Usage(input=prompt - cached - written, cache_read=cached, cache_write=written, output=output)
    bound = largest_cost(PRICE, input_tokens=prompt, output_limit=32_768, cache_ttl=ttl)
    assert rate(used, PRICE, cache_ttl=ttl).cost <= bound


@given(prompt=TOKENS, cached=TOKENS, output=st.integers(0, 32_768))
def test_the_expectation_is_the_charge_if_it_comes_true(prompt: int, cached: int, output: int) -> None:
    """There is one rate, and both go through it."""
    used = Usage.from_wire(prompt=prompt, cached=min(cached, prompt), completion=output)
    expected = expected_cost(PRICE, input_tokens=prompt, cached_tokens=min(cached, prompt), output_tokens=output)
    assert rate(used, PRICE).cost == expected

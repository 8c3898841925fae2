"""For any tokens and any prices: no token is lost or counted twice, and no charge is rounded (L1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.estimate import OUTPUT_LIMIT_MAX, largest_cost, output_limit_affordable
from gateway.core.money import Money, UnitPrice
from gateway.core.pricing import Price, PriceTable, rate
from gateway.core.usage import Meter, Usage

picos = st.integers(-(10**40), 10**40)
tokens = st.integers(0, 2**30)
units = st.integers(0, 10**9).map(UnitPrice)
START = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    return Usage.from_wire(
        prompt=draw(tokens),
        completion=draw(tokens),
        cached=draw(st.none() | tokens),
        cache_write=draw(tokens),
        reasoning=draw(st.none() | tokens),
    )


@st.composite
def prices(draw: st.DrawFn) -> Price:
    return Price(
        provider="p",
        model="m",
        effective_from=START,
        input=draw(units),
        cached_input=draw(st.none() | units),
        output=draw(units),
        cache_write=draw(st.none() | st.dictionaries(st.sampled_from(["5m", "1h"]), units)),
    )


@given(picos)
def test_money_survives_every_form(pico: int) -> None:
    """Dollars as text and as a decimal lead back to the same amount."""
    assert Money.from_usd(str(Money(pico))) == Money(pico)
    assert Money.from_usd(Money(pico).usd()) == Money(pico)
    assert "E" not in str(Money(pico))


@given(st.integers(0, 10**20))
def test_a_unit_price_survives_every_form(pico_per_token: int) -> None:
    """So does a price per million."""
    price = UnitPrice(pico_per_token)
    assert UnitPrice.from_usd_per_million(str(price)) == price
    assert UnitPrice.from_usd_per_million(price.usd_per_million()) == price


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20))
def test_an_amount_is_exact_or_refused(amount: Decimal) -> None:
    """Against fractions, which never round."""
    exact = Fraction(amount) * 10**12
    try:
        assert Money.from_usd(amount).pico == exact
    except ValueError:
        assert exact.denominator != 1


@given(st.lists(picos.map(Money)))
def test_sums_do_not_depend_on_the_order(amounts: list[Money]) -> None:
    """Σ ledger = Σ reports, however they are grouped."""
    total = Money.total(amounts)
    assert Money.total(reversed(amounts)) == total
    assert Money.total([Money.total(amounts[::2]), Money.total(amounts[1::2])]) == total
    assert total - total == Money(0)


@given(tokens, tokens, st.none() | tokens, tokens, st.none() | tokens)
def test_meters_partition_what_the_wire_told(
    prompt: int, completion: int, cached: int | None, cache_write: int, reasoning: int | None
) -> None:
    """The disjoint meters add up to the inclusive figures, whatever nonsense the parts were."""
    usage = Usage.from_wire(
        prompt=prompt, completion=completion, cached=cached, cache_write=cache_write, reasoning=reasoning
    )
    assert usage.input_tokens == prompt
    assert usage.output_tokens == completion
    assert sum(count for _, count in usage.meters()) == prompt + completion
    assert (usage.cache_read is None) == (cached is None)
    assert (usage.reasoning is None) == (reasoning is None)
    assert ("cached_exceeds_prompt" in usage.flags) == (cached is not None and cached > prompt)


@given(st.integers(0, 2**30), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_reasoning_share_is_a_part_of_the_output(output: int, reasoning_bytes: int, content_bytes: int) -> None:
    """Never more than all of it, and nothing else changes."""
    usage = Usage(input=1, output=output)
    shared = usage.with_reasoning_share(reasoning_bytes=reasoning_bytes, content_bytes=content_bytes)
    assert 0 <= (shared.reasoning or 0) <= output
    assert shared.meters() == usage.meters()


@given(usages(), prices(), st.sampled_from(["5m", "1h"]), picos.map(Money))
def test_a_charge_is_the_exact_product(usage: Usage, price: Price, ttl: str, fee: Money) -> None:
    """The formula of providers §10.3, recomputed in fractions of a dollar."""
    hit = price.cached_input if price.cached_input is not None else price.input
    write = (price.cache_write or {}).get(ttl, price.input)
    exact = sum(
        Fraction(count) * Fraction(unit.usd_per_million()) / 10**6
        for count, unit in (
            (usage.input_tokens - (usage.cache_read or 0) - usage.cache_write, price.input),
            (usage.cache_read or 0, hit),
            (usage.cache_write, write),
            (usage.output_tokens, price.output),
        )
    )
    charge = rate(usage, price, cache_ttl=ttl, fee=fee)
    assert Fraction(charge.cost.usd()) == exact + Fraction(fee.usd())
    assert charge.cost == Money.total(charge.cost_of(meter) for meter in Meter) + fee


@given(usages(), usages(), prices())
def test_rating_is_additive(one: Usage, other: Usage, price: Price) -> None:
    """Two attempts cost together what they cost apart."""
    together = Usage(
        input=one.input + other.input,
        cache_read=(one.cache_read or 0) + (other.cache_read or 0),
        cache_write=one.cache_write + other.cache_write,
        output=one.output + other.output,
    )
    assert rate(together, price).cost == rate(one, price).cost + rate(other, price).cost


@given(st.sets(st.integers(0, 10**6), max_size=20), st.integers(-1, 10**6 + 1))
def test_the_row_in_force_is_the_latest_that_began(starts: set[int], at: int) -> None:
    """Against a search through all of them."""
    rows = [
        Price(
            provider="p",
            model="m",
            effective_from=START + timedelta(seconds=start),
            input=UnitPrice(start),
            output=UnitPrice(start),
        )
        for start in starts
    ]
    begun = [start for start in starts if start <= at]
    found = PriceTable(rows).in_force("p", "m", START + timedelta(seconds=at))
    assert (found.input.pico_per_token if found else None) == max(begun, default=None)


@given(prices(), usages(), st.sampled_from(["5m", "1h", "24h"]))
def test_nothing_costs_more_than_the_largest_cost(price: Price, usage: Usage, ttl: str) -> None:
    """L11: whatever of the input is cached or written; and some answer costs exactly that."""
    largest = largest_cost(
        price, input_tokens=usage.input_tokens, output_limit=usage.output_tokens, cache_ttl=ttl
    )  # fmt: skip
    assert rate(usage, price, cache_ttl=ttl).cost <= largest
    read, written = (
        Usage.from_wire(prompt=usage.input_tokens, completion=usage.output_tokens, **{kind: usage.input_tokens})
        for kind in ("cached", "cache_write")
    )
    plain = Usage(input=usage.input_tokens, output=usage.output_tokens)
    assert largest == max(rate(each, price, cache_ttl=ttl).cost for each in (plain, read, written))


@given(prices(), st.integers(0, 10**18), st.integers(0, 10**6), st.integers(1, 5))
def test_what_is_affordable_is_and_a_token_more_is_not(price: Price, pico: int, input_tokens: int, n: int) -> None:
    """A budget that shortens an answer shortens it as little as it must."""
    limit = output_limit_affordable(price, Money(pico), input_tokens=input_tokens, n=n)
    if limit < 0:
        assert largest_cost(price, input_tokens=input_tokens, output_limit=0, n=n) > Money(pico)
        return
    if limit == OUTPUT_LIMIT_MAX:
        assert price.output.pico_per_token == 0
        assert largest_cost(price, input_tokens=input_tokens, output_limit=limit, n=n) <= Money(pico)
        return
    assert largest_cost(price, input_tokens=input_tokens, output_limit=limit, n=n) <= Money(pico)
    assert largest_cost(price, input_tokens=input_tokens, output_limit=limit + 1, n=n) > Money(pico)

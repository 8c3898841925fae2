"""An explained request names the price row behind every attempt, as long as the configuration still has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.core.pricing import Price, PriceTable


def with_prices(explained: Mapping[str, Any], prices: PriceTable) -> dict[str, Any]:
    """The explanation, each attempt with its ``price``: the row's amounts in USD per 1,000,000 tokens, where they come
    from and when somebody checked them; None for a row that is gone, whose unit prices stand in the lines."""
    attempts = [{**attempt, "price": _price(prices.by_id(attempt["price_id"]))} for attempt in explained["attempts"]]
    return {**explained, "attempts": attempts}


def _price(price: Price | None) -> dict[str, Any] | None:
    return None if price is None else price_json(price)


def price_json(price: Price) -> dict[str, Any]:
    """A row of ``prices.toml`` under its public names, but for what it is the price of."""
    writes = price.cache_write
    return {
        "effective_from": price.effective_from.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "input": str(price.input),
        "cached_input": None if price.cached_input is None else str(price.cached_input),
        "output": str(price.output),
        "cache_write": None if writes is None else {ttl: str(amount) for ttl, amount in sorted(writes.items())},
        "source": price.source or None,
        "checked_at": None if price.checked_at is None else price.checked_at.isoformat(),
    }

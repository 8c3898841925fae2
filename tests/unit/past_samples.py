"""Requests of the past for tests: three providers, of which `near` and `far` have caches and `plain` has none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.core.catalogue import Catalogue, Deployment, Model, ProviderCard
from gateway.core.estimate import expected_cost
from gateway.core.money import ZERO, Money, UnitPrice
from gateway.core.prefix import Prompt
from gateway.core.pricing import Price, PriceTable
from gateway.core.shadow import PastRequest

MODEL = "kimi-k2-thinking"
START = datetime(2026, 3, 1, tzinfo=UTC)


def price(provider: str, amounts: str, since: datetime = START - timedelta(days=30), model: str = MODEL) -> Price:
    """A price row from "input cached output", cached "-" where there is no discount."""
    given, cached, output = amounts.split()
    unit = UnitPrice.from_usd_per_million
    return Price(
        provider=provider, model=model, effective_from=since, input=unit(given), output=unit(output),
        cached_input=None if cached == "-" else unit(cached),
    )  # fmt: skip


PRICES = (price("far", "1.20 0.20 3"), price("near", "1.00 0.10 2"), price("plain", "0.50 - 1.50"))


def catalogue(*prices: Price) -> Catalogue:
    """Everybody who has a price serves the model."""
    rows = prices or PRICES
    cards = {
        name: ProviderCard(
            name=name,
            dialect="openai",
            base_url="https://example.com/v1",
            deployments={
                row.model: Deployment(
                    provider=name, model=row.model, upstream=row.model, context=2**18, max_output=2**16
                )
                for row in rows
                if row.provider == name
            },
        )
        for name in sorted({row.provider for row in rows})
    }
    models = {row.model: Model(name=row.model) for row in rows}
    return Catalogue(providers=cards, models=models, prices=PriceTable(rows), digest="", loaded_at=START)


def request(
    number: int,
    seconds: float,
    provider: str,
    boundaries: dict[int, int],
    *,
    cached: int = 0,
    output: int = 100,
    row: Price | None = None,
    **changes: Any,
) -> PastRequest:
    """Request ``number`` at so many seconds; ``boundaries`` are tokens by digest, the last the whole prompt."""
    row = row or next(each for each in PRICES if each.provider == provider)
    input_tokens = max(boundaries.values())
    cost = expected_cost(row, input_tokens=input_tokens, cached_tokens=cached, output_tokens=output)
    values: dict[str, Any] = {
        "request_id": f"req_{number}", "at": START + timedelta(seconds=seconds), "model": MODEL, "tenant": "blue",
        "turn": 0, "prompt": Prompt(tuple(boundaries), tuple(boundaries.values())), "provider": provider,
        "account": "main", "price_id": row.price_id, "input_tokens": input_tokens, "cached_tokens": cached,
        "output_tokens": output, "is_read": True, "is_told": True, "cost": cost, "failed_cost": ZERO,
        "final_cost": cost,
    }  # fmt: skip
    return PastRequest(**{**values, **changes})


def usd(amount: str) -> Money:
    return Money.from_usd(amount)

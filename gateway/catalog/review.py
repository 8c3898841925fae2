"""What a load does not stop at: prices nobody has looked at for long, and how prices compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Final, Literal

from gateway.catalog.findings import Finding, ordered
from gateway.catalog.loading import FILES, Loaded
from gateway.core.catalogue import Catalogue, Deployment
from gateway.core.money import UnitPrice
from gateway.core.pricing import Price, PriceTable

CHECKED_AGE_MAX: Final = timedelta(days=180)
"""A price that nobody compared with its source for longer than this is stale."""

MAKERS_DIALECT: Final = "moonshot"
"""The maker of the Kimi models speaks this; its prices are what others are compared with."""

State = Literal["superseded", "in force", "upcoming"]


def state(prices: PriceTable, price: Price, *, now: datetime) -> State:
    """Where a row stands in the history of its pair."""
    if price.effective_from > now:
        return "upcoming"
    return "in force" if prices.in_force(price.provider, price.model, now) is price else "superseded"


def stale_prices(loaded: Loaded, config_dir: Path, *, now: datetime) -> tuple[Finding, ...]:
    """A warning for each row that holds, or will, without a source or a check within the last 180 days."""
    prices = loaded.catalogue.prices
    rows = [row for row in prices.rows() if state(prices, row, now=now) != "superseded"]
    return ordered(
        Finding(
            level="warning",
            file=str(config_dir / FILES[2]),
            line=loaded.price_lines[row.price_id],
            message=f"{row.provider} {row.model}: {problem}",
            mend="Compare the amounts with the provider's page, then write source and checked_at.",
        )
        for row in rows
        if (problem := _staleness(row, now=now))
    )


def _staleness(price: Price, *, now: datetime) -> str:
    if not price.source:
        return "the price names no source."
    if price.checked_at is None:
        return "the price does not say when it was checked."
    days = (now.astimezone(UTC).date() - price.checked_at).days
    if days > CHECKED_AGE_MAX.days:
        return f"the price was last checked {days} days ago, on {price.checked_at}."
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One amount of a provider beside the maker's; ``percent`` is None where the maker's is zero."""

    model: str
    provider: str
    reference: str
    component: str
    reference_usd: UnitPrice
    usd: UnitPrice

    @property
    def percent(self) -> Decimal | None:
        """How much more than the maker's, in percent with one decimal, half to even."""
        theirs = self.reference_usd.usd_per_million()
        if not theirs:
            return None
        ratio = (self.usd.usd_per_million() / theirs - 1) * 100
        return ratio.quantize(Decimal("0.1"), rounding=ROUND_HALF_EVEN) + 0


def compare_with_maker(catalogue: Catalogue, *, now: datetime) -> tuple[Comparison, ...]:
    """Every price in force beside the maker's for the same model, amount by amount."""
    found: list[Comparison] = []
    for model in sorted({name for card in catalogue.providers.values() for name in card.deployments}):
        priced = [
            (price, card.dialect == MAKERS_DIALECT)
            for card, _ in catalogue.deployments(model)
            if (price := catalogue.prices.in_force(card.name, model, now)) is not None
        ]
        reference = next((price for price, is_makers in priced if is_makers), None)
        if reference is not None:
            found += [each for price, _ in priced if price is not reference for each in _compared(price, reference)]
    return tuple(found)


def _compared(price: Price, reference: Price) -> tuple[Comparison, ...]:
    """Hits are compared as charged: at a provider without a hit price a hit costs what a miss costs."""
    pairs = {
        "input": (price.input, reference.input),
        "cached_input": (price.cached_input or price.input, reference.cached_input or reference.input),
        "output": (price.output, reference.output),
    }
    return tuple(
        Comparison(
            model=price.model,
            provider=price.provider,
            reference=reference.provider,
            component=component,
            reference_usd=theirs,
            usd=ours,
        )
        for component, (ours, theirs) in pairs.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A row that one table has and another has not, or has with other amounts."""

    kind: Literal["added", "removed", "changed"]
    before: Price | None
    after: Price | None


def changes(before: PriceTable, after: PriceTable) -> tuple[Change, ...]:
    """From one table to another, by provider, model and date. Sources and dates of checks are not prices."""
    old, new = _by_moment(before), _by_moment(after)
    found: list[Change] = []
    for key in sorted(old.keys() | new.keys()):
        was, now_is = old.get(key), new.get(key)
        if was is None or now_is is None:
            found.append(Change(kind="added" if was is None else "removed", before=was, after=now_is))
        elif was.price_id != now_is.price_id:
            found.append(Change(kind="changed", before=was, after=now_is))
    return tuple(found)


def _by_moment(prices: PriceTable) -> Mapping[tuple[str, str, datetime], Price]:
    return {(row.provider, row.model, row.effective_from): row for row in prices.rows()}


def unpriced(catalogue: Catalogue, *, now: datetime) -> tuple[Deployment, ...]:
    """What is served and has no price in force, so is not routable."""
    return tuple(
        deployment
        for _, card in sorted(catalogue.providers.items())
        for _, deployment in sorted(card.deployments.items())
        if catalogue.prices.in_force(card.name, deployment.model, now) is None
    )

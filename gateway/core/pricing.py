"""A price is a dated row; a charge is the exact product of tokens and the row in force, line by line.

Unpriced is never free: a candidate without a price is not routable, and :func:`rate` has no default.
Source: INTERFACE §2 (``config/prices.toml``), providers §10.3.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final, NamedTuple

import msgspec

from gateway.core.money import ZERO, Money, UnitPrice
from gateway.core.usage import Meter, Usage

DEFAULT_CACHE_TTL: Final = "5m"
"""The cache lifetime a provider applies, and charges, when a request names none (providers §1.9)."""


class Units(NamedTuple):
    """What a token costs, in pico-dollars: read by the model (and written to its cache), cached, answered."""

    uncached: int
    cached: int
    output: int

    def cost_pico(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        return (
            self.uncached * (input_tokens - cached_tokens) + self.cached * cached_tokens + self.output * output_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One dated row of ``prices.toml``: in force from ``effective_from`` until the pair's next row."""

    provider: str
    model: str
    effective_from: datetime
    input: UnitPrice
    output: UnitPrice
    cached_input: UnitPrice | None = None
    cache_write: Mapping[str, UnitPrice] | None = None
    source: str = ""
    checked_at: date | None = None

    price_id: str = field(init=False, compare=False)
    """Stable name of this row: pair, date and a digest of its amounts, so that an edited row is another id."""
    input_max: UnitPrice = field(init=False, compare=False)
    """The dearest that a token of input may be, but for what is written into a cache."""
    usual_units: Units = field(init=False, compare=False)
    """Where nothing is charged for writing a cache."""

    def __post_init__(self) -> None:
        assert self.effective_from.tzinfo is not None
        amounts = [str(self.input), str(self.cached_input), str(self.output)]
        amounts += [f"{ttl}={price}" for ttl, price in sorted((self.cache_write or {}).items())]
        digest = hashlib.sha256("|".join(amounts).encode()).hexdigest()[:8]
        start = self.effective_from.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        object.__setattr__(self, "input_max", max(self.input, self.cached_input or self.input))
        cached = self.input if self.cached_input is None else self.cached_input
        usual = Units(self.input.pico_per_token, cached.pico_per_token, self.output.pico_per_token)
        object.__setattr__(self, "usual_units", usual)
        object.__setattr__(self, "price_id", f"{self.provider}/{self.model}@{start}#{digest}")

    def unit(self, meter: Meter, *, cache_ttl: str = DEFAULT_CACHE_TTL) -> UnitPrice:
        """USD per 1,000,000 tokens of one meter; a discount or surcharge that the row lacks falls back to input."""
        match meter:
            case Meter.INPUT:
                return self.input
            case Meter.CACHE_READ:
                return self.cached_input if self.cached_input is not None else self.input
            case Meter.CACHE_WRITE:
                return (self.cache_write or {}).get(cache_ttl, self.input)
            case Meter.OUTPUT:
                return self.output

    def units(self, *, cache_ttl: str = DEFAULT_CACHE_TTL) -> Units:
        """All three at once. What a provider that charges for it does not find in its cache, it writes there."""
        if not self.cache_write:
            return self.usual_units
        return self.usual_units._replace(uncached=self.unit(Meter.CACHE_WRITE, cache_ttl=cache_ttl).pico_per_token)


class LineItem(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a charge: so many tokens of one meter at one unit price."""

    meter: Meter
    tokens: int
    unit: UnitPrice
    cost: Money


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """Rated usage: its lines add up to ``cost`` together with the fee, exactly."""

    price_id: str
    lines: tuple[LineItem, ...]
    fee: Money
    cost: Money

    def cost_of(self, meter: Meter) -> Money:
        return Money.total(line.cost for line in self.lines if line.meter is meter)


def rate(usage: Usage, price: Price, *, cache_ttl: str = DEFAULT_CACHE_TTL, fee: Money = ZERO) -> Charge:
    """The charge for ``usage`` at ``price``: the only place where tokens become money."""
    lines = tuple(_line(meter, tokens, price.unit(meter, cache_ttl=cache_ttl)) for meter, tokens in usage.meters())
    return Charge(price_id=price.price_id, lines=lines, fee=fee, cost=Money.total(line.cost for line in lines) + fee)


def _line(meter: Meter, tokens: int, unit: UnitPrice) -> LineItem:
    return LineItem(meter=meter, tokens=tokens, unit=unit, cost=unit.times(tokens))


class PriceTable:
    """All dated rows, by provider and model. Immutable after construction."""

    __slots__ = ("_rows", "_starts")

    def __init__(self, prices: Iterable[Price]) -> None:
        rows: dict[tuple[str, str], list[Price]] = {}
        for price in prices:
            rows.setdefault((price.provider, price.model), []).append(price)
        self._rows = {pair: sorted(dated, key=lambda row: row.effective_from) for pair, dated in rows.items()}
        self._starts = {pair: [row.effective_from for row in dated] for pair, dated in self._rows.items()}
        for starts in self._starts.values():
            assert len(set(starts)) == len(starts), "two rows of one pair start at the same moment"

    def in_force(self, provider: str, model: str, at: datetime) -> Price | None:
        """The row in force at a moment, or None: not priced (yet)."""
        starts = self._starts.get((provider, model))
        if starts is None:
            return None
        index = bisect_right(starts, at)
        return self._rows[(provider, model)][index - 1] if index else None

    def rows(self) -> tuple[Price, ...]:
        """Every row, ordered by provider, model and date."""
        return tuple(row for pair in sorted(self._rows) for row in self._rows[pair])

    def by_id(self, price_id: str) -> Price | None:
        return next((row for row in self.rows() if row.price_id == price_id), None)

"""Money is a whole number of pico-dollars (10^-12 USD); nothing here or above it ever rounds a charge.

A price per 1,000,000 tokens with at most six decimals is a whole number of pico-dollars per token, so
tokens x price is exact in integers. Amounts become decimals only on their way out (:meth:`Money.usd`).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

import msgspec

PICO_PER_USD: Final = 10**12
PICO_PER_TOKEN_PER_USD_PER_MILLION: Final = 10**6

WHOLE_DIGITS_MAX: Final = 50
"""No amount is longer than this in its smallest unit; a longer one is nonsense, and slow to handle."""

# The ambient context rounds at 28 digits without a word; this one refuses instead.
_EXACT: Final = Context(prec=100, traps=[Inexact, InvalidOperation])


class Money(msgspec.Struct, frozen=True, order=True):
    """An exact, signed amount of US dollars. ``pico`` is its whole number of 10^-12 USD."""

    pico: int

    @classmethod
    def from_usd(cls, amount: Decimal | str) -> Money:
        """The exact amount of a decimal string; raises ValueError for what pico-dollars cannot hold."""
        return cls(_whole(_decimal(amount), PICO_PER_USD, "pico-dollars (at most 12 decimals)"))

    @classmethod
    def total(cls, amounts: Iterable[Money]) -> Money:
        return cls(sum(amount.pico for amount in amounts))

    def usd(self) -> Decimal:
        """The same amount as a decimal number of dollars, exact."""
        return Decimal(f"{self.pico}E-12")

    def __add__(self, other: Money) -> Money:
        return Money(self.pico + other.pico)

    def __sub__(self, other: Money) -> Money:
        return Money(self.pico - other.pico)

    def __neg__(self) -> Money:
        return Money(-self.pico)

    def __str__(self) -> str:
        """Plain decimal dollars, no exponent, no trailing zeros: ``0.00125``."""
        return decimal_text(self.pico)


ZERO: Final = Money(0)


class UnitPrice(msgspec.Struct, frozen=True, order=True):
    """A price of one kind of token. ``pico_per_token`` is exact: USD per 1,000,000 tokens has six decimals."""

    pico_per_token: int

    @classmethod
    def from_usd_per_million(cls, amount: Decimal | str) -> UnitPrice:
        """From a decimal string in USD per 1,000,000 tokens; raises ValueError if negative or finer than 10^-6."""
        value = _decimal(amount)
        if value < 0:
            raise ValueError(f"{amount} is negative")
        return cls(_whole(value, PICO_PER_TOKEN_PER_USD_PER_MILLION, "pico-dollars per token (at most 6 decimals)"))

    def usd_per_million(self) -> Decimal:
        """The same price as a decimal number, exact, without trailing zeros."""
        return Decimal(str(self))

    def times(self, tokens: int) -> Money:
        assert tokens >= 0
        return Money(self.pico_per_token * tokens)

    def __str__(self) -> str:
        return decimal_text(self.pico_per_token, decimals=6)


def decimal_text(units: int, *, decimals: int = 12) -> str:
    """A whole number of 10^-decimals as plain decimal text, shortest exact form: ``decimal_text(5, decimals=2)``
    is ``0.05``."""
    sign = "-" if units < 0 else ""
    whole, fraction = divmod(abs(units), 10**decimals)
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:0{decimals}d}".rstrip("0")


def _decimal(amount: Decimal | str) -> Decimal:
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"{amount!r} is not a decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{amount!r} is not a finite number")
    return value


def _whole(value: Decimal, units_per_one: int, unit: str) -> int:
    if value and value.adjusted() > WHOLE_DIGITS_MAX:
        raise ValueError(f"{value} is too large")
    try:
        scaled = _EXACT.multiply(value, Decimal(units_per_one))
    except Inexact:
        raise ValueError(f"{value} is finer than whole {unit}") from None
    whole = int(scaled)
    if whole != scaled:
        raise ValueError(f"{value} is finer than whole {unit}")
    return whole

"""An amount is exact to the pico-dollar in every form it takes, or it is refused."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest

from gateway.core.money import WHOLE_DIGITS_MAX, ZERO, Money, UnitPrice, decimal_text


@pytest.mark.parametrize(
    ("text", "pico"),
    [
        ("0", 0),
        ("1", 1_000_000_000_000),
        ("0.000000000001", 1),
        ("-0.00125", -1_250_000_000),
        ("12345678901234567.123456789012", 12_345_678_901_234_567_123_456_789_012),
        ("49.58894", 49_588_940_000_000),
        ("1E-12", 1),
        ("1.000000000000000000", 1_000_000_000_000),
        ("0E+999999", 0),
        (f"1E+{WHOLE_DIGITS_MAX}", 10 ** (WHOLE_DIGITS_MAX + 12)),
    ],
)
def test_an_amount_is_a_whole_number_of_pico_dollars(text: str, pico: int) -> None:
    """Every digit that was written counts, also beyond the 28 of the ambient decimal context."""
    assert Money.from_usd(text) == Money(pico)
    assert Money.from_usd(Decimal(text)) == Money(pico)


@pytest.mark.parametrize(
    "text",
    [
        "0.0000000000001",
        "1.00000000000000000000000000000000001",
        "12345678901234567.1234567890121",
        "1E-999999999",
        "NaN",
        "Infinity",
        "",
        "0.60 USD",
        "0,60",
        f"1E+{WHOLE_DIGITS_MAX + 1}",
        "1E+999999999999",
    ],
)
def test_what_pico_dollars_cannot_hold_is_refused(text: str) -> None:
    """Nothing is rounded into an amount, and nothing endless is computed."""
    with pytest.raises(ValueError, match=r"finer|not a|too large"):
        Money.from_usd(text)


@pytest.mark.parametrize("pico", [0, 1, -1, 10**12, 123_456_789_012_345_678_901_234_567_890, -(10**40) - 1])
def test_dollars_are_exact_whatever_the_ambient_precision(pico: int) -> None:
    """A report's amount does not depend on who set the decimal context last."""
    with localcontext(prec=3):
        assert int(Money(pico).usd().as_tuple().exponent) == -12
        assert Money.from_usd(Money(pico).usd()) == Money(pico)


def test_sums_are_exact() -> None:
    """0.1 + 0.2 is 0.3 here."""
    tenth, fifth = Money.from_usd("0.1"), Money.from_usd("0.2")
    assert tenth + fifth == Money.from_usd("0.3")
    assert tenth - fifth == -tenth
    assert Money.total([tenth, fifth, tenth]) == Money.from_usd("0.4")
    assert Money.total([]) == ZERO
    assert sorted([fifth, tenth]) == [tenth, fifth]


@pytest.mark.parametrize(
    ("pico", "text"),
    [
        (0, "0"),
        (1, "0.000000000001"),
        (-1, "-0.000000000001"),
        (1_250_000_000, "0.00125"),
        (10**12, "1"),
        (-25 * 10**11, "-2.5"),
        (10**24, "1000000000000"),
    ],
)
def test_text_is_plain_decimal_dollars(pico: int, text: str) -> None:
    """No exponent, no trailing zeros, no sign of zero."""
    assert str(Money(pico)) == text


def test_decimal_text_of_other_units() -> None:
    """A cent is 0.01 dollars; what has no decimals has no point."""
    assert decimal_text(5, decimals=2) == "0.05"
    assert decimal_text(-500, decimals=2) == "-5"
    assert decimal_text(7, decimals=0) == "7"


@pytest.mark.parametrize(
    ("text", "pico_per_token"),
    [("0.60", 600_000), ("0.139", 139_000), ("2.222", 2_222_000), ("15.95", 15_950_000), ("0.000001", 1), ("0", 0)],
)
def test_a_price_is_a_whole_number_of_pico_dollars_per_token(text: str, pico_per_token: int) -> None:
    """USD per 1,000,000 tokens with six decimals, and pico-dollars per token, are the same integer."""
    price = UnitPrice.from_usd_per_million(text)
    assert price.pico_per_token == pico_per_token
    assert price.usd_per_million() == Decimal(text)


@pytest.mark.parametrize(
    "text", ["-0.01", "0.0000001", "0.55555555", "x", "Infinity", "1.0000000000000000000000000001"]
)
def test_a_price_that_a_token_cannot_hold_is_refused(text: str) -> None:
    """Negative, finer than six decimals, or no number."""
    with pytest.raises(ValueError, match=r"negative|finer|not a"):
        UnitPrice.from_usd_per_million(text)


@pytest.mark.parametrize(("pico_per_token", "text"), [(600_000, "0.6"), (10_000_000, "10"), (0, "0"), (1, "0.000001")])
def test_a_price_reads_as_plain_dollars_per_million(pico_per_token: int, text: str) -> None:
    """As text and as a number: 10, never 1E+1."""
    assert str(UnitPrice(pico_per_token)) == text
    assert str(UnitPrice(pico_per_token).usd_per_million()) == text


def test_tokens_times_price() -> None:
    """1,336 tokens at 0.60 USD per million are 0.0008016 USD."""
    assert UnitPrice.from_usd_per_million("0.60").times(1336) == Money.from_usd("0.0008016")
    with pytest.raises(AssertionError):
        UnitPrice(1).times(-1)

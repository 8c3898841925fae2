"""The checker of FOCUS rows finds nothing wrong with an export, and everything that is planted in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pytest

from tests.focus.checker import COLUMNS, check
from tests.focus.samples import FACTS, exported

Lines = list[dict[str, str]]
BILLED = sum(Decimal(one.cost_pico).scaleb(-12) for one in FACTS)
USAGE, CREDIT, CORRECTION, OF_ANOTHER_KEY, LAST = 3, 4, 8, 5, 10


def put(row: int = USAGE, **cells: str) -> Callable[[Lines], None]:
    """Other cells in one row."""

    def mutate(lines: Lines) -> None:
        assert all(lines[row][name] != cell for name, cell in cells.items())
        lines[row].update(cells)

    return mutate


def without(name: str) -> Callable[[Lines], None]:
    def mutate(lines: Lines) -> None:
        for line in lines:
            del line[name]

    return mutate


def renamed(name: str, other: str) -> Callable[[Lines], None]:
    def mutate(lines: Lines) -> None:
        for number, line in enumerate(lines):
            lines[number] = {other if each == name else each: cell for each, cell in line.items()}

    return mutate


def first(name: str) -> Callable[[Lines], None]:
    """A column before all others."""

    def mutate(lines: Lines) -> None:
        for number, line in enumerate(lines):
            lines[number] = {name: line[name]} | line

    return mutate


def twice(row: int) -> Callable[[Lines], None]:
    return lambda lines: lines.insert(row, dict(lines[row]))


def swapped(one: int, other: int) -> Callable[[Lines], None]:
    def mutate(lines: Lines) -> None:
        lines[one], lines[other] = lines[other], lines[one]

    return mutate


def gone(row: int) -> Callable[[Lines], None]:
    return lambda lines: lines.pop(row) and None


# What is done to a right file, and what the checker has to name.
MUTATIONS: Mapping[str, tuple[Callable[[Lines], None], str]] = {
    "a list cost that is no product": (put(ListCost="9.99"), "ListCost"),
    "a contracted cost that is no product": (put(ContractedCost="0.002500000001"), "ContractedCost"),
    "a product that floats would call equal": (put(ListCost="0.0025000000000000001"), "ListCost"),
    "a wrong product in a correction": (put(CORRECTION, ListCost="-0.0026"), "ListCost"),
    "a list price that explains nothing": (put(ListUnitPrice="2.6"), "ListUnitPrice"),
    "a contracted price that explains nothing": (put(ContractedUnitPrice="2.4"), "ContractedUnitPrice"),
    "a quantity that explains nothing": (put(PricingQuantity="0.002"), "PricingQuantity"),
    "a quantity that is not what was consumed": (put(ConsumedQuantity="1001"), "ConsumedQuantity"),
    "a fraction of a token": (put(ConsumedQuantity="1000.5"), "ConsumedQuantity"),
    "an effective cost of its own": (put(EffectiveCost="0"), "EffectiveCost"),
    "a billed cost of its own": (put(BilledCost="0.003"), "BilledCost"),
    "a credit whose list cost differs": (put(CREDIT, ListCost="0"), "ListCost"),
    "a credit that costs something": (
        put(CREDIT, **dict.fromkeys(("BilledCost", "ListCost", "ContractedCost", "EffectiveCost"), "1.25")),
        "Credit",
    ),
    "an effective cost in the pricing currency of its own": (
        put(PricingCurrencyEffectiveCost="1"),
        "PricingCurrencyEffectiveCost",
    ),
    "a list price in the pricing currency of its own": (
        put(PricingCurrencyListUnitPrice="1"),
        "PricingCurrencyListUnitPrice",
    ),
    "a negative price of a negative quantity": (
        put(
            CORRECTION,
            ListUnitPrice="-2.5",
            PricingCurrencyListUnitPrice="-2.5",
            PricingQuantity="0.001",
            ConsumedQuantity="1000",
        ),
        "negative",
    ),
    "a negative quantity that corrects nothing": (put(CORRECTION, ChargeClass=""), "ConsumedQuantity is negative"),
    "no billed cost": (put(BilledCost=""), "BilledCost"),
    "no consumed quantity": (put(ConsumedQuantity="", ConsumedUnit=""), "ConsumedQuantity"),
    "no unit beside a quantity": (put(ConsumedUnit=""), "ConsumedUnit"),
    "no pricing quantity": (put(PricingQuantity="", PricingUnit=""), "PricingQuantity"),
    "no list price": (put(ListUnitPrice=""), "ListUnitPrice"),
    "no SKU": (put(SkuId=""), "SkuId"),
    "no price of a SKU": (put(SkuPriceId=""), "SkuPriceId"),
    "no category of pricing": (put(PricingCategory=""), "PricingCategory"),
    "no issuer of invoices": (put(InvoiceIssuerName=""), "InvoiceIssuerName"),
    "a consumed quantity of a credit": (put(CREDIT, ConsumedQuantity="1", ConsumedUnit="Tokens"), "ConsumedQuantity"),
    "a meter without a SKU": (put(CREDIT, SkuMeter="Output Tokens"), "SkuMeter"),
    "details of no price": (put(CREDIT, SkuPriceDetails='{"x_Model":"m"}'), "SkuPriceDetails"),
    "a placeholder for null": (put(RegionName="Not Applicable", RegionId="Not Applicable"), "RegionId"),
    "the word null": (put(InvoiceId="null"), "InvoiceId"),
    "a blank": (put(AvailabilityZone=" "), "AvailabilityZone"),
    "a region's name without its id": (put(RegionName="Iowa"), "RegionId"),
    "a team without a name": (put(SubAccountName=""), "SubAccountName"),
    "a team without a type": (put(SubAccountType=""), "SubAccountType"),
    "an unknown category of charge": (put(ChargeCategory="Consumption"), "ChargeCategory"),
    "an unknown class of charge": (put(CORRECTION, ChargeClass="Refund"), "ChargeClass"),
    "an unknown frequency": (put(ChargeFrequency="Hourly"), "ChargeFrequency"),
    "a frequency of another category": (put(ChargeFrequency="One-Time"), "ChargeFrequency"),
    "an unknown category of pricing": (put(PricingCategory="On-Demand"), "PricingCategory"),
    "an unknown category of service": (put(ServiceCategory="LLM"), "ServiceCategory"),
    "a subcategory of another category": (put(ServiceSubcategory="Virtual Machines"), "ServiceSubcategory"),
    "one service in two categories": (put(ServiceCategory="Analytics", ServiceSubcategory="Search"), "ServiceName"),
    "a price of two SKUs": (put(SkuId="another"), "SkuPriceId"),
    "a SKU of two meters": (put(CORRECTION, SkuMeter="Input Tokens"), "SkuMeter"),
    "an unknown currency": (put(BillingCurrency="USX"), "BillingCurrency"),
    "a currency in small letters": (put(PricingCurrency="usd"), "PricingCurrency"),
    "a unit that is not spelled so": (put(PricingUnit="1M tokens"), "PricingUnit"),
    "a unit of another size": (put(PricingUnit="1000 Tokens"), "PricingQuantity"),
    "an exponent": (put(BilledCost="2.5E-3"), "BilledCost"),
    "a thousands separator": (put(ConsumedQuantity="1,000"), "ConsumedQuantity"),
    "a plus sign": (put(EffectiveCost="+0.0025"), "EffectiveCost"),
    "a currency sign": (put(ContractedCost="$0.0025"), "ContractedCost"),
    "no number": (put(ListCost="NaN"), "ListCost"),
    "a moment without a zone": (put(ChargePeriodStart="2026-10-01T00:00:00"), "ChargePeriodStart"),
    "a moment with an offset": (put(BillingPeriodEnd="2026-11-01T00:00:00+00:00"), "BillingPeriodEnd"),
    "a day that does not exist": (put(BillingPeriodEnd="2026-02-30T00:00:00Z"), "BillingPeriodEnd"),
    "a charge of two hours": (put(ChargePeriodEnd="2026-10-01T02:00:00Z"), "not an hour"),
    "an hour that begins at a half": (
        put(ChargePeriodStart="2026-10-01T00:30:00Z", ChargePeriodEnd="2026-10-01T01:30:00Z"),
        "not an hour",
    ),
    "a month that ends a day early": (put(BillingPeriodEnd="2026-10-31T00:00:00Z"), "BillingPeriodEnd"),
    "a charge outside of its month": (
        put(LAST, BillingPeriodStart="2026-11-01T00:00:00Z", BillingPeriodEnd="2026-12-01T00:00:00Z"),
        "outside of the billing period",
    ),
    "tags that are no JSON": (put(Tags="{project: alpha}"), "Tags"),
    "tags that are a list": (put(Tags='["alpha"]'), "Tags"),
    "tags within tags": (put(Tags='{"a":{"b":"c"}}'), "Tags"),
    "a tag that is there twice": (put(Tags='{"a":"b","a":"c"}'), "Tags"),
    "details that FOCUS does not define": (put(LAST, SkuPriceDetails='{"Model":"m"}'), "SkuPriceDetails"),
    "reasoning of what was read": (put(0, x_ReasoningTokens="1"), "x_ReasoningTokens"),
    "more estimated than consumed": (put(x_EstimatedQuantity="1001"), "x_EstimatedQuantity"),
    "another organisation": (put(BillingAccountId="org_other"), "BillingAccountId"),
    "a row twice": (twice(USAGE), "twice"),
    "rows out of order": (swapped(USAGE, LAST), "before that of the row before"),
    "a row too few": (gone(USAGE), "adds up"),
    "a column too few": (without("RegionId"), "RegionId"),
    "a column of ours too few": (without("x_KeyId"), "x_KeyId"),
    "an unknown column": (renamed("RegionId", "Region"), "Region"),
    "a column of a later version": (renamed("ProviderName", "ServiceProviderName"), "ServiceProviderName"),
    "a custom column before the others": (first("x_PriceId"), "custom columns come last"),
}
OF_THE_DRAFT: Mapping[str, tuple[Callable[[Lines], None], str]] = {
    "another credential": (put(CredentialId="key_9"), "CredentialId"),
    "no principal": (put(PrincipalId=""), "PrincipalId"),
    "details of another credential": (
        put(CredentialDetails='{"Credential":{"Id":"key_9","Type":"API Key"}}'),
        "CredentialDetails",
    ),
    "a credential without a type": (put(CredentialDetails='{"Credential":{"Id":"key_1"}}'), "CredentialDetails"),
    "no host": (put(HostProviderName=""), "HostProviderName"),
    "a publisher, who is gone": (renamed("HostProviderName", "PublisherName"), "PublisherName"),
}


def problems(version: str, mutate: Callable[[Lines], None]) -> list[str]:
    header, lines = exported(FACTS, version)
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    mutate(rows)
    found = check(list(rows[0]), [list(row.values()) for row in rows], version=version, billed=Decimal(BILLED))
    return found.problems


def test_there_are_more_than_fifty():
    """As many mutations as the issue asks for, and some."""
    assert len(MUTATIONS) >= 50


@pytest.mark.parametrize("version", COLUMNS)
def test_an_export_is_clean(version: str):
    """Charges of every kind are right in every version."""
    assert problems(version, lambda _: None) == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_is_found(name: str):
    """Each of them is named by the column that it is in."""
    mutate, column = MUTATIONS[name]
    assert any(column in problem for problem in problems("1.2", mutate)), problems("1.2", mutate)


@pytest.mark.parametrize("name", OF_THE_DRAFT)
def test_a_planted_fault_in_the_draft_is_found(name: str):
    """So are those in what is newer."""
    mutate, column = OF_THE_DRAFT[name]
    assert any(column in problem for problem in problems("1.5", mutate)), problems("1.5", mutate)


def test_a_line_of_another_length():
    """A line that has lost a cell is named, and not read as if it had not."""
    header, lines = exported(FACTS)
    found: Any = check(header, [lines[0][:-1], *lines[1:]], version="1.2")
    assert found.problems == [f"row 1: has {len(header) - 1} cells for {len(header)} columns"]

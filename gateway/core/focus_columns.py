"""A FOCUS export has every column of its version, by name in alphabetical order, and after them our own.

The columns are those of the Cost and Usage dataset of FOCUS 1.2, 1.3 and 1.4, and of the working draft of 1.5
(https://focus.finops.org). A column that a version has dropped is not in its files; one that cannot hold anything here,
because nobody reserves capacity with a model's provider, is there and null.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Kind = Literal["STRING", "JSON", "DATETIME", "DECIMAL", "INTEGER"]

FOCUS_VERSIONS: Final = ("1.2", "1.3", "1.4", "1.5")
FOCUS_VERSION: Final = "1.2"
"""What is exported unless somebody asks for another one, and what a closed month is signed in."""
DRAFT_VERSIONS: Final = frozenset({"1.5"})
"""Not ratified: their columns may still change their names."""

PRECISION: Final = 38
"""Digits of a decimal, those after the point included."""
_MONEY: Final = 12
_PRICE: Final = 6
_TOKENS: Final = 0


class UnknownVersionError(ValueError):
    """Nobody has written down such a version, or nobody here has read it."""

    def __init__(self, version: str) -> None:
        known = ", ".join(each + (" (draft)" if each in DRAFT_VERSIONS else "") for each in FOCUS_VERSIONS)
        super().__init__(f"{version[:40]!r} is not a version of FOCUS that is exported here; choose from {known}")


class Column(NamedTuple):
    """A column from the version that brought it until the one that dropped it. ``scale`` is the digits of a decimal
    after the point: 12 hold a pico-dollar, 6 a price per 1,000,000 tokens or so many of them."""

    name: str
    kind: Kind = "STRING"
    scale: int | None = None
    since: str = "1.2"
    until: str | None = None


_COLUMNS: Final = (
    Column("AllocatedMethodDetails", "JSON", since="1.3"),
    Column("AllocatedMethodId", since="1.3"),
    Column("AllocatedResourceId", since="1.3"),
    Column("AllocatedResourceName", since="1.3"),
    Column("AllocatedTags", "JSON", since="1.3"),
    Column("AvailabilityZone"),
    Column("BilledCost", "DECIMAL", _MONEY),
    Column("BillingAccountId"),
    Column("BillingAccountName"),
    Column("BillingAccountType"),
    Column("BillingCurrency"),
    Column("BillingPeriodEnd", "DATETIME"),
    Column("BillingPeriodStart", "DATETIME"),
    Column("CapacityReservationId"),
    Column("CapacityReservationStatus"),
    Column("ChargeCategory"),
    Column("ChargeClass"),
    Column("ChargeDescription"),
    Column("ChargeFrequency"),
    Column("ChargePeriodEnd", "DATETIME"),
    Column("ChargePeriodStart", "DATETIME"),
    Column("CommitmentDiscountCategory"),
    Column("CommitmentDiscountId"),
    Column("CommitmentDiscountName"),
    Column("CommitmentDiscountQuantity", "DECIMAL", _PRICE),
    Column("CommitmentDiscountStatus"),
    Column("CommitmentDiscountType"),
    Column("CommitmentDiscountUnit"),
    Column("CommitmentProgramEligibilityDetails", "JSON", since="1.4"),
    Column("ConsumedQuantity", "DECIMAL", _TOKENS),
    Column("ConsumedUnit"),
    Column("ContractApplied", "JSON", since="1.3"),
    Column("ContractedCost", "DECIMAL", _MONEY),
    Column("ContractedUnitPrice", "DECIMAL", _PRICE),
    Column("CredentialDetails", "JSON", since="1.5"),
    Column("CredentialId", since="1.5"),
    Column("EffectiveCost", "DECIMAL", _MONEY),
    Column("HostProviderName", since="1.3"),
    Column("InvoiceDetailId", since="1.4"),
    Column("InvoiceId"),
    Column("InvoiceIssuerName"),
    Column("ListCost", "DECIMAL", _MONEY),
    Column("ListUnitPrice", "DECIMAL", _PRICE),
    Column("PricingCategory"),
    Column("PricingCurrency"),
    Column("PricingCurrencyContractedUnitPrice", "DECIMAL", _PRICE),
    Column("PricingCurrencyEffectiveCost", "DECIMAL", _MONEY),
    Column("PricingCurrencyListUnitPrice", "DECIMAL", _PRICE),
    Column("PricingQuantity", "DECIMAL", _PRICE),
    Column("PricingUnit"),
    Column("PrincipalId", since="1.5"),
    Column("ProviderName", until="1.4"),
    Column("PublisherName", until="1.4"),
    Column("RegionId"),
    Column("RegionName"),
    Column("ResourceId"),
    Column("ResourceName"),
    Column("ResourceType"),
    Column("ServiceCategory"),
    Column("ServiceName"),
    Column("ServiceProviderName", since="1.3"),
    Column("ServiceSubcategory"),
    Column("SkuId"),
    Column("SkuMeter"),
    Column("SkuPriceDetails", "JSON"),
    Column("SkuPriceId"),
    Column("SubAccountId"),
    Column("SubAccountName"),
    Column("SubAccountType"),
    Column("Tags", "JSON"),
    # Ours: what a provider's invoice does not know and a controller asks for.
    Column("x_AccountName"),
    Column("x_AttemptFailedCost", "DECIMAL", _MONEY),
    Column("x_EstimatedQuantity", "INTEGER"),
    Column("x_KeyId"),
    Column("x_KeyName"),
    Column("x_PriceId"),
    Column("x_ReasoningTokens", "INTEGER"),
    Column("x_Requests", "INTEGER"),
)
DEPRECATED: Final = {"1.3": frozenset({"ProviderName", "PublisherName"})}
"""Columns that a version still has and the next one drops."""


def columns_of(version: str) -> tuple[Column, ...]:
    """Every column of a version, in the order of its files. Raises UnknownVersionError."""
    if version not in FOCUS_VERSIONS:
        raise UnknownVersionError(version)
    return tuple(each for each in _COLUMNS if each.since <= version and (each.until is None or version < each.until))

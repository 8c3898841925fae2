"""A FOCUS file is held against the published MUSTs, row by row and as a whole, by code that no exporter shares.

Written from the specification's column pages (1.2 to the draft of 1.5) and stricter where our own files are: every
product is exact in decimals, whatever the ChargeClass (a rule that only holds where it is not "Correction" is never
applied by a validator for which a comparison with null is null); charges are hours; what is unknown is null, never a
word for it. Text in, problems out; nothing here imports the gateway.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact
from functools import lru_cache
from pathlib import Path
from typing import Any


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EXACT = Context(prec=200, traps=[Inexact])
PROBLEMS_MAX = 100

COLUMNS_OF_1_2 = words("""
    AvailabilityZone BilledCost BillingAccountId BillingAccountName BillingAccountType BillingCurrency BillingPeriodEnd
    BillingPeriodStart CapacityReservationId CapacityReservationStatus ChargeCategory ChargeClass ChargeDescription
    ChargeFrequency ChargePeriodEnd ChargePeriodStart CommitmentDiscountCategory CommitmentDiscountId
    CommitmentDiscountName CommitmentDiscountQuantity CommitmentDiscountStatus CommitmentDiscountType
    CommitmentDiscountUnit ConsumedQuantity ConsumedUnit ContractedCost ContractedUnitPrice EffectiveCost InvoiceId
    InvoiceIssuerName ListCost ListUnitPrice PricingCategory PricingCurrency PricingCurrencyContractedUnitPrice
    PricingCurrencyEffectiveCost PricingCurrencyListUnitPrice PricingQuantity PricingUnit ProviderName PublisherName
    RegionId RegionName ResourceId ResourceName ResourceType ServiceCategory ServiceName ServiceSubcategory SkuId
    SkuMeter SkuPriceDetails SkuPriceId SubAccountId SubAccountName SubAccountType Tags
    """)
NEW_IN_1_3 = words("""
    AllocatedMethodDetails AllocatedMethodId AllocatedResourceId AllocatedResourceName AllocatedTags ContractApplied
    HostProviderName ServiceProviderName
    """)
NEW_IN_1_4 = frozenset({"CommitmentProgramEligibilityDetails", "InvoiceDetailId"})
GONE_IN_1_4 = frozenset({"ProviderName", "PublisherName"})
NEW_IN_1_5 = frozenset({"CredentialDetails", "CredentialId", "PrincipalId"})
COLUMNS = {
    "1.2": COLUMNS_OF_1_2,
    "1.3": COLUMNS_OF_1_2 | NEW_IN_1_3,
    "1.4": (COLUMNS_OF_1_2 | NEW_IN_1_3 | NEW_IN_1_4) - GONE_IN_1_4,
    "1.5": (COLUMNS_OF_1_2 | NEW_IN_1_3 | NEW_IN_1_4 | NEW_IN_1_5) - GONE_IN_1_4,
}
OURS = words("""
    x_AccountName x_AttemptFailedCost x_EstimatedQuantity x_KeyId x_KeyName x_PriceId x_ReasoningTokens x_Requests
    """)

COSTS = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "PricingCurrencyEffectiveCost")
UNIT_PRICES = (
    *("ListUnitPrice", "ContractedUnitPrice"),
    *("PricingCurrencyListUnitPrice", "PricingCurrencyContractedUnitPrice"),
)
QUANTITIES = ("ConsumedQuantity", "PricingQuantity", "CommitmentDiscountQuantity")
WHOLE = ("x_EstimatedQuantity", "x_ReasoningTokens", "x_Requests")
DECIMALS = frozenset((*COSTS, *UNIT_PRICES, *QUANTITIES, "x_AttemptFailedCost"))
MOMENTS = ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd")
KEY_VALUES = ("Tags", "SkuPriceDetails", "AllocatedTags")
OBJECTS = (
    *("AllocatedMethodDetails", "ContractApplied", "CredentialDetails"),
    "CommitmentProgramEligibilityDetails",
)
NEVER_NULL = (
    *COSTS,
    *MOMENTS,
    *("BillingAccountId", "BillingAccountType", "BillingCurrency", "PricingCurrency", "ChargeCategory"),
    *("ChargeFrequency", "InvoiceIssuerName", "ServiceCategory", "ServiceName", "ServiceSubcategory"),
    *("ProviderName", "PublisherName", "ServiceProviderName", "HostProviderName"),
)
NOT_NULL_FOR_USAGE = (
    *("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "PricingCategory", "SkuId", "SkuMeter"),
    *("SkuPriceId", *UNIT_PRICES),
)
NULL_WITHOUT: Mapping[str, tuple[str, ...]] = {
    "SkuId": ("SkuMeter",),
    "SkuPriceId": ("SkuPriceDetails", "ListUnitPrice", "PricingQuantity", "PricingCategory"),
    "CommitmentDiscountId": (
        *("CommitmentDiscountCategory", "CommitmentDiscountName", "CommitmentDiscountStatus"),
        *("CommitmentDiscountType", "CommitmentDiscountQuantity", "CommitmentDiscountUnit"),
    ),
    "CapacityReservationId": ("CapacityReservationStatus",),
    "ResourceId": ("ResourceName", "ResourceType"),
    "AllocatedMethodId": ("AllocatedMethodDetails", "AllocatedResourceId", "AllocatedResourceName", "AllocatedTags"),
}
TOGETHER = (
    ("ConsumedQuantity", "ConsumedUnit"),
    ("PricingQuantity", "PricingUnit"),
    ("RegionId", "RegionName"),
    ("SubAccountId", "SubAccountName"),
    ("SubAccountId", "SubAccountType"),
    ("BillingAccountId", "BillingAccountType"),
)
ONE_EACH = (
    ("ServiceName", "ServiceCategory"),
    ("ServiceName", "ServiceSubcategory"),
    ("SkuPriceId", "SkuId"),
    ("SkuPriceId", "SkuPriceDetails"),
    ("SkuId", "SkuMeter"),
    ("SubAccountId", "SubAccountName"),
)
ALLOWED: Mapping[str, frozenset[str]] = {
    "ChargeCategory": frozenset({"Usage", "Purchase", "Tax", "Credit", "Adjustment"}),
    "ChargeClass": frozenset({"Correction"}),
    "ChargeFrequency": frozenset({"One-Time", "Recurring", "Usage-Based"}),
    "PricingCategory": frozenset({"Standard", "Dynamic", "Committed", "Other"}),
    "CommitmentDiscountCategory": frozenset({"Spend", "Usage"}),
    "CommitmentDiscountStatus": frozenset({"Used", "Unused"}),
    "CapacityReservationStatus": frozenset({"Used", "Unused"}),
    "ServiceCategory": frozenset(
        {
            *("AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases"),
            *("Developer Tools", "Identity", "Integration", "Internet of Things", "Management and Governance"),
            *("Media", "Migration", "Mobile", "Multicloud", "Networking", "Security", "Storage", "Web", "Other"),
        }
    ),
}
AI_SUBCATEGORIES = frozenset(
    {
        *("AI Platforms", "Bots", "Generative AI", "Machine Learning", "Natural Language Processing"),
        "Other (AI and Machine Learning)",
    }
)
CURRENCIES = words("""
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY
    COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS
    INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP
    MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR
    SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VES VND VUV
    WST XAF XCD XOF XPF YER ZAR ZMW ZWG
    """)
FOCUS_PROPERTIES = words("""
    CoreCount DiskMaxIops DiskSpace DiskType GpuCount InstanceType InstanceSeries MemorySize NetworkMaxIops
    NetworkMaxThroughput OperatingSystem Redundancy StorageClass
    """)
PLACEHOLDERS = frozenset({"null", "none", "n/a", "na", "nan", "not applicable", "unknown", "undefined", "-"})
NAMED_BY_USERS = words("BillingAccountName SubAccountId SubAccountName x_AccountName x_KeyName")
"""A team may be called None."""
DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
UNIT = re.compile(r"(?:([1-9][0-9]*) )?([A-Z][A-Za-z]*s)")
PROPERTY = re.compile(r"x_[A-Z][A-Za-z0-9]*")
HOUR = timedelta(hours=1)

Row = dict[str, str | None]


@dataclass(slots=True)
class Found:
    """What was seen: how many rows, what they cost, and what is wrong with them (the first hundred)."""

    rows: int = 0
    billed: Decimal = Decimal(0)
    problems: list[str] = field(default_factory=list)

    def add(self, where: str, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{where}: {problem}")


def check_file(path: Path, *, version: str) -> Found:
    """Every row of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        return check(next(lines, []), lines, version=version)


def check(header: list[str], lines: Iterable[list[str]], *, version: str, billed: Decimal | None = None) -> Found:
    """Every row under its header; an empty cell is null. ``billed`` is what they have to add up to."""
    found = Found()
    if not _check_header(header, version, found):
        return found
    whole = _Whole()
    for cells in lines:
        found.rows += 1
        where = f"row {found.rows}"
        if len(cells) != len(header):
            found.add(where, f"has {len(cells)} cells for {len(header)} columns")
            continue
        row: Row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
        for problem in _row_problems(row):
            found.add(where, problem)
        for problem in whole.problems(row):
            found.add(where, problem)
        if row["BilledCost"] is not None and DECIMAL.fullmatch(row["BilledCost"]):
            found.billed = EXACT.add(found.billed, Decimal(row["BilledCost"]))
    if billed is not None and found.billed != billed:
        found.add("sum", f"BilledCost adds up to {found.billed}, not {billed}")
    return found


def _check_header(header: list[str], version: str, found: Found) -> bool:
    focus, custom = COLUMNS[version], [name for name in header if name.startswith("x_")]
    for name in sorted(focus - set(header)):
        found.add("header", f"{name} is missing")
    for name in sorted(set(header) - focus - set(custom)):
        found.add("header", f"{name} is no column of FOCUS {version}, and does not begin with x_")
    for name in sorted(OURS - set(header)):
        found.add("header", f"{name} is missing")
    if len(set(header)) != len(header):
        found.add("header", "a column stands there twice")
    if header[len(header) - len(custom) :] != custom:
        found.add("header", "custom columns come last")
    return not found.problems


def _row_problems(row: Row) -> Iterator[str]:
    yield from _texts(row)
    malformed = list(_formats(row))
    yield from malformed
    yield from _allowed(row)
    yield from _nulls(row)
    if malformed or any(row[name] is None for name in (*COSTS, *MOMENTS)):
        return
    yield from _periods(row)
    yield from _products(row)
    yield from _usage(row)
    yield from _identities(row)


def _texts(row: Row) -> Iterator[str]:
    for name, cell in row.items():
        if cell is not None and not (_is_a_value(cell) or (name in NAMED_BY_USERS and cell.strip())):
            yield f"{name} is {cell!r}, which stands for nothing: it has to be null"


@lru_cache(maxsize=100_000)
def _is_a_value(cell: str) -> bool:
    return bool(cell.strip()) and cell.strip().lower() not in PLACEHOLDERS


def _formats(row: Row) -> Iterator[str]:
    for name in DECIMALS:
        cell = row[name]
        if cell is not None and (DECIMAL.fullmatch(cell) is None or cell == "-0"):
            yield f"{name} is {cell!r}, no plain decimal number"
    for name in WHOLE:
        cell = row[name]
        if cell is not None and (INTEGER.fullmatch(cell) is None or cell == "-0"):
            yield f"{name} is {cell!r}, no whole number"
    for name in MOMENTS:
        cell = row[name]
        if cell is not None and _moment(cell) is None:
            yield f"{name} is {cell!r}, no moment in UTC as YYYY-MM-DDTHH:MM:SSZ"
    for name in (*KEY_VALUES, *OBJECTS):
        cell = row.get(name)
        if cell is not None and (problem := _json_problem(name, cell)):
            yield problem
    for name in ("BillingCurrency", "PricingCurrency"):
        if row[name] is not None and row[name] not in CURRENCIES:
            yield f"{name} is {row[name]!r}, no currency of ISO 4217"
    for name in ("ConsumedUnit", "PricingUnit"):
        cell = row[name]
        if cell is not None and UNIT.fullmatch(cell) is None:
            yield f"{name} is {cell!r}, no unit such as Tokens or 1000000 Tokens"


@lru_cache(maxsize=100_000)
def _moment(cell: str) -> datetime | None:
    if MOMENT.fullmatch(cell) is None:
        return None
    try:
        return datetime.strptime(cell, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


@lru_cache(maxsize=100_000)
def _json_problem(name: str, cell: str) -> str | None:
    try:
        value = json.loads(cell, object_pairs_hook=_unique, parse_constant=_no_number)
    except ValueError as error:
        return f"{name} is {cell!r}, no JSON object: {error}"
    if not isinstance(value, dict):
        return f"{name} is {cell!r}, no JSON object"
    if name in KEY_VALUES and any(isinstance(each, dict | list) for each in value.values()):
        return f"{name} has a value that is an object or a list"
    if name == "SkuPriceDetails":
        odd = [key for key in value if key not in FOCUS_PROPERTIES and PROPERTY.fullmatch(key) is None]
        if odd:
            return f"{name} has {odd[0]!r}, which FOCUS does not define and x_ does not begin"
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _allowed(row: Row) -> Iterator[str]:
    for name, values in ALLOWED.items():
        if row[name] is not None and row[name] not in values:
            yield f"{name} is {row[name]!r}, none of the allowed values"
    if row["ServiceCategory"] == "AI and Machine Learning" and row["ServiceSubcategory"] not in AI_SUBCATEGORIES:
        yield f"ServiceSubcategory is {row['ServiceSubcategory']!r}, none of AI and Machine Learning"


def _nulls(row: Row) -> Iterator[str]:
    for name in NEVER_NULL:
        if name in row and row[name] is None:
            yield f"{name} is null"
    category = row["ChargeCategory"]
    if category in ("Usage", "Purchase") and row["ChargeClass"] is None:
        for name in NOT_NULL_FOR_USAGE:
            if row[name] is None and not (category == "Purchase" and name.startswith("Consumed")):
                yield f"{name} is null for {category}"
    if category != "Usage" and row["ConsumedQuantity"] is not None:
        yield f"ConsumedQuantity is not null for {category}"
    if category == "Tax":
        for name in (*UNIT_PRICES, "PricingQuantity", "PricingCategory", "SkuId", "SkuPriceId"):
            if row[name] is not None:
                yield f"{name} is not null for Tax"
    for name, others in NULL_WITHOUT.items():
        if row.get(name) is None:
            for other in others:
                if row.get(other) is not None:
                    yield f"{other} is not null without {name}"
    for one, other in TOGETHER:
        if (row[one] is None) != (row[other] is None):
            yield f"of {one} and {other} one is null"
    if row["ListUnitPrice"] is None and row["SkuPriceId"] is not None:
        yield "ListUnitPrice is null with SkuPriceId"


def _periods(row: Row) -> Iterator[str]:
    billing_start, billing_end, start, end = (_moment(row[name] or "") for name in MOMENTS)
    assert billing_start is not None
    assert billing_end is not None
    assert start is not None
    assert end is not None
    if end - start != HOUR or (start.minute, start.second) != (0, 0):
        yield f"ChargePeriodStart and ChargePeriodEnd, {start} to {end}, are not an hour"
    if (billing_start.day, billing_start.hour, billing_start.minute, billing_start.second) != (1, 0, 0, 0):
        yield f"BillingPeriodStart {billing_start} does not begin a month"
    following = (billing_start.replace(day=28) + timedelta(days=4)).replace(day=1)
    if billing_end != following:
        yield f"BillingPeriodEnd {billing_end} is not the end of the month"
    if not billing_start <= start < billing_end and row["ChargeClass"] is None:
        yield f"ChargePeriodStart {start} is outside of the billing period"


def _products(row: Row) -> Iterator[str]:
    cost = {name: Decimal(row[name] or 0) for name in COSTS}
    quantity = row["PricingQuantity"]
    for price, total in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
        if row[price] is None:
            if cost[total] != cost["BilledCost"]:
                yield f"{total} is not BilledCost, and there is no {price}"
        elif quantity is not None and EXACT.multiply(Decimal(row[price]), Decimal(quantity)) != cost[total]:
            yield f"{price} {row[price]} x PricingQuantity {quantity} is not {total} {row[total]}"
    for name in UNIT_PRICES:
        if row[name] is not None and Decimal(row[name]) < 0:
            yield f"{name} is negative"
    if cost["EffectiveCost"] != cost["BilledCost"]:
        yield "EffectiveCost is not BilledCost, and nothing was paid for in advance"
    if cost["BilledCost"] != cost["ContractedCost"]:
        yield "BilledCost is not ContractedCost, and there is no discount"
    if row["PricingCurrency"] == row["BillingCurrency"]:
        if cost["PricingCurrencyEffectiveCost"] != cost["EffectiveCost"]:
            yield "PricingCurrencyEffectiveCost is not EffectiveCost in one currency"
        for name in ("ListUnitPrice", "ContractedUnitPrice"):
            if row[name] != row[f"PricingCurrency{name}"]:
                yield f"PricingCurrency{name} is not {name} in one currency"
    if abs(Decimal(row["x_AttemptFailedCost"] or 0)) > abs(cost["BilledCost"]) and row["ChargeClass"] is None:
        yield "x_AttemptFailedCost is more than BilledCost"


def _usage(row: Row) -> Iterator[str]:
    category = row["ChargeCategory"]
    cost = Decimal(row["BilledCost"] or 0)
    if category == "Credit" and cost >= 0:
        yield "BilledCost of a Credit is not negative"
    if category == "Adjustment" and cost <= 0:
        yield "BilledCost of an Adjustment is not positive"
    if (row["ChargeFrequency"] == "Usage-Based") != (category == "Usage"):
        yield f"ChargeFrequency is {row['ChargeFrequency']} for {category}"
    if row["ConsumedQuantity"] is None or row["PricingQuantity"] is None:
        return
    consumed, priced = Decimal(row["ConsumedQuantity"]), Decimal(row["PricingQuantity"])
    units = [UNIT.fullmatch(row[name] or "") for name in ("ConsumedUnit", "PricingUnit")]
    if None not in units:
        (one, what), (many, of) = (each.groups() for each in units if each is not None)
        same = EXACT.multiply(consumed, Decimal(one or 1)) == EXACT.multiply(priced, Decimal(many or 1))
        if what != of or not same:
            yield (
                f"ConsumedQuantity {consumed} {row['ConsumedUnit']} is not "
                f"PricingQuantity {priced} {row['PricingUnit']}"
            )
    if consumed != consumed.to_integral_value():
        yield f"ConsumedQuantity {consumed} is no whole number of tokens"
    if row["ChargeClass"] is None:
        if consumed < 0:
            yield "ConsumedQuantity is negative, and nothing is corrected"
        for name in ("x_EstimatedQuantity", "x_ReasoningTokens"):
            if not 0 <= int(row[name] or 0) <= consumed:
                yield f"{name} is not a part of ConsumedQuantity"
    if row["x_ReasoningTokens"] is not None and row["SkuMeter"] != "Output Tokens":
        yield "x_ReasoningTokens is not null where nothing was put out"


def _identities(row: Row) -> Iterator[str]:
    if "CredentialId" not in row:
        return
    details = None if row["CredentialDetails"] is None else json.loads(row["CredentialDetails"])
    if row["CredentialId"] != row["x_KeyId"]:
        yield "CredentialId is not the key"
    if (row["CredentialId"] is None) != (row["PrincipalId"] is None):
        yield "of PrincipalId and CredentialId one is null"
    if (details is None) != (row["CredentialId"] is None):
        yield "CredentialDetails are not null without a credential, or null with one"
    if details is not None:
        if not details or set(details) - {"Name", "Email", "Type", "Credential"}:
            yield "CredentialDetails have properties that FOCUS does not define"
        credential = details.get("Credential")
        if not isinstance(credential, dict) or "Type" not in credential:
            yield "CredentialDetails have no Credential with a Type"
        elif credential.get("Id", row["CredentialId"]) != row["CredentialId"]:
            yield "CredentialDetails name another credential than CredentialId"


class _Whole:
    """What only the rows together can break."""

    def __init__(self) -> None:
        self._ones: dict[tuple[str, str, str], str | None] = {}
        self._hour = ""
        self._seen: set[tuple[str | None, ...]] = set()
        self._account: str | None = None

    def problems(self, row: Row) -> Iterator[str]:
        for one, other in ONE_EACH:
            key = row[one]
            if key is not None and self._ones.setdefault((one, other, key), row[other]) != row[other]:
                yield f"{one} {key!r} has two values of {other}"
        hour = row["ChargePeriodStart"] or ""
        if hour < self._hour:
            yield "ChargePeriodStart is before that of the row before"
        if hour != self._hour:
            self._hour, self._seen = hour, set()
        grain = tuple(
            row[name]
            for name in (
                *("x_KeyId", "x_KeyName", "x_AccountName", "x_PriceId", "ServiceName", "SkuPriceId", "SubAccountId"),
                *("Tags", "ChargeCategory", "ChargeClass", "ChargeDescription", "ListUnitPrice"),
            )
        )
        if grain in self._seen:
            yield "ChargeDescription: the same charge stands there twice"
        self._seen.add(grain)
        if self._account is None:
            self._account = row["BillingAccountId"]
        elif row["BillingAccountId"] != self._account:
            yield "BillingAccountId is another one than in the rows before"

"""Charges become FOCUS rows: exact, complete, the same for ever, and in sum what the ledger says (law L1)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.focus import BillingAccount, ChargeFact, FocusRows, schema_metadata
from gateway.core.focus_columns import FOCUS_VERSIONS, UnknownVersionError, columns_of
from gateway.core.money import Money
from tests.focus.checker import COLUMNS, OURS, check
from tests.focus.samples import ACCOUNT, FACTS, MONTH, OUTPUT, exported, fact, fee

CLASSES = ("input", "cached_input", "cache_write", "output")
NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


def cells(one: ChargeFact, version: str = "1.2") -> dict[str, str | None]:
    rows = FocusRows(ACCOUNT, version=version)
    return dict(zip([column.name for column in rows.columns], rows.row(one), strict=True))


@st.composite
def facts(draw: st.DrawFn) -> list[ChargeFact]:
    """Charges of any kind in the order of their hours; no two of one grain."""
    hours = draw(st.lists(st.integers(0, 24 * 70), min_size=1, max_size=6, unique=True))
    found: list[ChargeFact] = []
    for hour in sorted(hours):
        at = MONTH + timedelta(hours=hour)
        for number in range(draw(st.integers(1, 5))):
            common: dict[str, Any] = {
                "hour": at,
                "key_id": f"key_{number}",
                "key_name": draw(st.one_of(NAMES, st.just(""))),
                "team": draw(st.one_of(st.none(), NAMES)),
                "tags": draw(st.dictionaries(NAMES, st.text(max_size=5), max_size=3)),
                "model": f"kimi-{number}",
                "provider": draw(st.sampled_from(["moonshot", "cometapi", "evolink", "somebody"])),
                "account": draw(st.sampled_from(["main", ""])),
            }
            restated = draw(st.booleans())
            if draw(st.integers(0, 4)) == 0:
                pico = draw(st.integers(-(10**20), 10**20).filter(bool))
                found.append(fee(pico, **common, is_restated=restated))
                continue
            tokens = draw(st.integers(1, 10**15))
            unit = draw(st.integers(0, 10**10))
            found.append(
                fact(
                    **common,
                    token_class=draw(st.sampled_from(CLASSES)),
                    is_restated=restated,
                    unit_pico=unit,
                    tokens=-tokens if restated and draw(st.booleans()) else tokens,
                    estimated_tokens=0 if restated else draw(st.integers(0, tokens)),
                    failed_pico=0 if restated else draw(st.integers(0, tokens)) * unit,
                )
            )
    return found


@settings(max_examples=150, deadline=None)
@given(charges=facts(), version=st.sampled_from(FOCUS_VERSIONS))
def test_any_charges_make_clean_rows_that_add_up(charges: list[ChargeFact], version: str):
    """The checker finds nothing, and BilledCost adds up to the cost of the charges, to the pico-dollar."""
    header, lines = exported(charges, version)
    billed = Money(sum(one.cost_pico for one in charges)).usd()
    found = check(header, lines, version=version, billed=billed)
    assert found.problems == []
    assert found.rows == len(charges)


def test_a_row_by_hand():
    """Every cell of one charge in 1.2, with those that say something written out."""
    row = cells(fact(estimated_tokens=100, failed_pico=OUTPUT * 30))
    said = {name: cell for name, cell in row.items() if cell is not None}
    assert said == {
        "BilledCost": "0.0025",
        "BillingAccountId": "org_7f3a",
        "BillingAccountName": "Example Ltd.",
        "BillingAccountType": "Organization",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": "2026-11-01T00:00:00Z",
        "BillingPeriodStart": "2026-10-01T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeDescription": "kimi-k2-thinking output tokens",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": "2026-10-01T01:00:00Z",
        "ChargePeriodStart": "2026-10-01T00:00:00Z",
        "ConsumedQuantity": "1000",
        "ConsumedUnit": "Tokens",
        "ContractedCost": "0.0025",
        "ContractedUnitPrice": "2.5",
        "EffectiveCost": "0.0025",
        "InvoiceIssuerName": "Moonshot AI",
        "ListCost": "0.0025",
        "ListUnitPrice": "2.5",
        "PricingCategory": "Standard",
        "PricingCurrency": "USD",
        "PricingCurrencyContractedUnitPrice": "2.5",
        "PricingCurrencyEffectiveCost": "0.0025",
        "PricingCurrencyListUnitPrice": "2.5",
        "PricingQuantity": "0.001",
        "PricingUnit": "1000000 Tokens",
        "ProviderName": "Moonshot AI",
        "PublisherName": "Moonshot AI",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Kimi API",
        "ServiceSubcategory": "Generative AI",
        "SkuId": "moonshot/kimi-k2-thinking/output",
        "SkuMeter": "Output Tokens",
        "SkuPriceDetails": '{"x_Model":"kimi-k2-thinking","x_ServiceTier":"Standard","x_TokenClass":"Output"}',
        "SkuPriceId": "moonshot/kimi-k2-thinking/output/standard",
        "SubAccountId": "blue",
        "SubAccountName": "blue",
        "SubAccountType": "Team",
        "Tags": '{"env":"production","project":"alpha"}',
        "x_AccountName": "main",
        "x_AttemptFailedCost": "0.000075",
        "x_EstimatedQuantity": "100",
        "x_KeyId": "key_1",
        "x_KeyName": "checkout",
        "x_PriceId": "moonshot/kimi-k2-thinking@2026-09-01T00:00:00Z#1a2b3c4d",
        "x_ReasoningTokens": "500",
        "x_Requests": "4",
    }


def test_a_credit_by_hand():
    """An amount that no tokens stand for has neither quantity nor price, and all its costs are the amount."""
    row = cells(fee(-1_250_000_000_001))
    assert row["ChargeCategory"] == "Credit"
    assert row["ChargeDescription"] == "kimi-k2-thinking credit"
    assert row["ChargeFrequency"] == "One-Time"
    amounts = {"BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "PricingCurrencyEffectiveCost"}
    assert {name for name, cell in row.items() if cell == "-1.250000000001"} == amounts
    absent = {
        *("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "PricingCategory", "ListUnitPrice"),
        *("ContractedUnitPrice", "SkuId", "SkuMeter", "SkuPriceId", "SkuPriceDetails", "x_EstimatedQuantity"),
    }
    assert all(row[name] is None for name in absent)
    assert cells(fee(1))["ChargeCategory"] == "Adjustment"


def test_what_restates_a_closed_month_is_a_correction():
    """Nothing else is."""
    assert cells(fact(is_restated=True))["ChargeClass"] == "Correction"
    assert cells(fact())["ChargeClass"] is None


def test_the_price_of_a_sku_is_stable():
    """Neither the amount nor the date of a price, nor the account or the key, is in its id; nor in its details."""
    one = cells(fact())
    other = cells(fact(unit_pico=1, price_id="another", account="second", key_id="key_2", team=None))
    for name in ("SkuId", "SkuPriceId", "SkuMeter", "SkuPriceDetails"):
        assert one[name] == other[name]
    assert len({cells(fact(token_class=each))["SkuPriceId"] for each in CLASSES}) == len(CLASSES)


def test_an_hour_is_told_in_utc():
    """Whatever zone its moment came in; December ends in the next year."""
    row = cells(fact(hour=datetime(2027, 1, 1, 0, tzinfo=timezone(timedelta(hours=1)))))
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == ("2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z")
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == ("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z")


def test_names_stay_as_they_are():
    """FOCUS wants every character of a name kept, also one at which a spreadsheet would begin to calculate."""
    row = cells(fact(team="=1+1", key_name="@sum"))
    assert (row["SubAccountId"], row["SubAccountName"], row["x_KeyName"]) == ("=1+1", "=1+1", "@sum")


def test_the_draft_names_the_key_and_never_its_secret():
    """A key is principal and credential; a charge of nobody's has neither."""
    row = cells(fact(), "1.5")
    assert row["PrincipalId"] == row["CredentialId"] == "key_1"
    assert json.loads(row["CredentialDetails"] or "") == {
        "Name": "checkout",
        "Type": "Application",
        "Credential": {"Id": "key_1", "Type": "API Key", "Name": "checkout"},
    }
    nobody = cells(fact(key_id="unattributed"), "1.5")
    assert [nobody[name] for name in ("PrincipalId", "CredentialId", "CredentialDetails", "x_KeyId")] == [None] * 4


@pytest.mark.parametrize("version", FOCUS_VERSIONS)
def test_every_column_of_a_version(version: str):
    """All columns that the specification has, by name, then ours; 57 in 1.2."""
    names = [column.name for column in columns_of(version)]
    assert set(names) == COLUMNS[version] | OURS
    assert names == sorted(name for name in names if name not in OURS) + sorted(OURS)
    assert len(COLUMNS["1.2"]) == 57


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.6", "2", "", "1.2\0"])
def test_an_unknown_version(version: str):
    """It is refused by naming those that are known."""
    with pytest.raises(UnknownVersionError, match=r"1\.2, 1\.3, 1\.4, 1\.5 \(draft\)"):
        FocusRows(ACCOUNT, version=version)


def test_a_product_that_is_none_is_refused():
    """A charge whose price does not explain its cost never becomes a row."""
    with pytest.raises(AssertionError):
        cells(fact(cost_pico=1))


def test_what_is_kept_of_a_row_is_not_mixed_up():
    """A row is the same whichever rows were made before it, also those that differ from it in one thing alone."""
    others: list[dict[str, Any]] = [
        *({"hour": MONTH + timedelta(hours=1)}, {"key_id": "key_2"}, {"key_name": "other"}, {"team": "red"}),
        *({"team": None}, {"tags": {}}, {"tags": {"env": "production"}}, {"model": "other"}, {"provider": "evolink"}),
        *({"account": "second"}, {"price_id": "other"}, {"is_restated": True}, {"token_class": "input"}),
        *({"unit_pico": 1}, {"tokens": 5}, {"estimated_tokens": 5}, {"failed_pico": 5}, {"requests": 5}),
        {"reasoning_tokens": 5},
    ]
    facts = [fact(), *(fact(**changes) for changes in others), fee(5), fee(-5), fee(5, team="red"), fact()]
    assert exported(facts)[1] == [line for one in facts for line in exported([one])[1]]
    assert len({tuple(line) for line in exported(facts)[1]}) == len(facts) - 1


@pytest.mark.parametrize("version", FOCUS_VERSIONS)
def test_metadata_describe_the_file(version: str):
    """Each column once and in its order, with what its type can hold; the id of the schema is of its columns."""
    created = datetime(2026, 11, 3, 9, 30, 15, 123_456, tzinfo=UTC)
    said = schema_metadata(ACCOUNT, version=version, created_at=created)
    definitions: Any = said["ColumnDefinition"]
    assert [each["ColumnName"] for each in definitions] == [column.name for column in columns_of(version)]
    assert said["FocusVersion"] == version
    assert said["CreationDate"] == "2026-11-03T09:30:15Z"
    assert said["DataGenerator"] == "kimi-gateway"
    assert ("x_FocusVersionStatus" in said) == (version == "1.5")
    by_name = {each["ColumnName"]: each for each in definitions}
    assert by_name["BilledCost"] == {
        "ColumnName": "BilledCost",
        "DataType": "DECIMAL",
        "NumericPrecision": 38,
        "NumberScale": 12,
    }
    assert by_name["Tags"]["ProviderTagPrefixes"] == []
    deprecated = {name for name, each in by_name.items() if each.get("Deprecated")}
    assert deprecated == ({"ProviderName", "PublisherName"} if version == "1.3" else set())
    again = schema_metadata(BillingAccount("org_2", ""), version=version, created_at=created + timedelta(days=1))
    assert again["SchemaId"] == said["SchemaId"]
    others = {schema_metadata(ACCOUNT, version=each, created_at=created)["SchemaId"] for each in FOCUS_VERSIONS}
    assert len(others) == len(FOCUS_VERSIONS)


def test_decimals_fit_their_scale():
    """No cell of a column has more digits after the point than the metadata promise."""
    scales = {column.name: column.scale for column in columns_of("1.2") if column.scale is not None}
    header, lines = exported(FACTS)
    for line in lines:
        for name, cell in zip(header, line, strict=True):
            if name in scales and cell:
                exponent = Decimal(cell).as_tuple().exponent
                assert isinstance(exponent, int)
                assert -exponent <= scales[name]

"""A ledger's charges become FOCUS rows whose every product is exact and whose sum is the ledger's, to the pico-dollar.

A row is one hour x key x provider x account x model x price x class of tokens; a fee has no tokens and is a Credit or
an Adjustment. What a token cost comes with the charge, never from a price list of today: the rows of a closed month
depend on what it holds, on whose it is, and on the version asked for, and on nothing else.

Cells are text as CSV has it, None for null. Names stay as they were given, character by character, as FOCUS demands
(StringHandling): these files are read by programs. What people open in a spreadsheet are the reports and the ledger,
and there a text that would run as a formula is quoted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from gateway.core.corrections import UNATTRIBUTED
from gateway.core.focus_columns import DEPRECATED, DRAFT_VERSIONS, FOCUS_VERSION, PRECISION, Column, columns_of
from gateway.core.money import decimal_text

DATA_GENERATOR: Final = "kimi-gateway"
TEMPLATES_MAX: Final = 50_000

_PROVIDERS: Final = {
    "moonshot": ("Moonshot AI", "Kimi API"),
    "cometapi": ("CometAPI", "CometAPI"),
    "evolink": ("EvoLink", "EvoLink API"),
}
"""What providers and what they sell are called; others go by the names that they have in the configuration."""
_MAKERS: Final = {"kimi": "Moonshot AI", "moonshot": "Moonshot AI"}
OUTPUT: Final = "output"
_METERS: Final = {
    "input": "Input Tokens",
    "cached_input": "Cached Input Tokens",
    "cache_write": "Cache Write Tokens",
    OUTPUT: "Output Tokens",
}


class ChargeFact(NamedTuple):
    """What one class of tokens cost in one hour. ``unit_pico`` is pico-dollars per token, None where there are no
    tokens; ``failed_pico`` is the part of the cost of attempts that failed or were abandoned. ``requests`` is how many
    requests these tokens belong to: one request has several classes, so they do not add up over them."""

    hour: datetime
    key_id: str
    key_name: str
    team: str | None
    tags: Mapping[str, str]
    model: str
    provider: str
    account: str
    price_id: str
    is_restated: bool
    token_class: str
    unit_pico: int | None
    tokens: int
    cost_pico: int
    estimated_tokens: int
    failed_pico: int
    requests: int
    reasoning_tokens: int


class BillingAccount(NamedTuple):
    """Whom the providers' invoices reach: the organisation."""

    account_id: str
    name: str


Cells = list[str | None]

_COSTS: Final = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "PricingCurrencyEffectiveCost")
_PERIODS: Final = ("ChargePeriodStart", "ChargePeriodEnd", "BillingPeriodStart", "BillingPeriodEnd")
_UNIT_PRICES: Final = (
    *("ContractedUnitPrice", "ListUnitPrice"),
    *("PricingCurrencyContractedUnitPrice", "PricingCurrencyListUnitPrice"),
)


class FocusRows:
    """The rows of one export. What is alike in many of them is made once and kept for a while."""

    __slots__ = ("_account", "_at", "_costs", "_hour", "_moments", "_periods", "_templates", "columns")

    def __init__(self, account: BillingAccount, *, version: str = FOCUS_VERSION) -> None:
        """Raises UnknownVersionError."""
        self.columns: tuple[Column, ...] = columns_of(version)
        self._account = account
        self._templates: dict[tuple[object, ...], Cells] = {}
        self._at = {column.name: place for place, column in enumerate(self.columns)}
        self._costs = [self._at[name] for name in _COSTS]
        self._periods = [self._at[name] for name in _PERIODS]
        self._hour: datetime | None = None
        self._moments: tuple[str, ...] = ()

    def row(self, fact: ChargeFact) -> Cells:
        """The cells of one charge, in the order of the columns."""
        cells = self._template(fact).copy()
        at = self._at
        cost = decimal_text(fact.cost_pico)
        for place in self._costs:
            cells[place] = cost
        if fact.hour != self._hour:
            self._hour, self._moments = fact.hour, _moments(fact.hour)
        for place, moment in zip(self._periods, self._moments, strict=True):
            cells[place] = moment
        cells[at["x_AttemptFailedCost"]] = decimal_text(fact.failed_pico) if fact.failed_pico else "0"
        cells[at["x_Requests"]] = str(fact.requests)
        if fact.unit_pico is None:
            return cells
        assert fact.unit_pico * fact.tokens == fact.cost_pico, "tokens x price is the cost"
        cells[at["ConsumedQuantity"]] = str(fact.tokens)
        cells[at["PricingQuantity"]] = decimal_text(fact.tokens, decimals=6)
        cells[at["x_EstimatedQuantity"]] = str(fact.estimated_tokens)
        if fact.token_class == OUTPUT:
            cells[at["x_ReasoningTokens"]] = str(fact.reasoning_tokens)
        return cells

    def _template(self, fact: ChargeFact) -> Cells:
        """What a charge shares with all others of its key, model, price and class, whenever they were made."""
        sign = fact.unit_pico is None and fact.cost_pico < 0
        alike = (*fact[1:4], tuple(fact.tags.items()), *fact[5:12], sign)
        cells = self._templates.get(alike)
        if cells is None:
            if len(self._templates) >= TEMPLATES_MAX:
                self._templates.clear()
            values = _common(fact, self._account) | _priced(fact)
            cells = self._templates[alike] = [values.get(column.name) for column in self.columns]
        return cells


def _common(fact: ChargeFact, account: BillingAccount) -> dict[str, str | None]:
    """Whose charge it is and who asks money for it."""
    provider, service = _PROVIDERS.get(fact.provider, (fact.provider, f"{fact.provider} API"))
    maker = next((name for start, name in _MAKERS.items() if fact.model.lower().startswith(start)), provider)
    is_ours = fact.key_id != UNATTRIBUTED
    key_id, key_name = (fact.key_id, fact.key_name or None) if is_ours else (None, None)
    team = fact.team or None
    return {
        "BillingAccountId": account.account_id,
        "BillingAccountName": account.name or None,
        "BillingAccountType": "Organization",
        "BillingCurrency": "USD",
        "ChargeClass": "Correction" if fact.is_restated else None,
        "CredentialDetails": _credential(key_id, key_name),
        "CredentialId": key_id,
        "HostProviderName": provider,
        "InvoiceIssuerName": provider,
        "PricingCurrency": "USD",
        "PrincipalId": key_id,
        "ProviderName": provider,
        "PublisherName": maker,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": service,
        "ServiceProviderName": provider,
        "ServiceSubcategory": "Generative AI",
        "SubAccountId": team,
        "SubAccountName": team,
        "SubAccountType": None if team is None else "Team",
        "Tags": _json(fact.tags) if fact.tags else None,
        "x_AccountName": fact.account or None,
        "x_KeyId": key_id,
        "x_KeyName": key_name,
        "x_PriceId": fact.price_id or None,
    }


def _priced(fact: ChargeFact) -> dict[str, str | None]:
    """What was used and what it costs each; of an amount that no tokens stand for, only what it is."""
    subject = fact.model or fact.provider
    if fact.unit_pico is None:
        category = "Credit" if fact.cost_pico < 0 else "Adjustment"
        return {
            "ChargeCategory": category,
            "ChargeDescription": f"{subject} {category.lower()}",
            "ChargeFrequency": "One-Time",
        }
    meter = _METERS[fact.token_class]
    sku = f"{fact.provider}/{fact.model}/{fact.token_class}"
    details = {"x_Model": fact.model, "x_ServiceTier": "Standard", "x_TokenClass": meter.removesuffix(" Tokens")}
    return {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{subject} {meter.lower()}",
        "ChargeFrequency": "Usage-Based",
        "ConsumedUnit": "Tokens",
        "PricingCategory": "Standard",
        "PricingUnit": "1000000 Tokens",
        "SkuId": sku,
        "SkuMeter": meter,
        "SkuPriceDetails": _json(details),
        "SkuPriceId": f"{sku}/standard",
        **dict.fromkeys(_UNIT_PRICES, decimal_text(fact.unit_pico, decimals=6)),
    }


def _credential(key_id: str | None, key_name: str | None) -> str | None:
    """A key is who asks and what he shows, both: the draft has such a provider say the same id twice."""
    if key_id is None:
        return None
    credential = {"Id": key_id, "Type": "API Key"} | ({} if key_name is None else {"Name": key_name})
    principal = {"Type": "Application"} | ({} if key_name is None else {"Name": key_name})
    return _json({**principal, "Credential": credential})


def _json(value: Mapping[str, object]) -> str:
    """The same text for the same content, always."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _moments(hour: datetime) -> tuple[str, str, str, str]:
    """The charge period and the billing period, which is the month that the charge counts in."""
    start = hour.astimezone(UTC)
    assert (start.minute, start.second, start.microsecond) == (0, 0, 0)
    month = start.replace(day=1, hour=0)
    following = (month + timedelta(days=31)).replace(day=1)
    return _text(start), _text(start + timedelta(hours=1)), _text(month), _text(following)


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def schema_metadata(
    account: BillingAccount,
    *,
    version: str = FOCUS_VERSION,
    created_at: datetime,
    artifacts: Sequence[Mapping[str, object]] = (),
) -> dict[str, object]:
    """What FOCUS wants said about files, beside them: who made them, in which version, and what their columns hold.

    The id of the schema is of its columns: files of one id can be read by one program. ``artifacts`` are the files.
    Raises UnknownVersionError."""
    definitions = [_definition(column, version) for column in columns_of(version)]
    metadata: dict[str, object] = {
        "SchemaId": _guid(json.dumps([version, definitions])),
        "FocusVersion": version,
        "CreationDate": _text(created_at.astimezone(UTC)),
        "DataGenerator": DATA_GENERATOR,
    }
    if version in DRAFT_VERSIONS:
        metadata["x_FocusVersionStatus"] = "Working Draft"
    if version >= "1.3":
        instance = {
            "DatasetInstanceId": _guid(json.dumps([DATA_GENERATOR, account.account_id])),
            "DatasetInstanceName": f"Cost and usage of {account.name or account.account_id}",
            "FocusDatasetId": "CostAndUsage",
        }
        metadata |= {"DatasetInstanceId": instance["DatasetInstanceId"], "DatasetInstance": [instance]}
    return metadata | {"ColumnDefinition": definitions, "x_Artifacts": list(artifacts)}


def _guid(content: str) -> str:
    """The same id for the same content, in the form of a GUID."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32]))


def _definition(column: Column, version: str) -> dict[str, object]:
    definition: dict[str, object] = {"ColumnName": column.name, "DataType": column.kind}
    if column.scale is not None:
        definition |= {"NumericPrecision": PRECISION, "NumberScale": column.scale}
    if column.kind in ("STRING", "JSON"):
        definition["StringEncoding"] = "UTF-8"
    if column.name in ("Tags", "AllocatedTags"):
        definition["ProviderTagPrefixes"] = []
    if column.name in DEPRECATED.get(version, ()):
        definition["Deprecated"] = True
    return definition

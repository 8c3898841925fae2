"""``providers.toml``: where each provider is, how it speaks, which credentials it has and which models it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gateway.catalog.findings import did_you_mean, quoted
from gateway.catalog.statements import read_statement
from gateway.catalog.tables import NAME, Table
from gateway.core.catalogue import (
    CAPABILITIES,
    DIALECTS,
    Account,
    Deployment,
    OnClientAbort,
    OnModelMismatch,
    ProviderCard,
    Timeouts,
)

_ENDPOINTS: Final = (
    "/chat/completions",
    "/completions",
    "/messages",
    "/responses",
    "/embeddings",
    "/models",
)
_ROUNDED_WINDOWS: Final = {
    128_000: 131_072,
    131_000: 131_072,
    131_100: 131_072,
    256_000: 262_144,
    262_000: 262_144,
    262_100: 262_144,
    1_000_000: 1_048_576,
}
"""Windows as sales pages round them, and what they mean for these models (providers §7 #3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Where a credential is kept: exactly one of an environment variable's name and a file's path. Never its value."""

    env: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        assert (self.env is None) != (self.file is None)

    def as_mapping(self) -> Mapping[str, str]:
        """The reference as it is written: ``{"env": …}`` or ``{"file": …}``."""
        return {"env": self.env} if self.env is not None else {"file": self.file or ""}


@dataclass(slots=True, kw_only=True)
class Providers:
    """What the file says, with the tables it was read from, for findings that need the other files."""

    cards: dict[str, ProviderCard] = field(default_factory=dict)
    credentials: dict[tuple[str, str], SecretRef] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    deployment_tables: dict[tuple[str, str], Table] = field(default_factory=dict)


def read_providers(root: Table) -> Providers:
    found = Providers()
    for name, table in root.tables("providers"):
        _check_name(name, table, key=None)
        found.tables[name] = table
        found.cards[name] = _provider(name, table, found)
    root.close()
    return found


def _provider(name: str, table: Table, found: Providers) -> ProviderCard:
    dialect = table.choice("dialect", DIALECTS, required=True)
    allow_plain_http = table.flag("allow_plain_http")
    base_url = _url(table, "base_url", required=True, allow_plain_http=allow_plain_http)
    card = ProviderCard(
        name=name,
        dialect=dialect or "openai",
        base_url=base_url or "",
        timeouts=_timeouts(table),
        balance_url=_url(table, "balance_url", required=False, allow_plain_http=allow_plain_http),
        on_client_abort=OnClientAbort(table.choice("on_client_abort", list(OnClientAbort)) or OnClientAbort.CANCEL),
        on_model_mismatch=OnModelMismatch(
            table.choice("on_model_mismatch", list(OnModelMismatch)) or OnModelMismatch.FLAG
        ),
        accounts=_accounts(name, table, found, needs_key=dialect != "openai" and not _is_loopback(base_url)),
        deployments=_deployments(name, table, found),
        statement=read_statement(table),
    )
    table.close()
    return card


def _check_name(name: str, table: Table, *, key: str | None) -> None:
    if not NAME.fullmatch(name):
        mend = "Use up to 64 letters, digits, dots, hyphens and underscores, a letter or digit first."
        table.error(key, f"The name {quoted(name)} cannot stand in a header or a report.", mend)


def _timeouts(provider: Table) -> Timeouts:
    table = provider.table("timeouts", like="{ connect = 5, first_byte = 120, idle = 120, total = 3600 }")
    usual = Timeouts()
    if table is None:
        return usual
    timeouts = Timeouts(
        connect=table.seconds("connect", default=usual.connect),
        first_byte=table.seconds("first_byte", default=usual.first_byte),
        idle=table.seconds("idle", default=usual.idle),
        total=table.seconds("total", default=usual.total),
    )
    table.close()
    return timeouts


def _accounts(provider: str, table: Table, found: Providers, *, needs_key: bool) -> tuple[Account, ...]:
    accounts: dict[str, Account] = {}
    for item in table.items("accounts"):
        account = _account(provider, item, found, needs_key=needs_key)
        if account.name in accounts:
            message = f"{provider} has two accounts named {quoted(account.name)}."
            item.error("name", message, "Give each account its own name.")
        accounts[account.name] = account
    if table.is_empty("accounts"):
        mend = f'Add [[providers.{provider}.accounts]] with name = "main" and an api_key.'
        table.warn(None, f"{provider} has no account: it loads, and is not routable.", mend)
    return tuple(accounts.values())


def _account(provider: str, item: Table, found: Providers, *, needs_key: bool) -> Account:
    name = item.text("name", like="main", required=True) or ""
    if name:
        _check_name(name, item, key="name")
    reference = item.credential("api_key")
    if reference is not None:
        found.credentials[(provider, name)] = SecretRef(**reference)
    account = Account(
        provider=provider,
        name=name,
        rpm=item.count("rpm", like="500"),
        tpm=item.count("tpm", like="3_000_000"),
        concurrency=item.count("concurrency", like="100"),
    )
    if item.close() and needs_key and not item.has("api_key"):
        mend = 'Add api_key = { env = "NAME_OF_A_VARIABLE" }.'
        item.warn(None, f"Account {quoted(name)} of {provider} has no api_key: no Authorization is sent.", mend)
    return account


def _deployments(provider: str, table: Table, found: Providers) -> dict[str, Deployment]:
    deployments: dict[str, Deployment] = {}
    for model, inner in table.tables("models"):
        found.deployment_tables[(provider, model)] = inner
        deployments[model] = _deployment(provider, model, inner)
    return deployments


def _deployment(provider: str, model: str, table: Table) -> Deployment:
    context = _window(table, "context", required=True)
    max_output = _window(table, "max_output", required=False)
    if context is not None and max_output is not None and max_output > context:
        message = f"max_output {max_output} is more than the context of {context} that it shares with the input."
        table.error("max_output", message, f"Write max_output = {context} or less.")
    available_from, available_until = table.day("available_from"), table.day("available_until")
    if available_from is not None and available_until is not None and available_until <= available_from:
        message = f"available_until {available_until} is not after available_from {available_from}."
        table.error("available_until", message, "Correct one of the two dates.")
    deployment = Deployment(
        provider=provider,
        model=model,
        upstream=table.text("upstream", like=model) or model,
        context=context or 0,
        max_output=max_output or context or 0,
        capabilities=_capabilities(table),
        available_from=available_from,
        available_until=available_until,
        retirement_reported=table.day("retirement_reported"),
        sampling_fixed=table.choice("sampling", ("fixed", "range")) == "fixed",
    )
    table.close()
    return deployment


def _window(table: Table, key: str, *, required: bool) -> int | None:
    tokens = table.count(key, like="262_144", required=required)
    meant = _ROUNDED_WINDOWS.get(tokens or 0)
    if meant is not None:
        message = f"{key} is {tokens}, which looks like a rounded figure; for these models it means {meant}."
        table.warn(key, message, f"Write {key} = {meant:_}, unless this provider really stops at {tokens}.")
    return tokens


def _capabilities(table: Table) -> frozenset[str]:
    words = table.words("capabilities", like='["tools", "json_object"]')
    for index, word in enumerate(words):
        if word not in CAPABILITIES:
            mend = did_you_mean(word, CAPABILITIES, otherwise=f"Write any of {', '.join(sorted(CAPABILITIES))}.")
            table.error("capabilities", f"{quoted(word)} is not a capability.", mend, index=index)
    return frozenset(words)


def _url(table: Table, key: str, *, required: bool, allow_plain_http: bool) -> str | None:
    """An address without its closing slash. What may hide a secret in it is refused, and not quoted."""
    text = table.text(key, like="https://api.moonshot.ai/v1", required=required)
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or any(character.isspace() for character in text):
        table.error(key, f"{key} is not an http or https address.", f'Write it like {key} = "https://host/v1".')
        return None
    trimmed = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    if "@" in parts.netloc or "?" in text or "#" in text:
        message = f"{key} carries credentials, a query or a fragment, and may carry none of them."
        table.error(key, message, f'Write {key} = "{trimmed}", and put secrets into an account\'s api_key.')
    elif key == "base_url" and (endpoint := next((each for each in _ENDPOINTS if trimmed.endswith(each)), None)):
        message = f"base_url ends in {endpoint}, which the gateway appends itself."
        table.error(key, message, f'Write base_url = "{trimmed.removesuffix(endpoint)}".')
    elif parts.scheme == "http" and not _is_loopback(trimmed) and not allow_plain_http:
        message = f"{key} is plain http to another machine, so prompts and credentials would travel unencrypted."
        table.error(key, message, "Write https, or allow_plain_http = true if the way there is private.")
    elif key == "base_url" and host.endswith(".moonshot.cn"):
        message = "This platform bills in CNY, with keys and balances of its own; prices.toml is in USD."
        table.warn(key, message, 'Write base_url = "https://api.moonshot.ai/v1", or keep prices converted to USD.')
    return trimmed


def _is_loopback(url: str | None) -> bool:
    host = _host(urlsplit(url or ""))
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host(parts: SplitResult) -> str:
    return parts.hostname or ""

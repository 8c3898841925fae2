"""`gateway reconcile --balance`: what is left on an account now, and whether its fall is what the ledger says.

The key of some accounts travels in the address that is asked. Nothing of that address is ever said, and no word of a
provider that has the key in it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import click
from pydantic import SecretStr

from gateway import __version__
from gateway.adapters.postgres.provider_balances import ProviderBalances
from gateway.adapters.postgres.tables import moment_text
from gateway.adapters.upstream.aiohttp_client import AiohttpUpstreams
from gateway.catalog import Loaded
from gateway.cli.asking import settled_database
from gateway.cli.common import fail, print_json
from gateway.cli.examination import REDACTED
from gateway.cli.statements import mapping_of
from gateway.core.balance_drift import BalanceDrift, Reading, Span, drifted, spans
from gateway.core.catalogue import ProviderCard
from gateway.core.fields import parse_moment
from gateway.core.money import Money
from gateway.core.statement import StatementError
from gateway.pipeline.ports import UpstreamFailedError
from gateway.providers import DIALECTS
from gateway.settings import environment, read_secret

HTTP_OK: Final = 200
_USD: Final = "USD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One account: its reading, and what came of the time since the reading before; None where this is the first."""

    account: str
    reading: Reading
    spans: Sequence[Span]
    drift: BalanceDrift | None


def check_balances(card: ProviderCard, account: str | None, loaded: Loaded, config_dir: Path, **options: Any) -> None:
    """Every account of a provider, or one. Ends with status 1 where one has drifted further than the tolerance."""
    since = _since(options["since"], options["tz"])
    tolerance = Decimal(str(options["tolerance"]))
    if not tolerance.is_finite() or tolerance < 0:
        raise click.BadParameter("A tolerance is a percentage from 0 up.", param_hint="--tolerance")
    names = [each.name for each in card.accounts] if account is None else [account]
    if not names:
        fail(f"{card.name} has no account.")
    # first what is asked now, then what has ended by then: whatever is charged already is in the ledger as well
    told = asyncio.run(_ask(card, names, loaded, config_dir))
    with settled_database() as url:
        checked = asyncio.run(_check(url, card, told, since, options["usd_per_unit"]))
    if options["as_json"]:
        print_json({"provider": card.name, "accounts": [_json(each, tolerance) for each in checked]})
    else:
        for each in checked:
            _print(card.name, each, tolerance)
    if any(each.drift is not None and not each.drift.is_within(tolerance) for each in checked):
        sys.exit(1)


def _since(text: str | None, tz: str) -> datetime | None:
    try:
        return None if text is None else parse_moment(text, ZoneInfo(tz))
    except (ValueError, OSError) as error:
        raise click.BadParameter(f"{error}.", param_hint="--since") from None


async def _ask(
    card: ProviderCard, accounts: Sequence[str], loaded: Loaded, config_dir: Path
) -> list[tuple[str, Reading]]:
    dialect = DIALECTS[card.dialect]
    url = card.balance_url or dialect.balance_url(card.base_url)
    if url is None:
        where = "the key would travel in its address, so it" if dialect.balance_key_member else "it"
        raise StatementError(
            f"{card.name} has no balance that can be asked for: {where} has to be configured, as balance_url in "
            f"[providers.{card.name}]."
        )
    secrets = {(card.name, account): _secret(card, account, loaded, config_dir) for account in accounts}
    upstreams = AiohttpUpstreams(secrets, user_agent=f"kimi-gateway/{__version__}")
    try:
        return [(account, await _reading(upstreams, card, account, url, secrets)) for account in accounts]
    finally:
        await upstreams.close()


async def _reading(
    upstreams: AiohttpUpstreams,
    card: ProviderCard,
    account: str,
    url: str,
    secrets: dict[tuple[str, str], SecretStr | None],
) -> Reading:
    dialect = DIALECTS[card.dialect]
    who = f"{card.name} ({account})"
    try:
        answer = await upstreams.ask(card.name, account, url, key_member=dialect.balance_key_member)
        if answer.status != HTTP_OK:
            raise StatementError(f"{who} answers HTTP {answer.status} when its balance is asked for.")
        balance = dialect.read_balance(answer.body)
    except UpstreamFailedError as error:
        raise StatementError(f"The balance of {who} cannot be read: {error.failure.message}.") from None
    except (ValueError, ArithmeticError) as error:
        words = _cleared(str(error), secrets[(card.name, account)])
        raise StatementError(f"The balance of {who} cannot be read: {words}.") from None
    return Reading(at=datetime.now(UTC), available=balance.available, used=balance.used, unit=balance.unit)


def _secret(card: ProviderCard, account: str, loaded: Loaded, config_dir: Path) -> SecretStr | None:
    reference = loaded.credentials.get((card.name, account))
    if reference is None:
        return None
    secret = read_secret(reference.as_mapping(), environment(), base=config_dir)
    if secret is None:
        place = reference.env or reference.file
        raise StatementError(f"{card.name} ({account}) has no key: {place} is not set, or empty.")
    return secret


def _cleared(words: str, secret: SecretStr | None) -> str:
    return words if secret is None else words.replace(secret.get_secret_value(), REDACTED)


async def _check(
    url: str,
    card: ProviderCard,
    told: Sequence[tuple[str, Reading]],
    since: datetime | None,
    usd_per_unit: str | None,
) -> list[Checked]:
    store = ProviderBalances(url)
    try:
        return [await _check_account(store, card, account, reading, since, usd_per_unit) for account, reading in told]
    finally:
        await store.close()


async def _check_account(
    store: ProviderBalances,
    card: ProviderCard,
    account: str,
    reading: Reading,
    since: datetime | None,
    usd_per_unit: str | None,
) -> Checked:
    before = await store.before(card.name, account, reading, since)
    await store.keep(card.name, account, reading)
    if not before:
        return Checked(account=account, reading=reading, spans=(), drift=None)
    rate = Decimal(1) if reading.unit == _USD else mapping_of(card, usd_per_unit).usd_per_unit
    assert rate is not None
    told = spans([*before, reading], rate)
    return Checked(
        account=account,
        reading=reading,
        spans=told,
        drift=drifted([(span, await store.spent(card.name, account, span)) for span in told]),
    )


def _json(checked: Checked, tolerance: Decimal) -> dict[str, Any]:
    reading, drift = checked.reading, checked.drift
    shown: dict[str, Any] = {
        "account": checked.account,
        "at": moment_text(reading.at),
        "available": str(reading.available),
        "used": None if reading.used is None else str(reading.used),
        "unit": reading.unit,
        "since": moment_text(checked.spans[0].first.at) if checked.spans else None,
        "readings": len(checked.spans) + 1,
    }
    if drift is None:
        return shown | dict.fromkeys(("charged", "ledger", "least", "most", "drift", "percent", "topped_up", "within"))
    return shown | {
        "charged": str(drift.charged),
        "ledger": str(drift.ledger),
        "least": str(drift.least),
        "most": str(drift.most),
        "drift": str(drift.amount),
        "percent": None if drift.percent is None else str(drift.percent),
        "topped_up": str(drift.topped_up),
        "untold": drift.untold,
        "within": drift.is_within(tolerance),
    }


def _print(provider: str, checked: Checked, tolerance: Decimal) -> None:
    reading, drift = checked.reading, checked.drift
    who = f"{provider} ({checked.account})"
    used = "" if reading.used is None else f", {reading.used} used"
    click.echo(f"{who}: {reading.available} {reading.unit} left{used}, at {moment_text(reading.at)}.")
    if drift is None:
        click.echo("  This is the first reading; the next one is held against the ledger.")
        return
    click.echo(f"  Since {moment_text(checked.spans[0].first.at)}: {drift.charged} USD were charged.")
    click.echo(f"  The ledger has {drift.ledger} USD, from {drift.least} to {drift.most} with what was under way.")
    if drift.topped_up.pico:
        click.echo(f"  {drift.topped_up} USD were paid in.")
    if drift.untold:
        click.echo(f"  {drift.untold} times between readings are left out: the balance rose, by how much nobody knows.")
    if drift.amount == Money(0):
        click.echo("  Nothing has drifted.")
        return
    percent = "of nothing" if drift.percent is None else f"{drift.percent:+} %"
    verdict = "within" if drift.is_within(tolerance) else "beyond"
    click.echo(f"  Drift: {drift.amount} USD ({percent}), {verdict} the tolerance of {tolerance} %.")

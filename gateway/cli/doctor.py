"""`gateway doctor`: is everything there that the gateway needs, and what mends what is not; it changes nothing.

A check is ok, or it warns of what works today and will cost something, or it fails because something does not work.
Every text is cleared of every secret that was read on the way before it is printed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import click
import httpx
import psycopg
import redis
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from gateway.adapters.embedded import LOCATION_FILE, WHEEL, WHEEL_PACKAGE, EmbeddedPostgresError
from gateway.adapters.journal import journals
from gateway.adapters.journal.backlog import unshipped_entries
from gateway.adapters.postgres.schema import SchemaError, current_revision, require_current
from gateway.catalog import CatalogError, Finding, Loaded, load
from gateway.catalog.review import stale_prices
from gateway.cli.alert_checks import check_alerts, check_budgets
from gateway.cli.book_checks import check_archive, check_books, check_rates
from gateway.cli.common import CONFIG, JSON, database, print_json
from gateway.cli.examination import Check, Examination, Status
from gateway.cli.model_checks import check_models, check_tool_calls, check_traffic, retired
from gateway.core.catalogue import Catalogue, ProviderCard
from gateway.settings import (
    ADMIN_TOKEN_FILE,
    Settings,
    SettingsError,
    environment,
    load_settings,
    read_secret,
    refuse_weak_admin_token,
    unknown_variables,
)

CONNECT_SECONDS_MAX: Final = 5
REDIS_VERSION_MIN: Final = 7
STATEMENT_SECONDS_MAX: Final = 10
ONLINE_SECONDS_MAX: Final = 15.0
ONLINE_BYTES_MAX: Final = 4 * 1024 * 1024
SKEW_SECONDS_WARN: Final = 2.0
SKEW_SECONDS_FAIL: Final = 60.0
YEARS: Final = range(2025, 2100)
"""A clock outside of these would date prices, keys and ledger rows wrongly."""
FREE_BYTES_FAIL: Final = 256 * 1024 * 1024
"""Room for four journal segments; with less the journal is about to refuse new work."""
FREE_BYTES_WARN: Final = 2 * 1024 * 1024 * 1024
BEHIND_WARN: Final = 1_000
"""A running gateway ships within a second; more attempts than this say that it does not."""
_COLOURS: Final[Mapping[Status, str]] = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--online", is_flag=True, help="Also ask each provider for its list of models, which costs nothing.")
@CONFIG
@JSON
def doctor(config_dir: Path | None, *, online: bool, as_json: bool) -> None:
    """Check configuration, database, Redis, credentials, clock, prices and disk; say how to mend what is not well."""
    found = examine(config_dir, now=datetime.now(UTC), online=online)
    checks = found.cleared()
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "status": found.status})
    else:
        _print(checks)
    if found.status == "fail":
        sys.exit(1)


def examine(config_dir: Path | None, *, now: datetime, online: bool) -> Examination:
    """Every check, in the order in which somebody would mend them."""
    found = Examination()
    settings = _settings(found, config_dir)
    if settings is None:
        return found
    _keep_out_of(found, settings)
    loaded = check_config(found, settings.config_dir, now=now)
    check_admin_token(found, settings)
    check_replicas(found, settings)
    check_data_dir(found, settings.data_dir)
    catalogue = None if loaded is None else loaded.catalogue
    ahead_seconds = check_database(found, settings, catalogue, now=now)
    check_clock(found, now=now, ahead_seconds=ahead_seconds)
    check_redis(found, settings)
    if loaded is not None:
        check_credentials(found, loaded, settings.config_dir, now=now, online=online)
        check_prices(found, loaded, settings.config_dir, now=now)
        check_models(found, loaded.catalogue, now=now)
    return found


# --- settings and files ----------------------------------------------------------------------------------------------


def _settings(found: Examination, config_dir: Path | None) -> Settings | None:
    """The settings in force; with a weak admin token as the only trouble the rest is looked at all the same."""
    overrides: dict[str, object] = {} if config_dir is None else {"config_dir": config_dir}
    variables = environment()
    settings = None
    try:
        settings = load_settings(**overrides)
    except SettingsError as error:
        for line in str(error).splitlines():
            name = "admin_token" if line.startswith("GATEWAY_ADMIN_TOKEN ") else "settings"
            found.fail(name, line, "Change that variable, in the environment or in .env.")
        try:
            settings = load_settings(**overrides, admin_token=None)
        except SettingsError:
            return None
        found.keep_out(variables.get("GATEWAY_ADMIN_TOKEN"))
    warnings = unknown_variables(variables)
    for warning in warnings:
        found.warn("settings", warning, "Correct or remove the variable.")
    if not found.checks:
        found.ok("settings", "Every variable that is set can be used.")
    return settings


def _keep_out_of(found: Examination, settings: Settings) -> None:
    if settings.admin_token is not None:
        found.keep_out(settings.admin_token.get_secret_value())
    for webhook in (settings.alert_webhook_url, settings.alert_webhook_secret):
        found.keep_out(None if webhook is None else webhook.get_secret_value())
    for url in (settings.database_url, settings.redis_url):
        password = None if url is None else _password(url.get_secret_value())
        if password is not None:
            found.keep_out(password)
            found.keep_out(unquote(password))


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return url


def check_config(found: Examination, config_dir: Path, *, now: datetime) -> Loaded | None:
    """Every finding about the three files; what is said of retirements has a check of its own."""
    try:
        loaded = load(config_dir, now=now)
    except CatalogError as error:
        for finding in error.findings:
            _tell(found, finding)
        return None
    gone = tuple(f"{each.provider} {each.model} is " for each in retired(loaded.catalogue, now=now))
    others = [finding for finding in loaded.findings if not finding.message.startswith(gone or ("\0",))]
    for finding in others:
        _tell(found, finding)
    if not others:
        catalogue = loaded.catalogue
        found.ok(
            "config",
            f"{config_dir}: {len(catalogue.providers)} providers, {len(catalogue.models)} models, "
            f"{len(catalogue.prices.rows())} price rows.",
        )
    return loaded


def _tell(found: Examination, finding: Finding) -> None:
    say = found.fail if finding.level == "error" else found.warn
    say("config", f"{finding.file}:{finding.line}: {finding.message}", finding.mend)


def check_admin_token(found: Examination, settings: Settings) -> None:
    """Strong, and readable by nobody else."""
    if any(check.name == "admin_token" for check in found.checks):
        return  # a weak one in the environment was found with the settings
    if settings.admin_token is not None:
        found.ok("admin_token", "GATEWAY_ADMIN_TOKEN is set and not easily guessed.")
        return
    path = settings.data_dir / ADMIN_TOKEN_FILE
    if not path.exists():
        found.ok("admin_token", f"The first start generates one into {path}.")
        return
    mend = f"Delete {path} to have a new one generated at the next start."
    try:
        token = read_secret({"file": str(path.resolve())}, {}) or SecretStr("")
        refuse_weak_admin_token(token, source=str(path), mend="")
    except SettingsError as error:
        found.fail("admin_token", str(error).strip(), mend)
        return
    found.keep_out(token.get_secret_value())
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        found.warn("admin_token", f"{path} can be read by others.", f"Run: chmod 600 {path}")
    else:
        found.ok("admin_token", f"{path} holds one that nobody else can read.")


def check_replicas(found: Examination, settings: Settings) -> None:
    """Whether replicas on other hosts would know the same conversations: their digests are keyed by the admin token."""
    if settings.redis_url is None:
        return
    if settings.admin_token is not None:
        found.ok("replicas", "Replicas with this GATEWAY_ADMIN_TOKEN share what they know of conversations.")
        return
    found.ok(
        "replicas",
        "Workers of this host share what they know of conversations. Other hosts do once GATEWAY_ADMIN_TOKEN is set to "
        "the same on all of them.",
    )


def check_data_dir(found: Examination, data_dir: Path) -> None:
    """It takes files, and has room for the journal."""
    there = next(path for path in (data_dir.resolve(), *data_dir.resolve().parents) if path.exists())
    mend = "Give the gateway's account the right to write there, or set GATEWAY_DATA_DIR to another folder."
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
    except OSError as error:
        found.fail("data_dir", f"{there} takes no files: {error.strerror or type(error).__name__}.", mend)
        return
    free = shutil.disk_usage(there).free
    state = f"{data_dir} takes files" if there == data_dir.resolve() else f"{data_dir} can be created"
    message = f"{state}; {free // 1024**2:,} MiB are free."
    room = "Make room: the journal keeps a week of traffic, and a full disk stops new requests."
    if free < FREE_BYTES_FAIL:
        found.fail("data_dir", message, room)
    elif free < FREE_BYTES_WARN:
        found.warn("data_dir", message, room)
    else:
        found.ok("data_dir", message)


# --- servers ---------------------------------------------------------------------------------------------------------


def check_database(
    found: Examination, settings: Settings, catalogue: Catalogue | None, *, now: datetime
) -> float | None:
    """Reachable, of this version's schema, with nothing set aside and nothing left behind. Answers how many seconds
    its clock is ahead of ours; None where nobody could ask."""
    if settings.is_embedded and not _has_embedded_database(settings.data_dir):
        if importlib.util.find_spec(WHEEL_PACKAGE) is None:
            mend = f"Install the package {WHEEL}, or set GATEWAY_DATABASE_URL."
            found.fail("database", "There is no GATEWAY_DATABASE_URL and no embedded PostgreSQL either.", mend)
        else:
            found.ok("database", "The first start makes an embedded PostgreSQL in the data directory.")
        return None
    try:
        with database(settings, migrated=False) as url:
            return _look_at_database(found, settings, url, catalogue, now=now)
    except EmbeddedPostgresError as error:
        found.fail("database", str(error), "Mend what the message names; the server's log is in its folder.")
    except psycopg.Error as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        found.fail("database", f"The database does not answer as it should: {reason}", "Look into its log.")
    except (ValueError, SQLAlchemyError) as error:  # their words may hold a part of the URL
        message = f"The database cannot be asked ({type(error).__name__})."
        found.fail("database", message, "Correct GATEWAY_DATABASE_URL: postgresql://user:password@host:5432/name")
    return None


def _has_embedded_database(data_dir: Path) -> bool:
    return (data_dir / "postgres").exists() or (data_dir / LOCATION_FILE).exists()


def _look_at_database(
    found: Examination, settings: Settings, url: str, catalogue: Catalogue | None, *, now: datetime
) -> float | None:
    try:
        revision = current_revision(url)
    except SchemaError as error:
        found.fail("database", str(error), "Start it, or correct GATEWAY_DATABASE_URL.")
        return None
    options = f"-c statement_timeout={STATEMENT_SECONDS_MAX}s"
    with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS_MAX, options=options) as db:
        before = datetime.now(UTC)
        row = db.execute("SELECT clock_timestamp(), current_setting('server_version')").fetchone()
        after = datetime.now(UTC)
        assert row is not None
        kind = "embedded" if settings.is_embedded else "GATEWAY_DATABASE_URL"
        found.ok("database", f"PostgreSQL {row[1]} answers ({kind}).")
        if _check_schema(found, settings, url, revision):
            _check_dead_letters(found, db)
            _check_backlog(found, db, settings.data_dir)
            check_budgets(found, db, now=now)
            check_alerts(found, db)
            check_books(found, db, now=now)
            check_archive(found, db, settings.archive_folder)
            if catalogue is not None:
                check_rates(found, db, catalogue)
                check_traffic(found, db, catalogue, now=now)
                check_tool_calls(found, db, catalogue, now=now)
    middle = before + (after - before) / 2
    return float((row[0] - middle).total_seconds())


def _check_schema(found: Examination, settings: Settings, url: str, revision: str | None) -> bool:
    """Whether the tables are those that this version knows."""
    try:
        require_current(url)
    except SchemaError as error:
        if settings.migrates_at_start:
            found.warn("schema", str(error), "Nothing to do unless it is newer: `gateway serve` migrates at its start.")
        else:
            found.fail("schema", str(error), "Run: gateway migrate")
        return False
    found.ok("schema", f"The schema is up to date ({revision}).")
    return True


def _check_dead_letters(found: Examination, db: psycopg.Connection[Any]) -> None:
    row = db.execute("SELECT count(*), max(set_aside_at) FROM ledger_dead_letters").fetchone()
    assert row is not None
    count, latest = row
    if not count:
        found.ok("ledger", "No record was ever set aside.")
        return
    message = f"{count} records were set aside, the last one at {latest.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}."
    found.fail("ledger", message, "Money may be in them: read `reason` in ledger_dead_letters (docs/ledger.md).")


def _check_backlog(found: Examination, db: psycopg.Connection[Any], data_dir: Path) -> None:
    rows = db.execute("SELECT journal_id, segment, byte_offset FROM journal_offsets").fetchall()
    offsets = {journal_id: (segment, byte_offset) for journal_id, segment, byte_offset in rows}
    behind = unshipped_entries(data_dir, offsets)
    known = journals(data_dir)
    is_running = any(journal.is_live for journal in known)
    left = sum(not journal.is_live and not journal.is_shipped for journal in known)
    if not behind:
        closing = f"; {left} journals of stopped gateways are closed by the next one." if left else "."
        found.ok("journal", f"Every settled attempt in the journals is in the database{closing}")
    elif is_running and behind <= BEHIND_WARN:
        found.ok("journal", f"{behind} attempts are on their way to the database.")
    elif is_running:
        found.warn("journal", f"{behind} attempts are not in the database.", "See /readyz for what keeps them.")
    else:
        found.warn("journal", f"{behind} attempts of a stopped gateway are not in the database.", "Run: gateway serve")


def check_clock(found: Examination, *, now: datetime, ahead_seconds: float | None) -> None:
    """A year that can be, and the database's opinion: prices, keys and months go by this clock."""
    mend = "Set the clock, and let NTP keep it."
    if now.year not in YEARS:
        found.fail("clock", f"The system's clock says {now:%Y-%m-%d}.", mend)
    elif ahead_seconds is None:
        found.ok("clock", f"{now:%Y-%m-%dT%H:%M:%SZ}; there was no database to compare it with.")
    else:
        message = f"{now:%Y-%m-%dT%H:%M:%SZ}; the database's clock is {abs(ahead_seconds):.1f} s " + (
            "ahead." if ahead_seconds >= 0 else "behind."
        )
        if abs(ahead_seconds) > SKEW_SECONDS_FAIL:
            found.fail("clock", message, mend)
        elif abs(ahead_seconds) > SKEW_SECONDS_WARN:
            found.warn("clock", message, mend)
        else:
            found.ok("clock", message)


def check_redis(found: Examination, settings: Settings) -> None:
    """It answers, where one is configured."""
    if settings.redis_url is None:
        found.ok("redis", "Not configured; one worker needs none.")
        return
    mend = "Start it, or correct or unset GATEWAY_REDIS_URL."
    try:
        client = redis.Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=CONNECT_SECONDS_MAX,
            socket_connect_timeout=CONNECT_SECONDS_MAX,
        )
        with client:
            told = client.info()
    except (redis.RedisError, OSError, ValueError) as error:
        found.fail("redis", f"Redis does not answer: {type(error).__name__}.", mend)
        return
    version, policy = str(told.get("redis_version", "")), str(told.get("maxmemory_policy", ""))
    if version.partition(".")[0].isdigit() and int(version.partition(".")[0]) < REDIS_VERSION_MIN:
        found.fail("redis", f"Redis {version} is too old.", f"Run Redis {REDIS_VERSION_MIN} or later, or Valkey.")
    elif told.get("maxmemory") and policy != "noeviction":
        mend = "Set maxmemory-policy to noeviction, or give the gateway a Redis of its own."
        found.warn("redis", f"Redis may throw away what is held of budgets when it is full ({policy}).", mend)
    else:
        found.ok("redis", "Redis answers.")


# --- providers -------------------------------------------------------------------------------------------------------


def check_credentials(found: Examination, loaded: Loaded, config_dir: Path, *, now: datetime, online: bool) -> None:
    """Every account has its credential, and with ``online`` the provider takes it."""
    variables = environment()
    usable = 0
    for card, account in _accounts(loaded.catalogue):
        who = f"{card.name} ({account})"
        reference = loaded.credentials.get((card.name, account))
        secret = None
        if reference is None:
            found.ok("credential", f"{who} needs none.")
        else:
            try:
                secret = read_secret(reference.as_mapping(), variables, base=config_dir)
            except SettingsError as error:
                found.fail("credential", f"{who}: {error}", "Make the file readable, or name another.")
                continue
            place = reference.env or reference.file
            if secret is None:
                mend = f"Set {place}; until then the account gets no traffic."
                found.warn("credential", f"{who} has none: {place} is not set, or empty.", mend)
                continue
            found.keep_out(secret.get_secret_value())
            if not _fits_a_header(secret.get_secret_value()):
                found.fail("credential", f"{who}: {place} holds spaces or unprintable characters.", "Copy it again.")
                continue
            found.ok("credential", f"{who} has one, from {place}.")
        usable += 1
        if online:
            check_online(found, card, who, secret, now=now)
    if not usable:
        found.fail("credential", "No account has a credential, so nothing can be routed.", "Set at least one of them.")


def _accounts(catalogue: Catalogue) -> Iterator[tuple[ProviderCard, str]]:
    for _, card in sorted(catalogue.providers.items()):
        for account in card.accounts:
            yield card, account.name


def _fits_a_header(secret: str) -> bool:
    return secret.isascii() and secret.isprintable() and " " not in secret


def check_online(found: Examination, card: ProviderCard, who: str, secret: SecretStr | None, *, now: datetime) -> None:
    """One free call with the account's credential: no redirect is followed, and what comes back is not shown."""
    url = f"{card.base_url}/models"
    try:
        status, body = _get(url, secret)
    except httpx.HTTPError as error:
        message = f"{who} cannot be reached at {card.base_url}: {type(error).__name__}."
        found.fail("online", message, "Check base_url, the name service and the firewall.")
        return
    names = _model_names(body) if status == 200 else None
    if names is not None:
        wanted = {each.upstream for each in card.deployments.values() if each.is_available(now.date())}
        if missing := sorted(wanted - names):
            message = f"{who} takes the credential and does not list {', '.join(missing)}."
            found.warn("online", message, "Correct `upstream`, or write available_until once it is certain.")
        else:
            found.ok("online", f"{who} takes the credential and lists every model that is configured.")
    elif status in (401, 403):
        found.fail("online", f"{who} refuses the credential (HTTP {status}).", "Compare key, account and base_url.")
    elif 300 <= status < 400:
        found.fail("online", f"{who} answers with a redirect (HTTP {status}).", "Correct base_url; it ends in /v1.")
    else:
        message = f"{who} answers HTTP {status}, not a list of models: the credential is not proved."
        found.warn("online", message, "Some providers have no such list; a first request shows whether it works.")


def _get(url: str, secret: SecretStr | None) -> tuple[int, bytes]:
    """Status and body, as much of it as may be. Raises httpx.HTTPError, also when it takes too long in all."""
    headers = {} if secret is None else {"authorization": f"Bearer {secret.get_secret_value()}"}
    deadline = time.monotonic() + ONLINE_SECONDS_MAX
    parts: list[bytes] = []
    with (
        httpx.Client(timeout=ONLINE_SECONDS_MAX, follow_redirects=False, trust_env=False) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        for part in answer.iter_bytes():
            parts.append(part)
            if sum(map(len, parts)) > ONLINE_BYTES_MAX:
                break
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the whole answer took too long")
        return answer.status_code, b"".join(parts)


def _model_names(body: bytes) -> frozenset[str] | None:
    """The ids of an OpenAI-like list, None for anything else."""
    try:
        rows = json.loads(body)["data"]
        return frozenset(str(row["id"]) for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def check_prices(found: Examination, loaded: Loaded, config_dir: Path, *, now: datetime) -> None:
    """Prices that somebody has compared with their source within half a year."""
    stale = stale_prices(loaded, config_dir, now=now)
    for finding in stale:
        found.warn("prices", f"{finding.file}:{finding.line}: {finding.message}", finding.mend)
    if not stale:
        found.ok("prices", "Every price that holds was compared with its source within the last 180 days.")


# --- output ----------------------------------------------------------------------------------------------------------


def _print(checks: Sequence[Check]) -> None:
    """A line for each check and one for its mend; colour on a terminal only."""
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        mark = click.style(f"{check.status:4}", fg=_COLOURS[check.status])
        click.echo(f"{mark}  {check.name:{width}}  {check.message}")
        if check.mend is not None:
            click.echo(f"{'':4}  {'':{width}}  Mend: {check.mend}")
    counts = {status: sum(check.status == status for check in checks) for status in _COLOURS}
    click.echo(f"ok: {counts['ok']}  warnings: {counts['warn']}  failures: {counts['fail']}")

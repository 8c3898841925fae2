"""`gateway reconcile`: a provider's statement, or what is left on its account, against the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from gateway.adapters.postgres.reconciliation import Reconciliation, reconciling
from gateway.catalog import Loaded, load
from gateway.cli.asking import settled_database
from gateway.cli.balance_check import check_balances
from gateway.cli.common import CONFIG, JSON, expected_errors, fail, settings_with
from gateway.cli.reconciled import Compared, apply, print_compared
from gateway.cli.statements import StatementFile, mapping_of, opened
from gateway.core.catalogue import Catalogue, ProviderCard
from gateway.core.fields import FieldError
from gateway.core.statement import StatementError
from gateway.http.books import period


@click.command()
@click.option("--provider", required=True, help="Whose statement or balance, by its name in providers.toml.")
@click.option("--account", help="Only this account of the provider.")
@click.option(
    "--statement",
    "path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="The provider's statement: CSV, JSON or JSON Lines; - is standard input.",
)
@click.option("--balance", is_flag=True, help="Read the balance now, and hold its fall against the ledger.")
@click.option("--from", "start", help="First moment; of the statement's first line without it.")
@click.option("--to", "end", help="End, itself not included; of the statement's last line without it.")
@click.option("--tz", default="UTC", show_default=True, help="Time zone of dates.")
@click.option("--apply", "is_applied", is_flag=True, help="Write what is proposed as corrections.")
@click.option("--reason", help="Why, for the books; needed with --apply.")
@click.option("--adjust-prices", is_flag=True, help="With --apply also lines that another price explains, one by one.")
@click.option("--skip-bad-lines", is_flag=True, help="Go on without lines that cannot be read; they are counted.")
@click.option("--usd-per-unit", help="What one unit of the amounts costs, where they are not in USD.")
@click.option("--since", help="With --balance: from the first reading at or after this moment, not from the last one.")
@click.option("--tolerance", default=1.0, show_default=True, help="With --balance: percent of drift that are no alarm.")
@CONFIG
@JSON
@expected_errors
def reconcile(
    provider: str, account: str | None, path: Path | None, config_dir: Path | None, *, balance: bool, **options: Any
) -> None:
    """A provider's statement, or its balance, against the ledger.

    Ends with 0 when both sides were compared, whatever was found; a balance that has drifted further than the
    tolerance ends with 1.
    """
    if (path is None) == (not balance):
        raise click.UsageError("Give either --statement FILE or --balance.")
    if options["is_applied"] and not (options["reason"] or "").strip():
        raise click.UsageError("--apply needs --reason: somebody will ask why.")
    config = settings_with(config_dir=config_dir).config_dir
    loaded = load(config, now=datetime.now(UTC))
    card = _card(loaded, provider, account)
    try:
        if path is None:
            check_balances(card, account, loaded, config, **options)
        else:
            _reconcile(loaded.catalogue, card, account, path, **options)
    except StatementError as error:
        fail(str(error))


def _card(loaded: Loaded, provider: str, account: str | None) -> ProviderCard:
    providers = loaded.catalogue.providers
    card = providers.get(provider)
    if card is None:
        known = ", ".join(sorted(providers))
        raise click.BadParameter(f"{provider!r} is not configured; known: {known}.", param_hint="--provider")
    if account is not None and account not in {each.name for each in card.accounts}:
        known = ", ".join(sorted(each.name for each in card.accounts))
        raise click.BadParameter(f"{provider} has no account {account!r}; known: {known}.", param_hint="--account")
    return card


def _reconcile(catalogue: Catalogue, card: ProviderCard, account: str | None, path: Path, **options: Any) -> None:
    mapping = mapping_of(card, options["usd_per_unit"])
    with settled_database() as url, reconciling(url) as found:
        with opened(path, mapping) as file:
            found.take(file.lines())
        _refuse_bad_lines(file, is_skipped=options["skip_bad_lines"])
        start, end = _period(file, options["start"], options["end"], options["tz"])
        _refuse_archived(found, start)
        compared = Compared(
            card=card,
            account=account,
            catalogue=catalogue,
            file=file,
            start=start,
            end=end,
            quantum_pico=file.reader.quantum_pico(),
            found=found,
            adjusts_prices=options["adjust_prices"],
        )
        applied = None
        if options["is_applied"]:
            applied = apply(compared, url, reason=options["reason"].strip(), path=path)
        print_compared(compared, applied, as_json=options["as_json"])


def _refuse_bad_lines(file: StatementFile, *, is_skipped: bool) -> None:
    if not file.bad_count or is_skipped:
        return
    for line in file.bad:
        click.echo(f"line {line.number}: {line.reason}", err=True)
    more = file.bad_count - len(file.bad)
    if more:
        click.echo(f"… and {more:,} more", err=True)
    fail(f"{file.bad_count:,} lines cannot be read. Mend them, or count them out with --skip-bad-lines.")


def _period(file: StatementFile, start: str | None, end: str | None, tz: str) -> tuple[datetime, datetime]:
    """The one that was asked for; what is not said is as the statement spans."""
    first, last = file.reader.first_at, file.reader.last_at
    if (start is None or end is None) and (first is None or last is None):
        raise StatementError("The statement has no times: say its period with --from and --to.")
    try:
        begins, ends = period(start or "0001-01-02", end or "9999-12-30", tz, now=datetime.now(UTC))
    except FieldError as error:
        raise click.BadParameter(str(error), param_hint=f"--{error.field}") from None
    if start is None and first is not None:
        begins = first
    if end is None and last is not None:
        ends = last + max(file.reader.resolution(), timedelta(microseconds=1))
    if begins > ends:
        raise StatementError("The statement has no line in that period.")
    return begins, ends


def _refuse_archived(found: Reconciliation, start: datetime) -> None:
    until = found.archived_until()
    if until is not None and start < until:
        raise StatementError(
            f"Everything before {until:%Y-%m-%d} is archived: its rows are in Parquet files and not in the database. "
            f"Compare from --from {until:%Y-%m-%d} on, or look into the archive with `gateway ledger list`."
        )

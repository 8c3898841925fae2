"""What every command shares: settings read once, a database to talk to, errors as one line, results as JSON or text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import click
import msgspec

from gateway.adapters.embedded import SERVER_SETTINGS, EmbeddedPostgresError, embedded
from gateway.adapters.postgres.schema import SchemaError, migrate, require_current
from gateway.catalog import CatalogError
from gateway.settings import Settings, SettingsError, load_settings

P = ParamSpec("P")
R = TypeVar("R")

CONNECTIONS_OF_A_WORKER: Final = 16
"""To the embedded database, at the most; as many are left to commands that are run beside the workers."""

CONFIG = click.option(
    "--config",
    "config_dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with providers.toml, models.toml and prices.toml; GATEWAY_CONFIG_DIR or ./config without it.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def fail(message: str) -> NoReturn:
    """Says why on standard error and ends with status 1."""
    click.echo(f"gateway: {message}", err=True)
    sys.exit(1)


def expected_errors(command: Callable[P, R]) -> Callable[P, R]:
    """What an operator can mend is told in a line, without a trace."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (SettingsError, CatalogError, SchemaError, EmbeddedPostgresError) as error:
            fail(str(error))

    return run


def settings_with(**overrides: object) -> Settings:
    """The environment's settings under the options that were given (None = not given)."""
    return load_settings(**{name: value for name, value in overrides.items() if value is not None})


@contextmanager
def database(settings: Settings, *, migrated: bool = True) -> Iterator[str]:
    """The URL of the database in force, up to date; the embedded one runs for as long as the block."""
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        if migrated:
            bring_up_to_date(settings, url)
        yield url
        return
    connections = max(int(SERVER_SETTINGS["max_connections"]), CONNECTIONS_OF_A_WORKER * (settings.workers + 1))
    with embedded(settings.data_dir, settings={"max_connections": str(connections)}) as url:
        if migrated:
            bring_up_to_date(settings, url)
        yield url


def bring_up_to_date(settings: Settings, url: str) -> None:
    """Migrates where the settings say so, else insists that somebody has."""
    if settings.migrates_at_start:
        migrate(url)
    else:
        require_current(url)


def print_json(value: Any) -> None:
    """Estimates are JSON numbers, amounts decimal strings: the same as the admin API prints."""
    text = msgspec.json.Encoder(decimal_format="number").encode(value)
    click.echo(msgspec.json.format(text, indent=2).decode())

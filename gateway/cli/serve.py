"""`gateway serve`: the server, in one process or several; it starts whole or says in a line why not."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from gateway.adapters.logs import configure_logs
from gateway.adapters.workers import Address, AddressError
from gateway.app import Gateway, prepare_database
from gateway.cli.common import CONFIG, database, expected_errors, fail, settings_with
from gateway.cli.workers import serve_workers
from gateway.settings import Settings, unknown_variables


@click.command()
@CONFIG
@click.option("--host", help="Address to listen on; GATEWAY_HOST or 127.0.0.1 without it.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; GATEWAY_PORT or 8080 without it.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; more than one needs Redis.")
@expected_errors
def serve(config_dir: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the gateway."""
    settings = settings_with(config_dir=config_dir, host=host, port=port, workers=workers)
    configure_logs(level=settings.log_level, form=settings.log_format)
    for warning in unknown_variables(os.environ):
        logging.getLogger("gateway").warning(warning)
    if settings.workers > 1:
        _serve_workers(settings)
        return
    with database(settings, migrated=False) as url:
        prepare_database(settings, url)
        Gateway(settings, url).serve()


def _serve_workers(settings: Settings) -> None:
    try:
        address = Address(settings.host, settings.port)
    except AddressError as error:
        fail(str(error))
    with address, database(settings, migrated=False) as url:
        prepare_database(settings, url)
        fault = serve_workers(settings, address)
    if fault is not None:
        fail(fault)

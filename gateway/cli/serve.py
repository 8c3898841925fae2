"""`gateway serve`: the server, one process; it starts whole or says in a line why not."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from gateway.adapters.logs import configure_logs
from gateway.app import Gateway, prepare_database
from gateway.cli.common import CONFIG, database, expected_errors, fail, settings_with
from gateway.settings import unknown_variables


@click.command()
@CONFIG
@click.option("--host", help="Address to listen on; GATEWAY_HOST or 127.0.0.1 without it.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; GATEWAY_PORT or 8080 without it.")
@click.option("--workers", type=click.IntRange(1, 256), help="Processes; more than one needs Redis.")
@expected_errors
def serve(config_dir: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Serve the gateway."""
    settings = settings_with(config_dir=config_dir, host=host, port=port, workers=workers)
    if settings.workers > 1:
        fail("several workers are not supported yet: run one process per port behind a load balancer instead.")
    configure_logs(level=settings.log_level, form=settings.log_format)
    for warning in unknown_variables(os.environ):
        logging.getLogger("gateway").warning(warning)
    with database(settings, migrated=False) as url:
        prepare_database(settings, url)
        Gateway(settings, url).serve()
